//! The micro guest is a workspace of its own, built without std. This story runs its tests, so that one command,
//! `cargo test --workspace`, runs all there are.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn the_micro_guests_own_tests_pass() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/guest");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("micro-guest");
    let tests = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--manifest-path"])
        .arg(guest.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .expect("cargo runs this test, so it can be started");
    let said = String::from_utf8_lossy(&tests.stdout);
    let complaints = String::from_utf8_lossy(&tests.stderr);
    assert!(tests.status.success(), "{said}\n{complaints}");
    // It may not pass by testing nothing, or only a part.
    let written = written(&guest.join("src")) + written(&guest.join("tests"));
    assert!(written > 0, "no test is written in {}", guest.display());
    assert!(passed(&said) >= written, "{written} tests are written:\n{said}");
}

/// How many tests are written in a folder and those below it. One within `proptest!` is marked like any other.
fn written(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("the guest's sources are beside these");
    let paths = entries.map(|entry| entry.expect("a folder can be listed").path());
    let count = |path: &Path| {
        let text = fs::read_to_string(path).expect("a source is text");
        text.lines().filter(|line| line.trim() == "#[test]").count()
    };
    paths
        .map(|path| match path.extension() {
            _ if path.is_dir() => written(&path),
            Some(end) if end == "rs" => count(&path),
            _ => 0,
        })
        .sum()
}

/// How many tests passed, in all suites together.
fn passed(said: &str) -> usize {
    let counts = said.split("test result: ok. ").skip(1);
    counts
        .filter_map(|rest| rest.split(' ').next()?.parse::<usize>().ok())
        .sum()
}
