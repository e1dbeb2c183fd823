//! Which certificates clients may show: the authorities and revocation lists, read and checked before workers get them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fleet_protocol::config::Server;
use fleet_protocol::slot::ClientTrust;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use crate::exit::Failure;

/// What the options name; `None` when clients are asked for nothing.
pub(crate) fn load(server: &Server) -> Result<Option<ClientTrust>, Failure> {
    if server.client_ca.as_os_str().is_empty() {
        return Ok(None);
    }
    let ca_pem = read(&server.client_ca, "server.client_ca")?;
    let crl_pem = if server.client_crl.as_os_str().is_empty() {
        String::new()
    } else {
        read(&server.client_crl, "server.client_crl")?
    };
    let trust = ClientTrust { ca_pem, crl_pem };
    check(server, &trust)?;
    Ok(Some(trust))
}

fn read(path: &Path, option: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        Failure::config(format!("{option}: cannot read {}: {error}", path.display()))
    })
}

fn check(server: &Server, trust: &ClientTrust) -> Result<(), Failure> {
    let bad_ca = |reason: &str| {
        let shown = server.client_ca.display();
        Failure::config(format!("server.client_ca: {shown} {reason}"))
    };
    let bad_crl = |reason: &str| {
        let shown = server.client_crl.display();
        Failure::config(format!("server.client_crl: {shown} {reason}"))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trust.ca_pem.as_bytes()) {
        let added = certificate.ok().map(|certificate| roots.add(certificate));
        if !matches!(added, Some(Ok(()))) {
            return Err(bad_ca("holds something that is no certificate"));
        }
    }
    if roots.is_empty() {
        return Err(bad_ca("holds no certificate in PEM form"));
    }
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(trust.crl_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| bad_crl("holds something that is no revocation list"))?;
    if lists.is_empty() && !server.client_crl.as_os_str().is_empty() {
        return Err(bad_crl("holds no revocation list in PEM form"));
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
        .with_crls(lists)
        .build()
        .map_err(|error| bad_crl(&format!("cannot be used: {error}")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;
    use crate::exit;

    fn authority() -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
    }

    #[test]
    fn what_clients_are_checked_against_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let load = |ca: &str, crl: Option<&str>| {
            let mut server = Server {
                client_ca: dir.path().join("ca.pem"),
                ..Server::default()
            };
            fs::write(&server.client_ca, ca).unwrap();
            if let Some(crl) = crl {
                server.client_crl = dir.path().join("crl.pem");
                fs::write(&server.client_crl, crl).unwrap();
            }
            load(&server)
        };
        assert_eq!(super::load(&Server::default()).unwrap(), None);
        let (one, two) = (authority(), authority());
        let both = one.clone() + &two;
        assert_eq!(load(&both, None).unwrap().unwrap().ca_pem, both);
        let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
        for (ca, crl, part) in [
            ("", None, "server.client_ca: "),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                None,
                "no certificate",
            ),
            (one.as_str(), Some(""), "holds no revocation list"),
            (one.as_str(), Some(broken), "crl.pem cannot be used"),
        ] {
            let failure = load(ca, crl).unwrap_err();
            assert_eq!(failure.code(), exit::CONFIG);
            assert!(failure.to_string().contains(part), "{failure}");
        }
    }
}
