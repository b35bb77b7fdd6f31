//! Redis's own clients (Debian package redis-tools) against the guest of a protected pair.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use lockstep_tests::network;
use lockstep_tests::pair::Pair;
use lockstep_tests::redis::{cli, redis};

#[test]
fn redis_cli_gets_the_replies_it_knows() {
    network::alone("redis_cli_gets_the_replies_it_knows", || {
        let pair = Pair::new().unwrap();
        let _nodes = pair.start_both().unwrap();

        assert_says("PING", "PONG");
        assert_says("PING hello", "hello");
        assert_says("ECHO hello", "hello");
        assert_says("SET greeting hello", "OK");
        assert_says("GET greeting", "hello");
        assert_says("GET nothing", "");
        assert_says("APPEND greeting world", "10");
        assert_says("GET greeting", "helloworld");
        assert_says("EXISTS greeting greeting nothing", "2");
        assert_says("INCR counter", "1");
        assert_says("INCR counter", "2");
        assert_says("DECR counter", "1");
        assert_says("INCR greeting", "ERR value is not an integer or out of range");
        assert_says("MSET one 1 two 2 three 3", "OK");
        assert_says("MGET one nothing three", "1\n\n3");
        assert_says("DEL one two nothing", "2");
        assert_says("DBSIZE", "3");
        assert_says("KEYS t*", "three");
        assert_says("SELECT 0", "OK");
        assert_says("CONFIG GET save", "save");
        assert_contains("INFO", "redis_version:");
        assert_contains("COMMAND", "get");
        assert_says(
            "NOSUCHCOMMAND",
            "ERR unknown command 'NOSUCHCOMMAND', with args beginning with:",
        );
        assert_says("GET", "ERR wrong number of arguments for 'get' command");
        assert_says("FLUSHALL", "OK");
        assert_says("DBSIZE", "0");
        assert_says("QUIT", "OK");
    });
}

#[test]
fn redis_cli_goes_on_with_the_survivor() {
    network::alone("redis_cli_goes_on_with_the_survivor", || {
        let pair = Pair::new().unwrap();
        let (mut a, mut b) = pair.start_both().unwrap();
        assert_says("SET kept this", "OK");

        a.kill();
        b.wait_until_role("alone").unwrap();

        assert_says("GET kept", "this");
        assert_says("APPEND kept too", "7");
    });
}

#[test]
fn redis_benchmark_runs_through() {
    network::alone("redis_benchmark_runs_through", || {
        let pair = Pair::new().unwrap();
        let _nodes = pair.start_both().unwrap();

        let single = benchmark(&["-t", "ping,set,get,incr,mset", "-n", "1000", "-c", "10"]);
        let pipelined = benchmark(&["-t", "set,get", "-n", "10000", "-c", "10", "-P", "16"]);

        assert_measured(
            &single,
            &[
                "PING_INLINE",
                "PING_MBULK",
                "SET",
                "GET",
                "INCR",
                "MSET (10 keys)",
            ],
        );
        assert_measured(&pipelined, &["SET", "GET"]);
    });
}

/// What redis-cli prints for a command, but for blanks at the end.
fn assert_says(command: &str, wanted: &str) {
    assert_eq!(cli(command).unwrap(), wanted, "redis-cli {command}");
}

fn assert_contains(command: &str, wanted: &str) {
    let said = cli(command).unwrap();
    assert!(said.contains(wanted), "redis-cli {command} said {said:.400}");
}

fn benchmark(arguments: &[&str]) -> String {
    let output = redis("redis-benchmark", &[&["--csv"], arguments].concat(), b"").unwrap();
    assert!(output.status.success(), "redis-benchmark ended: {output:?}");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(!complaints.to_lowercase().contains("error"), "{complaints}");
    String::from_utf8(output.stdout).unwrap()
}

/// Each test has a line, and its first number, the requests a second, is not zero.
fn assert_measured(csv: &str, tests: &[&str]) {
    println!("{csv}");
    let rate = |test: &&str| {
        let line = csv
            .lines()
            .find_map(|line| line.strip_prefix(&format!("\"{test}\",\"")));
        line.and_then(|line| line.split('"').next())
            .and_then(|rate| rate.parse::<f64>().ok())
    };
    let missing: Vec<_> = tests
        .iter()
        .filter(|test| rate(test).is_none_or(|rate| rate <= 0.0))
        .collect();
    assert!(missing.is_empty(), "no rate for {missing:?} in {csv}");
}
