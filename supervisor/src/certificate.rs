//! The server's certificate and key: read and checked, or made on first start.
//!
//! Invariant: workers get only texts that were checked here: they parse, belong together, and have not expired.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleet_protocol::config::{Server, Tls};
use fleet_protocol::measured::Figure;
use fleet_protocol::secret::Secret;
use fleet_protocol::slot::{CertificateView, TlsIdentity};
use fleet_sysctl::capacity;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::SignatureAlgorithm;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::credentials::EXPIRY_WARNING;
use crate::exit::Failure;
use crate::state_dir::write_private;

/// More than two years; clients of some makers take no more than 825 days.
const VALIDITY: Duration = Duration::from_secs(820 * 24 * 3600);
/// Clocks differ; a new certificate is valid from a day ago.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// What is served, and what agents need to know of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    /// For the workers.
    pub(crate) tls: TlsIdentity,
    /// Where it is and when it expires.
    pub(crate) view: CertificateView,
    /// What agents must trust; `None` when the chain leads to an authority that is not in the file.
    pub(crate) ca_file: Option<PathBuf>,
    /// Made by us.
    pub(crate) is_own: bool,
    /// Sentences for the operator: what was made.
    pub(crate) notes: Vec<String>,
    /// Sentences for the operator: what must be done.
    pub(crate) warnings: Vec<String>,
}

impl Identity {
    /// Whether agents that connect to `name` accept it.
    pub(crate) fn covers(&self, name: &str) -> bool {
        self.tls.names.iter().any(|known| {
            known.eq_ignore_ascii_case(name)
                || known.strip_prefix("*.").is_some_and(|domain| {
                    name.split_once('.')
                        .is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain))
                })
        })
    }
}

/// What stands in front of messages about a pair's files: the options that named them.
#[derive(Clone, Copy)]
struct Labels {
    cert: &'static str,
    key: &'static str,
}

/// No option names our own.
const OWN: Labels = Labels { cert: "", key: "" };
const SERVER: Labels = Labels {
    cert: "server.cert: ",
    key: "server.key: ",
};
const FURTHER: Labels = Labels {
    cert: "tls.certificates: ",
    key: "tls.certificates: ",
};

/// A pair that was read and fits together.
struct Pair {
    chain: Vec<CertificateDer<'static>>,
    validity: Validity,
    tls: TlsIdentity,
    is_rsa: bool,
}

/// When a leaf certificate is valid, seconds since 1970.
struct Validity {
    not_before: i64,
    not_after: i64,
}

/// Certificate and key of our own making.
pub(crate) fn own_paths(state_dir: &Path) -> [PathBuf; 2] {
    ["tls/cert.pem", "tls/key.pem"].map(|name| state_dir.join(name))
}

fn view(file: &Path, option: &str, validity: &Validity) -> CertificateView {
    CertificateView {
        file: file.display().to_string(),
        option: option.trim_end_matches(": ").to_owned(),
        not_after_s: validity.not_after,
    }
}

/// Reads the pair that the options name, or our own, which is made for `names` when it is missing or has expired.
/// Before that our own is never renewed by itself: agents trust this very file, and a new one cuts off each that has not
/// been given it. `now` is the time since 1970.
pub(crate) fn load(
    server: &Server,
    state_dir: &Path,
    names: &[String],
    now: Duration,
) -> Result<Identity, Failure> {
    if !server.cert.as_os_str().is_empty() {
        return load_given(&server.cert, &server.key, SERVER, now);
    }
    let [cert, key] = own_paths(state_dir);
    let (mut notes, mut warnings) = (Vec::new(), Vec::new());
    if !(cert.exists() && key.exists()) {
        make(&cert, &key, names, now)?;
        notes.push(format!(
            "made a self-signed certificate for {}: {}",
            names.join(", "),
            cert.display()
        ));
    }
    let mut pair = read(&cert, &key, OWN)?;
    if has_expired(&pair.validity, now) {
        make(&cert, &key, names, now)?;
        pair = read(&cert, &key, OWN)?;
        warnings.push(format!(
            "the self-signed certificate had expired and is made anew: agents need the new {}",
            cert.display()
        ));
    } else if let Some(days) = days_left(&pair.validity, now) {
        warnings.push(format!(
            "the self-signed certificate expires in {days} days; to make it anew, delete {} and start again, then give \
             agents the new file",
            cert.display()
        ));
    }
    Ok(Identity {
        view: view(&cert, "", &pair.validity),
        tls: pair.tls,
        ca_file: Some(cert),
        is_own: true,
        notes,
        warnings,
    })
}

