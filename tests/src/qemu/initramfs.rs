//! What the guest is made of: busybox, the kernel's own virtio modules, and a script.
//!
//! The script says what it found and did on the console, one `LOCKSTEP word value` a line; the story reads them there.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::packages::{Kernel, find_program};

/// The guest's address.
pub const GUEST: &str = "10.78.0.2";
/// The address of the tap.
pub const HOST: &str = "10.78.0.1";
/// Where the guest listens for bytes, which it sends back to the same port of the host.
pub const PORT: u16 = 7000;

/// Where the guest writes its pattern: bytes from the beginning of the disk.
pub const WRITE_AT: u64 = 4 << 20;
/// What the guest discards.
pub const DISCARD_AT: u64 = 8 << 20;
/// How much of it.
pub const DISCARD_BYTES: u64 = 1 << 20;

const MODULES: [&str; 9] = [
    "virtio.ko",
    "virtio_ring.ko",
    "virtio_pci_legacy_dev.ko",
    "virtio_pci_modern_dev.ko",
    "virtio_pci.ko",
    "virtio_blk.ko",
    "failover.ko",
    "net_failover.ko",
    "virtio_net.ko",
];

/// The guest's first and only process.
fn script() -> String {
    let block = 64 << 10;
    format!(
        r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
say() {{ echo "LOCKSTEP $*" > /dev/console; }}
depmod
for module in virtio_pci virtio_blk virtio_net; do modprobe $module || say failed modprobe $module; done
for i in $(seq 100); do [ -b /dev/vda ] && [ -d /sys/class/net/eth0 ] && break; usleep 100000; done
say size $(blockdev --getsize64 /dev/vda)
say serial $(cat /sys/block/vda/serial)
say queues $(ls /sys/block/vda/mq | wc -l)
say before $(sha256sum < /dev/vda)
if grep -q lockstep.write /proc/cmdline; then
    dd if=/pattern of=/dev/vda bs={block} seek={seek} conv=fsync,notrunc 2>/dev/null; say written $?
    blkdiscard -o {DISCARD_AT} -l {DISCARD_BYTES} /dev/vda; say discarded $?
    sync; echo 3 > /proc/sys/vm/drop_caches
    say after $(sha256sum < /dev/vda)
    ip addr add {GUEST}/24 dev eth0; ip link set eth0 up
    say network $(cat /sys/class/net/eth0/address)
    nc -l -p {PORT} < /dev/null > /received
    say received $(sha256sum < /received)
    nc {HOST} {PORT} < /received; say returned $?
fi
say end
poweroff -f
"#,
        seek = WRITE_AT / block,
    )
}

/// Builds the guest's file system with this pattern in it; says where it is.
pub fn build(folder: &Path, kernel: &Kernel, pattern: &[u8]) -> anyhow::Result<PathBuf> {
    let root = folder.join("root");
    let release = kernel
        .modules
        .file_name()
        .context("A kernel's modules lie in a folder named like it")?;
    let modules = root.join("lib/modules").join(release);
    for name in ["bin", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::create_dir_all(&modules)?;
    for module in MODULES {
        let path = kernel.module(module)?;
        let name = path.file_name().context("A module is a file")?;
        std::fs::copy(&path, modules.join(name))?;
    }
    let busybox = find_program("busybox").context("busybox is missing")?;
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    std::fs::write(root.join("pattern"), pattern)?;
    let init = root.join("init");
    std::fs::write(&init, script())?;
    std::fs::set_permissions(&init, PermissionsExt::from_mode(0o755))?;
    pack(&root, folder)
}

/// Packs everything under `root` into an archive in `folder`; says where it is.
pub fn pack(root: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let archive = folder.join("initramfs.cpio");
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(&archive)?)
        .spawn()
        .context("Cannot run cpio")?;
    let mut names = cpio.stdin.take().expect("its input is a pipe");
    list(root, root, &mut names)?;
    drop(names);
    if !cpio.wait()?.success() {
        bail!("cpio failed");
    }
    Ok(archive)
}

/// Names everything under `folder`, parents first.
fn list(root: &Path, folder: &Path, names: &mut impl Write) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        writeln!(names, "{}", path.strip_prefix(root)?.display())?;
        if path.is_dir() {
            list(root, &path, names)?;
        }
    }
    Ok(())
}
