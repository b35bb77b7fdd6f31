//! The kill comes at any moment: some points of the suite that `cargo xtask kill-points` plays in full.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use lockstep_tests::demo::Demo;
use lockstep_tests::kill_points::{self, Disk};
use lockstep_tests::programs;

#[test]
fn no_client_notices_at_which_record_the_primary_dies() {
    play("kill-points", 12, Disk::Shared);
}

#[test]
fn the_survivors_own_image_has_everything_at_whichever_record_the_primary_died() {
    play("kill-points-mirror", 8, Disk::Mirror);
}

/// One suite at a time: its runs are judged by time, too.
fn play(logs: &str, points: u64, disk: Disk) {
    static STAGE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(logs);
    let demo = Demo::new(programs::find("lockstep").unwrap(), logs).unwrap();

    let outcome = kill_points::play(&demo, points, 7, disk, |line| println!("{line}")).unwrap();

    assert!(outcome.failures.is_empty(), "{outcome:#?}");
}
