//! Terms as files in a directory that several hosts share, with nothing but that directory between them.
//!
//! `DIR/VM/term-00000000000000000007` says who holds term 7 of the VM. A term file is immutable and is never
//! removed. A claim writes a draft beside it, syncs the draft, and gives it the term's name by `link()`, which
//! fails if the name is there: that one step, atomic on local disks, cluster file systems and NFS alike, is the
//! test-and-set. Then it syncs the directory and reads the file back; only then is the term granted. Whoever is
//! refused because of a term is told so after the same two steps: its holder may not have come to them yet.
//!
//! What follows from that, step by step:
//! - A crash before the link leaves a draft, which means nothing. A crash after it leaves a term whose holder
//!   does not know yet; asking again with the same incarnation finds it and syncs before it is granted.
//! - A reply of the link that NFS loses looks like "exists" or like an error: who holds the term is always
//!   decided by what the file says.
//! - What an NFS client remembers of the directory may be old. Old knowledge can only refuse somebody who was
//!   overtaken anyway; before a claim is said to be unknown, the draft's creation has made the client look again.
//! - No advisory lock is used: a host that is cut off would keep it, or lose it without knowing.
//! - A register that is not there (a disk that is not mounted) has no predecessor of the claimed term, so it
//!   grants nothing but the first term of a VM.

mod trial;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_protocol::ids::{Holder, Term};
use lockstep_protocol::takeover::Verdict;

use super::disk::{Disk, RealDisk};
use super::{Store, StoreError, term_file};
use crate::register::{Register, Ruling, Tenure, VmName};

/// A draft this old belongs to nobody any more: a claim takes a second or so.
pub const DRAFT_LIFETIME: Duration = Duration::from_secs(3600);
/// How many left-over drafts one claim clears away at most.
pub const MAX_CLEARED: usize = 16;

const TERM_PREFIX: &str = "term-";
const DRAFT_PREFIX: &str = "draft-";
/// The digits of the largest term: names sort as numbers, and each term has one name.
const TERM_DIGITS: usize = 20;

/// Tells the drafts of one process apart.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

/// The store in one directory.
#[derive(Debug)]
pub struct FileStore<D = RealDisk> {
    dir: PathBuf,
    disk: D,
}

impl FileStore {
    /// The store in `dir`, which must exist: making it here could make it on the wrong disk.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        match dir.metadata() {
            Ok(found) if found.is_dir() => Ok(Self::on(RealDisk, dir)),
            Ok(_) => Err(StoreError::NotADirectory { dir: dir.to_owned() }),
            Err(source) => Err(told(source, "look at", dir, dir)),
        }
    }
}

