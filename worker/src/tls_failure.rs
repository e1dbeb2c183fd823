//! Which kind of failure an error of TLS is.

use fleet_protocol::stats::TlsFailure;
use rustls::{
    AlertDescription as Alert, CertificateError, Error as Tls, InvalidMessage, PeerIncompatible,
};

use crate::tls::Error;

/// For counting; the text of the error is for the log.
pub(crate) fn kind(error: &Error) -> TlsFailure {
    match error {
        Error::TooLong => TlsFailure::Malformed,
        Error::Encode(_) | Error::Unwritable => TlsFailure::Internal,
        Error::Tls(error) => kind_of_tls(error),
    }
}

fn kind_of_tls(error: &Tls) -> TlsFailure {
    match error {
        Tls::PeerIncompatible(incompatible) => incompatibility(incompatible),
        Tls::NoApplicationProtocol => TlsFailure::NoCommonProtocol,
        Tls::NoCertificatesPresented => TlsFailure::CertificateMissing,
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => {
            TlsFailure::CertificateUntrusted
        }
        Tls::InvalidCertificate(CertificateError::Revoked) => TlsFailure::CertificateRevoked,
        Tls::InvalidCertificate(_) => TlsFailure::CertificateInvalid,
        Tls::AlertReceived(Alert::UnknownCA) => TlsFailure::AuthorityUnknown,
        Tls::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown,
        ) => TlsFailure::CertificateRefused,
        Tls::AlertReceived(_) => TlsFailure::AlertReceived,
        Tls::InvalidMessage(InvalidMessage::InvalidContentType) => TlsFailure::NotTls,
        Tls::InvalidMessage(_)
        | Tls::InappropriateMessage { .. }
        | Tls::InappropriateHandshakeMessage { .. }
        | Tls::PeerMisbehaved(_)
        | Tls::PeerSentOversizedRecord
        | Tls::DecryptError => TlsFailure::Malformed,
        _ => TlsFailure::Internal,
    }
}

fn incompatibility(incompatible: &PeerIncompatible) -> TlsFailure {
    match incompatible {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired
        // Which clients lack that speak nothing newer than 1.1.
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired => TlsFailure::NoCommonVersion,
        PeerIncompatible::NoCipherSuitesInCommon => TlsFailure::NoCommonCipher,
        PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::KeyShareExtensionRequired => TlsFailure::NoCommonGroup,
        PeerIncompatible::NoSignatureSchemesInCommon => TlsFailure::NoCommonSignature,
        _ => TlsFailure::Incompatible,
    }
}
