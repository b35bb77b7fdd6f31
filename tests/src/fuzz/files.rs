//! Files that somebody may have written by hand, torn or made up: a configuration, and a term file of the arbiter.

use std::path::Path;

use lockstep_arbiter::register::{Tenure, VmName};
use lockstep_arbiter::store::term_file;
use lockstep_protocol::ids::Term;
use lockstep_vmm::config::Config;

/// A term file is good only if it is exactly the one text for its tenure.
pub(super) fn term_file(bytes: &[u8]) {
    let vm = VmName::new("shop").expect("four letters are a name");
    let term = Term::new(7);
    if let Ok(holder) = term_file::decode(&vm, term, bytes) {
        let text = term_file::encode(&vm, &Tenure { term, holder });
        assert_eq!(text.as_bytes(), bytes, "a tenure has one text");
    }
}

/// A configuration is refused in words or understood, and means the same when it is read again.
pub(super) fn config_file(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let path = Path::new("/etc/lockstep/fuzzed.toml");
    match Config::parse(path, text) {
        Ok(config) => {
            let again = Config::parse(path, text).expect("a file that was understood is understood again");
            assert_eq!(config.digest(), again.digest());
        }
        Err(error) => assert!(!error.to_string().is_empty(), "a refusal says why"),
    }
}
