//! A bit flips in the machine of a backup. It is found, told, and healed by a delta; the takeover afterwards is right. A
//! backup that was not healed in time does not go on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::time::Duration;

use lockstep_tests::network;
use lockstep_tests::pair::{Node, Pair, plug};
use lockstep_tests::qemu::processes::eventually;
use lockstep_tests::redis::cli;
use serde_json::Value;

/// A machine of 64 MiB is looked through in some seconds; a busy host takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_bit_that_flips_in_a_backups_memory_is_found_and_healed_and_the_takeover_is_right() {
    network::alone(
        "a_bit_that_flips_in_a_backups_memory_is_found_and_healed_and_the_takeover_is_right",
        || {
            let pair = Pair::new().unwrap();
            let (a, b) = start_with_flip(&pair, "memory@100");

            let status = talk_until_healed(&a);

            // The page lies at 40 MiB, and the primary says which it was.
            let found = status["divergence"].as_str().unwrap();
            assert!(found.contains("pages from 0x2800000 on differs"), "{found}");
            a.wait_until_logged("wrong=\"0x2800000\"").unwrap();
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
            let (a, b) = start_with_flip(&pair, "register@100");

            let status = talk_until_healed(&a);

            println!("{}", status["divergence"]);
            outlives(a, b);
        },
    );
}

/// Starts both nodes with a timing in which a busy machine is not taken for a dead host; a bit of the backup will flip.
fn start_with_flip(pair: &Pair, flip: &str) -> (Node, Node) {
    let patient = "heartbeat_ms = 20\nlease_ms = 800\ntimeout_ms = 1000";
    let config = pair.changed_config("heartbeat_ms = 20", patient).unwrap();
    let mut b = pair
        .start_more(&config, "b", "backup", &["--flip-bit", flip])
        .unwrap();
    let mut a = pair.start_with(&config, "a", "primary").unwrap();
    a.wait_until_role("primary").unwrap();
    b.wait_until_role("backup").unwrap();
    plug(&["a", "b"]).unwrap();
    (a, b)
}

/// Keeps the guest busy until its primary has healed the backup.
fn talk_until_healed(a: &Node) -> Value {
    eventually("a backup that is healed", PATIENCE, || {
        assert_eq!(cli("INCR counter")?.parse::<u64>().map(drop), Ok(()));
        Ok(a.status().filter(|status| status["healed"] == 1))
    })
    .unwrap()
}

/// The healed backup knows what was said before and after, and goes on with it.
fn outlives(mut a: Node, mut b: Node) {
    assert_eq!(cli("SET after healing").unwrap(), "OK");
    let counter = cli("GET counter").unwrap();
    assert_eq!(a.status().unwrap()["divergences"], 1);
    a.kill();
    b.wait_until_role("alone").unwrap();

    assert_eq!(cli("MGET counter after").unwrap(), format!("{counter}\nhealing"));
    let status = b.status().unwrap();
    assert_eq!(
        (&status["divergences"], &status["healed"]),
        (&1.into(), &1.into())
    );
}
