//! Whose certificate a client has shown: the identity of agents that run with `--disable_enrollment`.
//!
//! TLS has verified the certificate, also that its private key is there, before anything is read here.

use aws_lc_rs::digest;
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
}

impl Certified {
    /// `None` when the certificate names nobody.
    pub(crate) fn of(leaf: &CertificateDer<'_>) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
        let identity = identity(&leaf)?;
        Some(Self {
            key: key(&identity),
            identity,
        })
    }
}

fn key(identity: &str) -> NodeKeyHash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(DOMAIN);
    context.update(identity.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    NodeKeyHash(hash)
}

fn identity(leaf: &X509Certificate<'_>) -> Option<String> {
    let names = leaf.subject_alternative_name().ok()?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let dns = names.iter().find_map(|name| match name {
        // Host names have no case; the same host must not be two.
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let uri = || {
        names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
    };
    let common_name = || {
        let name = leaf.subject().iter_common_name().next()?;
        Some(name.as_str().ok()?.to_owned())
    };
    let text = dns.or_else(uri).or_else(common_name)?;
    let text = text.trim();
    let is_good = !text.is_empty()
        && text.chars().count() <= IDENTITY_CHARS_MAX
        && !text.chars().any(char::is_control);
    is_good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;
    use crate::state::hash_node_key;

    fn certified(common_name: &str, names: Vec<SanType>) -> Option<Certified> {
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

    fn identity_of(common_name: &str, names: Vec<SanType>) -> Option<String> {
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
        assert_eq!(identity_of("", vec![ip()]), None);
        for bad in [" ", "a\nb", "a\0b", &"x".repeat(256)] {
            assert_eq!(identity_of(bad, vec![]), None, "{bad:?}");
        }
        assert!(Certified::of(&CertificateDer::from(vec![0x30, 3, 1, 2])).is_none());
    }

    #[test]
    fn a_renewed_certificate_is_the_same_host() {
        let one = certified("a", vec![]).unwrap();
        assert_eq!(certified("a", vec![]).unwrap(), one);
        assert_ne!(certified("b", vec![]).unwrap().key, one.key);
    }

    proptest! {
        #[test]
        fn no_node_key_stands_for_a_certificate(text in any::<String>(), identity in "[a-z.]{1,20}") {
            prop_assert_ne!(hash_node_key(&text), key(&identity));
            let imitation = String::from_utf8_lossy(&[DOMAIN, identity.as_bytes()].concat()).into_owned();
            prop_assert_ne!(hash_node_key(&imitation), key(&identity));
        }
    }
}
