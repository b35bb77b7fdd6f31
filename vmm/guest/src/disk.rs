//! What the log needs of a disk: asynchronous requests by sector, and a way to wait. The virtio driver implements it,
//! and so does the faulty disk of the tests.

use alloc::vec::Vec;

/// Unit of addresses and of atomic writes.
pub const SECTOR_BYTES: usize = 512;

/// The number by which its sender knows a request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(pub u32);

/// What can be asked of a disk. Lengths are whole sectors.
#[derive(Debug)]
pub enum Request {
    /// Fill the bytes from the disk.
    Read {
        /// The first sector.
        sector: u64,
        /// Where the data goes; its length says how much.
        bytes: Vec<u8>,
    },
    /// Put the bytes on the disk. They may sit in a cache until a flush.
    Write {
        /// The first sector.
        sector: u64,
        /// The data.
        bytes: Vec<u8>,
    },
    /// Make everything durable whose write was done before this was submitted; see
    /// [`Disk::flushes_in_order`] for more. A disk that needs no flush does nothing, and is done.
    Flush,
}

/// The disk did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskError;

/// A request that is over.
#[derive(Debug)]
pub struct Done {
    /// Whose it was.
    pub tag: Tag,
    /// How it ended.
    pub result: Result<(), DiskError>,
    /// The bytes of the request; none for a flush.
    pub bytes: Vec<u8>,
}

/// A disk.
pub trait Disk {
    /// Capacity in sectors.
    fn sectors(&self) -> u64;
    /// Whether a write needs a flush to be durable. If not, it is durable when it is done.
    fn needs_flush(&self) -> bool;
    /// Whether a flush covers every write that was submitted before it, and not only those that are done.
    fn flushes_in_order(&self) -> bool;
    /// Starts a request; gives it back when there is no room for it now.
    fn submit(&mut self, tag: Tag, request: Request) -> Result<(), Request>;
    /// Tells the disk about everything submitted since the last time.
    fn kick(&mut self);
    /// Whether a request is over that was not polled yet.
    fn has_done(&self) -> bool;
    /// The next request that is over.
    fn poll(&mut self) -> Option<Done>;
    /// Waits until something may have happened. Only for power-on and power-off, when there is nothing else to do.
    fn wait(&mut self);
}

/// The disk of a guest that has none: it holds nothing and is never asked.
#[derive(Debug)]
pub struct NoDisk;

impl Disk for NoDisk {
    fn sectors(&self) -> u64 {
        0
    }

    fn needs_flush(&self) -> bool {
        false
    }

    fn flushes_in_order(&self) -> bool {
        true
    }

    fn submit(&mut self, _tag: Tag, request: Request) -> Result<(), Request> {
        Err(request)
    }

    fn kick(&mut self) {}

    fn has_done(&self) -> bool {
        false
    }

    fn poll(&mut self) -> Option<Done> {
        None
    }

    fn wait(&mut self) {}
}
