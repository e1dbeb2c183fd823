//! The terms on which TLS is spoken: versions, suites, groups, certificates.
//!
//! There are two of them, told apart by the ClientHello: osquery offers no ALPN and never resumes, so a ticket would be
//! wasted on it; browsers, curl and fleetctl offer it and get one, unless clients are asked for certificates.

use std::sync::Arc;

use anyhow::Context as _;
use fleet_protocol::config::{ClientAuth, Config, PostQuantum, TlsCompatibility};
use fleet_protocol::slot::{ClientTrust, StartTls};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::{
    ClientCertVerifierBuilder, NoServerSessionStorage, ServerConfig, WebPkiClientVerifier,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use crate::certificates::Certificates;
use crate::key_schedule;
use crate::ticketer::Ticketer;

/// See the module. Connections share them.
#[derive(Clone)]
pub(crate) struct Terms {
    /// For clients without ALPN.
    pub(crate) agents: Arc<ServerConfig>,
    /// For clients with ALPN.
    pub(crate) others: Arc<ServerConfig>,
    /// Seals what `others` give out.
    pub(crate) tickets: Arc<Ticketer>,
}

impl Terms {
    pub(crate) fn new(start: &StartTls, config: &Config) -> anyhow::Result<Self> {
        let agents = server_config(start, config)?;
        let tickets = Arc::new(Ticketer::new(&start.tickets)?);
        let mut others = agents.clone();
        others.alpn_protocols = vec![b"http/1.1".to_vec()];
        // rustls takes a client's chain from the ticket as it was verified once: one that has expired meanwhile, or that a
        // later list revokes, would go on for as long as its client comes back.
        if start.client_trust.is_none() {
            others.ticketer = tickets.clone();
            others.send_tls13_tickets = 1;
        }
        Ok(Self {
            agents: Arc::new(agents),
            others: Arc::new(others),
            tickets,
        })
    }
}

/// What is offered and in which order: the suites of [`key_schedule`], then those of TLS 1.2 in the same order.
fn provider(post_quantum: PostQuantum) -> CryptoProvider {
    let mut kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
    if post_quantum == PostQuantum::Prefer {
        kx_groups.insert(0, kx_group::X25519MLKEM768);
    }
    let tls12 = [
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    CryptoProvider {
        cipher_suites: key_schedule::suites().chain(tls12).collect(),
        kx_groups,
        ..default_provider()
    }
}

/// Judges what clients show. A list that does not speak of a certificate says nothing against it.
fn verifier(
    trust: &ClientTrust,
    config: &Config,
    provider: Arc<CryptoProvider>,
) -> anyhow::Result<ClientCertVerifierBuilder> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trust.ca_pem.as_bytes()) {
        let certificate = certificate.context("server.client_ca is not PEM")?;
        roots.add(certificate).context("server.client_ca")?;
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(trust.crl_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("server.client_crl is not PEM")?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(lists)
        .allow_unknown_revocation_status();
    Ok(match config.server.client_auth {
        ClientAuth::Require => builder,
        ClientAuth::Accept => builder.allow_unauthenticated(),
    })
}

/// For agents.
fn server_config(start: &StartTls, config: &Config) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(provider(config.tls.post_quantum));
    let certificates = Certificates::new(&start.identities, &provider)?;
    let versions: &[_] = match config.server.tls_compatibility {
        TlsCompatibility::Intermediate => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsCompatibility::Modern => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .context("TLS versions")?;
    let builder = match &start.client_trust {
        None => builder.with_no_client_auth(),
        Some(trust) => {
            let verifier = verifier(trust, config, provider)?.build();
            builder.with_client_cert_verifier(verifier.context("server.client_ca")?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}
