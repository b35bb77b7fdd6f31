//! The command line.
//!
//! Parsed by `main.rs`. It only says what can be said; what is wrong with a path is found by whoever opens it.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

use crate::disk::{DiskOptions, Sharing};

/// A virtio disk as a process of its own, for a Lockstep VM or for any other vhost-user front-end.
///
/// Without --staging it is an ordinary vhost-user-blk back-end: QEMU and cloud-hypervisor can use it. With --staging it
/// serves a protected VM: it hands what it reads to the VMM instead of writing it to guest memory. It holds every write
/// to a shared disk until the backup host has the input that caused it; a mirrored disk is written by both hosts at once.
///
/// It serves one front-end after the other until it gets SIGTERM or SIGINT, or only one with --once.
#[derive(Clone, Debug, Parser)]
#[command(name = "vhost-blk-ft", version, after_help = EXAMPLES)]
pub struct Args {
    /// The vhost-user socket to listen at; made here, removed at the end
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// The staging socket to listen at: serve a protected VM
    #[arg(long, value_name = "PATH")]
    pub staging: Option<PathBuf>,

    /// The disk: a raw file or a block device, a multiple of 512 bytes long
    #[arg(long, value_name = "PATH")]
    pub disk: PathBuf,

    /// How a protected VM's two hosts have the disk [default: shared]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,

    /// The guest may not write
    #[arg(long, alias = "readonly")]
    pub read_only: bool,

    /// Exit when the first front-end disconnects, instead of waiting for the next
    #[arg(long)]
    pub once: bool,

    /// What the guest is told the disk is called; at most 20 bytes
    #[arg(long, value_name = "NAME", default_value = "lockstep", value_parser = parse_serial)]
    pub serial: String,
}

/// How a protected VM's two hosts have the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Both see the same disk; only the host that is live writes
    Shared,
    /// Each has an image of its own; both write what the guest writes
    Mirror,
}

const EXAMPLES: &str = "\
Examples:
  truncate -s 1G disk.img
  vhost-blk-ft --socket blk.sock --disk disk.img
  vhost-blk-ft --socket blk.sock --staging blk-staging.sock --disk /dev/shared
  vhost-blk-ft --socket blk.sock --staging blk-staging.sock --disk disk.img --mode mirror

RUST_LOG=debug says more on standard error.";

/// An ordinary front-end's disk is on one host, and its process would forget which blocks of a mirrored image changed.
const MODE_ALONE: &str = "--mode says how the two hosts of a protected VM have the disk: \
    name the --staging socket of its VMM too, or leave --mode out";

impl Args {
    /// Reads them, or ends the process with a sentence about what is wrong with them.
    pub fn read() -> Self {
        let args = Self::parse();
        match args.check() {
            Ok(()) => args,
            Err(error) => error.exit(),
        }
    }

    /// What no single argument is wrong with, but all of them together.
    fn check(&self) -> Result<(), clap::Error> {
        match (&self.staging, self.mode) {
            (None, Some(_)) => Err(Self::command().error(ErrorKind::MissingRequiredArgument, MODE_ALONE)),
            _ => Ok(()),
        }
    }

    /// How to open the disk.
    pub fn disk_options(&self) -> DiskOptions {
        let sharing = match (&self.staging, self.mode) {
            (Some(_), None | Some(Mode::Shared)) => Sharing::Shared,
            (Some(_), Some(Mode::Mirror)) => Sharing::Mirrored,
            (None, _) => Sharing::Alone,
        };
        DiskOptions {
            path: self.disk.clone(),
            read_only: self.read_only,
            sharing,
            serial: self.serial.clone(),
        }
    }
}

fn parse_serial(text: &str) -> Result<String, String> {
    if text.len() > crate::limits::SERIAL_BYTES {
        return Err(format!(
            "a serial has at most {} bytes, this has {}",
            crate::limits::SERIAL_BYTES,
            text.len()
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_makes_sense_to_clap() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_process_for_a_protected_vm_shares_or_mirrors_its_disk() {
        let args = |more: &[&str]| {
            Args::parse_from([&["vhost-blk-ft", "--socket", "s", "--disk", "d"], more].concat())
        };
        assert_eq!(args(&["--staging", "p"]).disk_options().sharing, Sharing::Shared);
        let mirrored = args(&["--staging", "p", "--mode", "mirror"]);
        assert_eq!(mirrored.disk_options().sharing, Sharing::Mirrored);
        assert_eq!(args(&[]).disk_options().sharing, Sharing::Alone);
    }

    #[test]
    fn a_mode_without_a_vmm_to_protect_for_is_refused_with_what_to_do() {
        let told = |mode| {
            let args = ["vhost-blk-ft", "--socket", "s", "--disk", "d", "--mode", mode];
            Args::parse_from(args).check().unwrap_err().to_string()
        };
        assert!(told("mirror").contains("name the --staging socket"));
        assert!(told("shared").contains("or leave --mode out"));
    }

    #[test]
    fn a_serial_that_is_too_long_is_refused() {
        let long = [
            "vhost-blk-ft",
            "--socket",
            "s",
            "--disk",
            "d",
            "--serial",
            "123456789012345678901",
        ];
        assert!(Args::try_parse_from(long).is_err());
    }
}
