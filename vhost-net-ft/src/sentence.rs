//! An error as somebody is told of it who sees one line: a user on standard error, or a VMM that is sent away.
//!
//! Used by `main.rs` and `device.rs`. Log lines print the chain by themselves.

use std::error::Error;

/// An error and its causes in one line.
pub fn sentence(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}
