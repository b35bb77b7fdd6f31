//! The map beside an image, kept so that no crash makes it lie: what is stamped is on stable storage before the block
//! changes.
//!
//! The disk process calls it around everything that changes its image, and the VMM of a spare while it takes one in. A map
//! that is torn, of another image, or older than the image is not believed: then nothing is known, and the image is copied
//! whole.
//!
//! How it knows that nobody else wrote the image: it says until when its keeper lives, on the wall clock, and says so on
//! stable storage before the image changes after that. An image whose inode changed later was changed by somebody else.
//! What is left: somebody who opens the image of a host that died within `LIFE` of its last write, and writes.
//!
//! Cost, by design: one sync of some pages for the first change of a block (and its neighbours) in a turn, one for each
//! turn, one for each `LIFE`. Blocks that changed in two turns in a row are stamped for the next one in advance.

use crate::account::{Account, PAIRINGS_MAX, Pairing, PairingId};
use crate::blocks::{Block, Grid};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A turn ends at the first flush of a pairing, and then at the flush that is one of so many.
pub const FLUSHES_A_TURN: u32 = 64;
/// Or at the first one after so many changes.
pub const CHANGES_A_TURN: u32 = 512;
/// For how many seconds a map says in advance that its keeper lives.
const LIFE: u64 = 30;
/// It says so anew when fewer are left: a change takes less.
const LIFE_LEFT: u64 = 5;
/// A block is stamped together with its neighbours: the group of so many that it is in.
const GROUP: u32 = 4;
/// One that follows on a stamped one, together with so many: somebody writes on and on.
const AHEAD: u32 = 32;

const MAGIC: [u8; 8] = *b"LKCHANG1";
/// Where the stamps begin.
const STAMPS: u64 = 4096;
/// They are written in pages of so many.
const STAMPS_A_PAGE: usize = 1024;

/// The beginning of the file: less than a sector, so that it is whole or old.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    /// Of everything behind it in the header.
    checksum: U64,
    identity: Identity,
    alive_until: U64,
    turn: U32,
    pairings: U32,
    slots: [Pairing; PAIRINGS_MAX],
}

/// Which image a map is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Identity {
    bytes: U64,
    inode: U64,
    born_s: U64,
    born_ns: U64,
}

/// A map and the image beside it.
#[derive(Debug)]
pub struct ChangeMap {
    path: PathBuf,
    identity: Identity,
    account: Account,
    /// Missing until there is something to remember.
    file: Option<File>,
    alive_until: u64,
    /// Blocks that changed in this turn, and in the one before.
    changing: BTreeSet<Block>,
    changed_before: BTreeSet<Block>,
    /// Pages of stamps that are newer than in the file.
    newer: BTreeSet<usize>,
    /// Something in the header is.
    header_is_newer: bool,
    flushes: u32,
    changes: u32,
}

/// Where the map of the image at `path` lies.
#[must_use]
pub fn path_of(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".changes");
    name.into()
}

/// What the map at `path` knows of `image`. Nothing is changed, and somebody else may be keeping it meanwhile: whatever
/// changed the image before this call is in it.
///
/// # Errors
/// When the kernel tells nothing of the image.
pub fn account_of(image: &File, path: &Path) -> io::Result<Account> {
    let found = Found::of(image)?;
    // A header that is being written is read again.
    let read = (0..3).find_map(|_| read(path, &found));
    Ok(read.map_or_else(|| Account::unknown(found.grid()), |(account, _)| account))
}

impl ChangeMap {
    /// Reads the map at `path`. The pairing that was under way when its last keeper ended is over.
    ///
    /// # Errors
    /// When the kernel tells nothing of the image.
    pub fn open(image: &File, path: PathBuf) -> io::Result<Self> {
        let found = Found::of(image)?;
        let read = read(&path, &found).and_then(|known| {
            let file = OpenOptions::new().read(true).write(true).open(&path).ok()?;
            Some((known, file))
        });
        let (account, alive_until, file) = match read {
            Some(((account, alive_until), file)) => (account, alive_until, Some(file)),
            None => (Account::unknown(found.grid()), 0, None),
        };
        let mut map = Self {
            path,
            identity: found.identity,
            account,
            file,
            alive_until,
            changing: BTreeSet::new(),
            changed_before: BTreeSet::new(),
            newer: BTreeSet::new(),
            header_is_newer: false,
            flushes: 0,
            changes: 0,
        };
        map.end_pairing();
        Ok(map)
    }

