//! The guest's serial console as people see it: lines on the log, standard input and output, or a Unix socket.
//!
//! The run loop feeds it what the guest printed. What is typed waits in [`Typed`] until the recorder of a live machine
//! takes it into a window. Nothing is kept for ever: a guest that prints without line ends is cut, a client of the socket that
//! does not read is hung up on, and what is printed to or typed at standard output and input beyond a bound is lost, as on a
//! real line.

mod outlet;

use crate::config::{ConsoleMode, Node};
use crate::ft::wait::Waker;
use outlet::Outlet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// A line longer than this is shown in pieces.
const LINE_MAX: usize = 512;
/// What may wait to enter; the guest's own queue is as long.
const TYPED_MAX: usize = 4096;

/// Why a console cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The socket cannot be made.
    #[error("Cannot listen for the console at {}", .0.display())]
    Listen(PathBuf, #[source] io::Error),
    /// No thread.
    #[error("Cannot start a thread for the console")]
    Thread(#[source] io::Error),
}

/// What people typed and the guest did not get yet.
#[derive(Clone, Debug, Default)]
pub struct Typed(Arc<Mutex<Vec<u8>>>);

impl Typed {
    /// Takes everything that was typed.
    #[must_use]
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *lock(&self.0))
    }

    /// Whether something was typed that was not taken.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !lock(&self.0).is_empty()
    }

    fn add(&self, bytes: &[u8]) {
        let mut typed = lock(&self.0);
        let room = TYPED_MAX - typed.len();
        typed.extend(bytes.iter().take(room));
    }

    /// Passes on what `from` says until it ends.
    fn read_all(&self, mut from: impl Read, waker: &Waker) {
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            self.add(&bytes[..count]);
            waker.wake();
        }
    }
}

/// Where the guest's output goes.
#[derive(Debug)]
pub enum Console {
    /// Line by line to the log.
    Log(Line),
    /// Standard output, as it comes.
    Stdio(Outlet),
    /// Whoever is connected.
    Socket(Arc<Mutex<Option<UnixStream>>>),
}

impl Console {
    /// Opens the console that the configuration asks for. `waker` ends the sleep of a machine that waits for input.
    ///
    /// # Errors
    /// When the socket cannot be made, or there is no thread to be had.
    pub fn open(mode: ConsoleMode, node: &Node, waker: &Waker) -> Result<(Self, Typed), ConsoleError> {
        let typed = Typed::default();
        let (keys, waker) = (typed.clone(), waker.clone());
        let console = match mode {
            ConsoleMode::Log => Self::Log(Line::default()),
            ConsoleMode::Stdio => {
                start(move || keys.read_all(io::stdin(), &waker))?;
                Self::Stdio(Outlet::open(io::stdout())?)
            }
            ConsoleMode::Socket => {
                let path = node.console_socket();
                let listener = listen(&path).map_err(|error| ConsoleError::Listen(path, error))?;
                let reader = Arc::new(Mutex::new(None));
                let shown = Arc::clone(&reader);
                start(move || serve(&listener, &shown, &keys, &waker))?;
                Self::Socket(reader)
            }
        };
        Ok((console, typed))
    }

    /// The guest printed `bytes`.
    pub fn print(&mut self, bytes: &[u8]) {
        match self {
            Self::Log(line) => line.print(bytes),
            Self::Stdio(outlet) => outlet.print(bytes),
            Self::Socket(reader) => {
                let mut reader = lock(reader);
                let failed = reader
                    .as_mut()
                    .is_some_and(|stream| stream.write_all(bytes).is_err());
                if failed && let Some(stream) = reader.take() {
                    // It does not read what it asked for; the guest does not wait for it.
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                }
            }
        }
    }
}

/// What was printed and is not yet a whole line.
#[derive(Debug, Default)]
pub struct Line(Vec<u8>);

impl Line {
    fn print(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.show(),
                b'\r' => {}
                _ => self.0.push(byte),
            }
            if self.0.len() >= LINE_MAX {
                self.show();
            }
        }
    }

    fn show(&mut self) {
        tracing::info!(target: "guest", "{}", String::from_utf8_lossy(&self.0).escape_debug());
        self.0.clear();
    }
}

fn start(work: impl FnOnce() + Send + 'static) -> Result<(), ConsoleError> {
    thread::Builder::new()
        .name("console".into())
        .spawn(work)
        .map(|_| ())
        .map_err(ConsoleError::Thread)
}

/// The run directory is this node's alone, so an old socket in it is stale.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// One reader at a time: the next one waits until it leaves.
fn serve(listener: &UnixListener, reader: &Mutex<Option<UnixStream>>, keys: &Typed, waker: &Waker) {
    for stream in listener.incoming().flatten() {
        let Ok(writer) = stream.try_clone() else { continue };
        if writer.set_write_timeout(Some(WRITE_PATIENCE)).is_err() {
            continue;
        }
        *lock(reader) = Some(writer);
        keys.read_all(&stream, waker);
        *lock(reader) = None;
    }
}

/// How long the guest waits for a reader that is behind, once; then it is hung up on.
const WRITE_PATIENCE: std::time::Duration = std::time::Duration::from_millis(10);

/// A thread that panicked left bytes that are still worth having.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn node(folder: &Path) -> Node {
        let text = format!(
            "[vm]\nname = \"v\"\nkernel = \"k\"\n[arbiter]\nkind = \"file\"\ndir = \"arbiter\"\n{}{}",
            node_text("a", folder),
            node_text("b", Path::new("/nowhere")),
        );
        crate::config::Config::parse(Path::new("/vm.toml"), &text)
            .unwrap()
            .node("a")
            .unwrap()
            .clone()
    }

    fn node_text(name: &str, folder: &Path) -> String {
        let port = 7000 + name.len() + usize::from(name == "b");
        format!(
            "[node.{name}]\naddress = \"127.0.0.1:{port}\"\ncertificate = \"c\"\nkey = \"k\"\nrun_dir = {:?}\n",
            folder.display().to_string()
        )
    }

    fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    #[test]
    fn whoever_connects_sees_what_is_printed_and_types_what_enters() {
        let folder = tempfile::tempdir().unwrap();
        let (mut console, typed) =
            Console::open(ConsoleMode::Socket, &node(folder.path()), &Waker::new().unwrap()).unwrap();
        let mut client = UnixStream::connect(folder.path().join("console.sock")).unwrap();
        client.write_all(b"ls\n").unwrap();
        assert_eq!(
            until(|| Some(typed.take()).filter(|typed| !typed.is_empty())),
            b"ls\n"
        );
        console.print(b"bin\n");
        let mut shown = [0; 4];
        client.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"bin\n");
    }

    #[test]
    fn what_is_typed_beyond_the_bound_is_lost() {
        let typed = Typed::default();
        typed.add(&[b'x'; 2 * TYPED_MAX]);
        assert_eq!(typed.take().len(), TYPED_MAX);
        assert!(typed.take().is_empty());
    }
}
