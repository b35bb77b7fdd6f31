//! The whole of Lockstep under real clients: host a dies, stalls, or loses its wire, and no client may notice.
//!
//! Each story is one run of `lockstep demo --json` with real processes on this machine's KVM. Without a usable KVM the
//! demo must say so with exit status 2, and that is what is checked then.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use serde_json::Value;

/// One story at a time: what is judged includes time, and the machine may have two cores.
fn stage() -> MutexGuard<'static, ()> {
    static STAGE: Mutex<()> = Mutex::new(());
    static BUILT: Once = Once::new();
    BUILT.call_once(build_what_lies_beside_lockstep);
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The demo starts the device processes that lie beside `lockstep`; cargo builds only this package's own programs.
fn build_what_lies_beside_lockstep() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "-p",
        "vhost-net-ft",
        "-p",
        "vhost-blk-ft",
        "-p",
        "lockstep-arbiter",
    ]);
    let profile = Path::new(env!("CARGO_BIN_EXE_lockstep"))
        .parent()
        .expect("a program lies in a directory");
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(
        cargo
            .status()
            .expect("cargo runs this test, so it can be started")
            .success()
    );
}

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(["demo", "--json"])
        .args(arguments)
        .output()
        .expect("the binary was just built")
}

/// Plays a story and returns its report, or nothing where there is no KVM.
fn story(arguments: &[&str]) -> Option<Value> {
    let _one_at_a_time = stage();
    let output = demo(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    if OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        assert_eq!(output.status.code(), Some(2), "{said}");
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text
        .lines()
        .last()
        .unwrap_or_else(|| panic!("no report; standard error says:\n{said}"));
    let report: Value = serde_json::from_str(last).expect("the last line is one JSON object");
    assert_eq!(output.status.code(), Some(0), "{report:#}\n{said}");
    Some(report)
}

/// What every story must end with.
fn assert_nobody_noticed(report: &Value) {
    for key in ["lost_ops", "wrong_replies", "broken_connections", "leaked_ops"] {
        assert_eq!(report[key], 0, "{key} in {report:#}");
    }
    assert_eq!(report["live_hosts"], 1, "{report:#}");
    assert_eq!(report["survivor_term"], 2, "{report:#}");
    assert!(
        report["acked_ops"].as_u64().is_some_and(|acked| acked > 1000),
        "{report:#}"
    );
}

#[test]
fn clients_go_on_when_the_primarys_host_is_killed() {
    let Some(report) = story(&["--seed", "11", "--seconds", "4"]) else {
        return;
    };
    assert_nobody_noticed(&report);
    assert_eq!(report["survivor"], "b");
}

#[test]
fn clients_go_on_when_the_primary_dies_in_its_first_moments() {
    let Some(report) = story(&[
        "--seed",
        "12",
        "--kill-after",
        "20",
        "--seconds",
        "3",
        "--clients",
        "40",
    ]) else {
        return;
    };
    assert_nobody_noticed(&report);
}

#[test]
fn a_primary_that_was_stopped_and_wakes_up_late_stays_out() {
    let Some(report) = story(&["--seed", "13", "--pause", "--kill-after", "500"]) else {
        return;
    };
    assert_nobody_noticed(&report);
    assert_eq!(report["other_host"], "a ended: exit status: 1");
}

#[test]
fn one_host_goes_on_when_the_wire_between_them_is_cut() {
    let Some(report) = story(&["--seed", "14", "--cut", "--kill-after", "500", "--seconds", "3"]) else {
        return;
    };
    assert_nobody_noticed(&report);
    assert!(
        report["other_host"]
            .as_str()
            .unwrap()
            .ends_with("ended: exit status: 1"),
        "{report:#}"
    );
}

#[test]
fn nothing_leaves_either_host_while_wire_and_arbiter_are_away() {
    let away = [
        "--seed",
        "15",
        "--cut",
        "--arbiter-away",
        "1500",
        "--kill-after",
        "500",
        "--seconds",
        "4",
    ];
    let Some(report) = story(&away) else { return };
    assert_nobody_noticed(&report);
}