impl<D: Disk> FileStore<D> {
    /// The store in `dir` of some disk.
    pub fn on(disk: D, dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            disk,
        }
    }

    /// Every term of `vm`, oldest first.
    pub fn history(&self, vm: &VmName) -> Result<Vec<Tenure>, StoreError> {
        let mut terms = Vec::new();
        self.names(vm, &mut |name| terms.extend(term_of(name)))?;
        terms.sort_unstable();
        terms.into_iter().map(|term| self.expect_term(vm, term)).collect()
    }

    /// Every VM that has a register here.
    pub fn vms(&self) -> Result<Vec<VmName>, StoreError> {
        let mut vms = Vec::new();
        let listed = self
            .disk
            .names(&self.dir, &mut |name| vms.extend(VmName::new(name)));
        listed.map_err(|source| told(source, "list", &self.dir, &self.dir))?;
        vms.retain(|vm| self.may_have_place(vm));
        vms.sort_unstable();
        Ok(vms)
    }

    fn place(&self, vm: &VmName) -> PathBuf {
        self.dir.join(vm.as_str())
    }

    fn term_path(&self, vm: &VmName, term: Term) -> PathBuf {
        self.place(vm).join(format!("{TERM_PREFIX}{term:0TERM_DIGITS$}"))
    }

    /// Whether what has the VM's name is its directory, and not a file or a dangling link that somebody put there.
    fn may_have_place(&self, vm: &VmName) -> bool {
        let found = self.disk.names(&self.place(vm), &mut |_| {});
        // What cannot be read for another reason is not passed over in silence: looking into it will tell.
        !found.is_err_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::NotADirectory | io::ErrorKind::NotFound
            )
        })
    }

    /// Calls `each` with the names in the VM's directory; a directory that is not there has none.
    fn names(&self, vm: &VmName, each: &mut dyn FnMut(&str)) -> Result<(), StoreError> {
        let place = self.place(vm);
        match self.disk.names(&place, each) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome.map_err(|source| told(source, "list", &place, &place)),
        }
    }

    /// Who holds a term, or nobody yet.
    fn term(&self, vm: &VmName, term: Term) -> Result<Option<Tenure>, StoreError> {
        let path = self.term_path(vm, term);
        let bytes = match self.disk.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            outcome => outcome.map_err(|source| told(source, "read", &path, &self.place(vm)))?,
        };
        match term_file::decode(vm, term, &bytes) {
            Ok(holder) => Ok(Some(Tenure { term, holder })),
            Err(reason) => Err(StoreError::Damaged { path, reason }),
        }
    }

    fn expect_term(&self, vm: &VmName, term: Term) -> Result<Tenure, StoreError> {
        self.term(vm, term)?.ok_or_else(|| StoreError::Io {
            doing: "find again",
            path: self.term_path(vm, term),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// The newest term, and drafts of others that were seen on the way.
    fn look(&self, vm: &VmName) -> Result<(Register, Vec<String>), StoreError> {
        let (mut newest, mut drafts) = (Term::ZERO, Vec::new());
        self.names(vm, &mut |name| match term_of(name) {
            Some(term) => newest = newest.max(term),
            None if name.starts_with(DRAFT_PREFIX) && drafts.len() < MAX_CLEARED => {
                drafts.push(name.to_owned());
            }
            None => {}
        })?;
        let mut register = match newest {
            Term::ZERO => Register::default(),
            newest => Register::new(Some(self.expect_term(vm, newest)?)),
        };
        // A listing may be older than the file system is: what it lacks may be there.
        while let Some(later) = self.term(vm, register.newest_term().next())? {
            register = Register::new(Some(later));
        }
        Ok((register, drafts))
    }

    /// The term was found to be the claimant's: it is granted once that survives a power cut.
    fn confirm(&self, vm: &VmName, mine: &Tenure) -> Result<Verdict, StoreError> {
        let Tenure { term, .. } = self.settle(vm, mine)?;
        Ok(Verdict::Granted { term })
    }

    /// Somebody else was found to hold a term: the claimant is told once that survives a power cut. Without that
    /// it would halt because of a term that nobody has afterwards.
    fn refuse(&self, vm: &VmName, theirs: &Tenure) -> Result<Verdict, StoreError> {
        let Tenure { term, holder } = self.settle(vm, theirs)?;
        Ok(Verdict::Refused { term, holder })
    }

    /// Makes a term that was seen survive a power cut. Its bytes do since before it had its name, and so does the
    /// name of the VM's directory; whoever linked it may not have synced its name yet, or may be dead.
    fn settle(&self, vm: &VmName, tenure: &Tenure) -> Result<Tenure, StoreError> {
        let place = self.place(vm);
        self.disk
            .sync_dir(&place)
            .map_err(|source| told(source, SYNC_DIR, &place, &self.dir))?;
        let Tenure { term, holder } = self.expect_term(vm, tenure.term)?;
        if holder == tenure.holder {
            return Ok(Tenure { term, holder });
        }
        let reason = format!("it said {} a moment ago and says {holder} now", tenure.holder);
        Err(StoreError::Damaged {
            path: self.term_path(vm, term),
            reason,
        })
    }

    /// Nobody was seen to hold the term: tries to be the one who does.
    fn take(&self, vm: &VmName, tenure: &Tenure, expected: Term) -> Result<Verdict, StoreError> {
        if expected == Term::ZERO {
            self.make_place(vm)?;
        }
        let place = self.place(vm);
        let draft = place.join(draft_name(&tenure.holder));
        let text = term_file::encode(vm, tenure);
        let verdict = self
            .write_draft(&draft, text.as_bytes(), &place)
            .map_err(|error| self.unknown_if_missing(vm, expected, error))
            .and_then(|()| self.link_draft(vm, tenure, expected, &draft));
        // The draft means nothing whether it goes or stays.
        let _ = self.disk.remove(&draft);
        verdict
    }

    /// The VM's directory; also synced when it was there, since whoever made it may have died before syncing.
    fn make_place(&self, vm: &VmName) -> Result<(), StoreError> {
        let place = self.place(vm);
        self.disk
            .make_dir(&place)
            .map_err(|source| told(source, "make", &place, &self.dir))?;
        self.disk
            .sync_dir(&self.dir)
            .map_err(|source| told(source, SYNC_DIR, &self.dir, &self.dir))
    }

    fn write_draft(&self, path: &Path, bytes: &[u8], dir: &Path) -> Result<(), StoreError> {
        let fail = |doing| move |source| told(source, doing, path, dir);
        let mut draft = self.disk.create(path).map_err(fail("create"))?;
        self.disk.write(&mut draft, bytes).map_err(fail("write"))?;
        self.disk.sync(&draft).map_err(fail("sync"))
    }

    /// A draft for a later term than the first finds no directory in a register that never heard of the VM.
    fn unknown_if_missing(&self, vm: &VmName, expected: Term, error: StoreError) -> StoreError {
        let missing = matches!(error, StoreError::Missing { .. }) && expected > Term::ZERO;
        if missing && self.disk.names(&self.dir, &mut |_| {}).is_ok() {
            return StoreError::NeverHandedOut {
                vm: vm.clone(),
                expected,
                newest: Term::ZERO,
            };
        }
        error
    }

    /// The test-and-set. By now everybody's view of the directory is fresh.
    fn link_draft(
        &self,
        vm: &VmName,
        mine: &Tenure,
        expected: Term,
        draft: &Path,
    ) -> Result<Verdict, StoreError> {
        match self.look(vm)?.0.judge(expected, &mine.holder) {
            Ruling::Free(_) => {}
            Ruling::Held(_) => return self.confirm(vm, mine),
            Ruling::Taken(theirs) => return self.refuse(vm, &theirs),
            Ruling::NeverHandedOut { newest } => {
                return Err(StoreError::NeverHandedOut {
                    vm: vm.clone(),
                    expected,
                    newest,
                });
            }
        }
        // Nobody builds on a term that a power cut could still take away.
        let place = self.place(vm);
        self.disk
            .sync_dir(&place)
            .map_err(|source| told(source, SYNC_DIR, &place, &self.dir))?;
        let linked = self.disk.link(draft, &self.term_path(vm, mine.term));
        // Whatever the link said, the file says who holds the term: a reply may have been lost on the way.
        match (self.term(vm, mine.term)?, linked) {
            (Some(found), _) if found.holder == mine.holder => self.confirm(vm, mine),
            (Some(theirs), _) => self.refuse(vm, &theirs),
            (None, Err(source)) => Err(told(source, LINK, draft, &self.dir)),
            (None, Ok(())) => Err(StoreError::Io {
                doing: "read back",
                path: self.term_path(vm, mine.term),
                source: io::ErrorKind::NotFound.into(),
            }),
        }
    }

    /// Takes away what earlier starts of this host left, and what is too old to be anybody's. Whoever loses a
    /// draft that it still wanted fails to link it, and asks again.
    fn clear(&self, vm: &VmName, me: &Holder, drafts: &[String]) {
        let (mine, this_start) = (draft_prefix_of_node(me), draft_prefix(me));
        for name in drafts {
            let path = self.place(vm).join(name);
            let left_over = name.starts_with(&mine) && !name.starts_with(&this_start);
            if left_over || self.disk.age(&path).is_ok_and(|age| age > DRAFT_LIFETIME) {
                let _ = self.disk.remove(&path);
            }
        }
    }
}

impl<D: Disk> Store for FileStore<D> {
    fn read(&self, vm: &VmName) -> Result<Option<Tenure>, StoreError> {
        Ok(self.look(vm)?.0.newest().cloned())
    }

    fn claim(&self, vm: &VmName, expected: Term, me: &Holder) -> Result<Verdict, StoreError> {
        let (register, drafts) = self.look(vm)?;
        let mine = Tenure {
            term: expected.next(),
            holder: me.clone(),
        };
        let verdict = match register.judge(expected, me) {
            Ruling::Taken(theirs) => self.refuse(vm, &theirs),
            Ruling::Held(_) => self.confirm(vm, &mine),
            Ruling::NeverHandedOut { newest } if mine.term == expected => Err(StoreError::NeverHandedOut {
                vm: vm.clone(),
                expected,
                newest,
            }),
            // Unknown may be a view that is too old: the draft makes it fresh.
            Ruling::Free(_) | Ruling::NeverHandedOut { .. } => self.take(vm, &mine, expected),
        };
        self.clear(vm, me, &drafts);
        verdict
    }
}

const LINK: &str = "link";
const SYNC_DIR: &str = "sync the directory";

/// The term that a file name stands for; any other spelling is no term's.
fn term_of(name: &str) -> Option<Term> {
    let digits = name.strip_prefix(TERM_PREFIX)?;
    if digits.len() != TERM_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits
        .parse()
        .ok()
        .map(Term::new)
        .filter(|term| *term > Term::ZERO)
}

fn draft_prefix_of_node(holder: &Holder) -> String {
    format!("{DRAFT_PREFIX}{}.", holder.node)
}

fn draft_prefix(holder: &Holder) -> String {
    format!("{DRAFT_PREFIX}{}.{}.", holder.node, holder.incarnation)
}

fn draft_name(holder: &Holder) -> String {
    let count = DRAFTS.fetch_add(1, Ordering::Relaxed);
    format!("{}{}.{count}", draft_prefix(holder), std::process::id())
}

/// The system's error as a sentence of ours.
fn told(source: io::Error, doing: &'static str, path: &Path, dir: &Path) -> StoreError {
    let (path, dir) = (path.to_owned(), dir.to_owned());
    // A file system without hard links says EPERM; a directory that may not be written says EACCES.
    let not_permitted = source.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error());
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { dir, source },
        io::ErrorKind::Unsupported if doing == LINK => StoreError::NoHardLinks { dir, source },
        _ if doing == LINK && not_permitted => StoreError::NoHardLinks { dir, source },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StoreError::NotWritable { dir, source }
        }
        io::ErrorKind::NotADirectory => StoreError::NotADirectory { dir },
        io::ErrorKind::NotFound if doing != LINK => StoreError::Missing { dir },
        _ => StoreError::Io { doing, path, source },
    }
}

#[cfg(test)]
mod tests;
