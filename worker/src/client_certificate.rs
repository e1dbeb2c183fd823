//! Whose certificate a client has shown: the identity of agents that run with `--disable_enrollment`.
//!
//! TLS has verified the certificate, also that its private key is there, before anything is read here.

use aws_lc_rs::digest;
use fleet_protocol::agent::IdentityKind;
use fleet_protocol::ids::NodeKeyHash;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Begins what is hashed for a certificate. Node keys are texts, and no text in UTF-8 holds the byte 0xFF: so what is
/// hashed for a certificate is never what is hashed for a node key, whatever an agent sends for one.
const DOMAIN: &[u8] = b"\xffclient certificate\0";
/// Characters of an identity; one that is longer is none.
const IDENTITY_CHARS_MAX: usize = 255;

/// Whom a verified certificate stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certified {
    /// Stands in the place of a node key's hash.
    pub(crate) key: NodeKeyHash,
    /// First of its DNS names, its URIs, its subject's common name.
    pub(crate) identity: String,
    /// Which of these it is.
    pub(crate) kind: IdentityKind,
}

/// Why a verified certificate stands for no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NamesNobody {
    #[error("certificate cannot be read")]
    Unreadable,
    #[error("certificate has no DNS name, no URI and no common name")]
    Nameless,
    #[error("certificate's name is empty, too long, or holds control characters")]
    BadName,
}

impl Certified {
    pub(crate) fn of(leaf: &CertificateDer<'_>) -> Result<Self, NamesNobody> {
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| NamesNobody::Unreadable)?;
        let (kind, identity) = identity(&leaf)?;
        Ok(Self {
            key: key(kind, &identity),
            identity,
            kind,
        })
    }
}

fn key(kind: IdentityKind, identity: &str) -> NodeKeyHash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(DOMAIN);
    context.update(kind.label().as_bytes());
    context.update(b"\0");
    context.update(identity.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    NodeKeyHash(hash)
}

fn identity(leaf: &X509Certificate<'_>) -> Result<(IdentityKind, String), NamesNobody> {
    let names = leaf.subject_alternative_name();
    let names = names.map_err(|_| NamesNobody::Unreadable)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let dns = names.iter().find_map(|name| match name {
        // Host names have no case; the same host must not be two.
        GeneralName::DNSName(name) => Some((IdentityKind::DnsName, name.to_ascii_lowercase())),
        _ => None,
    });
    let uri = || {
        names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some((IdentityKind::Uri, (*uri).to_owned())),
            _ => None,
        })
    };
    let common_name = || {
        let name = leaf.subject().iter_common_name().next()?;
        Some((IdentityKind::CommonName, name.as_str().ok()?.to_owned()))
    };
    let named = dns.or_else(uri).or_else(common_name);
    let (kind, text) = named.ok_or(NamesNobody::Nameless)?;
    let text = text.trim();
    let is_good = !text.is_empty()
        && text.chars().count() <= IDENTITY_CHARS_MAX
        && !text.chars().any(char::is_control);
    if is_good {
        Ok((kind, text.to_owned()))
    } else {
        Err(NamesNobody::BadName)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;
    use crate::state::hash_node_key;

    fn certified(common_name: &str, names: Vec<SanType>) -> Result<Certified, NamesNobody> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if !common_name.is_empty() {
            let value = DnValue::Utf8String(common_name.to_owned());
            params.distinguished_name.push(DnType::CommonName, value);
        }
        params.subject_alt_names = names;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Certified::of(certificate.der())
    }

    fn identity_of(common_name: &str, names: Vec<SanType>) -> Result<String, NamesNobody> {
        certified(common_name, names).map(|certified| certified.identity)
    }

    #[test]
    fn dns_comes_before_uri_before_common_name() {
        let dns = || SanType::DnsName("Web-1.Example.com".try_into().unwrap());
        let uri = || SanType::URI("spiffe://example.com/web-1".try_into().unwrap());
        let ip = || SanType::IpAddress([192, 0, 2, 1].into());
        let of = |names| identity_of("cn-1", names).unwrap();
        assert_eq!(of(vec![ip(), uri(), dns()]), "web-1.example.com");
        assert_eq!(of(vec![ip(), uri()]), "spiffe://example.com/web-1");
        assert_eq!(of(vec![ip()]), "cn-1");
        assert_eq!(of(vec![]), "cn-1");
        assert_eq!(identity_of("", vec![ip()]), Err(NamesNobody::Nameless));
        for bad in [" ", "a\nb", "a\0b", &"x".repeat(256)] {
            let identity = identity_of(bad, vec![]);
            assert_eq!(identity, Err(NamesNobody::BadName), "{bad:?}");
        }
        let broken = Certified::of(&CertificateDer::from(vec![0x30, 3, 1, 2]));
        assert_eq!(broken, Err(NamesNobody::Unreadable));
    }

    #[test]
    fn a_renewed_certificate_is_the_same_host() {
        let one = certified("a", vec![]).unwrap();
        assert_eq!(certified("a", vec![]).unwrap(), one);
        assert_ne!(certified("b", vec![]).unwrap().key, one.key);
    }

    /// An authority that is bound to some DNS names may write any common name.
    #[test]
    fn a_common_name_is_never_a_dns_names_host() {
        let dns = SanType::DnsName("web-1.example.com".try_into().unwrap());
        let uri = SanType::URI("web-1.example.com".try_into().unwrap());
        let of = |common_name, names| certified(common_name, names).unwrap();
        let all = [
            of("", vec![dns]),
            of("", vec![uri]),
            of("web-1.example.com", vec![]),
        ];
        let kinds = all.each_ref().map(|of| of.kind);
        assert_eq!(kinds, IdentityKind::ALL);
        assert!(all.iter().all(|of| of.identity == "web-1.example.com"));
        let keys: std::collections::HashSet<_> = all.iter().map(|of| of.key.0).collect();
        assert_eq!(keys.len(), 3);
    }

    proptest! {
        #[test]
        fn no_node_key_stands_for_a_certificate(text in any::<String>(), identity in "[a-z.]{1,20}") {
            for kind in IdentityKind::ALL {
                prop_assert_ne!(hash_node_key(&text), key(kind, &identity));
                let parts = [DOMAIN, kind.label().as_bytes(), b"\0", identity.as_bytes()];
                let imitation = String::from_utf8_lossy(&parts.concat()).into_owned();
                prop_assert_ne!(hash_node_key(&imitation), key(kind, &identity));
            }
        }
    }
}
