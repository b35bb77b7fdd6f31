//! One planted bug: where it is, what stands there, and what stands there instead.

use anyhow::{Context, ensure};
use std::fs;
use std::path::Path;

/// A bug to be planted in a copy of the source.
#[derive(Clone, Copy, Debug)]
pub struct Plant {
    /// A short name.
    pub name: &'static str,
    /// The file, from the root of the workspace.
    pub file: &'static str,
    /// What stands there, once in all of the file.
    pub from: &'static str,
    /// What stands there instead.
    pub to: &'static str,
}

impl Plant {
    /// The text of the file under `root` with the bug in it.
    ///
    /// # Errors
    /// When the file is not there, or its text has changed so that the bug has no place any more.
    pub fn text(&self, root: &Path) -> anyhow::Result<String> {
        let path = root.join(self.file);
        let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let places = text.matches(self.from).count();
        ensure!(
            places == 1,
            "The planted bug {} has {places} places in {}; look at what changed there and plant it anew",
            self.name,
            self.file
        );
        Ok(text.replace(self.from, self.to))
    }
}
