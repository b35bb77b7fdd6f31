//! How the arbiter is reached, as the pair's configuration says it.
//!
//! The VMM reads it and gives it to [`ArbiterClient::open`](crate::client::ArbiterClient::open).

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// Which store, and where.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ArbiterConfig {
    /// A directory on a disk that both hosts share; there is no process.
    File {
        /// The directory. It must exist: made here, it could be on the wrong disk.
        dir: PathBuf,
    },
    /// The service, a third process on a third host.
    Quic {
        /// Where it listens.
        address: SocketAddr,
        /// The arbiter's certificate, which is pinned.
        certificate: PathBuf,
        /// Our own certificate, which the arbiter has pinned.
        own_certificate: PathBuf,
        /// Our own private key.
        own_key: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_read_from_toml() {
        let file: ArbiterConfig = toml::from_str("kind = \"file\"\ndir = \"/shared\"").unwrap();
        assert_eq!(
            file,
            ArbiterConfig::File {
                dir: "/shared".into()
            }
        );

        let text = "kind = \"quic\"\naddress = \"10.0.0.3:7443\"\ncertificate = \"arbiter.crt\"\n\
                    own_certificate = \"a.crt\"\nown_key = \"a.key\"";
        assert!(matches!(toml::from_str(text), Ok(ArbiterConfig::Quic { .. })));
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        let text = "kind = \"file\"\ndir = \"/shared\"\ndirr = \"/other\"";
        assert!(toml::from_str::<ArbiterConfig>(text).is_err());
    }
}
