//! The spare's own image while it takes a mirrored disk in. Every block is noted in the map, on stable storage, before it
//! changes: a copy that is cut off leaves an image of which is known what is wrong with it.
//!
//! Nobody else writes the image meanwhile: the disk process of a spare has no orders.

use super::{Entry, Run, extent, kind};
use lockstep_image::{Account, Block, ChangeMap, ImageFile, map};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use zerocopy::FromBytes;

/// Why what came is not put into the image.
#[derive(Debug, thiserror::Error)]
pub enum DiskIntakeError {
    /// The storage of this host.
    #[error("The disk image of this host cannot be written; make room or replace its disk")]
    Image(#[from] io::Error),
    /// The other host.
    #[error("What came of the disk makes no sense ({0})")]
    Nonsense(&'static str),
}

/// An image that is being written.
#[derive(Debug)]
pub struct DiskIntake {
    image: ImageFile,
    map: ChangeMap,
    account: Account,
    announced: BTreeSet<Block>,
}

impl DiskIntake {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        let image = ImageFile::open_to_write(path)?;
        let map = map::path_of(path);
        Ok(Self {
            account: map::account_of(image.file(), &map)?,
            map: ChangeMap::open(image.file(), map)?,
            image,
            announced: BTreeSet::new(),
        })
    }

    /// What this host knows of its image, for the other one.
    pub fn account(&self) -> Vec<u8> {
        self.account.to_bytes()
    }

    /// The first piece: whether all of it comes.
    pub(in crate::transfer) fn begin(&mut self, piece: &[u8]) -> Result<bool, DiskIntakeError> {
        match piece {
            [extent::WHOLE] => {
                self.map.forget()?;
                self.image.zero(0, self.image.grid().image_bytes())?;
                Ok(true)
            }
            [extent::CHANGES] => Ok(false),
            _ => Err(DiskIntakeError::Nonsense("neither whole nor changes")),
        }
    }

    /// Blocks are about to come.
    pub(in crate::transfer) fn announce(&mut self, piece: &[u8]) -> Result<(), DiskIntakeError> {
        let runs = <[Run]>::ref_from_bytes(piece).map_err(|_| DiskIntakeError::Nonsense("runs cut off"))?;
        let count = self.image.grid().count();
        let mut blocks = Vec::new();
        for run in runs {
            let end = run.first.get().checked_add(run.count.get());
            let end = end
                .filter(|end| *end <= count)
                .ok_or(DiskIntakeError::Nonsense("a block beyond the image"))?;
            // An honest source names each block once.
            if blocks.len() as u64 + u64::from(run.count.get()) > u64::from(count) {
                return Err(DiskIntakeError::Nonsense("more blocks than the image has"));
            }
            blocks.extend((run.first.get()..end).map(Block::new));
        }
        self.map.before_blocks(blocks.iter().copied())?;
        self.announced.extend(blocks);
        Ok(())
    }

    /// Puts blocks in their places; says how many bytes.
    pub(in crate::transfer) fn apply(&mut self, mut piece: &[u8]) -> Result<u64, DiskIntakeError> {
        // The map says until when its keeper lives, however long the copy takes.
        self.map.before_blocks([])?;
        let mut bytes = 0;
        while !piece.is_empty() {
            let cut = DiskIntakeError::Nonsense("a part cut off");
            let Ok((entry, rest)) = Entry::read_from_prefix(piece) else {
                return Err(cut);
            };
            let (at, length) = (entry.at.get(), u64::from(entry.length.get()));
            let mut touched = self.image.grid().touched(at, length);
            if !touched.all(|block| self.announced.contains(&block)) {
                return Err(DiskIntakeError::Nonsense("a block that was not announced"));
            }
            piece = match entry.kind {
                kind::ZEROS => {
                    self.image.zero(at, length)?;
                    rest
                }
                kind::RAW => {
                    let (content, rest) = rest.split_at_checked(length as usize).ok_or(cut)?;
                    self.image.write(at, content)?;
                    rest
                }
                _ => return Err(DiskIntakeError::Nonsense("a part of unknown kind")),
            };
            bytes += length;
        }
        Ok(bytes)
    }
}
