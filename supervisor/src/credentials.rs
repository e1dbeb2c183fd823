//! What workers show to clients and whom they trust: read and checked as one, so that half of a change is never served.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleet_protocol::config::Config;
use fleet_protocol::slot::{CertificateView, ClientTrust, TlsIdentity};

use crate::certificate::{self, Identity};
use crate::exit::Failure;
use crate::{client_trust, machine};

/// Addresses in a certificate of ours: each handshake carries them all.
const CERTIFICATE_ADDRESSES_MAX: usize = 32;
/// How long before the end of a certificate it is warned of, each day.
pub(crate) const EXPIRY_WARNING: Duration = Duration::from_secs(21 * 24 * 3600);
const DAY_S: i64 = 24 * 3600;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Credentials {
    /// The usual one first; none without TLS.
    pub(crate) identities: Vec<Identity>,
    /// What clients are asked for.
    pub(crate) client_trust: Option<ClientTrust>,
    /// When they expire.
    pub(crate) views: Vec<CertificateView>,
}

impl Credentials {
    /// Reads all that the options name. `bound` are the addresses for which a certificate of ours is made, if one is.
    pub(crate) fn load(
        config: &Config,
        state_dir: &Path,
        bound: &[IpAddr],
        now: Duration,
    ) -> Result<Self, Failure> {
        if !config.server.tls {
            return Ok(Self::default());
        }
        let names = names(bound, &config.addresses.dns.name);
        let mut identities = vec![certificate::load(&config.server, state_dir, &names, now)?];
        identities.extend(certificate::load_further(&config.tls, now)?);
        let mut views: Vec<_> = identities.iter().map(|of| of.view.clone()).collect();
        let mut client_trust = None;
        if let Some((trust, view)) = client_trust::load(&config.server)? {
            client_trust = Some(trust);
            views.push(view);
        }
        let mut unique: Vec<CertificateView> = Vec::new();
        for view in views {
            if !unique.contains(&view) {
                unique.push(view);
            }
        }
        Ok(Self {
            identities,
            client_trust,
            views: unique,
        })
    }

    /// The one that is shown to whoever asks for no other.
    pub(crate) fn usual(&self) -> Option<&Identity> {
        self.identities.first()
    }

    /// For the workers.
    pub(crate) fn tls(&self) -> Vec<TlsIdentity> {
        self.identities.iter().map(|of| of.tls.clone()).collect()
    }

    /// Whether a client could tell them from `other`.
    pub(crate) fn differ(&self, other: &Self) -> bool {
        self.client_trust != other.client_trust || self.tls() != other.tls()
    }

    /// Says what was made, and what must be done.
    pub(crate) fn report(&self, bound: &[IpAddr]) {
        for identity in &self.identities {
            for note in &identity.notes {
                tracing::info!("{note}");
            }
            for warning in &identity.warnings {
                tracing::warn!("{warning}");
            }
        }
        let Some(identity) = self.usual().filter(|identity| identity.is_own) else {
            return;
        };
        let named = bound.iter().filter(|ip| !ip.is_unspecified());
        let named: Vec<String> = named.map(IpAddr::to_string).collect();
        let (fitting, others) = named.split_at(named.len().min(CERTIFICATE_ADDRESSES_MAX));
        if let Some(ip) = fitting.iter().find(|ip| !identity.covers(ip)) {
            tracing::warn!(
                "the self-signed certificate does not cover {ip}; to make it anew, delete tls/ in the state directory and \
                 start again, then give agents the new file"
            );
        }
        if others.iter().any(|ip| !identity.covers(ip)) {
            tracing::warn!(
                "the self-signed certificate covers the first {CERTIFICATE_ADDRESSES_MAX} addresses alone; agents need a name \
                 for the other {}, or a certificate of yours (server.cert)",
                others.len()
            );
        }
    }

    /// Says which ones are near their end, louder of those that are past it.
    pub(crate) fn report_expiry(&self, now: Duration) {
        for (has_expired, sentence) in expiring(&self.views, now) {
            if has_expired {
                tracing::error!("{sentence}");
            } else {
                tracing::warn!("{sentence}");
            }
        }
    }
}

