//! The TLS that an agent offers: 1.3 and 1.2, no ALPN, no resumption, no tickets kept.
//!
//! Difference from osquery that rustls forces: toward an IP address no server name is sent, where osquery sends the
//! literal; [`crate::hello_probe`] covers that case. One more, on purpose: a certificate chain that was verified once is
//! recognised by its bytes, so that a generator with thousands of agents does not spend the machine on the same chain.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::key_share::OneKeyShare;

/// What the server's certificate is checked against.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The certificates of a PEM file, as `tls_server_certs`; a self-signed server certificate may stand in it.
    CaFile(PathBuf),
    /// The same, as text.
    CaPem(String),
    /// Nothing is checked, neither chain nor signature.
    Nothing,
}

/// Which versions are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Versions {
    /// 1.3 and 1.2, as osquery.
    #[default]
    Both,
    /// Only 1.2, as behind an old middlebox.
    #[value(name = "1.2")]
    Only12,
}

/// Where the key share of a handshake comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyShares {
    /// A new key for each handshake, as osquery.
    #[default]
    Fresh,
    /// The same in each: saves the generator's CPU, costs the server as much.
    One,
}

/// The one client configuration of a process or thread.
pub fn client_config(trust: &Trust, versions: Versions) -> anyhow::Result<Arc<ClientConfig>> {
    client_config_with(trust, versions, KeyShares::Fresh)
}

/// The same with a choice of key shares.
pub fn client_config_with(
    trust: &Trust,
    versions: Versions,
    key_shares: KeyShares,
) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(provider(key_shares));
    let protocol_versions: &[_] = match versions {
        Versions::Both => &[&rustls::version::TLS13, &rustls::version::TLS12],
        Versions::Only12 => &[&rustls::version::TLS12],
    };
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Nothing => Arc::new(NoVerifier(provider.clone())),
        Trust::CaFile(path) => {
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
                .with_context(|| format!("read CA file {}", path.display()))?
                .collect();
            let certificates =
                certificates.with_context(|| format!("parse CA file {}", path.display()))?;
            Arc::new(Verifier::new(certificates, provider.clone())?)
        }
        Trust::CaPem(pem) => {
            let certificates: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
            Arc::new(Verifier::new(
                certificates.context("parse CA")?,
                provider.clone(),
            )?)
        }
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(protocol_versions)
        .context("TLS versions")?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = true;
    Ok(Arc::new(config))
}

/// Suites and groups in the order of osquery's OpenSSL before 3.5.
fn provider(key_shares: KeyShares) -> CryptoProvider {
    use aws_lc_rs::cipher_suite as suite;
    let x25519: &'static dyn SupportedKxGroup = match key_shares {
        KeyShares::Fresh => aws_lc_rs::kx_group::X25519,
        KeyShares::One => &OneKeyShare,
    };
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            x25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// Chains seen at once; more servers than this only cost time.
const REMEMBERED_MAX: usize = 16;

type Chain = (ServerName<'static>, Vec<CertificateDer<'static>>);

/// Checks chain, dates and name as OpenSSL does with a CA file, once for each chain.
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    anchors: Vec<CertificateDer<'static>>,
    verified: Mutex<Vec<Chain>>,
}

impl Verifier {
    fn new(
        anchors: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(anchors.iter().cloned());
        anyhow::ensure!(taken > 0, "the CA file holds no certificate");
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .context("CA certificates")?;
        Ok(Self {
            webpki,
            anchors,
            verified: Mutex::new(Vec::new()),
        })
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let checked = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match checked {
            Ok(_) => Ok(()),
            // webpki refuses a self-signed server certificate that may sign; OpenSSL takes one that the CA file names.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if self.anchors.iter().any(|anchor| anchor == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)
            }
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} anchors)", self.anchors.len())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = verified.iter().any(|(name, chain)| {
            name == server_name
                && chain.first() == Some(end_entity)
                && chain.get(1..) == Some(intermediates)
        });
        if !is_known {
            self.verify(end_entity, intermediates, server_name, ocsp_response, now)?;
            if verified.len() < REMEMBERED_MAX {
                let mut chain = vec![end_entity.clone().into_owned()];
                chain.extend(intermediates.iter().map(|der| der.clone().into_owned()));
                verified.push((server_name.to_owned(), chain));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Takes every certificate: saves the client's CPU, and reaches servers by any name.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
