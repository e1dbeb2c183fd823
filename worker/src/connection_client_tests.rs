//! Tests of certificates that clients show.

use std::sync::Arc;

use fleet_protocol::config::{ClientAuth, Config};
use fleet_protocol::slot::ClientTrust;
use fleet_protocol::stats::TlsFailure;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::{ClientConfig, HandshakeKind};

use super::super::bench::{client_config, start_tls};
use super::super::*;
use super::{bench_with, browser, fails, visit, visit_with};

/// An authority of clients.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// What stands between its clients' certificates and the one that is trusted.
    between: Vec<rustls_pki_types::CertificateDer<'static>>,
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let params = authority_params(name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let between = Vec::new();
        Self {
            issuer,
            pem,
            between,
        }
    }

    /// One that this one has signed.
    fn intermediate(&self, name: &str, serial: u64) -> Self {
        let mut params = authority_params(name);
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut between = vec![certificate.der().clone()];
        between.extend_from_slice(&self.between);
        Self {
            issuer: Issuer::new(params, key),
            pem: certificate.pem(),
            between,
        }
    }

    pub(super) fn roots(&self) -> rustls::RootCertStore {
        use rustls_pki_types::pem::PemObject as _;
        let certificate = rustls_pki_types::CertificateDer::from_pem_slice(self.pem.as_bytes());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.unwrap()).unwrap();
        roots
    }

    /// A client's configuration with a certificate of this authority.
    fn client(
        &self,
        name: &str,
        serial: u64,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name = rcgen::DistinguishedName::new();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = client_config(version);
        let mut chain = vec![certificate.der().clone()];
        chain.extend_from_slice(&self.between);
        let signer = rustls::sign::SingleCertAndKey::from(
            rustls::sign::CertifiedKey::from_der(chain, key, config.crypto_provider()).unwrap(),
        );
        config.client_auth_cert_resolver = Arc::new(signer);
        Arc::new(config)
    }

    fn revoke(&self, serial: u64) -> String {
        let now = rcgen::date_time_ymd(2026, 1, 1);
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2050, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

#[test]
fn certificates_of_clients_are_required_or_accepted() {
    use rustls::AlertDescription::{CertificateRequired, CertificateRevoked, UnknownCA};
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let mut start = start_tls();
    start.client_trust = Some(ClientTrust {
        ca_pem: ours.pem.clone(),
        crl_pem: ours.revoke(7),
    });
    for version in [TLS12, TLS13] {
        let none = Arc::new(client_config(version));
        for (auth, client, expected) in [
            (
                ClientAuth::Require,
                ours.client("a", 1, version),
                Ok(Some("a")),
            ),
            (
                ClientAuth::Require,
                ours.client("a", 7, version),
                Err(CertificateRevoked),
            ),
            (
                ClientAuth::Require,
                others.client("a", 1, version),
                Err(UnknownCA),
            ),
            (
                ClientAuth::Require,
                Arc::clone(&none),
                Err(CertificateRequired),
            ),
            (
                ClientAuth::Accept,
                ours.client("a", 1, version),
                Ok(Some("a")),
            ),
            (
                ClientAuth::Accept,
                others.client("a", 1, version),
                Err(UnknownCA),
            ),
            (ClientAuth::Accept, none, Ok(None)),
        ] {
            let mut server = Config::default();
            server.server.client_auth = auth;
            let mut bench = bench_with(&start, &server, &client);
            bench.say(&post(READ, "", BODY));
            match expected {
                Ok(identity) => {
                    assert!(bench.heard().ends_with("{}"));
                    let certificate = bench.connection.certificate.as_deref();
                    let certified = certificate.map(|of| of.as_ref().unwrap());
                    assert_eq!(certified.map(|of| of.identity.as_str()), identity);
                }
                Err(alert) => {
                    assert_eq!(bench.requests, []);
                    let error = bench.client_error.unwrap();
                    assert_eq!(error, rustls::Error::AlertReceived(alert), "{version:?}");
                }
            }
        }
    }
}

/// A client with ALPN, and with this one's certificate.
fn browser_of(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// rustls does not look again at a chain that it finds in a ticket.
#[test]
fn where_certificates_are_asked_for_every_handshake_verifies_them() {
    let ours = Authority::new("ours");
    for version in [TLS12, TLS13] {
        let trusting = |crl_pem: String| {
            let mut start = start_tls();
            let ca_pem = ours.pem.clone();
            start.client_trust = Some(ClientTrust { ca_pem, crl_pem });
            start
        };
        let client = browser_of(&ours.client("a", 7, version));
        for _ in 0..2 {
            let visit = visit(&trusting(String::new()), &client);
            assert_eq!(visit.handshake_kind(), Some(HandshakeKind::Full));
            assert_eq!(visit.tls13_tickets_received(), 0);
        }
        let start = trusting(ours.revoke(7));
        fails(
            &start,
            &Config::default(),
            &client,
            TlsFailure::CertificateRevoked,
        );
        // A ticket from before certificates were asked for is none.
        let client = browser(version);
        visit(&start_tls(), &client);
        let mut server = Config::default();
        server.server.client_auth = ClientAuth::Accept;
        let visit = visit_with(&trusting(String::new()), &server, &client);
        assert_eq!(visit.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn a_revoked_intermediate_takes_its_clients_with_it() {
    let ours = Authority::new("ours");
    let (good, bad) = (ours.intermediate("good", 8), ours.intermediate("bad", 9));
    let mut start = start_tls();
    start.client_trust = Some(ClientTrust {
        ca_pem: ours.pem.clone(),
        crl_pem: ours.revoke(9),
    });
    for version in [TLS12, TLS13] {
        // Of the list's authority only: about clients of an intermediate it says nothing.
        visit(&start, &good.client("a", 9, version));
        fails(
            &start,
            &Config::default(),
            &bad.client("a", 1, version),
            TlsFailure::CertificateRevoked,
        );
    }
}

#[test]
fn a_certificate_that_names_nobody_is_remembered_as_one() {
    let ours = Authority::new("ours");
    let mut start = start_tls();
    start.client_trust = Some(ClientTrust {
        ca_pem: ours.pem.clone(),
        crl_pem: String::new(),
    });
    let client = ours.client("192.0.2.7", 1, TLS13);
    let mut bench = bench_with(&start, &Config::default(), &client);
    bench.say(&post(READ, "", BODY));
    // An address is no name.
    let certificate = bench.connection.certificate.as_deref();
    assert!(matches!(certificate, Some(Err(_))), "{certificate:?}");
}

#[test]
fn a_proxys_certificate_is_no_agents() {
    let ours = Authority::new("ours");
    let mut start = start_tls();
    start.client_trust = Some(ClientTrust {
        ca_pem: ours.pem.clone(),
        crl_pem: String::new(),
    });
    let forwarded = "X-Forwarded-For: 198.51.100.7\r\n";
    for (trusted_proxies, fields, is_agent) in [
        ("", forwarded, true),
        ("10.0.0.0/8", forwarded, true),
        ("192.0.2.0/24", "", false),
        ("192.0.2.0/24", "X-Forwarded-For: unknown\r\n", false),
        // Everybody may be a proxy, also one that forgets to say for whom it speaks, or says too little.
        ("1", forwarded, false),
        ("1", "", false),
        ("2", forwarded, false),
        ("X-Real-IP", "X-Real-IP: nonsense\r\n", false),
    ] {
        let mut server = Config::default();
        server.server.trusted_proxies = trusted_proxies.into();
        let client = ours.client("balancer", 1, TLS13);
        let mut bench = bench_with(&start, &server, &client);
        bench.say(&post(READ, fields, BODY));
        assert!(bench.heard().ends_with("{}"));
        let is_certified = bench.connection.certificate.is_some();
        assert_eq!(is_certified, is_agent, "{trusted_proxies} {fields}");
    }
}

#[test]
fn certificates_of_clients_that_fail_are_counted() {
    let ours = Authority::new("ours");
    let mut asking = start_tls();
    asking.client_trust = Some(ClientTrust {
        ca_pem: ours.pem.clone(),
        crl_pem: ours.revoke(7),
    });
    let server = Config::default();
    for (client, expected) in [
        (
            Arc::new(client_config(TLS13)),
            TlsFailure::CertificateMissing,
        ),
        (ours.client("a", 7, TLS13), TlsFailure::CertificateRevoked),
        (
            Authority::new("others").client("a", 1, TLS13),
            TlsFailure::CertificateUntrusted,
        ),
    ] {
        fails(&asking, &server, &client, expected);
    }
}
