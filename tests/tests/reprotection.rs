//! A VM that lost its backup, or never had one, is protected again while it runs: by a spare that it is copied to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use lockstep_tests::pair::{Node, Pair, plug, power_off};
use lockstep_tests::qemu::processes::eventually;
use lockstep_tests::redis::{cli, set_64_kib};
use lockstep_tests::{network, programs};
use serde_json::Value;

#[test]
fn two_primaries_die_in_a_row_and_no_client_notices() {
    let report = two_rounds(&[]);

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
            let mut a = pair.start_alone(&pair.path("vm.toml"), &[]).unwrap();
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
            let mut a = pair.start_alone(&pair.path("vm.toml"), &[]).unwrap();
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
            let a = pair.start_alone(&pair.path("vm.toml"), &[]).unwrap();
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

#[test]
fn the_survivor_takes_the_spare_of_its_configuration_and_the_repaired_host_is_the_next_one() {
    network::alone(
        "the_survivor_takes_the_spare_of_its_configuration_and_the_repaired_host_is_the_next_one",
        || {
            let pair = Pair::with_spare().unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();
            let mut c = pair.start_spare("c").unwrap();
            c.wait_until_role("standby").unwrap();
            plug(&["c"]).unwrap();
            assert_eq!(a.status().unwrap()["spares"][0]["node"], "c");
            assert_eq!(cli("SET first kept").unwrap(), "OK");
            a.kill();
            b.wait_until_role("primary").unwrap();
            c.wait_until_role("backup").unwrap();
            assert_eq!(b.status().unwrap()["peer"]["node"], "c");

            let mut a = pair.start_spare("a").unwrap();
            a.wait_until_role("standby").unwrap();
            plug(&["a"]).unwrap();
            assert_eq!(cli("SET second kept").unwrap(), "OK");
            b.kill();
            c.wait_until_role("primary").unwrap();
            a.wait_until_role("backup").unwrap();
            c.kill();
            a.wait_until_role("alone").unwrap();

            assert_eq!(cli("MGET first second").unwrap(), "kept\nkept");
            assert_eq!(a.status().unwrap()["term"], 6);
        },
    );
}

#[test]
fn the_two_are_not_started_again_beside_a_spare_that_lives() {
    network::alone("the_two_are_not_started_again_beside_a_spare_that_lives", || {
        let pair = Pair::with_spare().unwrap();
        let (mut a, mut b) = pair.start_both().unwrap();
        let mut c = pair.start_spare("c").unwrap();
        c.wait_until_role("standby").unwrap();
        plug(&["c"]).unwrap();
        a.kill();
        c.wait_until_role("backup").unwrap();
        b.kill();
        c.wait_until_role("alone").unwrap();
        assert_eq!(cli("SET only here").unwrap(), "OK");

        for (node, role) in [("b", "backup"), ("a", "primary")] {
            let (code, words) = pair.start(node, role).unwrap().wait_for_end().unwrap();
            assert_eq!(code, Some(1), "{words}");
            assert!(
                words.contains("Node c holds term 4 and may still be running"),
                "{words}"
            );
        }

        assert_eq!(cli("GET only").unwrap(), "here");
    });
}

#[test]
fn a_spares_certificate_that_is_missing_ends_no_takeover_and_counts_once_it_is_there() {
    network::alone(
        "a_spares_certificate_that_is_missing_ends_no_takeover_and_counts_once_it_is_there",
        || {
            let pair = Pair::with_spare().unwrap();
            let (there, away) = (pair.path("keys/c.crt"), pair.path("away.crt"));
            fs::rename(&there, &away).unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();
            assert_eq!(cli("SET still here").unwrap(), "OK");
            a.kill();
            b.wait_until_role("alone").unwrap();
            b.wait_until_logged("Not every spare can be let in").unwrap();

            fs::rename(&away, &there).unwrap();
            b.wait_until_logged("Every spare can be let in now").unwrap();
            let mut c = pair.start_spare("c").unwrap();
            c.wait_until_role("backup").unwrap();
            assert_eq!(cli("GET still").unwrap(), "here");
        },
    );
}

#[test]
fn a_spare_is_not_started_as_one_of_the_two() {
    let pair = Pair::with_spare().unwrap();

    let mut c = pair.start("c", "backup").unwrap();
    let (code, words) = c.wait_for_end().unwrap();

    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("start it with `lockstep standby`"), "{words}");
}

