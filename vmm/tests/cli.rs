//! `lockstep` as a user types it: help, refusals, exit codes. Nothing here starts a VM.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, SystemTime};

use lockstep_quic::dates::Validity;
use lockstep_quic::identity::Identity;
use lockstep_vmm::status::{Lag, Role, Status};

fn lockstep(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep"))
        .args(arguments)
        .env_remove("LOCKSTEP_LOG")
        .output()
        .expect("the binary was just built")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test directories have plain names")
}

const CONFIG: &str = r#"
[vm]
name = "shop"
[vm.net]
mac = "52:54:00:4c:53:01"
[vm.disk]
[arbiter]
kind = "file"
dir = "arbiter"
[node.a]
address = "127.0.0.1:0"
listen = "127.0.0.1:0"
certificate = "keys/a.crt"
key = "keys/a.key"
tap = "lsa"
disk = "disk.raw"
run_dir = "run/a"
[node.b]
address = "127.0.0.1:1"
certificate = "keys/b.crt"
key = "keys/b.key"
tap = "lsb"
disk = "disk.raw"
run_dir = "run/b"
"#;

#[test]
fn help_names_every_command_and_where_to_begin() {
    let help = stdout(&lockstep(&["--help"]));
    for word in [
        "run",
        "status",
        "snapshot",
        "check",
        "keys",
        "demo",
        "bench",
        "lockstep demo",
    ] {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
}

#[test]
fn help_of_the_demo_tells_its_flags_and_its_exit_status() {
    let help = stdout(&lockstep(&["demo", "--help"]));
    for word in [
        "--kill-after",
        "--seconds",
        "--seed",
        "--clients",
        "--json",
        "--pause",
        "--cut",
        "Exit status",
    ] {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
}

#[test]
fn a_missing_configuration_is_one_sentence_and_exit_status_1() {
    let output = lockstep(&[
        "run",
        "--config",
        "/nonexistent/vm.toml",
        "--node",
        "a",
        "--role",
        "primary",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.starts_with("lockstep: Cannot read the configuration /nonexistent/vm.toml"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn a_bad_value_is_told_with_file_line_key_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    fs::write(&path, CONFIG.replace("\"127.0.0.1:1\"", "\"somewhere\"")).unwrap();
    let output = lockstep(&["run", "--config", text(&path), "--node", "a", "--role", "backup"]);
    assert_eq!(output.status.code(), Some(1));
    let wanted = format!(
        "lockstep: {}:19: `node.b.address`: \"somewhere\" is not an address",
        path.display()
    );
    assert!(stderr(&output).starts_with(&wanted), "{}", stderr(&output));
}

#[test]
fn an_unknown_node_is_told_with_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    fs::write(&path, CONFIG).unwrap();
    let output = lockstep(&["run", "--config", text(&path), "--node", "c", "--role", "backup"]);
    assert!(
        stderr(&output).contains("has no node \"c\"; it has \"a\" and \"b\""),
        "{}",
        stderr(&output)
    );
}

/// Runs node a of the good configuration with these arguments, which must be refused: what is said.
fn refused_run(arguments: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    fs::write(&path, CONFIG).unwrap();
    let run = ["run", "--config", text(&path), "--node", "a"];
    let output = lockstep(&[&run[..], arguments].concat());
    assert_eq!(output.status.code(), Some(1));
    stderr(&output)
}

#[test]
fn a_backup_that_is_to_be_alone_is_told_what_to_leave_out() {
    let said = refused_run(&["--role", "backup", "--alone"]);
    assert!(
        said.starts_with("lockstep: A backup is never alone: take --alone out"),
        "{said}"
    );
}

#[test]
fn a_backup_that_is_to_start_from_a_snapshot_is_told_who_does_so() {
    let said = refused_run(&["--role", "backup", "--alone", "--from", "vm.snapshot"]);
    assert!(
        said.starts_with("lockstep: Only a host that starts alone goes on from a snapshot"),
        "{said}"
    );
}

#[test]
fn keys_are_private_and_never_written_over_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["keys", "--dir", text(dir.path()), "a", "b"];
    assert!(lockstep(&arguments).status.success());
    let key = dir.path().join("a.key");
    let before = fs::read(&key).unwrap();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

    let again = lockstep(&arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
    assert_eq!(fs::read(&key).unwrap(), before);

    assert!(
        lockstep(&[&arguments[..], &["--force"]].concat())
            .status
            .success()
    );
    assert_ne!(fs::read(&key).unwrap(), before);
}

#[test]
fn check_names_a_remedy_for_every_line_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    fs::write(&path, CONFIG).unwrap();
    let output = lockstep(&["check", "--json", "--config", text(&path), "--node", "a"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let lines = report["lines"].as_array().unwrap();
    let failing = |name: &str| {
        lines
            .iter()
            .any(|line| line["name"] == name && line["verdict"] == "fail")
    };
    assert!(
        failing("own key") && failing("disk") && failing("arbiter"),
        "{report:#}"
    );
    assert!(
        lines
            .iter()
            .all(|line| line["verdict"] == "ok" || line["remedy"].is_string()),
        "{report:#}"
    );
}

/// The good configuration with node c as a spare.
fn with_spare() -> String {
    let b = CONFIG.split_once("[node.b]").unwrap().1;
    let c = b
        .replace("127.0.0.1:1", "127.0.0.1:2")
        .replace("keys/b", "keys/c")
        .replace("run/b", "run/c");
    format!("{CONFIG}[node.c]\nspare = true\n{c}")
}

#[test]
fn check_tells_of_every_host_whose_certificate_is_missing_or_expired() {
    let dir = tempfile::tempdir().unwrap();
    let (path, keys) = (dir.path().join("vm.toml"), dir.path().join("keys"));
    fs::write(&path, with_spare()).unwrap();
    assert!(
        lockstep(&["keys", "--dir", text(&keys), "a", "b"])
            .status
            .success()
    );
    let line = |name: &str| {
        let output = lockstep(&["check", "--json", "--config", text(&path), "--node", "a"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let lines = report["lines"].as_array().unwrap();
        lines.iter().find(|line| line["name"] == name).cloned().unwrap()
    };
    assert_eq!(line("certificate of b")["verdict"], "ok");
    let missing = line("certificate of c");
    assert_eq!(
        (&missing["verdict"], &missing["remedy"]),
        (&"fail".into(), &"Copy it here from the host of c".into())
    );

    let long_ago = Validity {
        from: SystemTime::UNIX_EPOCH,
        until: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
    };
    let expired = Identity::generate("c", long_ago).unwrap();
    fs::write(keys.join("c.crt"), expired.certificate).unwrap();
    let expired = line("certificate of c");
    assert_eq!(expired["verdict"], "fail");
    assert!(
        expired["remedy"]
            .as_str()
            .unwrap()
            .contains("lockstep keys --force"),
        "{expired:#}"
    );
}

#[test]
fn status_of_nobody_is_a_sentence_and_exit_status_1() {
    let dir = tempfile::tempdir().unwrap();
    let output = lockstep(&["status", "--run-dir", text(dir.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("lockstep: No node answers at "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn status_prints_what_the_node_answers() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
    let node = thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            assert_eq!(request, "status\n");
            writeln!(stream, "{}", serde_json::to_string(&example()).unwrap()).unwrap();
        }
    });
    let json = lockstep(&["status", "--json", "--run-dir", text(dir.path())]);
    let table = lockstep(&["status", "--run-dir", text(dir.path())]);
    node.join().unwrap();
    let answer: Status = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((answer.role, answer.term), (Role::TakingOver, 7));
    assert!(stdout(&table).contains("taking over"), "{}", stdout(&table));
}

fn example() -> Status {
    Status {
        release: "0".into(),
        vm: "shop".into(),
        node: "a".into(),
        role: Role::TakingOver,
        term: 7,
        position: 1,
        log_end: 2,
        acked: 2,
        executed: 2,
        lag: Lag::default(),
        held_outputs: 0,
        released_outputs: 0,
        log_bytes: 0,
        input_bytes: 0,
        lease_ms_left: None,
        peer: None,
        spares: Vec::new(),
        devices: Vec::new(),
        longest_run_us: 0,
        longest_wait_us: 0,
        deltas: 0,
        delta_bytes: 0,
        divergences: 0,
        divergence: None,
        healed: 0,
        guest_time_ns: 0,
        uptime_ms: 0,
        takeover: None,
        copy: None,
        events: Vec::new(),
    }
}
