//! The machine of a backup becomes another one than its primary's: a bit flips, or the guest reads what no two hosts have
//! alike. It is found, told, and healed by a delta; the takeover afterwards is right. A backup that cannot be healed, or was
//! not in time, does not go on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lockstep_tests::network::{self, GUEST};
use lockstep_tests::pair::{Node, Pair, plug};
use lockstep_tests::qemu::processes::{Process, eventually};
use lockstep_tests::redis::cli;
use serde_json::Value;

/// A machine of 64 MiB is looked through in some seconds; a busy host takes longer.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn a_bit_that_flips_in_a_backups_memory_is_found_and_healed_and_the_takeover_is_right() {
    network::alone(
        "a_bit_that_flips_in_a_backups_memory_is_found_and_healed_and_the_takeover_is_right",
        || {
            let pair = Pair::new().unwrap();
            let (a, b) = start(&pair, &["--flip-bit", "memory@100"]);

            let status = talk_until_healed(&a);

            // The page lies at 40 MiB, and the primary says which it was.
            let found = status["divergence"].as_str().unwrap();
            assert!(found.contains("pages from 0x2800000 on differs"), "{found}");
            let log = a.log();
            assert!(log.contains("wrong=\"0x2800000\""), "{log}");
            outlives(a, b);
        },
    );
}

#[test]
fn a_bit_that_flips_in_a_backups_register_is_found_and_healed_and_the_takeover_is_right() {
    network::alone(
        "a_bit_that_flips_in_a_backups_register_is_found_and_healed_and_the_takeover_is_right",
        || {
            let pair = Pair::new().unwrap();
            let (a, b) = start(&pair, &["--flip-bit", "register@100"]);

            let status = talk_until_healed(&a);

            println!("{}", status["divergence"]);
            outlives(a, b);
        },
    );
}

#[test]
fn what_a_guest_told_of_its_processors_counter_the_survivor_remembers() {
    network::alone(
        "what_a_guest_told_of_its_processors_counter_the_survivor_remembers",
        || {
            let pair = Pair::new().unwrap();
            let (a, b) = start(&pair, &[]);

            // Two hosts never read the same there, so the backup's guest stores something else than the primary's.
            let told = cli("TSC processor").unwrap();
            assert!(told.parse::<u64>().unwrap() > 0, "{told}");
            let status = talk_until_healed(&a);

            println!("{}", status["divergence"]);
            let _b = outlives(a, b);
            assert_eq!(cli("GET processor").unwrap(), told);
        },
    );
}

#[test]
fn a_backup_that_diverges_with_a_disk_of_its_own_leaves_and_returns_with_a_fresh_copy() {
    network::alone(
        "a_backup_that_diverges_with_a_disk_of_its_own_leaves_and_returns_with_a_fresh_copy",
        || {
            let pair = Pair::mirrored().unwrap();
            let (mut a, mut b) = start(&pair, &["--flip-bit", "register@300"]);

            talk_until("a backup that leaves", || !b.is_running());
            let (code, words) = b.wait_for_end().unwrap();
            assert_eq!(code, Some(1), "{words}");
            assert!(b.log().contains("is not trusted any more"), "{}", b.log());
            a.wait_until_role("alone").unwrap();
            assert_eq!(cli("SET while alone").unwrap(), "OK");

            let mut b = pair.start_spare_with(&pair.path("changed.toml"), "b").unwrap();
            a.wait_until_role("primary").unwrap();
            b.wait_until_role("backup").unwrap();
            plug(&["b"]).unwrap();
            assert_eq!(a.status().unwrap()["copy"]["disk"]["whole"], true);
            a.kill();
            b.wait_until_role("alone").unwrap();
            assert_eq!(cli("GET while").unwrap(), "alone");
        },
    );
}

#[test]
fn a_backup_that_finds_out_too_late_does_not_go_on_when_its_primary_dies() {
    network::alone(
        "a_backup_that_finds_out_too_late_does_not_go_on_when_its_primary_dies",
        || {
            let pair = Pair::new().unwrap();
            // So much memory takes longer to count than it takes us to kill a host.
            let config = patient_config(&pair);
            let text = fs::read_to_string(&config).unwrap();
            fs::write(&config, text.replace("memory_mib = 64", "memory_mib = 1024")).unwrap();
            let (mut a, mut b) = start_with(&pair, &config, &["--flip-bit", "register@1000"]);
            let guest = [GUEST.ip().to_string(), GUEST.port().to_string()];
            let talk = Process::start(
                Command::new("redis-cli")
                    .args(["-h", &guest[0], "-p", &guest[1]])
                    .args(["-r", "-1", "INCR", "counter"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null()),
            )
            .unwrap();

            b.wait_until_logged("has diverged").unwrap();
            a.kill();
            drop(talk);

            let (code, words) = b.wait_for_end().unwrap();
            assert_eq!(code, Some(1), "{words}");
            assert!(words.contains("had diverged and was not healed"), "{words}");
        },
    );
}

/// The pair's configuration with a timing in which a busy machine is not taken for a dead host.
fn patient_config(pair: &Pair) -> PathBuf {
    let patient = "heartbeat_ms = 20\nlease_ms = 800\ntimeout_ms = 1000";
    pair.changed_config("heartbeat_ms = 20", patient).unwrap()
}

/// Starts both nodes, b with more arguments.
fn start(pair: &Pair, more_b: &[&str]) -> (Node, Node) {
    start_with(pair, &patient_config(pair), more_b)
}

fn start_with(pair: &Pair, config: &Path, more_b: &[&str]) -> (Node, Node) {
    let mut b = pair.start_more(config, "b", "backup", more_b).unwrap();
    let mut a = pair.start_with(config, "a", "primary").unwrap();
    a.wait_until_role("primary").unwrap();
    b.wait_until_role("backup").unwrap();
    plug(&["a", "b"]).unwrap();
    (a, b)
}

/// Keeps the guest busy until its primary has healed the backup.
fn talk_until_healed(a: &Node) -> Value {
    let healed = || {
        a.status()
            .is_some_and(|status| status["healed"].as_u64() > Some(0))
    };
    talk_until("a backup that is healed", healed);
    a.status().unwrap()
}

fn talk_until(what: &str, mut is_so: impl FnMut() -> bool) {
    eventually(what, PATIENCE, || {
        cli("INCR counter")?.parse::<u64>()?;
        Ok(is_so().then_some(()))
    })
    .unwrap();
}

/// The healed backup knows what was said before and after, and goes on with it.
fn outlives(mut a: Node, mut b: Node) -> Node {
    assert_eq!(cli("SET after healing").unwrap(), "OK");
    let counter = cli("GET counter").unwrap();
    let before = a.status().unwrap();
    assert_eq!(before["divergences"], before["healed"]);
    a.kill();
    b.wait_until_role("alone").unwrap();

    assert_eq!(cli("MGET counter after").unwrap(), format!("{counter}\nhealing"));
    let status = b.status().unwrap();
    let counts = [&status["divergences"], &status["healed"]];
    assert_eq!(counts, [&before["divergences"], &before["healed"]]);
    b
}