#[test]
fn two_hosts_with_an_image_each_die_in_a_row_and_both_images_have_everything() {
    let report = two_rounds(&["--disk", "mirror"]);

    let judged = [
        "lost_ops",
        "wrong_replies",
        "broken_connections",
        "lost_after_boot",
        "wrong_after_boot",
    ]
    .map(|key| report[key].as_u64());
    assert_eq!(judged, [Some(0); 5], "{report:#}");
}

#[test]
fn a_spare_gets_the_image_of_a_mirrored_disk_whatever_its_own_held() {
    network::alone(
        "a_spare_gets_the_image_of_a_mirrored_disk_whatever_its_own_held",
        || {
            let pair = Pair::mirrored().unwrap();
            let image = File::options().write(true).open(pair.path("disk-b.raw")).unwrap();
            image.write_all_at(&vec![0x55; 3 << 20], 20 << 20).unwrap();
            let mut a = pair.start_alone(&pair.path("vm.toml"), &[]).unwrap();
            assert_eq!(set_64_kib("before").unwrap(), "OK");

            let mut b = pair.start_spare("b").unwrap();
            a.wait_until_role("primary").unwrap();
            assert_eq!(cli("SET after that").unwrap(), "OK");

            assert_eq!(a.status().unwrap()["copy"]["disk"]["whole"], true);
            power_off(&mut a, &mut b).unwrap();
            assert!(pair.has_same_images().unwrap(), "the images differ");
        },
    );
}

#[test]
fn a_host_that_comes_back_gets_only_what_changed_on_the_disk_since_it_left() {
    network::alone(
        "a_host_that_comes_back_gets_only_what_changed_on_the_disk_since_it_left",
        || {
            let pair = Pair::mirrored().unwrap();
            let (_, mut b) = lose_a_after_much_was_written(&pair);
            assert_eq!(set_64_kib("without-a").unwrap(), "OK");

            let mut a = pair.start_spare("a").unwrap();
            b.wait_until_role("primary").unwrap();
            plug(&["a"]).unwrap();

            let disk = b.status().unwrap()["copy"]["disk"].clone();
            assert_eq!(disk["whole"], false, "{disk}");
            assert!(disk["bytes"].as_u64().unwrap() < WRITTEN / 2, "{disk}");
            b.kill();
            a.wait_until_role("alone").unwrap();
            assert_eq!(cli("STRLEN without-a").unwrap(), "65536");
            let mut b = pair.start_spare("b").unwrap();
            a.wait_until_role("primary").unwrap();
            power_off(&mut a, &mut b).unwrap();
            assert!(pair.has_same_images().unwrap(), "the images differ");
        },
    );
}

#[test]
fn a_host_that_comes_back_with_a_torn_map_gets_the_whole_disk() {
    network::alone(
        "a_host_that_comes_back_with_a_torn_map_gets_the_whole_disk",
        || {
            let pair = Pair::mirrored().unwrap();
            let (_, mut b) = lose_a_after_much_was_written(&pair);
            let map = File::options()
                .write(true)
                .open(pair.path("disk-a.raw.changes"))
                .unwrap();
            map.write_all_at(&[0xff], 60).unwrap();

            let mut a = pair.start_spare("a").unwrap();
            a.wait_until_role("backup").unwrap();
            b.wait_until_role("primary").unwrap();

            let disk = b.status().unwrap()["copy"]["disk"].clone();
            assert_eq!(disk["whole"], true, "{disk}");
            assert!(disk["bytes"].as_u64().unwrap() >= WRITTEN, "{disk}");
            power_off(&mut b, &mut a).unwrap();
            assert!(pair.has_same_images().unwrap(), "the images differ");
        },
    );
}

/// What the demo says of two deaths in a row.
fn two_rounds(more: &[&str]) -> Value {
    let demo = Command::new(programs::find("lockstep").unwrap())
        .args(["demo", "--json", "--rounds", "2", "--clients", "8"])
        .args(more)
        .output()
        .unwrap();
    let (said, told) = [demo.stdout, demo.stderr]
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .into();
    assert!(demo.status.success(), "{said}{told}");
    serde_json::from_str(said.lines().last().unwrap()).unwrap()
}

/// Bytes that `lose_a_after_much_was_written` has written at least.
const WRITTEN: u64 = 160 * 65536;

/// A pair that has written much dies by half.
fn lose_a_after_much_was_written(pair: &Pair) -> (Node, Node) {
    let (mut a, mut b) = pair.start_both().unwrap();
    let written: Vec<_> = (0..160)
        .map(|key| set_64_kib(&format!("key-{key}")).unwrap())
        .collect();
    assert_eq!(written, vec!["OK"; 160]);
    a.kill();
    b.wait_until_role("alone").unwrap();
    (a, b)
}
