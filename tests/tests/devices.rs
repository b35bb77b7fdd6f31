//! A host that loses one of its device processes cannot serve the guest any more; the other one can.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use lockstep_tests::network;
use lockstep_tests::pair::Pair;
use lockstep_tests::redis::cli;
use nix::sys::signal::Signal;

#[test]
fn a_primary_whose_network_process_dies_hands_over_to_its_backup() {
    let name = "a_primary_whose_network_process_dies_hands_over_to_its_backup";
    network::alone(name, || {
        let pair = Pair::new().unwrap();
        let (mut a, mut b) = pair.start_both().unwrap();
        assert_eq!(cli("SET key value").unwrap(), "OK");

        a.signal_device("net", Signal::SIGKILL).unwrap();
        b.wait_until_role("alone").unwrap();

        assert_eq!(cli("GET key").unwrap(), "value");
        let (code, words) = a.wait_for_end().unwrap();
        assert_eq!(code, Some(1));
        assert!(words.contains("network card is gone"), "{words}");
        assert!(words.contains("lockstep standby"), "{words}");
    });
}

#[test]
fn a_backup_whose_disk_process_dies_leaves_and_the_primary_goes_on() {
    let name = "a_backup_whose_disk_process_dies_leaves_and_the_primary_goes_on";
    network::alone(name, || {
        let pair = Pair::new().unwrap();
        let (mut a, mut b) = pair.start_both().unwrap();
        assert_eq!(cli("SET key value").unwrap(), "OK");

        b.signal_device("blk", Signal::SIGKILL).unwrap();
        a.wait_until_role("alone").unwrap();

        assert_eq!(cli("GET key").unwrap(), "value");
        let (code, words) = b.wait_for_end().unwrap();
        assert_eq!(code, Some(1));
        assert!(words.contains("disk is gone"), "{words}");
    });
}
