//! Redis's own clients (Debian package redis-tools), asking the guest of a story's pair.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::Context;

use crate::network::GUEST;

/// What redis-cli prints for a command, but for blanks at the end.
pub fn cli(command: &str) -> anyhow::Result<String> {
    said(redis("redis-cli", &command.split(' ').collect::<Vec<_>>(), b"")?)
}

/// The same, with `last` as the command's last word.
pub fn cli_with(command: &str, last: &[u8]) -> anyhow::Result<String> {
    let words: Vec<_> = std::iter::once("-x").chain(command.split(' ')).collect();
    said(redis("redis-cli", &words, last)?)
}

/// Sets a key to as much as a write of several blocks takes, and returns what redis-cli prints.
pub fn set_64_kib(key: &str) -> anyhow::Result<String> {
    cli_with(&format!("SET {key}"), &[b'x'; 65536])
}

/// Runs one of the clients with `input` as its standard input.
pub fn redis(program: &str, arguments: &[&str], input: &[u8]) -> anyhow::Result<Output> {
    let mut client = Command::new(program)
        .args(["-h", &GUEST.ip().to_string(), "-p", &GUEST.port().to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Cannot start {program}: it is in the Debian package redis-tools"))?;
    let mut stdin = client.stdin.take().context("Its standard input is ours")?;
    stdin.write_all(input).context("It does not read its input")?;
    drop(stdin);
    Ok(client.wait_with_output()?)
}

fn said(output: Output) -> anyhow::Result<String> {
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
