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

use super::Client;
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
        let clients = raw
            .client
            .into_iter()
            .map(|(label, client)| client.load(&label, path, beside))
            .collect::<Result<Vec<_>, _>>()?;
        if clients.is_empty() {
            return Err(ConfigError::NoClient {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            listen: raw.listen,
            dir: beside.join(raw.dir),
            identity: Identity::load(&beside.join(raw.certificate), &beside.join(raw.key))?,
            clients,
        })
    }
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
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}
