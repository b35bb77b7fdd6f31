//! README.md as a script: what it tells a new user to type, block by block, so that `lab readme` can type just that. The
//! guest of its fourth step is made here as well, on the test machine, because that takes a network and root.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::qemu::suite::{target, workspace};

/// The text.
#[derive(Debug)]
pub struct Readme {
    text: String,
}

impl Readme {
    /// Reads it.
    pub fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string(workspace().join("README.md")).context("Cannot read README.md")?;
        Ok(Self { text })
    }

    /// The one block in this language under a heading that holds these words, whole.
    pub fn block(&self, heading: &str, language: &str, words: &str) -> anyhow::Result<String> {
        let (_, section) = self
            .text
            .split_once(&format!("\n### {heading}"))
            .with_context(|| format!("README has no step {heading:?}"))?;
        let section = section.split("\n### ").next().unwrap_or_default();
        let begin = format!("\n```{language}\n");
        let found: Vec<_> = section
            .split(&begin)
            .skip(1)
            .filter_map(|rest| rest.split("\n```").next())
            .filter(|block| block.contains(words))
            .collect();
        match found.as_slice() {
            [block] => Ok((*block).to_owned()),
            _ => bail!(
                "Step {heading:?} of README has {} blocks with {words:?}",
                found.len()
            ),
        }
    }
}

/// What step 4 of README makes.
#[derive(Debug)]
pub struct Made {
    /// The guest's disk.
    pub disk: PathBuf,
    /// The folder with `vmlinuz` and `initrd`.
    pub boot: PathBuf,
}

/// Does what step 4 says, as root, unless it was done with the same words before.
pub fn make_guest() -> anyhow::Result<Made> {
    let folder = target().join("lab-readme");
    let made = Made {
        disk: folder.join("shared/shop.raw"),
        boot: folder.join("lockstep"),
    };
    let script = Readme::read()?
        .block(GUEST_STEP, "sh", "debootstrap")?
        .replace("/shared/", &format!("{}/", folder.join("shared").display()))
        .replace("/etc/lockstep/", &format!("{}/", made.boot.display()));
    let done = folder.join("done");
    if fs::read_to_string(&done).is_ok_and(|words| words == script) {
        return Ok(made);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "Only root can make the guest of README's step 4: run `cargo xtask lab readme --install` as root once"
        );
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    for folder in [folder.join("shared"), made.boot.clone()] {
        fs::create_dir_all(folder)?;
    }
    type_it(&script, &folder)?;
    fs::remove_dir_all(folder.join("shop"))?;
    fs::write(done, script)?;
    Ok(made)
}

/// Runs the script, and answers its one question.
fn type_it(script: &str, folder: &Path) -> anyhow::Result<()> {
    let log = fs::File::create(folder.join("log"))?;
    let mut shell = Command::new("bash")
        .args(["-euc", script])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("Cannot run bash")?;
    let mut typed = shell.stdin.take().expect("its input is a pipe");
    typed.write_all(format!("{PASSWORD}\n{PASSWORD}\n").as_bytes())?;
    drop(typed);
    let status = shell.wait()?;
    if !status.success() {
        let log = folder.join("log");
        bail!("Step 4 of README fails, see {}", log.display());
    }
    Ok(())
}

/// The heading of the step that makes the guest.
pub const GUEST_STEP: &str = "4. ";
/// Root's in the guest.
pub const PASSWORD: &str = "shop";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_found_by_its_step_its_language_and_its_words() {
        let text = "# L\n\n### 1. A\n\n```sh\nfirst\n```\n\n```toml\nx = 1\n```\n\n```sh\nsecond\nline\n```\n\n### 2. B\n\n```sh\nsecond\n```\n";
        let readme = Readme { text: text.into() };
        assert_eq!(readme.block("1. ", "sh", "second").unwrap(), "second\nline");
        assert_eq!(readme.block("1. ", "toml", "").unwrap(), "x = 1");
        assert!(readme.block("1. ", "sh", "").is_err());
        assert!(readme.block("3. ", "sh", "").is_err());
    }
}
