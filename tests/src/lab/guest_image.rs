//! The Debian guest: the stock kernel's own modules, busybox, redis-server as Debian ships it, and an ext4 disk on
//! which redis syncs every write before it answers. What a client was told is therefore on the disk, or it was lost.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::packages::tool;
use super::tree::Tree;
use crate::qemu::packages::Kernel;

/// The folder on the disk that redis keeps its files in.
pub const DATA: &str = "redis";
const DISK_BYTES: u64 = 128 << 20;
const MODULES: [&str; 3] = ["virtio_mmio", "virtio_blk", "virtio_net"];
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
    tree.pack()
}

/// The guest's first process. `ip=ADDRESS/LENGTH` and `gw=ADDRESS` are read from the command line, as the micro guest
/// reads them.
fn script() -> String {
    let redis = REDIS.map(|word| format!("'{word}'")).join(" ");
    format!(
        r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
say() {{ echo "LOCKSTEP $*" > /dev/console; }}
word() {{ sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }}
while read -r module; do insmod /modules/$module || say failed insmod $module; done < /modules/order
for i in $(seq 100); do [ -b /dev/vda ] && [ -d /sys/class/net/eth0 ] && break; usleep 100000; done
ip link set lo up
ip addr add $(word ip) dev eth0 && ip link set eth0 up && ip route add default via $(word gw) || say failed network
e2fsck -p /dev/vda; say fsck $?
mkdir -p /disk && mount -t ext4 /dev/vda /disk || say failed mount
mkdir -p /disk/{DATA}
sysctl -w vm.overcommit_memory=1 > /dev/null
say up now
redis-server {redis} --bind 0.0.0.0 --port 6379 --dir /disk/{DATA} > /dev/console 2>&1
say failed redis $?
umount /disk; poweroff -f
"#
    )
}

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

/// Replays the journal of a disk that lost its power, as a mount would, then counts what is wrong with the file system.
pub fn fsck_errors(path: &Path) -> anyhow::Result<u64> {
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
    Ok(complaints(
        checked.status.success(),
        &String::from_utf8_lossy(&checked.stdout),
    ))
}

/// How many questions e2fsck asked, which `-n` answers all with no; at least one when it was not content.
fn complaints(content: bool, said: &str) -> u64 {
    let asked = said
        .lines()
        .filter(|line| line.trim_end().ends_with("? no"))
        .count() as u64;
    asked.max(u64::from(!content))
}

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
                    Free blocks count wrong (1, counted=2).\nFix? no\n";
        assert_eq!(complaints(false, said), 2);
        assert_eq!(complaints(false, "Bad magic number in super-block"), 1);
        assert_eq!(complaints(true, "guest: 12/8192 files"), 0);
    }
}
