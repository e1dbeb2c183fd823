//! Which certificates clients may show: the authorities and revocation lists, read and checked before workers get them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fleet_protocol::config::Server;
use fleet_protocol::slot::{CertificateView, ClientTrust};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer as _, X509Certificate};

use crate::exit::Failure;

/// What the options name; `None` when clients are asked for nothing.
pub(crate) fn load(server: &Server) -> Result<Option<(ClientTrust, CertificateView)>, Failure> {
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
    let (lists, not_after_s) = check(server, &trust)?;
    for overdue in overdue(&lists, ASN1Time::now()) {
        tracing::warn!(
            path = %server.client_crl.display(),
            issuer = overdue.issuer,
            since = overdue.since,
            "a revocation list is past its next update: what was revoked since then is not refused"
        );
    }
    let view = CertificateView {
        file: server.client_ca.display().to_string(),
        option: "server.client_ca".into(),
        not_after_s,
    };
    Ok(Some((trust, view)))
}

fn read(path: &Path, option: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        Failure::config(format!("{option}: cannot read {}: {error}", path.display()))
    })
}

/// Gives the revocation lists, and when the first authority expires.
fn check(
    server: &Server,
    trust: &ClientTrust,
) -> Result<(Vec<CertificateRevocationListDer<'static>>, i64), Failure> {
    let bad_ca = |reason: &str| {
        let shown = server.client_ca.display();
        Failure::config(format!("server.client_ca: {shown} {reason}"))
    };
    let bad_crl = |reason: &str| {
        let shown = server.client_crl.display();
        Failure::config(format!("server.client_crl: {shown} {reason}"))
    };
    let mut roots = RootCertStore::empty();
    let mut not_after_s = i64::MAX;
    for certificate in CertificateDer::pem_slice_iter(trust.ca_pem.as_bytes()) {
        if let Ok(certificate) = &certificate
            && let Ok((_, parsed)) = X509Certificate::from_der(certificate)
        {
            not_after_s = not_after_s.min(parsed.validity().not_after.timestamp());
        }
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
        .with_crls(lists.clone())
        .build()
        .map_err(|error| bad_crl(&format!("cannot be used: {error}")))?;
    Ok((lists, not_after_s))
}

/// A list in whose place its issuer has promised another one by now.
#[derive(Debug, PartialEq, Eq)]
struct Overdue {
    issuer: String,
    since: String,
}

fn overdue(lists: &[CertificateRevocationListDer<'_>], now: ASN1Time) -> Vec<Overdue> {
    let overdue = lists.iter().filter_map(|list| {
        let (_, list) = CertificateRevocationList::from_der(list).ok()?;
        let next = list.next_update()?;
        (next < now).then(|| Overdue {
            issuer: list.issuer().to_string(),
            since: next.to_string(),
        })
    });
    overdue.collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber,
    };

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
    fn lists_past_their_time_are_found() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        let issuer = Issuer::new(params, KeyPair::generate().unwrap());
        let list = |next_year| {
            let list = CertificateRevocationListParams {
                this_update: rcgen::date_time_ymd(2020, 1, 1),
                next_update: rcgen::date_time_ymd(next_year, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: Vec::new(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            list.signed_by(&issuer).unwrap().der().clone()
        };
        let lists = [list(2021), list(2030)];
        let at = |year| {
            let now = rcgen::date_time_ymd(year, 6, 1).unix_timestamp();
            overdue(&lists, ASN1Time::from_timestamp(now).unwrap())
        };
        assert_eq!(at(2020), []);
        assert_eq!(at(2031).len(), 2);
        let found = at(2026);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].since.contains("2021"), "{found:?}");
        assert!(!found[0].issuer.is_empty());
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
        assert_eq!(load(&both, None).unwrap().unwrap().0.ca_pem, both);
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
