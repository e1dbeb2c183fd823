//! The terms on which TLS is spoken: versions, suites, groups, certificates.
//!
//! There are two of them, told apart by the ClientHello: osquery offers no ALPN and never resumes, so a ticket would be
//! wasted on it; browsers, curl and fleetctl offer it and get one.

use std::sync::Arc;

use anyhow::Context as _;
use fleet_protocol::config::TlsCompatibility;
use fleet_protocol::slot::{StartTls, TlsIdentity};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

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
    pub(crate) fn new(start: &StartTls, compatibility: TlsCompatibility) -> anyhow::Result<Self> {
        let agents = server_config(&start.identity, compatibility)?;
        let tickets = Arc::new(Ticketer::new(&start.tickets)?);
        let mut others = agents.clone();
        others.alpn_protocols = vec![b"http/1.1".to_vec()];
        others.ticketer = tickets.clone();
        others.send_tls13_tickets = 1;
        Ok(Self {
            agents: Arc::new(agents),
            others: Arc::new(others),
            tickets,
        })
    }
}

/// What is offered and in which order: the suites of [`key_schedule`], then those of TLS 1.2 in the same order.
fn provider() -> CryptoProvider {
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
        // The post-quantum hybrid costs 16 to 27 µs and 1.1 KB a connection; what is protected lives for one exchange.
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    }
}

fn server_config(
    identity: &TlsIdentity,
    compatibility: TlsCompatibility,
) -> anyhow::Result<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(identity.cert_chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("server.cert is not PEM")?;
    anyhow::ensure!(!chain.is_empty(), "server.cert holds no certificate");
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.reveal().as_bytes())
        .map_err(|_| anyhow::anyhow!("server.key holds no private key in PEM"))?;
    let versions: &[_] = match compatibility {
        TlsCompatibility::Intermediate => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsCompatibility::Modern => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(versions)
        .context("TLS versions")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("server.cert and server.key do not fit together")?;
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}
