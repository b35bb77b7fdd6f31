//! The client of a directory that both hosts share, and the tools for looking at one.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{BINARY, granted, holder, vm};
use lockstep_arbiter::client::{ArbiterClient, ClaimError, OpenError};
use lockstep_arbiter::config::ArbiterConfig;
use lockstep_arbiter::store::StoreError;
use lockstep_protocol::ids::Term;
use lockstep_protocol::takeover::Verdict;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

fn client(dir: &TempDir) -> ArbiterClient {
    ArbiterClient::open(&ArbiterConfig::File {
        dir: dir.path().to_owned(),
    })
    .unwrap()
}

fn tool(words: &[&str]) -> Output {
    Command::new(BINARY).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

#[test]
fn a_claim_is_granted_read_back_and_refused_to_the_other_host() {
    let dir = TempDir::new().unwrap();
    let client = client(&dir);

    assert_eq!(client.read(&vm()).unwrap(), None);
    assert_eq!(
        client.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap(),
        granted(1)
    );
    let refused = Verdict::Refused {
        term: Term::new(1),
        holder: holder("a", 1),
    };
    assert_eq!(client.claim(&vm(), Term::ZERO, &holder("b", 1)).unwrap(), refused);
    assert_eq!(client.read(&vm()).unwrap(), Some((Term::new(1), holder("a", 1))));
}

#[test]
fn a_directory_that_is_not_there_is_refused_when_the_client_is_made() {
    let dir = TempDir::new().unwrap();
    let gone = ArbiterConfig::File {
        dir: dir.path().join("gone"),
    };

    let refused = ArbiterClient::open(&gone);

    assert!(
        matches!(refused, Err(OpenError::Store(StoreError::Missing { .. }))),
        "{refused:?}"
    );
}

#[test]
fn a_shared_disk_that_hangs_does_not_hang_the_caller() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("shop")).unwrap();
    // Opening a pipe that nobody writes to blocks, as a file on a server that is away does.
    let hanging = dir.path().join("shop/term-00000000000000000001");
    mknodat(CWD, &hanging, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let limit = Duration::from_millis(100);
    let client = client(&dir).with_attempt(limit);

    let begun = Instant::now();
    let outcomes = [(); 4].map(|()| client.claim(&vm(), Term::ZERO, &holder("a", 1)));

    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Err(ClaimError::Unreachable(_)))),
        "{outcomes:?}"
    );
    assert!(begun.elapsed() < 8 * limit, "{:?}", begun.elapsed());
}

#[test]
fn show_prints_the_newest_term_of_all_and_every_term_of_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    let client = client(&dir);
    client.claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap();
    client.claim(&vm(), Term::new(1), &holder("b", 2)).unwrap();

    let (all, one) = (tool(&["show", path]), tool(&["show", path, "shop", "--json"]));

    assert_eq!(
        text(&all.stdout),
        "shop  term 2  b (00000000000000000000000000000002)\n"
    );
    assert_eq!(
        text(&one.stdout),
        "{\"holder\":{\"incarnation\":\"00000000000000000000000000000001\",\"node\":\"a\"},\"term\":1,\"vm\":\"shop\"}\n\
         {\"holder\":{\"incarnation\":\"00000000000000000000000000000002\",\"node\":\"b\"},\"term\":2,\"vm\":\"shop\"}\n"
    );
}

#[test]
fn show_passes_over_what_is_no_directory() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    client(&dir).claim(&vm(), Term::ZERO, &holder("a", 1)).unwrap();
    fs::write(dir.path().join("notes"), "").unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();

    let shown = tool(&["show", path]);

    assert_eq!(
        text(&shown.stdout),
        "shop  term 1  a (00000000000000000000000000000001)\n"
    );
    assert!(shown.status.success(), "{shown:?}");
}

#[test]
fn a_file_that_is_asked_for_as_a_vm_is_told_by_its_own_path() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("notes");
    fs::write(&file, "").unwrap();

    let shown = tool(&["show", dir.path().to_str().unwrap(), "notes"]);

    assert_eq!(
        text(&shown.stderr),
        format!("lockstep-arbiter: {} is not a directory\n", file.display())
    );
}

#[test]
fn a_trial_is_not_hindered_by_what_a_killed_one_of_the_same_process_number_left() {
    let dir = TempDir::new().unwrap();
    // The shell becomes the program and keeps its number, as in a container that is started again.
    let script = format!(
        "touch '{0}'/.lockstep-check-$$.0 && exec {BINARY} check '{0}'",
        dir.path().display()
    );

    let trial = Command::new("sh").args(["-c", &script]).output().unwrap();

    assert!(trial.status.success(), "{trial:?}");
}

#[test]
fn a_claim_by_hand_says_by_its_status_whether_it_was_granted() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    let claim = |node| tool(&["claim", path, "shop", "--expected", "0", "--node", node]);

    let (first, second) = (claim("a"), claim("b"));

    assert_eq!(first.status.code(), Some(0));
    assert_eq!(second.status.code(), Some(3));
    assert!(
        text(&second.stdout).starts_with("refused: term 1 is held by a"),
        "{second:?}"
    );
}

#[test]
fn check_passes_a_directory_and_tells_what_is_wrong_with_a_file() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();

    let (good, bad) = (
        tool(&["check", dir.path().to_str().unwrap()]),
        tool(&["check", file.to_str().unwrap()]),
    );

    assert!(good.status.success(), "{good:?}");
    assert_eq!(bad.status.code(), Some(1));
    assert_eq!(
        text(&bad.stderr),
        format!("lockstep-arbiter: {} is not a directory\n", file.display())
    );
}

#[test]
fn a_configuration_with_a_misspelt_key_is_refused_with_its_line() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("arbiter.toml");
    fs::write(&config, "listen = \"127.0.0.1:0\"\nport = 1\n").unwrap();

    let refused = tool(&["serve", "--config", config.to_str().unwrap()]);

    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("unknown field `port`"),
        "{}",
        text(&refused.stderr)
    );
    assert!(
        text(&refused.stderr).contains("line 2"),
        "{}",
        text(&refused.stderr)
    );
}
