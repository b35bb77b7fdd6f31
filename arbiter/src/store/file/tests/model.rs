//! A disk in memory whose power can be cut, and hands on it that can be scheduled, killed and deceived.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::store::disk::Disk;

#[derive(Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    /// What would be left after a power cut at the least.
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct Directory {
    names: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    /// Whether the directory itself would be left.
    own_name_synced: bool,
}

/// What is on the disk, and what would be on it after a power cut.
#[derive(Debug, Default)]
pub(super) struct Platter {
    inodes: Vec<Inode>,
    directories: BTreeMap<PathBuf, Directory>,
}

/// A source of choices that a test can repeat.
pub(super) struct Choices(pub(super) u64);

impl Choices {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // xorshift64*: good enough to choose, and the same everywhere.
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

impl Platter {
    pub(super) fn with_root(root: &Path) -> Self {
        let root_directory = Directory {
            own_name_synced: true,
            ..Directory::default()
        };
        Self {
            inodes: Vec::new(),
            directories: BTreeMap::from([(root.to_owned(), root_directory)]),
        }
    }

    /// Everything that was not synced is there or not, or, of a file, in part.
    pub(super) fn cut_power(&mut self, choices: &mut Choices) {
        for inode in &mut self.inodes {
            if inode.bytes != inode.synced {
                let kept = usize::try_from(choices.below(inode.bytes.len() as u64 + 1)).unwrap();
                inode.bytes.truncate(kept.max(inode.synced.len()));
                inode.synced = inode.bytes.clone();
            }
        }
        self.directories
            .retain(|_, directory| directory.own_name_synced || choices.coin());
        for directory in self.directories.values_mut() {
            let (now, before) = (std::mem::take(&mut directory.names), &directory.synced);
            let mut left = before.clone();
            left.retain(|name, _| now.contains_key(name) || choices.coin());
            for (name, inode) in now {
                if before.contains_key(&name) || choices.coin() {
                    left.insert(name, inode);
                }
            }
            directory.own_name_synced = true;
            directory.synced = left.clone();
            directory.names = left;
        }
    }

    fn directory(&mut self, path: &Path) -> io::Result<&mut Directory> {
        self.directories.get_mut(path).ok_or_else(not_found)
    }

    fn inode(&mut self, path: &Path) -> io::Result<usize> {
        let (dir, name) = split(path);
        self.directory(dir)?
            .names
            .get(name)
            .copied()
            .ok_or_else(not_found)
    }

    fn add(&mut self, path: &Path, inode: usize) -> io::Result<()> {
        let (dir, name) = split(path);
        let names = &mut self.directory(dir)?.names;
        if names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        names.insert(name.to_owned(), inode);
        Ok(())
    }
}

fn split(path: &Path) -> (&Path, &str) {
    (
        path.parent().unwrap(),
        path.file_name().unwrap().to_str().unwrap(),
    )
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// What happens to one step of one hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mishap {
    /// The process dies before this step: it and all later ones do nothing.
    DiesBefore(usize),
    /// The step happens and says that it failed, as when a reply is lost.
    LosesReplyOf(usize),
    /// The step does not happen and says so.
    Fails(usize, io::ErrorKind),
    /// All goes well.
    None,
}

/// Whose step is next, when several hands share a platter.
#[derive(Default)]
pub(super) struct Turnstile {
    state: Mutex<Turns>,
    changed: Condvar,
}

#[derive(Default)]
struct Turns {
    /// Who still makes steps.
    alive: Vec<usize>,
    /// Who is making one now.
    running: Option<usize>,
    /// Who may go next.
    called: Option<usize>,
    /// The coming choices, the next one last; when they are used up the first alive goes.
    schedule: Vec<u8>,
}

impl Turnstile {
    pub(super) fn new(hands: usize, schedule: Vec<u8>) -> Self {
        let turns = Turns {
            alive: (0..hands).collect(),
            schedule,
            ..Turns::default()
        };
        Self {
            state: Mutex::new(turns),
            changed: Condvar::new(),
        }
    }

