//! Certificates and trust while the server runs: read again when the configuration says so or their files change, kept as
//! they are when what is there now is no good, and warned of each day before their end.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleet_protocol::config::Config;

use crate::credentials::{self, Credentials};
use crate::exit::Failure;
use crate::file_watch::{self, FileWatch, Marks};

/// Between two looks at the files. A change is taken at the second look that finds it the same.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Between two attempts at files that are no good, though they look the same: what bars the way to them may be elsewhere.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Between two warnings of the same end.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// See the module.
#[derive(Debug)]
pub(crate) struct Renewal {
    /// In use.
    pub(crate) credentials: Credentials,
    /// Why the files as they are now are not in use; empty when they are.
    pub(crate) trouble: String,
    bound: Vec<IpAddr>,
    watch: FileWatch,
    looked_at: Duration,
    read_at: Duration,
    warned_at: Duration,
}

/// Read, and not yet in use.
pub(crate) struct Fresh {
    credentials: Credentials,
    marks: Marks,
}

impl Renewal {
    /// Reads them for the first time. `bound` are the addresses for which a certificate is made when none is given.
    pub(crate) fn open(
        config: &Config,
        state_dir: &Path,
        bound: &[IpAddr],
    ) -> Result<Self, Failure> {
        let Fresh { credentials, marks } = read(config, state_dir, bound)?;
        let mut watch = FileWatch::default();
        watch.note_read(marks);
        Ok(Self {
            credentials,
            trouble: String::new(),
            bound: bound.to_vec(),
            watch,
            looked_at: Duration::ZERO,
            read_at: Duration::ZERO,
            warned_at: Duration::ZERO,
        })
    }

    /// Reads what `config` names; nothing changes yet.
    pub(crate) fn read(&self, config: &Config, state_dir: &Path) -> Result<Fresh, Failure> {
        read(config, state_dir, &self.bound)
    }

    /// Puts what was read into use; gives the files whose content clients can tell from the former, or all when others are
    /// named now.
    pub(crate) fn take(&mut self, fresh: Fresh) -> Vec<PathBuf> {
        let former: Vec<_> = self.watch.paths().map(Path::to_owned).collect();
        let files: Vec<_> = fresh.marks.iter().map(|(path, _)| path.clone()).collect();
        let changed = if files == former {
            self.watch.differing(&fresh.marks)
        } else {
            files
        };
        self.watch.note_read(fresh.marks);
        self.trouble.clear();
        let differ = self.credentials.differ(&fresh.credentials);
        self.credentials = fresh.credentials;
        if !differ {
            return Vec::new();
        }
        self.credentials.report(&self.bound);
        changed
    }

    /// Does what is due at `now`, time since the start. Gives the files that have changed, when what they hold is in use
    /// from now on.
    pub(crate) fn tend(
        &mut self,
        config: &Config,
        state_dir: &Path,
        now: Duration,
    ) -> Vec<PathBuf> {
        if now.saturating_sub(self.warned_at) >= WARNING_INTERVAL {
            self.warned_at = now;
            self.credentials.report_expiry(since_1970());
        }
        if now.saturating_sub(self.looked_at) < LOOK_INTERVAL {
            return Vec::new();
        }
        self.looked_at = now;
        let marks = file_watch::marks(&credentials::files(config, state_dir));
        let mut differing = self.watch.differing(&marks);
        let is_retry =
            !self.trouble.is_empty() && now.saturating_sub(self.read_at) >= RETRY_INTERVAL;
        if !self.watch.look(marks) {
            if !is_retry {
                return Vec::new();
            }
            differing = self.watch.paths().map(Path::to_owned).collect();
        }
        self.read_at = now;
        match self.read(config, state_dir) {
            Ok(fresh) => {
                let is_new = self.credentials.differ(&fresh.credentials);
                self.take(fresh);
                // A file of which only the mode or the owner is new is no news to anybody.
                if is_new { differing } else { Vec::new() }
            }
            Err(failure) => {
                let trouble = failure.to_string();
                // Once for each trouble, however often it is met.
                if trouble != self.trouble {
                    tracing::error!(
                        "certificate files have changed and cannot be used; the former ones serve on: {trouble}"
                    );
                }
                self.trouble = trouble;
                Vec::new()
            }
        }
    }
}

fn read(config: &Config, state_dir: &Path, bound: &[IpAddr]) -> Result<Fresh, Failure> {
    let files = credentials::files(config, state_dir);
    let mut marks = file_watch::marks(&files);
    let credentials = Credentials::load(config, state_dir, bound, since_1970())?;
    if credentials.usual().is_some_and(|usual| usual.is_own) {
        // It may have been made in the course of it; nobody else writes it.
        marks = file_watch::marks(&files);
    }
    Ok(Fresh { credentials, marks })
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        renewal: Renewal,
        config: Config,
        dir: tempfile::TempDir,
        now: Duration,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut config = Config::default();
            config.server.cert = dir.path().join("cert.pem");
            config.server.key = dir.path().join("key.pem");
            let pair = pair();
            std::fs::write(&config.server.cert, &pair.0).unwrap();
            std::fs::write(&config.server.key, &pair.1).unwrap();
            Self {
                renewal: Renewal::open(&config, dir.path(), &[]).unwrap(),
                config,
                dir,
                now: Duration::ZERO,
            }
        }

        fn served(&self) -> &str {
            let usual = self.renewal.credentials.usual().unwrap();
            &usual.tls.cert_chain_pem
        }

        fn look(&mut self) -> Vec<PathBuf> {
            self.now += LOOK_INTERVAL;
            self.renewal.tend(&self.config, self.dir.path(), self.now)
        }
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_is_taken_whole_or_not_at_all() {
        let mut bench = Bench::new();
        let first = bench.served().to_owned();
        let (cert, key) = pair();
        std::fs::write(&bench.config.server.cert, &cert).unwrap();
        for _ in 0..3 {
            assert!(bench.look().is_empty());
        }
        assert_eq!(bench.served(), first);
        let trouble = bench.renewal.trouble.clone();
        assert!(trouble.contains("does not belong"), "{trouble}");
        std::fs::write(&bench.config.server.key, key).unwrap();
        assert!(bench.look().is_empty(), "it has only just come");
        assert_eq!(bench.look(), [bench.config.server.key.clone()]);
        assert_eq!(bench.served(), cert);
        assert_eq!(bench.renewal.trouble, "");
        assert!(bench.look().is_empty());
    }

    #[test]
    fn a_lost_file_changes_nothing_until_it_is_back() {
        let mut bench = Bench::new();
        let first = bench.served().to_owned();
        std::fs::remove_file(&bench.config.server.key).unwrap();
        bench.look();
        bench.look();
        assert!(bench.renewal.trouble.contains("cannot read"));
        assert_eq!(bench.served(), first);
        let fresh = bench.renewal.read(&bench.config, bench.dir.path());
        assert!(fresh.is_err(), "a reload says so, too");
    }

    #[test]
    fn trouble_is_looked_into_again_though_the_files_look_the_same() {
        let mut bench = Bench::new();
        bench.renewal.trouble = "it could not be read".into();
        while bench.now + LOOK_INTERVAL < RETRY_INTERVAL {
            assert!(bench.look().is_empty());
            assert_ne!(bench.renewal.trouble, "");
        }
        assert!(bench.look().is_empty(), "it is the pair in use");
        assert_eq!(bench.renewal.trouble, "");
    }
}
