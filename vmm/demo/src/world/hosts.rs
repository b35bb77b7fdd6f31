//! One emulated host: a process group that can be killed, stopped or resumed as a whole, as a power cut or a stalled
//! hypervisor would do to a machine. A dropped [`Host`] is dead, and so is every process that it started.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::status::{self, Status};

/// Where a host's log lines go.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    /// To this process's standard error.
    Show,
    /// To a file in this directory.
    Log(PathBuf),
}

/// A process group that stands for a machine.
pub(crate) struct Host {
    name: String,
    child: Child,
    group: Pid,
    control: PathBuf,
    log: Option<PathBuf>,
}

impl Host {
    /// Starts `command` as the first process of a new group.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        control: PathBuf,
        output: &Output,
    ) -> anyhow::Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        let log = match output {
            Output::Show => None,
            Output::Log(dir) => {
                let path = dir.join(format!("{name}.log"));
                let file = File::options().create(true).append(true).open(&path);
                command.stderr(file.with_context(|| format!("Cannot write {}", path.display()))?);
                Some(path)
            }
        };
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .with_context(|| format!("Cannot start {program}"))?;
        let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id of Linux fits in 22 bits"));
        Ok(Self {
            name: name.into(),
            child,
            group,
            control,
            log,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The id of its process group.
    pub(crate) fn group(&self) -> i32 {
        self.group.as_raw()
    }

    /// What it says about itself, if it answers.
    pub(crate) async fn status(&self) -> Option<Status> {
        status::ask(&self.control).await
    }

    /// How its first process ended, if it did.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<String>> {
        Ok(self
            .child
            .try_wait()
            .context("Cannot wait for a host")?
            .map(|end| end.to_string()))
    }

    /// The power cut: every process of the host, at once.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
    }

    /// Asks its first process to stop, as an operator would.
    pub(crate) fn terminate(&mut self) {
        // It may have ended already, which is what it is asked for.
        let _ = kill(self.group, Signal::SIGTERM);
    }

    /// Stops every process of the host where it is.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets them go on.
    pub(crate) fn resume(&mut self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits until no process of the group is left; false if some stay.
    pub(crate) fn reap(&mut self) -> bool {
        let _ = self.child.wait();
        for _ in 0..REAP_TRIES {
            // Orphans of the group become our children: this process is their subreaper.
            while matches!(waitpid(Pid::from_raw(-self.group.as_raw()), Some(WaitPidFlag::WNOHANG)), Ok(s) if s.pid().is_some())
            {
            }
            if killpg(self.group, None) == Err(Errno::ESRCH) {
                return true;
            }
            std::thread::sleep(REAP_INTERVAL);
        }
        false
    }

    /// The last lines of its log, for an error message.
    pub(crate) fn last_words(&self) -> String {
        let text = self
            .log
            .as_ref()
            .and_then(|path| fs::read(path).ok())
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().rev().take(LAST_LINES).collect();
        if lines.is_empty() {
            return String::new();
        }
        let mut words = format!("; the last lines of {}.log are:", self.name);
        for line in lines.iter().rev() {
            words.push_str("\n  ");
            words.push_str(line);
        }
        words
    }

    fn signal(&self, signal: Signal) {
        // The group may be gone already, which is what a kill wanted.
        let _ = killpg(self.group, signal);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}

const LAST_LINES: usize = 12;
const REAP_TRIES: u32 = 200;
const REAP_INTERVAL: Duration = Duration::from_millis(5);
