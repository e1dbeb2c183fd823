//! Where the configuration comes from: flag over variable over file over default.
//!
//! Invariant: every mistake is reported, each with the place that it was made in, and none repeats a secret.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use fleet_protocol::config::{Config, Key, overlay};
use fleet_protocol::secret::MASK;
use serde_json::Value;

use crate::config_file;
use crate::exit::Failure;
use crate::fleet_keys;

/// Read by nobody unless `--config` names it; its presence alone is worth a word.
const PACKAGED_FILE: &str = "/etc/fleet-supervisor/config.yml";

/// What was asked for on the command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// `--config` or `FLEET_CONFIG`.
    pub(crate) file: Option<PathBuf>,
    /// Flags and their texts.
    pub(crate) flags: Vec<(Key, String)>,
    /// Flags of Fleet's that are not used here.
    pub(crate) ignored_flags: Vec<String>,
}

/// A configuration that can be used, and what to say about it.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The configuration.
    pub(crate) config: Config,
    /// Sentences.
    pub(crate) warnings: Vec<String>,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
}

/// Reads everything; the failure lists all that is wrong, one a line.
pub(crate) fn read(
    sources: &Sources,
    variable: &impl Fn(&str) -> Option<OsString>,
    variables: &[String],
) -> Result<Settings, Failure> {
    let mut reading = Reading::default();
    if let Some(path) = &sources.file {
        reading.take_file(path)?;
    } else if Path::new(PACKAGED_FILE).exists() {
        reading.warnings.push(format!(
            "{PACKAGED_FILE} is not read unless --config or FLEET_CONFIG names it"
        ));
    }
    reading.take_variables(variable, variables);
    for (key, text) in &sources.flags {
        reading.set(&format!("--{}", key.flag()), key, text);
    }
    for flag in &sources.ignored_flags {
        reading.ignore(&format!("--{flag}"));
    }
    reading.finish(sources.file.clone())
}

#[derive(Default)]
struct Reading {
    tree: Value,
    warnings: Vec<String>,
    problems: Vec<String>,
}

impl Reading {
    fn take_file(&mut self, path: &Path) -> Result<(), Failure> {
        let name = path.display();
        let contents = config_file::read(path)
            .map_err(|reason| Failure::config(format!("cannot use the file {name}: {reason}")))?;
        for (key, text) in &contents.options {
            self.set(&format!("{name}: {}", key.dotted()), key, text);
        }
        for option in contents.ignored {
            self.ignore(&format!("{name}: {option}"));
        }
        for (option, meant) in contents.unknown {
            let hint = meant.map_or(String::new(), |meant| format!("; did you mean {meant}?"));
            self.problems
                .push(format!("{name}: {option} is not an option{hint}"));
        }
        Ok(())
    }

    fn take_variables(
        &mut self,
        variable: &impl Fn(&str) -> Option<OsString>,
        variables: &[String],
    ) {
        let keys = Config::keys();
        // Ours come after Fleet's, and win.
        let fleets = fleet_keys::VARIABLES.iter().filter_map(|(name, option)| {
            let key = keys.iter().find(|key| key.dotted() == *option)?;
            Some(((*name).to_owned(), key))
        });
        let ours = keys.iter().map(|key| (key.variable(), key));
        for (name, key) in fleets.chain(ours) {
            match variable(&name).map(OsString::into_string) {
                None => {}
                Some(Ok(text)) if text.is_empty() => {}
                Some(Ok(text)) => self.set(&name, key, &text),
                Some(Err(_)) => self.problems.push(format!("{name}: not UTF-8")),
            }
        }
        let fleets = fleet_keys::VARIABLES
            .iter()
            .map(|(name, _)| (*name).to_owned());
        let known: Vec<String> = keys.iter().map(Key::variable).chain(fleets).collect();
        for name in variables {
            if known.contains(name) || !name.starts_with("FLEET_") {
                continue;
            }
            if let Some((section, option)) = fleet_keys::KEYS.iter().find_map(|(section, names)| {
                let option = name
                    .strip_prefix("FLEET_")?
                    .to_lowercase()
                    .strip_prefix(section)?
                    .strip_prefix('_')?
                    .to_owned();
                names
                    .contains(&option.as_str())
                    .then_some((section, option))
            }) {
                self.ignore(&format!("{name} ({section}.{option})"));
            } else if let Some(meant) = fleet_keys::nearest(name, known.iter().map(String::as_str))
            {
                // Orchestrators put variables of their own under our name, so this is no error.
                self.warnings.push(format!(
                    "{name} is not an option and is ignored; did you mean {meant}?"
                ));
            }
        }
    }

