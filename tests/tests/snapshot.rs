//! A VM is written to a file while it runs, and started from there: whoever is connected to it does not notice more than
//! a pause.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use lockstep_tests::network::{self, GUEST};
use lockstep_tests::pair::Pair;
use lockstep_tests::redis::cli;

#[test]
fn a_vm_started_from_its_snapshot_goes_on_with_its_connections() {
    network::alone(
        "a_vm_started_from_its_snapshot_goes_on_with_its_connections",
        || {
            let pair = Pair::new().unwrap();
            let config = pair.path("vm.toml");
            let mut first = pair.start_alone(&config, &[]).unwrap();
            assert_eq!(cli("SET kept this").unwrap(), "OK");
            let mut client = connect();
            assert_eq!(say(&mut client, "INCR counter"), ":1\r\n");

            let said = pair.snapshot("a", "vm.snapshot").unwrap();
            first.stop();
            assert_eq!(first.wait_for_end().unwrap().0, Some(0));
            let file = pair.path("vm.snapshot");
            let from = ["--from", file.to_str().unwrap()];
            let _second = pair.start_alone(&config, &from).unwrap();

            println!("{said}");
            assert!(said.contains("The guest stood still for "), "{said}");
            assert_eq!(say(&mut client, "INCR counter"), ":2\r\n");
            assert_eq!(cli("GET kept").unwrap(), "this");
            assert_eq!(cli("SET later that").unwrap(), "OK");
        },
    );
}

#[test]
fn a_protected_vm_is_written_by_its_primary_and_stays_protected() {
    network::alone(
        "a_protected_vm_is_written_by_its_primary_and_stays_protected",
        || {
            let pair = Pair::new().unwrap();
            let (mut a, mut b) = pair.start_both().unwrap();
            assert_eq!(cli("SET kept this").unwrap(), "OK");

            let refused = pair.snapshot("b", "vm.snapshot").unwrap_err().to_string();
            pair.snapshot("a", "vm.snapshot").unwrap();

            assert!(
                refused.contains("ask the one whose role is primary or alone"),
                "{refused}"
            );
            assert!(pair.path("vm.snapshot").exists());
            a.kill();
            b.wait_until_role("alone").unwrap();
            assert_eq!(cli("GET kept").unwrap(), "this");
        },
    );
}

#[test]
fn a_snapshot_of_a_smaller_vm_is_refused_with_the_remedy() {
    network::alone("a_snapshot_of_a_smaller_vm_is_refused_with_the_remedy", || {
        let pair = Pair::new().unwrap();
        let config = pair.path("vm.toml");
        let mut first = pair.start_alone(&config, &[]).unwrap();
        assert_eq!(cli("PING").unwrap(), "PONG");
        pair.snapshot("a", "vm.snapshot").unwrap();
        first.stop();
        first.wait_for_end().unwrap();

        let larger = pair
            .changed_config("memory_mib = 64", "memory_mib = 128")
            .unwrap();
        let file = pair.path("vm.snapshot");
        let from = ["--alone", "--from", file.to_str().unwrap()];
        let mut second = pair.start_more(&larger, "a", "primary", &from).unwrap();
        let (code, said) = second.wait_for_end().unwrap();

        assert_eq!(code, Some(1));
        assert!(said.contains("set memory_mib to 64"), "{said}");
    });
}

fn connect() -> BufReader<TcpStream> {
    let stream = TcpStream::connect(GUEST).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    BufReader::new(stream)
}

/// One command and the first line of its reply.
fn say(client: &mut BufReader<TcpStream>, command: &str) -> String {
    client
        .get_mut()
        .write_all(format!("{command}\r\n").as_bytes())
        .unwrap();
    let mut reply = String::new();
    client.read_line(&mut reply).unwrap();
    reply
}
