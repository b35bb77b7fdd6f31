//! Makes a copy of the protocol, the register with its store, and the simulator for each planted bug, and builds them
//! all at once. The copies are packages of a workspace of their own under `target`; the production crates are not
//! touched and not rebuilt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::plant::Plant;
use crate::qemu::suite::target;

/// What of the arbiter is copied: the rule and the store, without the service and its runtime.
const REGISTER: &str = "#![allow(missing_docs)]\npub mod register;\npub mod store;\n";

const PROGRAM: &str = r#"//! Looks for the planted bug.
mod sim;

fn main() {
    let seeds = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1000);
    println!("{}", sim::hunt(seeds));
}
"#;

/// Where copies are made.
#[derive(Debug)]
pub(super) struct Workshop {
    root: PathBuf,
    bench: PathBuf,
}

impl Workshop {
    /// The workshop under `target`. What was built there before is used again.
    pub(super) fn open() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("The crate of the tests lies in the workspace")?
            .to_owned();
        let bench = target().join("mutants-protocol");
        fs::create_dir_all(&bench).with_context(|| format!("Cannot make {}", bench.display()))?;
        fs::copy(root.join("Cargo.lock"), bench.join("Cargo.lock")).context("Cannot copy Cargo.lock")?;
        Ok(Self { root, bench })
    }

    /// Makes the copy for one bug.
    pub(super) fn plant(&self, plant: &Plant) -> anyhow::Result<()> {
        let bug = (plant.file, plant.text(&self.root)?);
        let at = self.bench.join(plant.name);
        self.copy("transport/protocol/src", &at.join("protocol/src"), &bug)?;
        self.copy("arbiter/src/store", &at.join("arbiter/src/store"), &bug)?;
        self.copy_file(
            "arbiter/src/register.rs",
            &at.join("arbiter/src/register.rs"),
            &bug,
        )?;
        self.copy_file("arbiter/src/store.rs", &at.join("arbiter/src/store.rs"), &bug)?;
        self.copy("tests/src/sim", &at.join("sim/src/sim"), &bug)?;
        self.copy_file("tests/src/sim.rs", &at.join("sim/src/sim.rs"), &bug)?;
        write(&at.join("arbiter/src/lib.rs"), REGISTER)?;
        write(&at.join("sim/src/main.rs"), PROGRAM)?;
        let name = plant.name;
        let protocol =
            format!("lockstep-protocol = {{ path = \"../protocol\", package = \"protocol-{name}\" }}\n");
        let arbiter =
            format!("lockstep-arbiter = {{ path = \"../arbiter\", package = \"arbiter-{name}\" }}\n");
        let library = |name: &str| format!("[lib]\nname = \"{name}\"\n");
        write(
            &at.join("protocol/Cargo.toml"),
            &package(
                &format!("protocol-{name}"),
                &library("lockstep_protocol"),
                &self.dependencies()?,
            ),
        )?;
        let of_arbiter = protocol.clone() + &inherited(&["rustix", "serde", "thiserror", "xxhash-rust"]);
        write(
            &at.join("arbiter/Cargo.toml"),
            &package(
                &format!("arbiter-{name}"),
                &library("lockstep_arbiter"),
                &of_arbiter,
            ),
        )?;
        let of_sim =
            protocol + &arbiter + &inherited(&["anyhow", "bytes", "serde", "serde_json", "thiserror"]);
        write(
            &at.join("sim/Cargo.toml"),
            &package(&program_name(plant), "", &of_sim),
        )
    }

    /// Builds all copies.
    pub(super) fn build(&self, plants: &[&Plant]) -> anyhow::Result<()> {
        let members: Vec<_> = plants
            .iter()
            .map(|plant| format!("\"{}/sim\"", plant.name))
            .collect();
        let manifest = format!(
            "[workspace]\nresolver = \"3\"\nmembers = [{}]\n\n{}\n[profile.release]\nopt-level = 1\n\
             debug = false\ndebug-assertions = true\n",
            members.join(", "),
            self.workspace_dependencies()?
        );
        write(&self.bench.join("Cargo.toml"), &manifest)?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build
            .args(["build", "--release", "--quiet", "--offline"])
            .current_dir(&self.bench)
            .env("CARGO_TARGET_DIR", self.built())
            .env("RUSTFLAGS", "--allow warnings");
        for plant in plants {
            build.args(["--package", &program_name(plant)]);
        }
        let status = build.status().context("Cannot run cargo")?;
        ensure!(
            status.success(),
            "A copy with a planted bug does not compile; its message is above"
        );
        Ok(())
    }

    /// The program that looks for one bug.
    pub(super) fn program(&self, plant: &Plant) -> PathBuf {
        self.built().join("release").join(program_name(plant))
    }

    fn built(&self) -> PathBuf {
        self.bench.join("target")
    }

    fn copy(&self, from: &str, to: &Path, bug: &(&str, String)) -> anyhow::Result<()> {
        let folder = self.root.join(from);
        let entries = fs::read_dir(&folder).with_context(|| format!("Cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("Cannot list {}", folder.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let inner = format!("{from}/{name}");
            match entry.path().is_dir() {
                true => self.copy(&inner, &to.join(name), bug)?,
                false => self.copy_file(&inner, &to.join(name), bug)?,
            }
        }
        Ok(())
    }

    fn copy_file(&self, from: &str, to: &Path, (file, bug): &(&str, String)) -> anyhow::Result<()> {
        if from == *file {
            return write(to, bug);
        }
        let path = self.root.join(from);
        let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        write(to, &text)
    }

    /// What the protocol depends on, as its own manifest says.
    fn dependencies(&self) -> anyhow::Result<String> {
        self.section("transport/protocol/Cargo.toml", "[dependencies]")
    }

    /// The versions that the workspace has agreed on, without its own crates.
    fn workspace_dependencies(&self) -> anyhow::Result<String> {
        let all = self.section("Cargo.toml", "[workspace.dependencies]")?;
        let others = all.lines().filter(|line| !line.starts_with("lockstep-"));
        Ok(format!(
            "[workspace.dependencies]\n{}\n",
            others.collect::<Vec<_>>().join("\n")
        ))
    }

    fn section(&self, file: &str, head: &str) -> anyhow::Result<String> {
        let path = self.root.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let (_, rest) = text
            .split_once(&format!("{head}\n"))
            .with_context(|| format!("{file} has no section {head}"))?;
        Ok(rest.split("\n[").next().unwrap_or_default().to_owned())
    }
}

fn program_name(plant: &Plant) -> String {
    format!("hunt-{}", plant.name)
}

fn package(name: &str, library: &str, dependencies: &str) -> String {
    format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n{library}\n[dependencies]\n\
         {dependencies}\n"
    )
}

fn inherited(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("{name}.workspace = true\n"))
        .collect()
}

/// Writes a file unless it says the same already: cargo builds again what was touched.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("Cannot write {}", path.display()))
}