    /// Whether there is anything that this map must not forget.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.file.is_some() || !self.account.pairings.is_empty()
    }

    /// From now on both hosts' images get the same changes, and are equal when all of them are done.
    pub fn begin_pairing(&mut self, id: PairingId) {
        self.end_pairing();
        let pairings = &mut self.account.pairings;
        if pairings.len() == PAIRINGS_MAX {
            pairings.remove(0);
        }
        pairings.push(Pairing::begin(id, self.account.turn));
        (self.flushes, self.changes) = (0, 0);
        self.header_is_newer = true;
    }

    /// What changes from now on may change here alone.
    pub fn end_pairing(&mut self) {
        let turn = self.account.turn;
        if let Some(last) = self.account.pairings.last_mut().filter(|last| last.is_open()) {
            last.close(turn);
            self.header_is_newer = true;
        }
    }

    /// Bytes of the image are about to change. When this returns the map knows, whatever happens.
    ///
    /// # Errors
    /// When the map cannot be written: then the image must not change, or the map must go ([`Self::forget`]).
    pub fn before_change(&mut self, at: u64, bytes: u64) -> io::Result<()> {
        if !self.is_kept() {
            return Ok(());
        }
        for block in self.account.grid().touched(at, bytes) {
            self.stamp(block);
        }
        self.make_sure()
    }

    /// The same for whole blocks.
    ///
    /// # Errors
    /// As [`Self::before_change`].
    pub fn before_blocks(&mut self, blocks: impl IntoIterator<Item = Block>) -> io::Result<()> {
        if !self.is_kept() {
            return Ok(());
        }
        let now = self.account.turn + 1;
        for block in blocks {
            self.raise(block, now);
        }
        self.make_sure()
    }

    /// A request that changes the image was done.
    pub fn changed(&mut self) {
        self.changes = self.changes.saturating_add(1);
    }

    /// Everything that was done before is on stable storage.
    pub fn flushed(&mut self) {
        let Some(pairing) = self.account.pairings.last().filter(|last| last.is_open()) else {
            return;
        };
        self.flushes += 1;
        let is_first = self.account.turn == pairing.base();
        if is_first || self.flushes >= FLUSHES_A_TURN || self.changes >= CHANGES_A_TURN {
            self.end_turn();
        }
    }

    /// The map goes, and with it all that it knew.
    ///
    /// # Errors
    /// When the file stays.
    pub fn forget(&mut self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            // Whoever goes on without it all the same must find it kept: it would be believed.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sync_folder(&self.path)?,
        }
        (self.file, self.header_is_newer) = (None, false);
        self.account = Account::unknown(self.account.grid());
        (self.changing, self.changed_before, self.newer) = Default::default();
        Ok(())
    }

    fn end_turn(&mut self) {
        (self.flushes, self.changes) = (0, 0);
        if self.account.turn >= u32::MAX - 2 {
            // Nobody counts so far; who did would begin again with nothing.
            self.account.pairings.clear();
            self.header_is_newer = true;
            return;
        }
        self.account.turn += 1;
        self.header_is_newer = true;
        let next = self.account.turn + 1;
        let ended = std::mem::take(&mut self.changing);
        let before = std::mem::replace(&mut self.changed_before, ended.clone());
        for block in ended.intersection(&before) {
            self.raise(*block, next);
        }
    }

    fn stamp(&mut self, block: Block) {
        self.changing.insert(block);
        let now = self.account.turn + 1;
        let is_stamped = |block: u32| {
            let stamp = self.account.stamps.get(block as usize);
            stamp.is_some_and(|stamp| stamp.get() >= now)
        };
        if is_stamped(block.get()) {
            return;
        }
        let follows = block.get().checked_sub(1).is_some_and(is_stamped);
        let numbers = match follows {
            true => block.get()..block.get().saturating_add(AHEAD),
            false => block.get() - block.get() % GROUP..block.get() - block.get() % GROUP + GROUP,
        };
        for number in numbers {
            self.raise(Block::new(number), now);
        }
    }

    fn raise(&mut self, block: Block, turn: u32) {
        if let Some(stamp) = self.account.stamps.get_mut(block.index())
            && stamp.get() < turn
        {
            *stamp = turn.into();
            self.newer.insert(block.index() / STAMPS_A_PAGE);
        }
    }

    /// Everything that the image depends on is on stable storage when this returns.
    fn make_sure(&mut self) -> io::Result<()> {
        let now = wall_seconds();
        if now + LIFE_LEFT > self.alive_until {
            self.alive_until = now + LIFE;
            self.header_is_newer = true;
        }
        if self.header_is_newer || !self.newer.is_empty() {
            self.save()?;
        }
        Ok(())
    }

    fn save(&mut self) -> io::Result<()> {
        let header = self.header();
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(create(&self.path, self.account.stamps.len())?),
        };
        for page in &self.newer {
            let first = page * STAMPS_A_PAGE;
            let after = (first + STAMPS_A_PAGE).min(self.account.stamps.len());
            let at = STAMPS + (first * size_of::<U32>()) as u64;
            file.write_all_at(self.account.stamps[first..after].as_bytes(), at)?;
        }
        file.write_all_at(header.as_bytes(), 0)?;
        file.sync_data()?;
        self.newer.clear();
        self.header_is_newer = false;
        Ok(())
    }

    fn header(&self) -> Header {
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        header.identity = self.identity;
        header.alive_until = self.alive_until.into();
        header.turn = self.account.turn.into();
        for (slot, pairing) in header.slots.iter_mut().zip(&self.account.pairings) {
            *slot = *pairing;
            header.pairings = (header.pairings.get() + 1).into();
        }
        header.checksum = header.sum().into();
        header
    }
}

