//! What is counted of TLS on the agent port.

use serde::{Deserialize, Serialize};

/// Declares an enum whose discriminants are places in an array of counters, with a metric label for each.
macro_rules! dense {
    ($(#[doc = $doc:literal])+ $name:ident[$count:literal] {
        $( $(#[doc = $of:literal])+ $variant:ident $label:literal; )+
    }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $( $(#[doc = $of])+ $variant, )+
        }

        impl $name {
            /// Every one, in the order of its discriminant.
            pub const ALL: [Self; $count] = [ $( Self::$variant, )+ ];

            /// Metric label.
            pub fn label(self) -> &'static str {
                match self { $( Self::$variant => $label, )+ }
            }
        }
    };
}
pub(crate) use dense;

dense! {
    /// Why TLS with a peer failed.
    TlsFailure[17] {
        /// The peer speaks no version that is taken.
        NoCommonVersion "no_common_version";
        /// No cipher suite in common.
        NoCommonCipher "no_common_cipher";
        /// No key exchange group in common.
        NoCommonGroup "no_common_group";
        /// The peer takes no signature that the certificate's key can make.
        NoCommonSignature "no_common_signature";
        /// The peer offers ALPN without http/1.1.
        NoCommonProtocol "no_common_protocol";
        /// Something else that the peer needs or lacks.
        Incompatible "incompatible";
        /// A client certificate is required and none came.
        CertificateMissing "client_certificate_missing";
        /// The client's certificate is of an authority that is not trusted here.
        CertificateUntrusted "client_certificate_untrusted";
        /// The client's certificate is revoked.
        CertificateRevoked "client_certificate_revoked";
        /// The client's certificate has expired, or is wrong in another way.
        CertificateInvalid "client_certificate_invalid";
        /// The peer says that it does not know the authority of our certificate.
        AuthorityUnknown "authority_unknown_to_client";
        /// The peer says that our certificate is expired, revoked, or otherwise not taken.
        CertificateRefused "certificate_refused_by_client";
        /// The peer sent another alert.
        AlertReceived "alert_received";
        /// The peer speaks HTTP without TLS.
        PlainHttp "plain_http";
        /// The peer speaks something else.
        NotTls "not_tls";
        /// The peer's records or messages are damaged, or out of order.
        Malformed "malformed";
        /// Our fault.
        Internal "internal";
    }
}

dense! {
    /// How a handshake was done: version and kind.
    TlsSession[5] {
        /// TLS 1.2, with certificate and signature.
        Full12 "full";
        /// TLS 1.2, from a ticket.
        Resumed12 "resumed";
        /// TLS 1.3, with certificate and signature.
        Full13 "full";
        /// The same after a second ClientHello, since the first had no key share that is taken.
        Retried13 "retried";
        /// TLS 1.3, from a ticket.
        Resumed13 "resumed";
    }
}

impl TlsSession {
    /// Metric label of its version.
    pub fn version(self) -> &'static str {
        match self {
            Self::Full12 | Self::Resumed12 => "1.2",
            Self::Full13 | Self::Retried13 | Self::Resumed13 => "1.3",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_tell_apart() {
        let failures: BTreeSet<_> = TlsFailure::ALL.map(TlsFailure::label).into();
        assert_eq!(failures.len(), TlsFailure::ALL.len());
        let sessions: BTreeSet<_> = TlsSession::ALL.map(|of| (of.version(), of.label())).into();
        assert_eq!(sessions.len(), TlsSession::ALL.len());
        for (place, failure) in TlsFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, place);
        }
    }
}
