//! Mirrored disks: each host has an image of its own, both have what was promised, and images that differ become no pair.
//!
//! Stories of whole runs are `lockstep demo --disk mirror`; what a pair does at its start and when an image fails is
//! told with `lockstep run` and Redis's own client.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::fs;
use std::path::PathBuf;

use lockstep_tests::demo::{Demo, Report};
use lockstep_tests::pair::{Pair, plug, power_off};
use lockstep_tests::redis::{cli, set_64_kib};
use lockstep_tests::{network, programs};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

#[test]
fn the_survivors_own_image_has_all_that_was_promised_by_both_hosts() {
    let report = play("kill", &["--kill-after", "800", "--end-after", "800"]);

    assert_eq!(report.survivor.as_deref(), Some("b"));
    assert!(report.acked_ops > 1000, "{report:#?}");
}

#[test]
fn the_primarys_own_image_has_all_that_was_promised_when_its_backup_dies() {
    let report = play(
        "kill-backup",
        &["--kill-backup", "--kill-after", "800", "--end-after", "800"],
    );

    assert_eq!(report.survivor.as_deref(), Some("a"));
}

#[test]
fn a_vm_that_powered_itself_off_leaves_equal_images_and_starts_again() {
    network::alone(
        "a_vm_that_powered_itself_off_leaves_equal_images_and_starts_again",
        || {
            let pair = Pair::mirrored().unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();
            assert_eq!(cli("SET kept this").unwrap(), "OK");

            power_off(&mut a, &mut b).unwrap();

            assert!(pair.has_same_images().unwrap(), "the images differ");
            drop((a, b));
            let _nodes = pair.start_both().unwrap();
            assert_eq!(cli("GET kept").unwrap(), "this");
        },
    );
}

#[test]
fn hosts_with_different_images_refuse_each_other_until_the_newer_one_was_copied() {
    network::alone(
        "hosts_with_different_images_refuse_each_other_until_the_newer_one_was_copied",
        || {
            let pair = Pair::mirrored().unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();
            assert_eq!(cli("PING").unwrap(), "PONG");
            a.kill();
            b.wait_until_role("alone").unwrap();
            assert_eq!(cli("SET kept this").unwrap(), "OK");
            b.stop();
            assert_eq!(b.wait_for_end().unwrap().0, Some(0));
            drop((a, b));

            let mut b = pair.start("b", "backup").unwrap();
            let mut a = pair.start("a", "primary").unwrap();
            for node in [&mut a, &mut b] {
                let (code, words) = node.wait_for_end().unwrap();
                assert_eq!(code, Some(1), "{words}");
                assert!(
                    words.contains("Host b and host a have different disk images ("),
                    "{words}"
                );
                let advice =
                    "host b held the last term and has the newer one; copy it over the one on host a";
                assert!(words.contains(advice), "{words}");
            }
            drop((a, b));

            fs::copy(pair.path("disk-b.raw"), pair.path("disk-a.raw")).unwrap();
            let _nodes = pair.start_both().unwrap();
            assert_eq!(cli("GET kept").unwrap(), "this");
        },
    );
}

#[test]
fn a_backup_whose_image_is_full_ends_and_the_primary_goes_on() {
    network::alone(
        "a_backup_whose_image_is_full_ends_and_the_primary_goes_on",
        || {
            let pair = Pair::mirrored().unwrap();
            give_little_room(&pair, "disk-b.raw");
            let (mut a, mut b) = pair.start_both().unwrap();

            let written: Vec<_> = (0..32)
                .map(|key| set_64_kib(&format!("large-{key}")).unwrap())
                .collect();

            assert_eq!(written, vec!["OK"; 32]);
            let (code, words) = b.wait_for_end().unwrap();
            assert_eq!(code, Some(1), "{words}");
            assert!(
                words.contains("The disk image of this host failed (No space left on device"),
                "{words}"
            );
            assert!(words.contains("copy the other host's image here"), "{words}");
            a.wait_until_role("alone").unwrap();
            assert_eq!(
                a.status().unwrap()["peer"]["lost"],
                "The other host left: its own disk failed"
            );
            assert_eq!(cli("STRLEN large-31").unwrap(), "65536");
        },
    );
}

#[test]
fn a_primary_whose_image_is_full_says_so_to_its_guest_and_keeps_its_backup() {
    network::alone(
        "a_primary_whose_image_is_full_says_so_to_its_guest_and_keeps_its_backup",
        || {
            let pair = Pair::mirrored().unwrap();
            give_little_room(&pair, "disk-a.raw");
            let (a, b) = pair.start_both().unwrap();

            let written: Vec<_> = (0..32)
                .map(|key| set_64_kib(&format!("large-{key}")).unwrap())
                .collect();

            // An honest error is no promise, and the client heard it.
            assert!(written[31].contains("ERR"), "{written:?}");
            b.wait_until_logged("The primary's disk failed where this host's did not")
                .unwrap();
            assert_eq!(a.status().unwrap()["role"], "primary");
            assert_eq!(b.status().unwrap()["role"], "backup");
        },
    );
}

