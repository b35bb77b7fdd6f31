//! The second Debian guest: PostgreSQL as Debian ships it, with its programs and its data on the ext4 disk. The guest's
//! own initdb and pgbench fill the disk, in a boot under a stock QEMU before the story; another such boot reads the books
//! afterwards, from what a story left on a disk. So no database server ever runs on the test machine itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::guest_image::{MODULES, prologue};
use super::packages::{postgres, tool};
use super::pgbench::{Books, QUERY, SCALE};
use super::stock;
use super::tree::Tree;
use crate::qemu::packages::Kernel;

/// Builds the guest's initramfs in a folder of its own and says where it is.
pub fn build(folder: &Path, kernel: &Kernel) -> anyhow::Result<PathBuf> {
    let tree = Tree::new(folder)?;
    tree.script("init", &script(&postgres()?))?;
    tree.modules(kernel, &MODULES)?;
    tree.program(&tool("e2fsck")?, "bin/e2fsck")?;
    tree.pack()
}

/// Makes a disk with PostgreSQL and a database of pgbench on it.
pub fn make_disk(path: &Path, initramfs: &Path, kernel: &Kernel) -> anyhow::Result<()> {
    let folder = path.with_extension("content");
    let tree = Tree::new(&folder)?;
    let home = postgres()?;
    for name in ["postgres", "initdb", "pg_ctl", "pgbench", "psql"] {
        tree.program(
            &home.join("bin").join(name),
            &within(&home, &format!("bin/{name}")),
        )?;
    }
    for library in shared_objects(&home.join("lib"))? {
        tree.copy(
            &home.join("lib").join(&library),
            &within(&home, &format!("lib/{library}")),
        )?;
    }
    let version = home
        .file_name()
        .context("PostgreSQL lies in a folder named like its version")?;
    let share = Path::new("/usr/share/postgresql").join(version);
    tree.folder(&share, &within(&share, ""))?;
    tree.program(&tool("setpriv")?, "bin/setpriv")?;
    tree.copy(&tool("busybox")?, "bin/sh")?;
    tree.script(
        "etc/passwd",
        &format!("postgres:x:{USER}:{USER}::/data:/bin/sh\n"),
    )?;
    tree.script("etc/group", &format!("postgres:x:{USER}:\n"))?;
    tree.script("books.sql", QUERY)?;
    tree.format(path, DISK_BYTES)?;

    let said = boot(path, initramfs, kernel, PREPARE)?;
    match said.contains("LOCKSTEP prepared 0") {
        true => Ok(()),
        false => bail!("The guest could not make its database: {said}"),
    }
}

/// Boots the guest once more from a disk that lost its power, and reads its books. The disk is changed by that.
pub fn read_books(disk: &Path, initramfs: &Path, kernel: &Kernel) -> anyhow::Result<Books> {
    let said = boot(disk, initramfs, kernel, LOOK)?;
    let lines = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("LOCKSTEP books "));
    Books::parse(lines).with_context(|| format!("The guest could not read what it left: {said}"))
}

fn boot(disk: &Path, initramfs: &Path, kernel: &Kernel, words: &str) -> anyhow::Result<String> {
    stock::run(&stock::Parts {
        kernel,
        initramfs,
        disk,
        words,
        console: &disk.with_extension(format!("{words}.console")),
    })
}

/// The guest's first process. Everything of PostgreSQL runs in the disk's own tree, as a user without rights.
fn script(home: &Path) -> String {
    let (prologue, home) = (prologue(), home.display());
    format!(
        r#"{prologue}mount -t proc proc /disk/proc; mount -t devtmpfs dev /disk/dev
mkdir -p /disk/dev/shm; mount -t tmpfs shm /disk/dev/shm; chmod 1777 /disk/tmp /disk/dev/shm
as() {{ chroot /disk /bin/setpriv --reuid {USER} --regid {USER} --clear-groups {home}/bin/"$@" > /dev/console 2>&1; }}
end() {{ umount /disk/dev/shm /disk/dev /disk/proc; umount /disk; poweroff -f; }}
if grep -q {PREPARE} /proc/cmdline; then
    mkdir /disk/data; chown {USER}:{USER} /disk/data
    as initdb --pgdata /data --username postgres --auth trust --no-sync --no-locale --encoding UTF8
    echo "listen_addresses = '*'
        unix_socket_directories = '/tmp'
        shared_buffers = 32MB
        jit = off" >> /disk/data/postgresql.conf
    echo 'host all all 0.0.0.0/0 trust' >> /disk/data/pg_hba.conf
    as pg_ctl -D /data -w -t 200 -l /tmp/log start
    as pgbench -h /tmp -U postgres --initialize --scale {SCALE} --quiet postgres; made=$?
    as pg_ctl -D /data -w -t 200 stop
    say prepared $made
    end
fi
if grep -q {LOOK} /proc/cmdline; then
    as pg_ctl -D /data -w -t 200 -l /tmp/log start
    as psql -h /tmp -U postgres -v ON_ERROR_STOP=1 -qAt -F ' ' -f /books.sql -o /tmp/books postgres
    while read -r line; do say books $line; done < /disk/tmp/books
    as pg_ctl -D /data -w -t 200 stop
    end
fi
say up now
as postgres -D /data
say postgres ended $?
end
"#
    )
}

/// Where a file of the test machine lies in the disk's tree.
fn within(folder: &Path, name: &str) -> String {
    folder
        .join(name)
        .display()
        .to_string()
        .trim_start_matches('/')
        .to_owned()
}

/// The libraries that the server loads at need, without its compiler.
fn shared_objects(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".so") && !name.starts_with("llvmjit") {
            found.push(name);
        }
    }
    Ok(found)
}

/// Words of the command line.
const PREPARE: &str = "lab.prepare";
const LOOK: &str = "lab.look";
/// PostgreSQL refuses to run as root.
const USER: u32 = 70;
const DISK_BYTES: u64 = 320 << 20;
