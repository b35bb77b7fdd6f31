//! What a request's answer says: the data that was read, and how the request ended.
//!
//! Called by `submit.rs` and `plain.rs` with the room that `sink.rs` found for the answer. It never decides where an answer
//! goes, and it never changes the disk.

use std::collections::BTreeSet;
use std::io;

use vm_memory::{Bytes, VolatileSlice};

use crate::disk::Disk;
use crate::request::{Command, Status};

/// Errors of the disk, as a guest and as a log are told of them.
#[derive(Debug, Default)]
pub struct Failures {
    /// Each error is reported once: a full disk fails every write.
    reported: BTreeSet<i32>,
}

impl Failures {
    /// The status for the outcome of some work on the disk.
    pub fn status_of(&mut self, doing: &'static str, outcome: io::Result<()>) -> Status {
        let Err(error) = outcome else { return Status::Ok };
        if self.reported.insert(error.raw_os_error().unwrap_or(0)) {
            tracing::warn!(doing, %error, "The disk failed; whoever asked gets an I/O error, and this is said once");
        }
        Status::IoError
    }
}

/// Fills the data part of an answer; all of it, even when the request failed.
pub fn fill(
    disk: &mut Disk,
    failures: &mut Failures,
    command: &Command,
    room: &mut [VolatileSlice<'_>],
) -> Status {
    let status = match command {
        Command::Read(extent) => failures.status_of("reading", disk.read(extent.at, room)),
        Command::Refuse(status) => *status,
        _ => Status::Ok,
    };
    match (command, status) {
        (Command::Read(_), Status::Ok) => {}
        (Command::GetId, Status::Ok) => write_padded(room, disk.serial()),
        _ => write_padded(room, &[]),
    }
    status
}

/// Writes `bytes` and then zeros: what lay there before is nobody's business.
pub fn write_padded(room: &mut [VolatileSlice<'_>], mut bytes: &[u8]) {
    const ZEROS: [u8; 4096] = [0; 4096];
    for slice in room {
        let mut at = 0;
        while at < slice.len() {
            let source = if bytes.is_empty() { &ZEROS[..] } else { bytes };
            // It writes as much as fits, and there is a byte of room and a byte to write.
            let written = slice.write(source, at).expect("the place lies inside the slice");
            bytes = bytes.get(written..).unwrap_or(&[]);
            at += written;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_longer_than_its_words_ends_in_zeros() {
        let (mut first, mut second) = ([9; 3], [9; 6000]);
        write_padded(
            &mut [first.as_mut_slice().into(), second.as_mut_slice().into()],
            b"abcd",
        );
        assert_eq!(&first, b"abc");
        assert_eq!((second[0], second[1], second[5999]), (b'd', 0, 0));
    }

    #[test]
    fn a_full_disk_is_an_io_error_every_time_and_reported_once() {
        let full = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let mut failures = Failures::default();
        assert_eq!(failures.status_of("writing", full()), Status::IoError);
        assert_eq!(failures.status_of("writing", full()), Status::IoError);
        assert_eq!(failures.reported.len(), 1);
    }
}