#[test]
fn a_slow_disk_gets_every_write_whole_before_its_host_goes_live() {
    network::alone(
        "a_slow_disk_gets_every_write_whole_before_its_host_goes_live",
        || {
            let pair = Pair::mirrored().unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();
            b.signal_device("blk", Signal::SIGSTOP).unwrap();
            // The guest uses its few buffers again and again, and on the backup none of them was copied yet.
            let promised: Vec<_> = (0..40)
                .map(|key| cli(&format!("SET key-{key} value-{key}")).unwrap())
                .collect();
            assert_eq!(promised, vec!["OK"; 40]);
            a.kill();
            b.wait_until_logged("The primary is lost").unwrap();

            b.signal_device("blk", Signal::SIGCONT).unwrap();

            b.wait_until_role("alone").unwrap();
            b.stop();
            assert_eq!(b.wait_for_end().unwrap().0, Some(0));
            let config = pair.path("vm.toml");
            let _again = pair.start_more(&config, "b", "primary", &["--alone"]).unwrap();
            plug(&["b"]).unwrap();
            let found: Vec<_> = (0..40)
                .map(|key| cli(&format!("GET key-{key}")).unwrap())
                .collect();
            let wanted: Vec<_> = (0..40).map(|key| format!("value-{key}")).collect();
            assert_eq!(found, wanted);
        },
    );
}

#[test]
fn a_backup_whose_disk_process_dies_ends_and_the_primary_goes_on() {
    network::alone(
        "a_backup_whose_disk_process_dies_ends_and_the_primary_goes_on",
        || {
            let pair = Pair::mirrored().unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();
            b.signal_device("blk", Signal::SIGKILL).unwrap();

            assert_eq!(cli("SET kept this").unwrap(), "OK");

            let (code, words) = b.wait_for_end().unwrap();
            assert_eq!(code, Some(1), "{words}");
            assert!(words.contains("is gone, so"), "{words}");
            a.wait_until_role("alone").unwrap();
            assert_eq!(cli("GET kept").unwrap(), "this");
        },
    );
}

#[test]
fn a_backup_that_takes_over_while_the_guest_reads_its_disk_reads_it_from_its_own_image() {
    network::alone(
        "a_backup_that_takes_over_while_the_guest_reads_its_disk_reads_it_from_its_own_image",
        || {
            let pair = Pair::mirrored().unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();
            assert_eq!(set_64_kib("large").unwrap(), "OK");
            power_off(&mut a, &mut b).unwrap();
            drop((a, b));

            // The guest's first records are its boot, and most of that is one read of the disk after the other. Which of
            // them is under way at which record depends on the clock; sooner or later it is one.
            let is_under_way = |record: u64| {
                let mut b = pair.start("b", "backup").unwrap();
                let dying = ["--die-at-record", &record.to_string()];
                let _a = pair
                    .start_more(&pair.path("vm.toml"), "a", "primary", &dying)
                    .unwrap();
                b.wait_until_role("alone").unwrap();
                plug(&["b"]).unwrap();
                assert_eq!(cli("STRLEN large").unwrap(), "65536", "died at record {record}");
                b.stop();
                b.wait_for_end().unwrap();
                fs::copy(pair.path("disk-b.raw"), pair.path("disk-a.raw")).unwrap();
                b.log().contains("is ordered again requests=1")
            };
            assert!((8..20).step_by(2).any(is_under_way));
        },
    );
}

/// Plays the demo with mirrored disks; in the end the survivor's image is booted alone and everything read back.
fn play(name: &str, arguments: &[&str]) -> Report {
    let logs = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mirror");
    let demo = Demo::new(programs::find("lockstep").unwrap(), logs).unwrap();
    let mirrored = ["--disk", "mirror", "--boot-again"];
    let report = demo.play(name, &[&mirrored, arguments].concat()).unwrap();
    assert_eq!(
        (report.lost_after_boot, report.wrong_after_boot),
        (Some(0), Some(0)),
        "{report:#?}"
    );
    report
}

/// Moves a disk to a file system that has room for a megabyte of it. Only this thread and what it starts see that.
fn give_little_room(pair: &Pair, disk: &str) {
    let place = pair.path("small");
    fs::create_dir(&place).unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(
        Some("small"),
        &place,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=1m"),
    )
    .unwrap();
    fs::remove_file(pair.path(disk)).unwrap();
    pair.make_disk(&format!("small/{disk}")).unwrap();
    std::os::unix::fs::symlink(place.join(disk), pair.path(disk)).unwrap();
}