    fn ignore(&mut self, place: &str) {
        self.warnings.push(format!(
            "{place} is an option of Fleet's that is ignored here"
        ));
    }

    /// Sets one option if its text is good on its own.
    fn set(&mut self, place: &str, key: &Key, text: &str) {
        if key.is_secret() && text == MASK {
            self.warnings.push(format!(
                "{place} holds the mask that `config dump` prints, not a password; ignored"
            ));
            return;
        }
        let text = &complete(key, text);
        let mut alone = Value::Null;
        let checked = overlay(&mut alone, key, text)
            .map_err(|error| format!("not {}", error.wanted))
            .and_then(|()| {
                Config::from_tree(alone)
                    .map(|_| ())
                    .map_err(|problem| problem.to_string())
            });
        if let Err(reason) = checked.and_then(|()| {
            overlay(&mut self.tree, key, text).map_err(|error| format!("not {}", error.wanted))
        }) {
            self.problems.push(format!("{place}: {reason}"));
        }
    }

    fn finish(self, file: Option<PathBuf>) -> Result<Settings, Failure> {
        let Self {
            tree,
            warnings,
            mut problems,
        } = self;
        match Config::from_tree(tree) {
            Ok(config) => {
                problems.extend(config.validate().iter().map(ToString::to_string));
                problems.extend(unreadable_files(&config));
                if problems.is_empty() {
                    return Ok(Settings {
                        config,
                        warnings,
                        file,
                    });
                }
            }
            Err(problem) => problems.push(problem.to_string()),
        }
        Err(Failure::config(problems.join("\nfleet-supervisor: ")))
    }
}

/// An address without a host, such as `:8080`, means every IPv4 address.
fn complete(key: &Key, text: &str) -> String {
    if key.path != ["server", "address"] {
        return text.to_owned();
    }
    let complete = |item: &str| match item.trim() {
        item if item.starts_with(':') => format!("0.0.0.0{item}"),
        item => item.to_owned(),
    };
    text.split(',').map(complete).collect::<Vec<_>>().join(",")
}

/// Files that options name and that cannot be read now.
fn unreadable_files(config: &Config) -> Vec<String> {
    let mysql = &config.mysql;
    let pairs = config.tls.pairs().unwrap_or_default();
    let further = pairs.iter().flat_map(|(cert, key)| [cert, key]);
    let files = [
        ("server.cert", &config.server.cert),
        ("server.key", &config.server.key),
        ("server.client_ca", &config.server.client_ca),
        ("server.client_crl", &config.server.client_crl),
        ("mysql.password_path", &mysql.password_path),
        ("mysql.tls_ca", &mysql.tls_ca),
        ("mysql.tls_cert", &mysql.tls_cert),
        ("mysql.tls_key", &mysql.tls_key),
        ("redis.tls_ca", &config.redis.tls_ca),
    ];
    files
        .into_iter()
        .chain(further.map(|path| ("tls.certificates", path)))
        .filter(|(_, path)| !path.as_os_str().is_empty())
        .filter_map(|(option, path)| {
            let reason = match std::fs::File::open(path).and_then(|file| file.metadata()) {
                Ok(metadata) if metadata.is_file() => return None,
                Ok(_) => "not a file".to_owned(),
                Err(error) => error.to_string(),
            };
            Some(format!(
                "{option}: cannot read {}: {reason}",
                path.display()
            ))
        })
        .collect()
}

/// The configuration as YAML that `--config` takes, with each option's help as a comment and secrets masked.
pub(crate) fn dump(config: &Config) -> String {
    let tree = config.masked();
    let mut out = String::new();
    let mut section: Vec<&str> = Vec::new();
    for key in Config::keys() {
        let Some((name, parents)) = key.path.split_last() else {
            continue;
        };
        for (depth, parent) in parents.iter().enumerate() {
            if section.get(depth) != Some(parent) {
                if depth == 0 && !out.is_empty() {
                    out.push('\n');
                }
                out.push_str(&format!("{:indent$}{parent}:\n", "", indent = 2 * depth));
            }
        }
        section = parents.to_vec();
        let value = tree
            .pointer(&format!("/{}", key.path.join("/")))
            .unwrap_or(&Value::Null);
        let indent = 2 * parents.len();
        // A JSON value is a YAML value.
        out.push_str(&format!(
            "{:indent$}# {}\n{:indent$}{name}: {value}\n",
            "", key.help, ""
        ));
    }
    out
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
