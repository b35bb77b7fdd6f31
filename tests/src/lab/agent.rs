//! Orders to a running host: a shell behind a TCP port of the management wire, and what it answered.
//!
//! The other end is busybox's `nc -e sh` (see `host_image.rs`). One connection is one script. Every order has a time
//! limit: a host that is dead, or that the wire is pulled out of, does not answer.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Runs a script as root and returns what it printed; an error if it failed. Whatever it leaves running must have its
/// output elsewhere, or the order never ends.
pub fn run(address: SocketAddr, script: &str, patience: Duration) -> anyhow::Result<String> {
    let asked = script.lines().next().unwrap_or_default();
    let said = exchange(address, script, patience).with_context(|| format!("No answer to `{asked}`"))?;
    match said.rsplit_once(END) {
        Some((said, "0")) => Ok(said.to_owned()),
        Some((said, code)) => bail!("`{asked}` failed with {code}: {}", said.trim()),
        None => bail!("`{asked}` ended early: {}", said.trim()),
    }
}

fn exchange(address: SocketAddr, script: &str, patience: Duration) -> anyhow::Result<String> {
    let deadline = Instant::now() + patience;
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    // A shell of its own for the script: whatever it does, the last line is said.
    let order = format!("sh <<'{HERE}' 2>&1\n{script}\n{HERE}\necho -n \"{END}$?\"\nexit\n");
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(order.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("It takes longer than {} s", patience.as_secs());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => break,
            read => said.extend_from_slice(&piece[..read]),
        }
        if said.len() > ANSWER_MAX {
            bail!("It says more than {ANSWER_MAX} bytes");
        }
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// A file's content as lines that a shell can write.
pub fn put(path: &str, content: &[u8]) -> String {
    let mut script = format!("mkdir -p \"$(dirname {path})\"; : > {path}\n");
    for piece in content.chunks(PIECE) {
        let escaped: String = piece.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        script.push_str(&format!("printf '{escaped}' >> {path}\n"));
    }
    script
}

const END: &str = "LOCKSTEP-END ";
const HERE: &str = "LOCKSTEP-HERE";
const ANSWER_MAX: usize = 4 << 20;
/// Bytes in one line of a script.
const PIECE: usize = 256;
