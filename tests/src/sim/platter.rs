//! The arbiter's disk, in memory: it forgets what was not synced when its power is cut, and its steps can fail.
//!
//! The arbiter's own file store runs on it, unchanged. One step is one call, as `arbiter/src/store/disk.rs` asks.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_arbiter::store::disk::Disk;

use super::dice::Dice;

/// What happens to one step to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// It does not happen, and says so.
    Fails,
    /// It happens, and says that it failed.
    LosesItsReply,
    /// Of a write a part happens, and says that it failed.
    Tears,
    /// Whoever makes it dies first: neither it nor any later step happens.
    Dies,
}

#[derive(Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct Directory {
    names: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    own_name_synced: bool,
}

/// What is on the disk, and what would be left of it.
#[derive(Debug, Default)]
struct Platter {
    inodes: Vec<Inode>,
    directories: BTreeMap<PathBuf, Directory>,
    /// What happens to the step after so many others.
    ahead: Option<(u64, Mishap)>,
}

/// The disk, as the store holds it and as the world does.
#[derive(Clone, Debug)]
pub(crate) struct ArbiterDisk(Arc<Mutex<Platter>>);

impl ArbiterDisk {
    /// An empty disk with one directory.
    pub(crate) fn with(root: &Path) -> Self {
        let directory = Directory {
            own_name_synced: true,
            ..Directory::default()
        };
        Self(Arc::new(Mutex::new(Platter {
            directories: BTreeMap::from([(root.to_owned(), directory)]),
            ..Platter::default()
        })))
    }

    /// After so many more steps something happens.
    pub(crate) fn set_mishap(&self, ahead: Option<(u64, Mishap)>) {
        self.lock().ahead = ahead;
    }

    /// Has whoever used it died?
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().ahead == Some((0, Mishap::Dies))
    }

    /// Everything that was not synced is left or not, or, of a file, in part.
    pub(crate) fn cut_power(&self, dice: &mut Dice) {
        let mut platter = self.lock();
        for inode in platter
            .inodes
            .iter_mut()
            .filter(|inode| inode.bytes != inode.synced)
        {
            let kept = dice.below(inode.bytes.len() as u64 + 1) as usize;
            inode.bytes.truncate(kept.max(inode.synced.len()));
            inode.synced.clone_from(&inode.bytes);
        }
        platter
            .directories
            .retain(|_, directory| directory.own_name_synced || dice.chance(500));
        for directory in platter.directories.values_mut() {
            directory.forget(dice);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step<T>(&self, act: impl FnOnce(&mut Platter, bool) -> io::Result<T>) -> io::Result<T> {
        let mut platter = self.lock();
        match platter.ahead {
            Some((0, Mishap::Dies)) => Err(io::Error::other("the process is dead")),
            Some((0, mishap)) => {
                platter.ahead = None;
                let outcome = match mishap {
                    Mishap::Fails | Mishap::Dies => Err(io::ErrorKind::StorageFull.into()),
                    Mishap::LosesItsReply => act(&mut platter, true),
                    Mishap::Tears => act(&mut platter, false),
                };
                outcome.and(Err(io::ErrorKind::TimedOut.into()))
            }
            Some((steps, mishap)) => {
                platter.ahead = Some((steps - 1, mishap));
                act(&mut platter, true)
            }
            None => act(&mut platter, true),
        }
    }
}

impl Directory {
    fn forget(&mut self, dice: &mut Dice) {
        let now = std::mem::take(&mut self.names);
        let mut left = std::mem::take(&mut self.synced);
        left.retain(|name, _| now.contains_key(name) || dice.chance(500));
        for (name, inode) in now {
            if left.contains_key(&name) || dice.chance(500) {
                left.insert(name, inode);
            }
        }
        self.own_name_synced = true;
        self.synced.clone_from(&left);
        self.names = left;
    }
}

impl Platter {
    fn directory(&mut self, path: &Path) -> io::Result<&mut Directory> {
        self.directories.get_mut(path).ok_or_else(not_found)
    }

    fn names_beside(&mut self, path: &Path) -> io::Result<(&mut BTreeMap<String, usize>, String)> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(not_found)?;
        let directory = self.directory(path.parent().ok_or_else(not_found)?)?;
        Ok((&mut directory.names, name.to_owned()))
    }

    fn inode(&mut self, path: &Path) -> io::Result<usize> {
        let (names, name) = self.names_beside(path)?;
        names.get(&name).copied().ok_or_else(not_found)
    }

    fn add(&mut self, path: &Path, inode: usize) -> io::Result<()> {
        let (names, name) = self.names_beside(path)?;
        if names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        names.insert(name, inode);
        Ok(())
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for ArbiterDisk {
    type Draft = usize;

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(|platter, _| {
            platter.directories.entry(dir.to_owned()).or_default();
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(|platter, _| {
            let directory = platter.directory(dir)?;
            directory.synced.clone_from(&directory.names);
            let inside = |path: &PathBuf| path.parent() == Some(dir);
            let children = platter.directories.iter_mut().filter(|(path, _)| inside(path));
            children.for_each(|(_, child)| child.own_name_synced = true);
            Ok(())
        })
    }

    fn names(&self, dir: &Path, each: &mut dyn FnMut(&str)) -> io::Result<()> {
        self.step(|platter, _| {
            platter.directory(dir)?.names.keys().for_each(|name| each(name));
            Ok(())
        })
    }

    fn age(&self, _path: &Path) -> io::Result<Duration> {
        self.step(|_, _| Ok(Duration::ZERO))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.step(|platter, _| {
            let inode = platter.inode(path)?;
            Ok(platter.inodes[inode].bytes.clone())
        })
    }

    fn create(&self, path: &Path) -> io::Result<usize> {
        self.step(|platter, _| {
            let inode = platter.inodes.len();
            platter.add(path, inode)?;
            platter.inodes.push(Inode::default());
            Ok(inode)
        })
    }

    fn write(&self, draft: &mut usize, bytes: &[u8]) -> io::Result<()> {
        self.step(|platter, whole| {
            let length = if whole { bytes.len() } else { bytes.len() / 2 };
            platter.inodes[*draft].bytes.extend_from_slice(&bytes[..length]);
            Ok(())
        })
    }

    fn sync(&self, draft: &usize) -> io::Result<()> {
        self.step(|platter, _| {
            let inode = &mut platter.inodes[*draft];
            inode.synced.clone_from(&inode.bytes);
            Ok(())
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|platter, _| {
            let inode = platter.inode(from)?;
            platter.add(to, inode)
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|platter, _| {
            let (names, name) = platter.names_beside(path)?;
            names.remove(&name).map(drop).ok_or_else(not_found)
        })
    }
}
