//! The service's own configuration file: where it listens, where terms are kept, who may ask.
//!
//! `lockstep-arbiter serve` reads it. Relative paths are relative to the file.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lockstep_protocol::ids::NodeName;
use lockstep_quic::identity::{Identity, IdentityError, PinnedPeer};
use serde::Deserialize;

use super::{Client, key_of};
use crate::register::VmName;

/// A file as in `lockstep-arbiter serve --help`.
pub struct ServiceConfig {
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// The directory of the file store.
    pub dir: PathBuf,
    /// The arbiter's own certificate and key.
    pub identity: Identity,
    /// Who may ask.
    pub clients: Vec<Client>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    listen: SocketAddr,
    dir: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    /// None is an error, too, but one that says what to add.
    #[serde(default)]
    client: BTreeMap<String, RawClient>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClient {
    certificate: PathBuf,
    node: Option<NodeName>,
    vms: Option<Vec<VmName>>,
}

impl ServiceConfig {
    /// Reads the file and everything that it names.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let raw: RawConfig = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let beside = path.parent().unwrap_or(Path::new("."));
        if raw.client.is_empty() {
            return Err(ConfigError::NoClient {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            listen: raw.listen,
            dir: beside.join(raw.dir),
            clients: load_clients(raw.client, path, beside)?,
            identity: Identity::load(&beside.join(raw.certificate), &beside.join(raw.key))?,
        })
    }
}

/// All clients, each with a certificate of its own: it is what tells them apart.
fn load_clients(
    tables: BTreeMap<String, RawClient>,
    path: &Path,
    beside: &Path,
) -> Result<Vec<Client>, ConfigError> {
    let (mut clients, mut labels) = (Vec::new(), BTreeMap::new());
    for (label, table) in tables {
        let client = table.load(&label, path, beside)?;
        if let Some(first) = labels.insert(key_of(&client.peer), label.clone()) {
            return Err(ConfigError::SameCertificate {
                path: path.to_owned(),
                first,
                second: label,
            });
        }
        clients.push(client);
    }
    Ok(clients)
}

impl RawClient {
    fn load(self, label: &str, path: &Path, beside: &Path) -> Result<Client, ConfigError> {
        let node = match self.node {
            Some(node) => node,
            None => NodeName::new(label).map_err(|_| ConfigError::Node {
                path: path.to_owned(),
                label: label.to_owned(),
            })?,
        };
        let peer = PinnedPeer::load(&beside.join(&self.certificate))?;
        Ok(Client {
            peer,
            node,
            vms: self.vms,
        })
    }
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("Cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It says something else than it should.
    #[error("The configuration {} is not right", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// Nobody could ask.
    #[error("{} names no client: add [client.NODE] with its certificate", path.display())]
    NoClient {
        /// The file.
        path: PathBuf,
    },
    /// The table's name is no node's name, and no other is given.
    #[error("{}: [client.{label}] is no node's name (a-z, 0-9, -); add node = \"...\"", path.display())]
    Node {
        /// The file.
        path: PathBuf,
        /// The table's name.
        label: String,
    },
    /// Two clients could not be told apart.
    #[error(
        "{}: [client.{first}] and [client.{second}] have the same certificate, which says who asks; give each \
         node its own (`lockstep keys` makes them), or take one table away",
        path.display()
    )]
    SameCertificate {
        /// The file.
        path: PathBuf,
        /// One table's name.
        first: String,
        /// The other's.
        second: String,
    },
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

#[cfg(test)]
mod tests {
    use lockstep_quic::dates::Validity;
    use lockstep_quic::keys::{Existing, write_keys};
    use tempfile::TempDir;

    use super::*;

    /// What is said to a configuration with these tables of clients, beside keys of the arbiter and of a and b.
    fn refusal(clients: &str) -> (TempDir, String) {
        let dir = TempDir::new().unwrap();
        for name in ["arbiter", "a", "b"] {
            write_keys(dir.path(), name, Validity::years(1), Existing::Keep).unwrap();
        }
        let head = "listen = \"127.0.0.1:0\"\ndir = \"terms\"\n\
                    certificate = \"arbiter.crt\"\nkey = \"arbiter.key\"\n";
        fs::write(dir.path().join("arbiter.toml"), format!("{head}{clients}")).unwrap();
        let told = match ServiceConfig::load(&dir.path().join("arbiter.toml")) {
            Ok(config) => format!("{} clients are taken", config.clients.len()),
            Err(error) => error.to_string(),
        };
        (dir, told)
    }

    #[test]
    fn two_clients_with_the_same_certificate_are_refused_by_the_names_of_both() {
        let clients =
            "[client.b]\ncertificate = \"a.crt\"\nvms = [\"shop\"]\n[client.a]\ncertificate = \"a.crt\"\n";

        let (_dir, told) = refusal(clients);

        assert!(
            told.contains("[client.a] and [client.b] have the same certificate")
                && told.contains("lockstep keys"),
            "{told}"
        );
    }

    #[test]
    fn two_clients_with_certificates_of_their_own_are_taken() {
        let clients = "[client.a]\ncertificate = \"a.crt\"\n[client.b]\ncertificate = \"b.crt\"\n";

        let (_dir, told) = refusal(clients);

        assert_eq!(told, "2 clients are taken");
    }

    #[test]
    fn a_configuration_without_clients_is_told_what_to_add() {
        let (dir, told) = refusal("");

        let path = dir.path().join("arbiter.toml");
        assert_eq!(
            told,
            format!(
                "{} names no client: add [client.NODE] with its certificate",
                path.display()
            )
        );
    }
}