impl Header {
    fn sum(&self) -> u64 {
        let covered = size_of_val(&self.magic) + size_of_val(&self.checksum);
        xxh3_64(&self.as_bytes()[covered..])
    }
}

/// What the kernel says of an image.
struct Found {
    identity: Identity,
    changed_s: u64,
}

impl Found {
    fn of(image: &File) -> io::Result<Self> {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = statx(image, "", AtFlags::EMPTY_PATH, wanted)?;
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        Ok(Self {
            identity: Identity {
                bytes: stat.stx_size.into(),
                inode: stat.stx_ino.into(),
                born_s: seconds(stat.stx_btime.tv_sec).into(),
                born_ns: u64::from(stat.stx_btime.tv_nsec).into(),
            },
            changed_s: seconds(stat.stx_ctime.tv_sec),
        })
    }

    fn grid(&self) -> Grid {
        Grid::of(self.identity.bytes.get())
    }
}

/// What a map says, and until when its keeper was to live; `None` when it is not to be believed.
fn read(path: &Path, found: &Found) -> Option<(Account, u64)> {
    let file = File::open(path).ok()?;
    let mut header = Header::new_zeroed();
    file.read_exact_at(header.as_mut_bytes(), 0).ok()?;
    let count = usize::try_from(header.pairings.get()).ok()?;
    let is_right = header.magic == MAGIC
        && header.checksum.get() == header.sum()
        && header.identity == found.identity
        && found.changed_s <= header.alive_until.get();
    let pairings = header.slots.get(..count).filter(|_| is_right)?.to_vec();
    let mut account = Account::unknown(found.grid());
    file.read_exact_at(account.stamps.as_mut_bytes(), STAMPS).ok()?;
    account.turn = header.turn.get();
    account.pairings = pairings;
    Some((account, header.alive_until.get()))
}

fn create(path: &Path, stamps: usize) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_len(STAMPS + (stamps * size_of::<U32>()) as u64)?;
    sync_folder(path)?;
    Ok(file)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// The wall clock, for that is what the times of files count on.
fn wall_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0)
}

#[cfg(test)]
mod tests;
