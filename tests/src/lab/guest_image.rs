//! The Debian guest: the stock kernel's own modules, busybox, redis-server as Debian ships it, and an ext4 disk on
//! which redis syncs every write before it answers. What a client was told is therefore on the disk, or it was lost. Beside
//! it waits a program that reads the counter in user space.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::packages::tool;
use super::rdtsc::{self, PORT as RDTSC_PORT};
use super::tree::Tree;
use crate::qemu::packages::Kernel;

/// The folder on the disk that redis keeps its files in.
pub const DATA: &str = "redis";
const DISK_BYTES: u64 = 64 << 20;
/// Lockstep shows virtio-mmio; PCI is for looking at this guest under any other VMM.
pub const MODULES: [&str; 4] = ["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net"];
/// How redis is run, in the guest and on what is left of its disk.
pub const REDIS: [&str; 8] = [
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--save",
    "",
    "--protected-mode",
    "no",
];

/// Builds the guest's initramfs in a folder of its own and says where it is.
pub fn build(folder: &Path, kernel: &Kernel) -> anyhow::Result<PathBuf> {
    let tree = Tree::new(folder)?;
    tree.script("init", &script())?;
    tree.modules(kernel, &MODULES)?;
    tree.program(&tool("redis-server")?, "bin/redis-server")?;
    tree.program(&tool("e2fsck")?, "bin/e2fsck")?;
    let program = folder.join("rdtsc");
    rdtsc::compile(&program)?;
    tree.copy(&program, "bin/rdtsc")?;
    tree.pack()
}

/// What the first process of a Debian guest begins with: modules, network, and the disk on `/disk` if it is whole.
/// `ip=ADDRESS/LENGTH` and `gw=ADDRESS` are read from the command line, as the micro guest reads them.
pub fn prologue() -> String {
    format!(
        r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
say() {{ echo "LOCKSTEP $*" > /dev/console; }}
word() {{ sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }}
while read -r module; do insmod /modules/$module || say failed insmod $module; done < /modules/order
for i in $(seq 100); do [ -b /dev/vda ] && [ -d /sys/class/net/eth0 ] && break; usleep 100000; done
say cpus $(grep -c ^processor /proc/cpuinfo)
ip link set lo up
ip addr add $(word ip) dev eth0 && ip link set eth0 up && ip route add default via $(word gw) || say failed network
fsck() {{ e2fsck -p /dev/vda; say fsck $?; }}
grep -q {STATIC_WORD} /proc/cmdline || fsck
mkdir -p /disk && mount -t ext4 /dev/vda /disk || say failed mount
"#
    )
}

/// The guest's first process.
fn script() -> String {
    let (prologue, work) = (prologue(), static_work());
    let redis = REDIS.map(|word| format!("'{word}'")).join(" ");
    format!(
        r#"{prologue}if grep -q {STATIC_WORD} /proc/cmdline; then
    {work}
    umount /disk; poweroff -f
fi
mkdir -p /disk/{DATA}
sysctl -w vm.overcommit_memory=1 > /dev/null
nc -ll -p {RDTSC_PORT} -e /bin/rdtsc &
say up now
redis-server {redis} --bind 0.0.0.0 --port 6379 --dir /disk/{DATA} > /dev/console 2>&1
say redis ended $?
umount /disk
# Whoever wants another life types so beforehand.
read -t 1 wanted
[ "$wanted" = {AGAIN} ] && reboot -f
poweroff -f
"#
    )
}

/// What the guest does instead of serving clients: processes, files and a TCP stream each way, then it is switched off.
/// All of it is busybox, which is statically linked.
fn static_work() -> String {
    format!(
        r#"say up now
    for i in $(seq 20); do
        dd if=/dev/urandom of=/disk/file$i bs=64k count=4 2> /dev/null
        sha256sum /disk/file$i
    done > /disk/sums
    sync; echo 3 > /proc/sys/vm/drop_caches
    sha256sum -c -s /disk/sums; say files $?
    nc -l -p {STATIC_PORT} < /dev/null > /disk/received
    nc $(word gw) {STATIC_PORT} < /disk/received; say returned $?"#
    )
}

