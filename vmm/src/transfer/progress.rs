//! How far a move of a VM has come: counted by the threads that do it, shown in the status.

use crate::status::{Copy, DiskCopy};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// The counters of the moves of one process; the last move is shown.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Option<Counts>>);

#[derive(Debug)]
struct Counts {
    began: Instant,
    rounds: u32,
    pages: u64,
    bytes: u64,
    left: u64,
    disk: Option<DiskCopy>,
    ended: Option<(Instant, Duration)>,
}

impl Progress {
    /// A move begins.
    pub fn begin(&self) {
        *self.counts() = Some(Counts {
            began: Instant::now(),
            rounds: 0,
            pages: 0,
            bytes: 0,
            left: 0,
            disk: None,
            ended: None,
        });
    }

    /// A round begins that has so many pages to send, and so many bytes of a mirrored disk.
    pub fn round(&self, pages: u64, disk_bytes: u64) {
        self.change(|counts| {
            counts.rounds += 1;
            counts.left = pages;
            if let Some(disk) = &mut counts.disk {
                disk.bytes_left = disk_bytes;
            }
        });
    }

    /// A mirrored disk goes along, all of it or what changed.
    pub fn disk_begins(&self, is_whole: bool) {
        self.change(|counts| {
            counts.disk = Some(DiskCopy {
                whole: is_whole,
                bytes: 0,
                bytes_left: 0,
            });
        });
    }

    /// So many bytes of the disk went over in so many bytes.
    pub fn disk_moved(&self, of_disk: u64, bytes: u64) {
        self.change(|counts| {
            counts.bytes += bytes;
            if let Some(disk) = &mut counts.disk {
                disk.bytes += of_disk;
                disk.bytes_left = disk.bytes_left.saturating_sub(of_disk);
            }
        });
    }

    /// So many pages of the round went over in so many bytes.
    pub fn moved(&self, pages: u64, bytes: u64) {
        self.change(|counts| {
            counts.pages += pages;
            counts.bytes += bytes;
            counts.left = counts.left.saturating_sub(pages);
        });
    }

    /// The move is over; for it the guest stood still for so long.
    pub fn end(&self, stop: Duration) {
        self.change(|counts| counts.ended = Some((Instant::now(), stop)));
    }

    /// The move failed.
    pub fn forget(&self) {
        *self.counts() = None;
    }

    /// For the status.
    pub fn shown(&self) -> Option<Copy> {
        let counts = self.counts();
        let counts = counts.as_ref()?;
        let until = counts.ended.map_or_else(Instant::now, |(at, _)| at);
        let seconds = until.duration_since(counts.began).as_secs_f64();
        let rate = counts.bytes as f64 / seconds.max(f64::EPSILON);
        let per_page = counts.bytes as f64 / counts.pages.max(1) as f64;
        let disk_left = counts.disk.as_ref().map_or(0, |disk| disk.bytes_left);
        let bytes_left = counts.left as f64 * per_page + disk_left as f64;
        Some(Copy {
            rounds: counts.rounds,
            pages: counts.pages,
            bytes: counts.bytes,
            pages_left: counts.left,
            bytes_per_s: rate as u64,
            seconds_left: (counts.ended.is_none() && rate > 0.0).then(|| bytes_left / rate),
            seconds,
            disk: counts.disk.clone(),
            stop_ms: counts.ended.map(|(_, stop)| stop.as_secs_f64() * 1e3),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        if let Some(counts) = &mut *self.counts() {
            change(counts);
        }
    }

    /// A thread that panicked while it counted left counts that are still worth reading.
    fn counts(&self) -> std::sync::MutexGuard<'_, Option<Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
