//! `lockstep keys`: makes a certificate and a private key for each name, and says which file goes where. An existing
//! file is written over only when that was asked for: the other hosts have pinned it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use lockstep_quic::dates::Validity;
use lockstep_quic::keys::{DEFAULT_YEARS, Existing, write_keys};

/// Makes `dir/NAME.crt` and `dir/NAME.key` for each of `names`.
pub fn keys(dir: &Path, names: &[String], force: bool) -> anyhow::Result<ExitCode> {
    let existing = if force { Existing::Replace } else { Existing::Keep };
    for name in names {
        let validity = Validity::years(DEFAULT_YEARS);
        let made = write_keys(dir, name, validity, existing)
            .with_context(|| format!("Cannot make the keys of {name:?}"))?;
        println!("{name}: {}", made.fingerprint);
        println!("  {} goes to every host", made.certificate.display());
        println!(
            "  {} stays on the host of {name}, readable by its owner only",
            made.key.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