/// A word of the command line that makes the guest do its static work.
pub const STATIC_WORD: &str = "lab.static";
/// What is typed at the guest's console so that it restarts, instead of switching itself off, when its server ends.
pub const AGAIN: &str = "again";
/// Where the guest then listens for bytes, which it sends back to the same port of the outside.
pub const STATIC_PORT: u16 = 7000;

/// Makes a disk with an empty ext4 on it.
pub fn make_disk(path: &Path) -> anyhow::Result<()> {
    File::create(path)?.set_len(DISK_BYTES)?;
    run(
        Command::new(tool("mkfs.ext4")?)
            .args(["-q", "-F", "-L", "guest"])
            .arg(path),
        "mkfs.ext4",
    )
    .map(drop)
}

/// Replays the journal of a disk that lost its power, as a mount would, then says what is wrong with the file system.
pub fn fsck(path: &Path) -> anyhow::Result<Vec<String>> {
    let replay = Command::new(tool("e2fsck")?)
        .args(["-y", "-E", "journal_only"])
        .arg(path)
        .output()
        .context("Cannot run e2fsck")?;
    // 1 is what it says after it had something to replay.
    if !matches!(replay.status.code(), Some(0 | 1)) {
        bail!(
            "The journal cannot be replayed: {}",
            String::from_utf8_lossy(&replay.stdout).trim()
        );
    }
    let checked = Command::new(tool("e2fsck")?)
        .args(["-f", "-n"])
        .arg(path)
        .output()
        .context("Cannot run e2fsck")?;
    let said = String::from_utf8_lossy(&checked.stdout);
    Ok(complaints(checked.status.success(), &said))
}

/// What e2fsck would repair: with `-n` it answers each of its questions with no.
fn complaints(content: bool, said: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut before = "";
    for line in said.lines().map(str::trim) {
        // Some questions are on the line of what they are about, others on the next.
        let about = if line.starts_with("Fix? no") { before } else { line };
        if line.ends_with("? no") && !LAZY.iter().any(|lazy| about.starts_with(lazy)) {
            found.push(about.to_owned());
        }
        before = line;
    }
    if !content && !said.contains("? no") {
        found.push(said.trim().to_owned());
    }
    found
}

/// Totals that ext4 writes to the disk at leisure and counts afresh at every mount, so that after a power cut they may
/// well be old. Those of the block groups are in the journal and must be right.
const LAZY: [&str; 2] = ["Free blocks count wrong (", "Free inodes count wrong ("];

/// Copies what redis left on a disk out of it, without mounting.
pub fn extract_data(disk: &Path, folder: &Path) -> anyhow::Result<()> {
    let order = format!("rdump /{DATA} {}", folder.display());
    run(
        Command::new(tool("debugfs")?).args(["-R", &order]).arg(disk),
        "debugfs",
    )
    .map(drop)
}

fn run(command: &mut Command, name: &str) -> anyhow::Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("Cannot run {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_of_e2fsck_counts() {
        let said = "Pass 1: Checking inodes, blocks, and sizes\n\
                    Inode 12, i_blocks is 8, should be 16.  Fix? no\n\n\
                    Free blocks count wrong for group #0 (1, counted=2).\nFix? no\n";
        let found = complaints(false, said);
        assert_eq!(found.len(), 2);
        assert!(found[1].starts_with("Free blocks count wrong for group"));
        assert_eq!(complaints(false, "Bad magic number in super-block").len(), 1);
        let stale = "Free blocks count wrong (117189, counted=117143).\nFix? no\n";
        assert!(complaints(false, stale).is_empty());
        assert!(complaints(true, "guest: 12/8192 files").is_empty());
    }
}
