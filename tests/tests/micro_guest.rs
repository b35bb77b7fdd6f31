//! The micro guest is a workspace of its own, built without std. This story runs its tests, so that one command,
//! `cargo test --workspace`, runs all there are.

use std::path::Path;
use std::process::Command;

#[test]
fn the_micro_guests_own_tests_pass() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/guest/Cargo.toml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("micro-guest");
    let tests = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .output()
        .expect("cargo runs this test, so it can be started");
    let said = String::from_utf8_lossy(&tests.stdout);
    let complaints = String::from_utf8_lossy(&tests.stderr);
    assert!(tests.status.success(), "{said}\n{complaints}");
    // It may not pass by testing nothing.
    assert!(passed(&said) >= AT_LEAST, "{said}");
}

/// How many tests passed, in all suites together.
fn passed(said: &str) -> u32 {
    let counts = said.split("test result: ok. ").skip(1);
    counts
        .filter_map(|rest| rest.split(' ').next()?.parse::<u32>().ok())
        .sum()
}

/// As many as there were when this was written.
const AT_LEAST: u32 = 70;
