//! A VM with several vCPUs is not recomputed but copied, epoch by epoch: it outlives its hosts like any other.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use lockstep_tests::network;
use lockstep_tests::pair::{Node, Pair, plug, power_off};
use lockstep_tests::redis::cli;

/// Starts both nodes of a pair whose VM has two vCPUs, with a timing in which a busy machine is not taken for a dead host.
fn start_two_vcpus(pair: &Pair) -> (Node, Node, std::path::PathBuf) {
    let config = pair
        .changed_config(
            "heartbeat_ms = 20",
            "heartbeat_ms = 20\nlease_ms = 800\ntimeout_ms = 1000",
        )
        .unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("memory_mib = 64", "memory_mib = 64\nvcpus = 2"),
    )
    .unwrap();
    let mut b = pair.start_with(&config, "b", "backup").unwrap();
    let mut a = pair.start_with(&config, "a", "primary").unwrap();
    a.wait_until_role("primary").unwrap();
    b.wait_until_role("backup").unwrap();
    plug(&["a", "b"]).unwrap();
    (a, b, config)
}

#[test]
fn a_vm_with_two_vcpus_outlives_both_its_hosts_in_turn() {
    network::alone("a_vm_with_two_vcpus_outlives_both_its_hosts_in_turn", || {
        let pair = Pair::mirrored().unwrap();
        let (mut a, mut b, config) = start_two_vcpus(&pair);
        assert_eq!(cli("SET first kept").unwrap(), "OK");
        let status = a.status().unwrap();
        assert!(status["deltas"].as_u64().unwrap() > 2, "{status:#}");
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
        let (mut a, mut b, _) = start_two_vcpus(&pair);
        assert_eq!(cli("SET key value").unwrap(), "OK");

        power_off(&mut a, &mut b).unwrap();

        assert!(pair.has_same_images().unwrap());
    });
}