/// The files that [`Credentials::load`] reads, those of our own making too.
pub(crate) fn files(config: &Config, state_dir: &Path) -> Vec<PathBuf> {
    let server = &config.server;
    if !server.tls {
        return Vec::new();
    }
    let mut files = if server.cert.as_os_str().is_empty() {
        certificate::own_paths(state_dir).to_vec()
    } else {
        vec![server.cert.clone(), server.key.clone()]
    };
    let pairs = config.tls.pairs().unwrap_or_default();
    files.extend(pairs.into_iter().flat_map(<[PathBuf; 2]>::from));
    let trust = [&server.client_ca, &server.client_crl];
    let named = trust
        .into_iter()
        .filter(|path| !path.as_os_str().is_empty());
    files.extend(named.cloned());
    files
}

/// A sentence for each that expires soon, and whether it has expired. Pure.
fn expiring(views: &[CertificateView], now: Duration) -> Vec<(bool, String)> {
    let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let warning_s = i64::try_from(EXPIRY_WARNING.as_secs()).unwrap_or(i64::MAX);
    let sentence = |view: &CertificateView| {
        let left_s = view.not_after_s.saturating_sub(now_s);
        let option = match view.option.as_str() {
            "" => "the self-signed certificate ".to_owned(),
            option => format!("{option}: "),
        };
        let file = &view.file;
        if left_s <= 0 {
            let text = format!(
                "{option}{file} HAS EXPIRED: clients refuse this server until it is replaced"
            );
            return Some((true, text));
        }
        (left_s < warning_s).then(|| {
            let days = left_s / DAY_S;
            (
                false,
                format!("{option}{file} expires in {days} days; replace it before then"),
            )
        })
    };
    views.iter().filter_map(sentence).collect()
}

/// What agents may call this server.
fn names(bound: &[IpAddr], dns_name: &str) -> Vec<String> {
    let mut names = vec![machine::hostname()];
    names.extend((!dns_name.is_empty()).then(|| dns_name.trim_end_matches('.').to_owned()));
    names.extend(["localhost", "127.0.0.1", "::1"].map(String::from));
    let specific = bound.iter().filter(|ip| !ip.is_unspecified());
    names.extend(
        specific
            .take(CERTIFICATE_ADDRESSES_MAX)
            .map(IpAddr::to_string),
    );
    if bound.iter().any(IpAddr::is_unspecified) {
        names.extend(machine::addresses().iter().map(IpAddr::to_string));
    }
    let mut unique = Vec::new();
    for name in names {
        // A host name with characters that no certificate takes is left out.
        let is_good = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c));
        if is_good && !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_near_end_is_told_and_a_past_one_is_louder() {
        let view = |days: i64| CertificateView {
            file: format!("{days}.pem"),
            option: if days == 20 { "" } else { "server.cert" }.into(),
            not_after_s: 1_000_000_000 + days * DAY_S,
        };
        let views = [view(22), view(20), view(0), view(-3)];
        let found = expiring(&views, Duration::from_secs(1_000_000_000));
        let loud: Vec<bool> = found.iter().map(|(is_loud, _)| *is_loud).collect();
        assert_eq!(loud, [false, true, true]);
        assert!(
            found[0]
                .1
                .starts_with("the self-signed certificate 20.pem expires in 20 days")
        );
        assert!(found[1].1.starts_with("server.cert: 0.pem HAS EXPIRED"));
    }

    #[test]
    fn every_file_of_the_options_is_watched() {
        let mut config = Config::default();
        let own = files(&config, Path::new("/s"));
        assert_eq!(
            own,
            [Path::new("/s/tls/cert.pem"), Path::new("/s/tls/key.pem")]
        );
        config.server.cert = "c".into();
        config.server.key = "k".into();
        config.server.client_ca = "ca".into();
        config.server.client_crl = "crl".into();
        config.tls.certificates = vec!["c2=k2".into()];
        let named = ["c", "k", "c2", "k2", "ca", "crl"];
        assert_eq!(files(&config, Path::new("/s")), named.map(PathBuf::from));
        config.server.tls = false;
        assert!(files(&config, Path::new("/s")).is_empty());
    }
}