/// Reads the pairs that are chosen by name.
pub(crate) fn load_further(tls: &Tls, now: Duration) -> Result<Vec<Identity>, Failure> {
    let pairs = tls
        .pairs()
        .map_err(|text| Failure::config(format!("tls.certificates: {text:?} is no pair")))?;
    let identities = pairs.iter().map(|(cert, key)| {
        let identity = load_given(cert, key, FURTHER, now)?;
        let is_name = |name: &String| name.parse::<IpAddr>().is_err();
        if !identity.tls.names.iter().any(is_name) {
            return Err(Failure::config(format!(
                "tls.certificates: {} covers no name that a client could ask for",
                cert.display()
            )));
        }
        Ok(identity)
    });
    identities.collect()
}

fn load_given(cert: &Path, key: &Path, labels: Labels, now: Duration) -> Result<Identity, Failure> {
    let Pair {
        chain,
        validity,
        tls,
        is_rsa,
    } = read(cert, key, labels)?;
    let (option, shown) = (labels.cert, cert.display());
    let mut warnings = Vec::new();
    if has_expired(&validity, now) {
        return Err(Failure::config(format!(
            "{option}{shown} has expired; put a valid certificate there"
        )));
    }
    if let Some(days) = days_left(&validity, now) {
        warnings.push(format!(
            "{option}{shown} expires in {days} days; agents will be lost unless it is replaced"
        ));
    }
    if now.as_secs() < u64::try_from(validity.not_before).unwrap_or(0) {
        warnings.push(format!(
            "{option}{shown} is not valid yet; is the clock right?"
        ));
    }
    if is_rsa {
        warnings.push(format!("{option}{shown} has an RSA key{}", rsa_cost()));
    }
    warnings.extend(key_exposure(key));
    let has_root = chain
        .last()
        .and_then(|last| X509Certificate::from_der(last).ok())
        .is_some_and(|(_, last)| last.subject() == last.issuer());
    let ca_file = has_root.then(|| cert.canonicalize().ok()).flatten();
    Ok(Identity {
        view: view(cert, option, &validity),
        tls,
        ca_file,
        is_own: false,
        notes: Vec::new(),
        warnings,
    })
}

/// What RSA costs, in handshakes that were measured.
fn rsa_cost() -> String {
    let rate = |figure| {
        let figures = capacity::Figures::new(capacity::measured()?);
        Ok::<_, capacity::Error>(1e6 / figures.get(figure)?)
    };
    match (rate(Figure::ReadRsa), rate(Figure::ReadEcdsa)) {
        (Ok(rsa), Ok(ecdsa)) => format!(
            ": a core does about {rsa:.0} exchanges with new handshakes a second where ECDSA P-256 does {ecdsa:.0} \
             (measured; every request of osquery is one)"
        ),
        _ => " where ECDSA P-256 costs a fraction".into(),
    }
}

