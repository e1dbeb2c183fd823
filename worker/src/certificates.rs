//! Which certificate a client is shown: by the name that it asks for, exactly, else by a wildcard, else the usual one.
//!
//! osquery asks for the host part of its URL even when that is an address. rustls takes such a name for none, so that an
//! agent that is configured with an address is shown the usual certificate.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use fleet_protocol::slot::TlsIdentity;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// See the module.
#[derive(Debug)]
pub(crate) struct Certificates {
    usual: Arc<CertifiedKey>,
    /// In lower case; wildcards with their `*.`. Of several that cover a name the first is shown.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// There is a choice.
    has_further: bool,
}

impl Certificates {
    /// The usual one is the first.
    pub(crate) fn new(
        identities: &[TlsIdentity],
        provider: &CryptoProvider,
    ) -> anyhow::Result<Self> {
        let mut usual = None;
        let mut by_name = HashMap::new();
        for identity in identities {
            let key = Arc::new(certified_key(identity, provider)?);
            usual.get_or_insert_with(|| Arc::clone(&key));
            for name in &identity.names {
                let entry = by_name.entry(name.to_ascii_lowercase());
                entry.or_insert_with(|| Arc::clone(&key));
            }
        }
        let usual = usual.context("no certificate")?;
        Ok(Self {
            usual,
            by_name,
            has_further: identities.len() > 1,
        })
    }

    /// For a name in lower case, or none.
    fn choose(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        match name {
            Some(name) if self.has_further => self.find(name),
            _ => &self.usual,
        }
    }

    fn find(&self, name: &str) -> &Arc<CertifiedKey> {
        let wildcard = || {
            // One label, as RFC 6125, section 6.4.3, has it.
            let (_, domain) = name.split_once('.')?;
            self.by_name.get(&format!("*.{domain}"))
        };
        let found = self.by_name.get(name).or_else(wildcard);
        found.unwrap_or(&self.usual)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls gives it in lower case.
        Some(Arc::clone(self.choose(hello.server_name())))
    }
}

fn certified_key(
    identity: &TlsIdentity,
    provider: &CryptoProvider,
) -> anyhow::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(identity.cert_chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("certificate is not PEM")?;
    anyhow::ensure!(!chain.is_empty(), "no certificate in PEM");
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.reveal().as_bytes())
        .map_err(|_| anyhow::anyhow!("no private key in PEM"))?;
    CertifiedKey::from_der(chain, key, provider).context("certificate and key do not fit together")
}

#[cfg(test)]
mod tests {
    use fleet_protocol::secret::Secret;

    use super::*;

    fn identity(names: &[&str]) -> TlsIdentity {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let pair = rcgen::generate_simple_self_signed(names.clone()).unwrap();
        TlsIdentity {
            cert_chain_pem: pair.cert.pem(),
            key_pem: Secret::new(pair.signing_key.serialize_pem()),
            names,
        }
    }

    #[test]
    fn exact_names_come_before_wildcards_and_the_usual_one_last() {
        let identities = [
            identity(&["usual.example"]),
            identity(&["*.A.example"]),
            identity(&["b.a.example", "usual.example"]),
        ];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certificates = Certificates::new(&identities, &provider).unwrap();
        let keys: Vec<_> = identities
            .iter()
            .map(|identity| certified_key(identity, &provider).unwrap().cert)
            .collect();
        for (name, expected) in [
            ("usual.example", 0),
            ("b.a.example", 2),
            ("c.a.example", 1),
            ("d.c.a.example", 0),
            ("a.example", 0),
            ("other", 0),
        ] {
            let chosen = certificates.choose(Some(name));
            assert_eq!(chosen.cert, keys[expected], "{name}");
        }
        assert_eq!(certificates.choose(None).cert, keys[0]);
        assert!(Certificates::new(&[], &provider).is_err());
    }

    /// As certificates are whose only name is their subject's.
    #[test]
    fn a_usual_one_without_names_hides_no_other() {
        let identities = [identity(&[]), identity(&["a.example"])];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certificates = Certificates::new(&identities, &provider).unwrap();
        let further = certified_key(&identities[1], &provider).unwrap().cert;
        assert_eq!(certificates.choose(Some("a.example")).cert, further);
        for name in [Some("b.example"), None] {
            assert_ne!(certificates.choose(name).cert, further, "{name:?}");
        }
    }

    #[test]
    fn keys_of_others_are_refused() {
        let mut mixed = identity(&["a.example"]);
        mixed.key_pem = identity(&["b.example"]).key_pem;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let error = Certificates::new(&[mixed], &provider).unwrap_err();
        assert!(error.to_string().contains("do not fit together"));
    }
}
