//! The check at every handshake, in both directions: the certificate is one of the pinned ones, it is good
//! today, and the other side holds its key.
//!
//! [`endpoint`](crate::endpoint) makes one `PinVerifier` for each connection, so that the reason of a refusal
//! can be told for exactly that connection. It never looks at names, issuers or chains, and it never accepts
//! anything below TLS 1.3.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
};

use crate::dates::DateError;
use crate::identity::{Fingerprint, PinnedPeer};

/// Why a certificate was refused here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is none of the pinned ones.
    #[error("Its certificate {presented} is none of the pinned ones ({pinned})")]
    NotPinned {
        /// What came.
        presented: Fingerprint,
        /// What would have been accepted.
        pinned: String,
    },
    /// It is pinned, but not good today.
    #[error(transparent)]
    Dates(#[from] DateError),
}

/// The certificates that we accept; never empty in practice, and an empty one accepts nobody.
#[derive(Clone, Debug)]
pub struct Pins(Arc<[PinnedPeer]>);

impl Pins {
    /// Accept exactly these.
    pub fn new(peers: Vec<PinnedPeer>) -> Self {
        Self(peers.into())
    }

    /// Accept exactly this one.
    pub fn one(peer: PinnedPeer) -> Self {
        Self(Arc::new([peer]))
    }

    /// The pin that these certificate bytes are, if any.
    pub fn find(&self, presented: &CertificateDer<'_>) -> Option<&PinnedPeer> {
        self.0.iter().find(|peer| peer.is(presented))
    }

    fn labels(&self) -> String {
        self.0
            .iter()
            .map(PinnedPeer::label)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Keeps the reason of a refusal for whoever asked for the connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusalNote(Arc<OnceLock<Refusal>>);

impl RefusalNote {
    pub(crate) fn read(&self) -> Option<Refusal> {
        self.0.get().cloned()
    }
}

/// The verifier of one connection.
#[derive(Debug)]
pub(crate) struct PinVerifier {
    pins: Pins,
    algorithms: WebPkiSupportedAlgorithms,
    note: RefusalNote,
}

impl PinVerifier {
    pub(crate) fn new(pins: Pins, note: RefusalNote) -> Self {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        Self {
            pins,
            algorithms,
            note,
        }
    }

    fn verify(&self, presented: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        self.judge(presented, now).map_err(|refusal| {
            let alert = match &refusal {
                Refusal::NotPinned { .. } => CertificateError::ApplicationVerificationFailure,
                Refusal::Dates(DateError::Expired { .. }) => CertificateError::Expired,
                Refusal::Dates(DateError::NotYetValid { .. }) => CertificateError::NotValidYet,
            };
            // One connection has one handshake, so a note is never overwritten by another peer's.
            let _ = self.note.0.set(refusal);
            Error::InvalidCertificate(alert)
        })
    }

    fn judge(&self, presented: &CertificateDer<'_>, now: UnixTime) -> Result<(), Refusal> {
        let peer = self.pins.find(presented).ok_or_else(|| Refusal::NotPinned {
            presented: Fingerprint::of(presented),
            pinned: self.pins.labels(),
        })?;
        Ok(peer.check_dates(UNIX_EPOCH + Duration::from_secs(now.as_secs()))?)
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PinVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
