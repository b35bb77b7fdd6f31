//! Who we are and whom we accept: our certificate with its private key, and the pinned certificates of others.
//!
//! The VMM and the arbiter load these from the files that `lockstep keys` wrote. A certificate is trusted because
//! its bytes equal a pinned file, never because somebody signed it, so there is no authority, no chain and no
//! name to check. What is checked: the dates, that the key belongs to the certificate, and that nobody else on
//! this host may read the key.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::dates::{DateError, Validity, check_dates, since_epoch};

/// The most bytes that a certificate or key file may have: a real one has well under 2 KiB.
pub const MAX_PEM_BYTES: u64 = 64 * 1024;

/// Our own certificate and private key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    /// What messages call it: the certificate's file, or the name that it was generated for.
    label: Arc<str>,
}

impl Identity {
    /// Makes a fresh Ed25519 key and a certificate for it, signed by itself.
    pub fn generate(name: &str, validity: Validity) -> Result<Pems, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(IdentityError::Generate)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(IdentityError::Generate)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + since_epoch(validity.from);
        params.not_after = epoch + since_epoch(validity.until);
        let certificate = params.self_signed(&key).map_err(IdentityError::Generate)?;
        Ok(Pems {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Loads both files. Refuses a key that others may read, a key of another certificate, and a certificate
    /// that is not valid today.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let certificate_pem = read_bounded(certificate, Secrecy::Public)?;
        let key_pem = read_bounded(key, Secrecy::Private)?;
        Self::from_bytes(&certificate_pem, &key_pem, certificate, key)
    }

    /// The same from memory, with the same checks but the file mode. `name` is what messages call it.
    pub fn from_pems(name: &str, pems: &Pems) -> Result<Self, IdentityError> {
        Self::from_bytes(
            pems.certificate.as_bytes(),
            pems.key.as_bytes(),
            Path::new(name),
            Path::new(name),
        )
    }

    fn from_bytes(
        certificate: &[u8],
        key: &[u8],
        certificate_path: &Path,
        key_path: &Path,
    ) -> Result<Self, IdentityError> {
        let peer = PinnedPeer::from_bytes(certificate, certificate_path)?;
        peer.check_dates(SystemTime::now())?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| IdentityError::NoKey {
            path: key_path.to_owned(),
        })?;
        CertifiedKey::from_der(
            vec![peer.certificate.clone()],
            key.clone_key(),
            &default_provider(),
        )
        .map_err(|source| IdentityError::Mismatch {
            certificate: certificate_path.to_owned(),
            key: key_path.to_owned(),
            source,
        })?;
        Ok(Self {
            certificate: peer.certificate,
            key,
            label: peer.label,
        })
    }

    /// The certificate as the others pin it.
    pub fn as_peer(&self) -> PinnedPeer {
        PinnedPeer {
            certificate: self.certificate.clone(),
            label: self.label.clone(),
        }
    }

    /// The fingerprint of the certificate, for people to compare.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
            label: self.label.clone(),
        }
    }
}

/// Never shows the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

/// What [`Identity::generate`] made, ready to be written to files.
pub struct Pems {
    /// The certificate; everybody may see it.
    pub certificate: String,
    /// The private key; nobody else may see it.
    pub key: String,
}

/// One certificate that we accept from the other side.
#[derive(Clone, PartialEq, Eq)]
pub struct PinnedPeer {
    certificate: CertificateDer<'static>,
    label: Arc<str>,
}

impl PinnedPeer {
    /// Loads a file that holds exactly one certificate, and refuses one that is not valid today.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let peer = Self::from_bytes(&read_bounded(path, Secrecy::Public)?, path)?;
        peer.check_dates(SystemTime::now())?;
        Ok(peer)
    }

    fn from_bytes(pem: &[u8], path: &Path) -> Result<Self, IdentityError> {
        let not_one = |count| IdentityError::NotOneCertificate {
            path: path.to_owned(),
            count,
        };
        let mut certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|_| not_one(0))?;
        if certificates.len() != 1 {
            return Err(not_one(certificates.len()));
        }
        let certificate = certificates.remove(0);
        X509Certificate::from_der(&certificate).map_err(|_| IdentityError::Malformed {
            path: path.to_owned(),
        })?;
        Ok(Self {
            certificate,
            label: path.display().to_string().into(),
        })
    }

    /// What messages call it: the file that it came from.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The fingerprint of the certificate, for people to compare.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Whether `now` lies within the certificate's dates.
    pub fn check_dates(&self, now: SystemTime) -> Result<(), DateError> {
        let (_, parsed) = X509Certificate::from_der(&self.certificate)
            .expect("it was parsed once already when this value was made");
        check_dates(parsed.validity(), &self.label, now)
    }

    pub(crate) fn is(&self, presented: &CertificateDer<'_>) -> bool {
        self.certificate == *presented
    }
}

impl fmt::Debug for PinnedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedPeer({}, {})", self.label, self.fingerprint())
    }
}

/// The SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` shows it but without colons.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of these DER bytes.
    pub fn of(certificate: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why an identity or a pin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no certificate or key file at all.
    #[error("{} has more than {MAX_PEM_BYTES} bytes: it is no certificate or key file", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Others on this host may read the private key.
    #[error("The private key {} can be read by others (mode {mode:04o}); run `chmod 600 {}`", path.display(), path.display())]
    LooseMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A pin and an identity are exactly one certificate.
    #[error("{} must hold exactly one PEM certificate and holds {count}", path.display())]
    NotOneCertificate {
        /// The file.
        path: PathBuf,
        /// How many were found.
        count: usize,
    },
    /// The file is PEM, but what is inside is no X.509 certificate.
    #[error("{} holds no X.509 certificate", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// There is no private key in the key file.
    #[error("{} holds no PEM private key", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The two files do not belong together.
    #[error("The key {} does not belong to the certificate {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What the TLS library said.
        source: rustls::Error,
    },
    /// Expired, or not valid yet.
    #[error(transparent)]
    Dates(#[from] DateError),
    /// The certificate could not be made.
    #[error("Cannot make a certificate")]
    Generate(#[source] rcgen::Error),
}

/// Whether a file's mode matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    Public,
    Private,
}

/// Reads a small file; the mode is asked of the open file, so it cannot be swapped in between.
fn read_bounded(path: &Path, secrecy: Secrecy) -> Result<Vec<u8>, IdentityError> {
    let fail = |source| IdentityError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if secrecy == Secrecy::Private && metadata.mode() & 0o077 != 0 {
        let mode = metadata.permissions().mode() & 0o7777;
        return Err(IdentityError::LooseMode {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_PEM_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(IdentityError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}