/// Both files, parsed and compared.
fn read(cert: &Path, key: &Path, labels: Labels) -> Result<Pair, Failure> {
    let cert_pem = read_text(cert, labels.cert)?;
    let key_pem = read_text(key, labels.key)?;
    let bad_cert =
        |reason: &str| Failure::config(format!("{}{} {reason}", labels.cert, cert.display()));
    let bad_key =
        |reason: &str| Failure::config(format!("{}{} {reason}", labels.key, key.display()));
    let chain: Vec<_> = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| bad_cert("is not a PEM certificate"))?;
    if chain.is_empty() {
        return Err(bad_cert("holds no certificate in PEM form"));
    }
    let private = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|_| bad_key("holds no private key in PEM form (without a passphrase)"))?;
    let signer = any_supported_type(&private)
        .map_err(|_| bad_key("holds a key of a kind that TLS here does not take"))?;
    let is_rsa = signer.algorithm() == SignatureAlgorithm::RSA;
    match CertifiedKey::new(chain.clone(), signer).keys_match() {
        // Some kinds of key do not tell their public half; then nothing can be compared.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let text = format!("does not belong to the certificate in {}", cert.display());
            return Err(bad_key(&text));
        }
        Err(_) => return Err(bad_cert("is not a certificate that TLS here can use")),
    }
    let (validity, names) = parse_leaf(&chain, cert, labels.cert)?;
    let tls = TlsIdentity {
        cert_chain_pem: cert_pem,
        key_pem: Secret::new(key_pem),
        names,
    };
    Ok(Pair {
        chain,
        validity,
        tls,
        is_rsa,
    })
}

fn read_text(path: &Path, option: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        Failure::config(format!("{option}cannot read {}: {error}", path.display()))
    })
}

/// When it is valid, and the names and addresses that it covers.
fn parse_leaf(
    chain: &[CertificateDer<'_>],
    path: &Path,
    option: &str,
) -> Result<(Validity, Vec<String>), Failure> {
    let bad = || {
        Failure::config(format!(
            "{option}{} holds a certificate that does not parse",
            path.display()
        ))
    };
    let first = chain.first().ok_or_else(bad)?;
    let (_, leaf) = X509Certificate::from_der(first).map_err(|_| bad())?;
    let names = leaf
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|extension| extension.value.general_names.iter().filter_map(name_text))
        .map(Iterator::collect)
        .unwrap_or_default();
    let validity = Validity {
        not_before: leaf.validity().not_before.timestamp(),
        not_after: leaf.validity().not_after.timestamp(),
    };
    Ok((validity, names))
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let ip = <[u8; 4]>::try_from(*bytes)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            ip.ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

fn has_expired(validity: &Validity, now: Duration) -> bool {
    seconds_left(validity, now) <= 0
}

/// Days until the end, when that is near.
fn days_left(validity: &Validity, now: Duration) -> Option<i64> {
    let left = seconds_left(validity, now);
    let warning = i64::try_from(EXPIRY_WARNING.as_secs()).unwrap_or(i64::MAX);
    (left < warning).then_some(left / (24 * 3600))
}

fn seconds_left(validity: &Validity, now: Duration) -> i64 {
    validity
        .not_after
        .saturating_sub(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

fn make(cert: &Path, key: &Path, names: &[String], now: Duration) -> Result<(), Failure> {
    let failed = |reason: String| Failure::fatal(format!("cannot make a certificate: {reason}"));
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| failed(error.to_string()))?;
    let mut params = CertificateParams::new(names).map_err(|error| failed(error.to_string()))?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let begin = now.saturating_sub(BACKDATED);
    params.not_before = epoch + begin;
    params.not_after = epoch + begin + VALIDITY;
    params.distinguished_name = DistinguishedName::new();
    let common_name = names.first().map_or("localhost", String::as_str);
    // The standard bounds a common name to 64 characters.
    let common_name: String = common_name.chars().take(64).collect();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let made = params
        .self_signed(&pair)
        .map_err(|error| failed(error.to_string()))?;
    let write = |path: &Path, text: String| {
        write_private(path, text.as_bytes())
            .map_err(|error| failed(format!("{}: {error}", path.display())))
    };
    write(key, pair.serialize_pem())?;
    write(cert, made.pem())
}

/// A sentence when others can read the key.
fn key_exposure(key: &Path) -> Option<String> {
    let mode = fs::metadata(key).ok()?.mode();
    (mode & 0o007 != 0).then(|| {
        format!(
            "{} can be read by every user of this machine; run: chmod 600 {}",
            key.display(),
            key.display()
        )
    })
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
