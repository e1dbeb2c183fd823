//! The TLS that the peer takes.

use std::sync::Arc;

use anyhow::Context as _;
use clap::ValueEnum;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, default_provider, kx_group};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// TLS versions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Versions {
    /// 1.3 and 1.2.
    Both,
    /// 1.2 alone.
    #[value(name = "1.2")]
    Only12,
    /// 1.3 alone.
    #[value(name = "1.3")]
    Only13,
}

/// Which suite is taken of those that a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suites {
    /// The client's first: what rustls does when it is left alone.
    Shipped,
    /// AES-128-GCM with SHA-256 first, whatever the client prefers: as the gateway does.
    Gateway,
}

/// The configuration that all connections share.
pub(crate) fn server_config(options: &super::Options) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(&options.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("read certificate {}", options.cert.display()))?;
    let key = PrivateKeyDer::from_pem_file(&options.key)
        .with_context(|| format!("read key {}", options.key.display()))?;
    let provider = match options.suites {
        Suites::Shipped => default_provider(),
        Suites::Gateway => sha256_first(),
    };
    let versions: &[_] = match options.tls {
        Versions::Both => &[&rustls::version::TLS13, &rustls::version::TLS12],
        Versions::Only12 => &[&rustls::version::TLS12],
        Versions::Only13 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .context("TLS versions")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("certificate and key do not fit together")?;
    config.send_tls13_tickets = usize::from(options.tickets);
    config.ignore_client_order = options.suites == Suites::Gateway;
    Ok(Arc::new(config))
}

fn sha256_first() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    }
}