    fn wait_for_turn(&self, hand: usize) {
        let mut turns = self.state.lock().unwrap();
        if turns.running == Some(hand) {
            turns.running = None;
            self.changed.notify_all();
        }
        loop {
            if turns.running.is_none() && turns.called.is_none() {
                let choice = usize::from(turns.schedule.pop().unwrap_or(0)) % turns.alive.len();
                turns.called = Some(turns.alive[choice]);
                self.changed.notify_all();
            }
            if turns.running.is_none() && turns.called == Some(hand) {
                turns.called = None;
                turns.running = Some(hand);
                return;
            }
            turns = self.changed.wait(turns).unwrap();
        }
    }

    /// The hand makes no more steps.
    pub(super) fn leave(&self, hand: usize) {
        let mut turns = self.state.lock().unwrap();
        turns.alive.retain(|other| *other != hand);
        turns.running = turns.running.filter(|running| *running != hand);
        turns.called = turns.called.filter(|called| *called != hand);
        self.changed.notify_all();
    }
}

/// One process's view of the platter.
pub(super) struct Hand {
    platter: Arc<Mutex<Platter>>,
    mishap: Mishap,
    steps: Mutex<usize>,
    turns: Option<(Arc<Turnstile>, usize)>,
}

impl Hand {
    pub(super) fn on(platter: &Arc<Mutex<Platter>>, mishap: Mishap) -> Self {
        Self {
            platter: platter.clone(),
            mishap,
            steps: Mutex::new(0),
            turns: None,
        }
    }

    pub(super) fn taking_turns(self, turnstile: &Arc<Turnstile>, hand: usize) -> Self {
        Self {
            turns: Some((turnstile.clone(), hand)),
            ..self
        }
    }

    /// How many steps it has made or tried to make.
    pub(super) fn steps(&self) -> usize {
        *self.steps.lock().unwrap()
    }

    fn step<T>(&self, act: impl FnOnce(&mut Platter) -> io::Result<T>) -> io::Result<T> {
        if let Some((turnstile, hand)) = &self.turns {
            turnstile.wait_for_turn(*hand);
        }
        let mut steps = self.steps.lock().unwrap();
        let this = *steps;
        *steps += 1;
        match self.mishap {
            Mishap::DiesBefore(step) if this >= step => Err(io::Error::other("the process is dead")),
            Mishap::Fails(step, kind) if this == step => Err(kind.into()),
            Mishap::LosesReplyOf(step) if this == step => {
                let _ = act(&mut self.platter.lock().unwrap());
                Err(io::ErrorKind::TimedOut.into())
            }
            _ => act(&mut self.platter.lock().unwrap()),
        }
    }
}

impl Disk for Hand {
    type Draft = usize;

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(|platter| {
            platter.directories.entry(dir.to_owned()).or_default();
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(|platter| {
            let directory = platter.directory(dir)?;
            directory.synced = directory.names.clone();
            let inside = |path: &PathBuf| path.parent() == Some(dir);
            let children = platter.directories.iter_mut().filter(|(path, _)| inside(path));
            children.for_each(|(_, child)| child.own_name_synced = true);
            Ok(())
        })
    }

    fn names(&self, dir: &Path, each: &mut dyn FnMut(&str)) -> io::Result<()> {
        self.step(|platter| {
            platter.directory(dir)?.names.keys().for_each(|name| each(name));
            Ok(())
        })
    }

    fn age(&self, _path: &Path) -> io::Result<Duration> {
        self.step(|_| Ok(Duration::ZERO))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.step(|platter| {
            let inode = platter.inode(path)?;
            Ok(platter.inodes[inode].bytes.clone())
        })
    }

    fn create(&self, path: &Path) -> io::Result<usize> {
        self.step(|platter| {
            let inode = platter.inodes.len();
            platter.add(path, inode)?;
            platter.inodes.push(Inode::default());
            Ok(inode)
        })
    }

    fn write(&self, draft: &mut usize, bytes: &[u8]) -> io::Result<()> {
        self.step(|platter| {
            platter.inodes[*draft].bytes.extend_from_slice(bytes);
            Ok(())
        })
    }

    fn sync(&self, draft: &usize) -> io::Result<()> {
        self.step(|platter| {
            let inode = &mut platter.inodes[*draft];
            inode.synced = inode.bytes.clone();
            Ok(())
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|platter| {
            let inode = platter.inode(from)?;
            platter.add(to, inode)
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|platter| {
            let (dir, name) = split(path);
            platter
                .directory(dir)?
                .names
                .remove(name)
                .map(drop)
                .ok_or_else(not_found)
        })
    }
}
