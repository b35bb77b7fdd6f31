//! `lockstep keys`: makes a certificate and a private key for each name, and says which file goes where. An existing
//! file is never written over: the other host has pinned it.

use std::path::Path;
use std::process::ExitCode;

/// Makes `dir/NAME.crt` and `dir/NAME.key` for each of `names`.
pub fn keys(dir: &Path, names: &[String]) -> anyhow::Result<ExitCode> {
    anyhow::bail!(
        "Cannot make keys for {} names in {} yet",
        names.len(),
        dir.display()
    )
}
