//! The kill comes at any moment: some points of the suite that `cargo xtask kill-points` plays in full.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::path::Path;

use lockstep_tests::demo::Demo;
use lockstep_tests::{kill_points, programs};

#[test]
fn no_client_notices_at_which_record_the_primary_dies() {
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kill-points");
    let demo = Demo::new(programs::find("lockstep").unwrap(), logs).unwrap();

    let outcome = kill_points::play(&demo, 12, 7, |line| println!("{line}")).unwrap();

    assert!(outcome.failures.is_empty(), "{outcome:#?}");
}
