//! A file tree that becomes an initramfs: programs with their shared libraries, kernel modules in loading order, files.
//!
//! Used by `host_image.rs` and `guest_image.rs`. Nothing here knows what the tree is for.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::packages::tool;
use crate::qemu::initramfs::pack;
use crate::qemu::packages::Kernel;

/// A tree under construction.
#[derive(Debug)]
pub struct Tree {
    folder: PathBuf,
    root: PathBuf,
}

impl Tree {
    /// An empty tree with a busybox in it; `folder` is for this tree alone.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let tree = Self {
            root: folder.join("root"),
            folder: folder.into(),
        };
        for name in ["bin", "proc", "sys", "dev", "run", "tmp"] {
            fs::create_dir_all(tree.root.join(name)).context("Cannot make the folder of an image")?;
        }
        tree.copy(&tool("busybox")?, "bin/busybox")?;
        Ok(tree)
    }

    /// A text that can be run.
    pub fn script(&self, at: &str, text: &str) -> anyhow::Result<()> {
        let path = self.place(at)?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(())
    }

    /// A copy of a file, as it is.
    pub fn copy(&self, from: &Path, at: &str) -> anyhow::Result<()> {
        fs::copy(from, self.place(at)?).with_context(|| format!("Cannot copy {}", from.display()))?;
        Ok(())
    }

    /// A copy of everything in a folder; links are followed, and those that lead nowhere left out.
    pub fn folder(&self, from: &Path, at: &str) -> anyhow::Result<()> {
        let entries = fs::read_dir(from).with_context(|| format!("Cannot read {}", from.display()))?;
        for entry in entries {
            let entry = entry?;
            let within = format!(
                "{}/{}",
                at.trim_end_matches('/'),
                entry.file_name().to_string_lossy()
            );
            match fs::metadata(entry.path()) {
                Ok(what) if what.is_dir() => self.folder(&entry.path(), &within)?,
                Ok(_) => self.copy(&entry.path(), &within)?,
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// A program and every shared library that it needs.
    pub fn program(&self, from: &Path, at: &str) -> anyhow::Result<()> {
        self.copy(from, at)?;
        let listed = Command::new("ldd").arg(from).output().context("Cannot run ldd")?;
        for library in libraries(&String::from_utf8_lossy(&listed.stdout)) {
            let within = library.trim_start_matches('/');
            if !self.root.join(within).exists() {
                self.copy(Path::new(library), within)?;
            }
        }
        Ok(())
    }

    /// The same without what only debuggers read, which is most of a program of ours.
    pub fn own_program(&self, from: &Path, at: &str) -> anyhow::Result<()> {
        self.program(from, at)?;
        let status = Command::new(tool("strip")?)
            .arg("--strip-debug")
            .arg(self.root.join(at))
            .status()
            .context("Cannot run strip")?;
        if !status.success() {
            bail!("strip failed for {at}");
        }
        Ok(())
    }

    /// Modules and all that they depend on, as `modules/*.ko`, named in `modules/order`.
    pub fn modules(&self, kernel: &Kernel, names: &[&str]) -> anyhow::Result<()> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.module(kernel, name, &mut seen, &mut order)?;
        }
        let text = order.iter().map(|file| format!("{file}\n")).collect::<String>();
        fs::write(self.place("modules/order")?, text)?;
        Ok(())
    }

    /// Packs the tree and says where the archive is. The tree is gone then.
    pub fn pack(self) -> anyhow::Result<PathBuf> {
        let archive = pack(&self.root, &self.folder)?;
        fs::remove_dir_all(&self.root)?;
        Ok(archive)
    }

    /// Makes an ext4 disk with the tree on it. The tree is gone then.
    pub fn format(self, disk: &Path, bytes: u64) -> anyhow::Result<()> {
        fs::File::create(disk)?.set_len(bytes)?;
        let made = Command::new(tool("mkfs.ext4")?)
            .args(["-q", "-F", "-L", "guest", "-d"])
            .args([&self.root, disk])
            .output()
            .context("Cannot run mkfs.ext4")?;
        if !made.status.success() {
            bail!(
                "mkfs.ext4 failed: {}",
                String::from_utf8_lossy(&made.stderr).trim()
            );
        }
        fs::remove_dir_all(&self.root)?;
        Ok(())
    }

    /// Adds one module behind those that it depends on.
    fn module(
        &self,
        kernel: &Kernel,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        if !seen.insert(name.replace('-', "_")) {
            return Ok(());
        }
        let find = |name: &str| kernel.module(&format!("{name}.ko"));
        // A dependency is named with underscores, its file perhaps with dashes.
        let path = find(name).or_else(|error| find(&name.replace('_', "-")).map_err(|_| error))?;
        let content = read_module(&path)?;
        for needed in dependencies(&content) {
            self.module(kernel, &needed, seen, order)?;
        }
        let file = format!("{name}.ko");
        fs::write(self.place(&format!("modules/{file}"))?, content)?;
        order.push(file);
        Ok(())
    }

    fn place(&self, at: &str) -> anyhow::Result<PathBuf> {
        let path = self.root.join(at);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(path)
    }
}

/// A module as insmod takes it, whatever its package did to it.
fn read_module(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("Cannot read {}", path.display()));
    }
    let unpacked = Command::new(tool("xz")?)
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("Cannot run xz")?;
    if !unpacked.status.success() {
        bail!("xz failed for {}", path.display());
    }
    Ok(unpacked.stdout)
}

/// The paths in what ldd said.
fn libraries(listed: &str) -> impl Iterator<Item = &str> {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// The modules that a module says it needs.
fn dependencies(module: &[u8]) -> Vec<String> {
    let fields = module.split(|byte| *byte == 0);
    let named = fields
        .filter_map(|field| field.strip_prefix(b"depends="))
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(named)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_depends_on() {
        let bridge = b"\x7fELF\0license=GPL\0depends=llc,stp\0intree=Y\0";
        assert_eq!(dependencies(bridge), ["llc", "stp"]);
        assert!(dependencies(b"\x7fELF\0depends=\0intree=Y\0").is_empty());
        assert!(dependencies(b"no module").is_empty());
    }

    #[test]
    fn the_loader_is_a_library_too_and_the_vdso_is_none() {
        let listed = "\tlinux-vdso.so.1 (0x00007f00cd5b3000)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00cc81e000)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f00cd5b5000)\n";
        let found: Vec<_> = libraries(listed).collect();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
    }
}
