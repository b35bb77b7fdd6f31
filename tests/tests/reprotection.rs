//! A VM that lost its backup, or never had one, is protected again while it runs: by a spare that it is copied to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::process::Command;

use lockstep_tests::pair::{Pair, plug};
use lockstep_tests::qemu::processes::eventually;
use lockstep_tests::redis::cli;
use lockstep_tests::{network, programs};
use serde_json::Value;

#[test]
fn two_primaries_die_in_a_row_and_no_client_notices() {
    let lockstep = programs::find("lockstep").unwrap();
    let demo = Command::new(lockstep)
        .args(["demo", "--json", "--rounds", "2", "--clients", "8"])
        .output()
        .unwrap();

    let (said, told) = [demo.stdout, demo.stderr]
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .into();
    assert!(demo.status.success(), "{said}{told}");
    let report: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let judged =
        ["lost_ops", "wrong_replies", "broken_connections", "survivor_term"].map(|key| report[key].as_u64());
    assert_eq!(judged, [Some(0), Some(0), Some(0), Some(5)], "{report:#}");
}

#[test]
fn a_vm_that_was_started_alone_outlives_its_host_once_a_spare_has_come() {
    network::alone(
        "a_vm_that_was_started_alone_outlives_its_host_once_a_spare_has_come",
        || {
            let pair = Pair::new().unwrap();
            let mut a = pair
                .start_more(&pair.path("vm.toml"), "a", "primary", &["--alone"])
                .unwrap();
            a.wait_until_role("alone").unwrap();
            plug(&["a"]).unwrap();
            assert_eq!(cli("SET before this").unwrap(), "OK");

            let mut b = pair.start_spare("b").unwrap();
            a.wait_until_role("primary").unwrap();
            plug(&["b"]).unwrap();
            assert_eq!(cli("SET after that").unwrap(), "OK");
            a.kill();
            b.wait_until_role("alone").unwrap();

            assert_eq!(cli("MGET before after").unwrap(), "this\nthat");
        },
    );
}

#[test]
fn a_spare_that_dies_while_it_takes_the_vm_in_costs_nothing_and_the_next_one_is_taken() {
    network::alone(
        "a_spare_that_dies_while_it_takes_the_vm_in_costs_nothing_and_the_next_one_is_taken",
        || {
            let pair = Pair::new().unwrap();
            let mut a = pair
                .start_more(&pair.path("vm.toml"), "a", "primary", &["--alone"])
                .unwrap();
            a.wait_until_role("alone").unwrap();
            plug(&["a"]).unwrap();
            let mut doomed = pair.start_spare("b").unwrap();
            doomed.wait_until_logged("Taking the VM in").unwrap();
            doomed.kill();
            assert_eq!(cli("SET still here").unwrap(), "OK");

            let mut b = pair.start_spare("b").unwrap();
            b.wait_until_role("backup").unwrap();
            a.wait_until_role("primary").unwrap();

            assert_eq!(cli("GET still").unwrap(), "here");
            assert_eq!(a.status().unwrap()["peer"]["connected"], true);
        },
    );
}

#[test]
fn a_spare_with_another_configuration_is_told_so_and_the_vm_goes_on() {
    network::alone(
        "a_spare_with_another_configuration_is_told_so_and_the_vm_goes_on",
        || {
            let pair = Pair::new().unwrap();
            let mut a = pair
                .start_more(&pair.path("vm.toml"), "a", "primary", &["--alone"])
                .unwrap();
            a.wait_until_role("alone").unwrap();
            plug(&["a"]).unwrap();
            let other = pair.changed_config("memory_mib = 64", "memory_mib = 96").unwrap();

            let mut b = pair.start_spare_with(&other, "b").unwrap();
            let (code, words) = b.wait_for_end().unwrap();

            assert_eq!(code, Some(1), "{words}");
            assert!(words.contains("configuration"), "{words}");
            assert_eq!(cli("PING").unwrap(), "PONG");
            eventually(
                "the VM to be as it was",
                std::time::Duration::from_secs(5),
                || Ok((a.status().is_some_and(|status| status["role"] == "alone")).then_some(())),
            )
            .unwrap();
        },
    );
}
