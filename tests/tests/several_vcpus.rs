//! A VM with several vCPUs is not recomputed but copied, epoch by epoch: it outlives its hosts like any other.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::path::PathBuf;
use std::time::Duration;

use lockstep_demo::outside::{Losses, Outside};
use lockstep_tests::network::{self, GUEST};
use lockstep_tests::pair::{Node, Pair, plug, power_off};
use lockstep_tests::qemu::processes::eventually;
use lockstep_tests::redis::cli;

const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration of a VM with two vCPUs, with a timing in which a busy machine is not taken for a dead host.
fn two_vcpus(pair: &Pair) -> PathBuf {
    let patient = "heartbeat_ms = 20\nlease_ms = 800\ntimeout_ms = 1000";
    let config = pair.changed_config("heartbeat_ms = 20", patient).unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("memory_mib", "vcpus = 2\nmemory_mib")).unwrap();
    config
}

/// Starts both nodes of a pair whose VM has two vCPUs.
fn start_both(pair: &Pair) -> (Node, Node, PathBuf) {
    let config = two_vcpus(pair);
    let mut b = pair.start_with(&config, "b", "backup").unwrap();
    let mut a = pair.start_with(&config, "a", "primary").unwrap();
    a.wait_until_role("primary").unwrap();
    b.wait_until_role("backup").unwrap();
    plug(&["a", "b"]).unwrap();
    (a, b, config)
}

fn until_acked(outside: &Outside, replies: u64) {
    let acked = || Ok((outside.seen().acked >= replies).then_some(()));
    eventually("replies", PATIENCE, acked).unwrap();
}

#[test]
fn a_vm_with_two_vcpus_loses_nothing_when_its_host_dies_under_load() {
    network::alone(
        "a_vm_with_two_vcpus_loses_nothing_when_its_host_dies_under_load",
        || {
            let pair = Pair::mirrored().unwrap();
            let (mut a, mut b, _) = start_both(&pair);
            assert_eq!(cli("PING").unwrap(), "PONG");
            let clients = Outside::start(GUEST, 8, 1).unwrap();
            until_acked(&clients, 1000);
            let deltas = a.status().unwrap()["deltas"].as_u64().unwrap();
            a.kill();
            let before = clients.seen().acked;
            b.wait_until_role("alone").unwrap();
            until_acked(&clients, before + 1000);

            let memory = clients.stop().unwrap();

            let seen = memory.seen();
            println!(
                "{} replies, {deltas} deltas, outage {:?}",
                seen.acked, seen.longest_gap
            );
            assert_eq!((seen.wrong, seen.broken), (0, 0), "{:?}", seen.stories);
            assert_eq!(memory.read_back(GUEST).unwrap(), Losses::default());
            assert!(deltas > 100, "every epoch is a delta, but there were {deltas}");
        },
    );
}

#[test]
fn a_vm_with_two_vcpus_outlives_both_its_hosts_in_turn() {
    network::alone("a_vm_with_two_vcpus_outlives_both_its_hosts_in_turn", || {
        let pair = Pair::mirrored().unwrap();
        let (mut a, mut b, config) = start_both(&pair);
        assert_eq!(cli("SET first kept").unwrap(), "OK");
        a.kill();
        b.wait_until_role("alone").unwrap();
        assert_eq!(cli("GET first").unwrap(), "kept");

        let mut a = pair.start_spare_with(&config, "a").unwrap();
        b.wait_until_role("primary").unwrap();
        a.wait_until_role("backup").unwrap();
        plug(&["a"]).unwrap();
        assert_eq!(cli("SET second kept").unwrap(), "OK");
        b.kill();
        a.wait_until_role("alone").unwrap();

        assert_eq!(cli("MGET first second").unwrap(), "kept\nkept");
    });
}

#[test]
fn a_vm_with_two_vcpus_switches_itself_off_on_both_hosts() {
    network::alone("a_vm_with_two_vcpus_switches_itself_off_on_both_hosts", || {
        let pair = Pair::mirrored().unwrap();
        let (mut a, mut b, _) = start_both(&pair);
        assert_eq!(cli("SET key value").unwrap(), "OK");

        power_off(&mut a, &mut b).unwrap();

        assert!(pair.has_same_images().unwrap());
    });
}

#[test]
fn a_vm_with_two_vcpus_goes_on_from_its_snapshot() {
    network::alone("a_vm_with_two_vcpus_goes_on_from_its_snapshot", || {
        let pair = Pair::new().unwrap();
        let config = two_vcpus(&pair);
        let mut first = pair.start_alone(&config, &[]).unwrap();
        assert_eq!(cli("SET kept this").unwrap(), "OK");
        pair.snapshot("a", "vm.snapshot").unwrap();
        first.stop();
        assert_eq!(first.wait_for_end().unwrap().0, Some(0));

        let file = pair.path("vm.snapshot");
        let from = ["--from", file.to_str().unwrap()];
        let _second = pair.start_alone(&config, &from).unwrap();

        assert_eq!(cli("GET kept").unwrap(), "this");
    });
}

#[test]
fn a_snapshot_of_two_vcpus_is_refused_by_a_vm_with_one() {
    network::alone("a_snapshot_of_two_vcpus_is_refused_by_a_vm_with_one", || {
        let pair = Pair::new().unwrap();
        let config = two_vcpus(&pair);
        let mut first = pair.start_alone(&config, &[]).unwrap();
        assert_eq!(cli("PING").unwrap(), "PONG");
        pair.snapshot("a", "vm.snapshot").unwrap();
        first.stop();
        first.wait_for_end().unwrap();

        let file = pair.path("vm.snapshot");
        let from = ["--alone", "--from", file.to_str().unwrap()];
        let mut second = pair
            .start_more(&pair.path("vm.toml"), "a", "primary", &from)
            .unwrap();
        let (code, words) = second.wait_for_end().unwrap();

        assert_eq!(code, Some(1), "{words}");
        assert!(
            words.contains("2 vCPUs, this one has 1; set vcpus to 2"),
            "{words}"
        );
    });
}
