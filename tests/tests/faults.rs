//! The whole of Lockstep under real clients: a host dies, stalls, or loses its wire, and no client may notice.
//!
//! Each story is one run of `lockstep demo --json` with real processes on this machine's KVM. What every run must end
//! with (nothing lost, wrong, broken or leaked; one live host, in term 2) is checked by `Demo::play`; the stories add
//! what is special about their fault. Without KVM they fail with a sentence that says so.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use lockstep_tests::demo::{Demo, Report};
use lockstep_tests::programs;

/// A test run may have slow programs and a busy machine; the bound for released ones is checked by `cargo xtask seeds`.
const OUTAGE_MS_BOUND: f64 = 2000.0;

#[test]
fn clients_go_on_when_the_primarys_host_is_killed() {
    let report = play("kill", &["--kill-after", "800", "--end-after", "800"]);

    assert_eq!(report.survivor.as_deref(), Some("b"));
    assert_eq!(report.other_host.as_deref(), Some("a ended: signal: 9 (SIGKILL)"));
    assert!(report.acked_ops > 1000, "{report:#?}");
    assert!(report.outage_ms < OUTAGE_MS_BOUND, "{report:#?}");
}

#[test]
fn clients_go_on_when_the_primary_dies_in_its_first_moments() {
    let first_moments = ["--kill-after", "20", "--clients", "40", "--end-after", "800"];
    let report = play("kill-early", &first_moments);

    assert_eq!(report.survivor.as_deref(), Some("b"));
}

#[test]
fn clients_go_on_when_the_backups_host_is_killed() {
    let report = play(
        "kill-backup",
        &["--kill-backup", "--kill-after", "800", "--end-after", "800"],
    );

    assert_eq!(report.survivor.as_deref(), Some("a"));
    assert_eq!(report.other_host.as_deref(), Some("b ended: signal: 9 (SIGKILL)"));
    assert!(report.outage_ms < OUTAGE_MS_BOUND, "{report:#?}");
}

#[test]
fn a_primary_that_was_stopped_and_wakes_up_late_stays_out() {
    let report = play("pause", &["--pause", "--kill-after", "500"]);

    assert_eq!(report.survivor.as_deref(), Some("b"));
    assert_eq!(report.other_host.as_deref(), Some("a ended: exit status: 1"));
}

#[test]
fn one_host_goes_on_when_the_wire_between_them_is_cut() {
    let report = play("cut", &["--cut", "--kill-after", "500", "--seconds", "3"]);

    let other = report.other_host.unwrap();
    assert!(other.ends_with("ended: exit status: 1"), "{other}");
}

#[test]
fn nothing_leaves_either_host_while_wire_and_arbiter_are_away() {
    let away = [
        "--cut",
        "--arbiter-away",
        "1500",
        "--kill-after",
        "500",
        "--seconds",
        "4",
    ];
    let report = play("arbiter-away", &away);

    // Clients waited as long as nobody could say who lives, and lost nothing by it.
    assert!(report.outage_ms > 1000.0, "{report:#?}");
}

#[test]
fn a_term_comes_from_an_arbiter_service_as_well() {
    let report = play(
        "arbiter-service",
        &["--arbiter", "quic", "--kill-after", "800", "--end-after", "800"],
    );

    assert_eq!(report.survivor.as_deref(), Some("b"));
    assert!(report.outage_ms < OUTAGE_MS_BOUND, "{report:#?}");
}

/// One story at a time: what is judged includes time, and the machine may have two cores.
fn play(name: &str, arguments: &[&str]) -> Report {
    static STAGE: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let demo = Demo::new(programs::find("lockstep").unwrap(), logs()).unwrap();
    demo.play(name, arguments).unwrap()
}

/// Where failed stories leave their logs.
fn logs() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults")
}
