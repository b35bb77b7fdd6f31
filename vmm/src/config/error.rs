//! Why a configuration was refused: every sentence names the file, the line or key, and what to write instead.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("Cannot read the configuration {}; name an existing file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML of our shape.
    #[error("{}:{line}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What the parser said.
        problem: String,
    },
    /// A value is of the right type but cannot be meant.
    #[error("{}:{line}: `{key}`: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// The full key.
        key: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// The file has no such node.
    #[error("{} has no node \"{name}\"; it has {known}", path.display())]
    NoSuchNode {
        /// The file.
        path: PathBuf,
        /// Who was asked for.
        name: String,
        /// Who is there.
        known: String,
    },
}
