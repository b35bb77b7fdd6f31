//! What changes on an image of one's own: collected for the VMM, which may be copying the image, and remembered in the map
//! beside it, so that a host that comes back needs only what changed since it left.
//!
//! `disk.rs` calls it around every change of a mirrored disk. The map is opened when it is first needed: until then the VMM
//! of a spare may be writing image and map. It never changes the image.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use lockstep_image::{Block, ChangeMap, Grid, PairingId, map};

/// The changes of one image.
#[derive(Debug)]
pub struct Changes {
    image: File,
    path: PathBuf,
    grid: Grid,
    keeping: Keeping,
    /// Changed, and not told to the VMM yet.
    untold: BTreeSet<Block>,
}

/// The map beside the image.
#[derive(Debug)]
enum Keeping {
    /// Nothing had to be remembered yet.
    NotYet,
    /// It is kept.
    Map(Box<ChangeMap>),
    /// There is none: the image is a device, or the map could not be written.
    Nothing,
}

impl Changes {
    /// The changes of `image`, which lies at `path` and is so long.
    pub fn of(image: File, path: &Path, bytes: u64) -> io::Result<Self> {
        // Nobody could tell whether somebody else wrote a device: it has no time of its last change. And the folder it is
        // in is made anew at each start of its host, without the map.
        let keeping = match image.metadata()?.is_file() {
            true => Keeping::NotYet,
            false => Keeping::Nothing,
        };
        Ok(Self {
            image,
            path: map::path_of(path),
            grid: Grid::of(bytes),
            keeping,
            untold: BTreeSet::new(),
        })
    }

    /// The image is about to change there. It must not when this fails.
    pub fn before(&mut self, at: u64, bytes: u64) -> io::Result<()> {
        self.untold.extend(self.grid.touched(at, bytes));
        self.with_map(|map| map.before_change(at, bytes))
    }

    /// A request that changes the image was done.
    pub fn changed(&mut self) {
        if let Keeping::Map(map) = &mut self.keeping {
            map.changed();
        }
    }

    /// All of it is on stable storage.
    pub fn flushed(&mut self) {
        if let Keeping::Map(map) = &mut self.keeping {
            map.flushed();
        }
    }

    /// The other host's image is equal, and gets the same changes from now on.
    pub fn begin_pairing(&mut self, id: PairingId) -> io::Result<()> {
        self.with_map(|map| {
            map.begin_pairing(id);
            Ok(())
        })
    }

    /// This image may change alone from now on.
    pub fn end_pairing(&mut self) {
        if let Keeping::Map(map) = &mut self.keeping {
            map.end_pairing();
        }
    }

    /// Tells which blocks have changed, once.
    pub fn tell(&mut self, mut told: impl FnMut(u32)) {
        while let Some(block) = self.untold.pop_first() {
            told(block.get());
        }
    }

    /// A map that cannot be kept must not stay either: it would be believed.
    fn with_map(&mut self, work: impl FnOnce(&mut ChangeMap) -> io::Result<()>) -> io::Result<()> {
        if matches!(self.keeping, Keeping::NotYet) {
            let map = ChangeMap::open(&self.image, self.path.clone())?;
            self.keeping = Keeping::Map(Box::new(map));
        }
        let Keeping::Map(map) = &mut self.keeping else {
            return Ok(());
        };
        let Err(error) = work(map) else { return Ok(()) };
        tracing::warn!(
            path = %self.path.display(), %error,
            "The map of changes cannot be kept, so that the next copy of this image will be a whole one; make room there"
        );
        map.forget()?;
        self.keeping = Keeping::Nothing;
        Ok(())
    }
}

/// The map of the image at `path` goes: whoever changes an image without noting it makes its map a lie.
pub fn forget(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(map::path_of(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

const _: () =
    assert!(lockstep_image::blocks::BLOCKS_MAX as usize <= lockstep_staging::limits::CHANGED_BLOCKS_MAX);
