//! `lockstep run`: one side of a protected VM, from power-on to its end. Stub.

use std::process::ExitCode;

use crate::config::Config;

/// What to run.
#[derive(Debug)]
pub struct RunOptions {
    /// The checked configuration.
    pub config: Config,
    /// Which node of it this host is; it exists.
    pub node: String,
    /// What this node is at the start.
    pub role: StartRole,
    /// Run unprotected: claim the term and hold it alone.
    pub alone: bool,
    /// Die with the process that started this one.
    pub die_with_parent: bool,
}

/// What a node is at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRole {
    /// Talks to the world.
    Primary,
    /// Executes what the primary executed.
    Backup,
}

/// Runs the VM until it ends.
pub fn run(options: RunOptions) -> anyhow::Result<ExitCode> {
    anyhow::bail!("Cannot run node {} of {} yet", options.node, options.config.path.display())
}
