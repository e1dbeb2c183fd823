//! The books of a run with a fault: what agents produced, what they saw acknowledged, and what the journal holds.
//!
//! Pure but for reading the journal's files. The judgement is the same for every fault: a line that an agent saw
//! acknowledged is in the journal, in whole; a line stands there no more often than it was sent; nobody was told that
//! its key is unknown, or a success that is none.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleet_protocol::agent::{LogType, Route};
use serde_json::Value;

use crate::gateway::Gateway;

/// Good exchanges in a row, in the order in which they began, that tell that every worker serves: that all of them
/// missed one of two workers by chance happens once in 10^12 times.
const STREAK: usize = 40;
/// How many of a streak went through control.
const STREAK_LOGS: usize = 10;
/// Nothing faster than this is slow.
const SLOW_MIN: Duration = Duration::from_millis(100);
/// Whatever a busy machine does by itself, this is slow.
pub const SLOW_MAX: Duration = Duration::from_secs(2);

/// One exchange as an agent saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub route: Route,
    pub started_at: Instant,
    pub ended_at: Instant,
    pub status: u16,
    /// The answer had no byte.
    pub is_empty: bool,
    /// Kind and detail of the failure.
    pub failure: Option<(&'static str, String)>,
}

impl Seen {
    fn latency(&self) -> Duration {
        self.ended_at.saturating_duration_since(self.started_at)
    }

    /// What an agent must never be told: a success that is none, or something that is no word of this contract.
    fn is_broken(&self) -> bool {
        match &self.failure {
            None => self.is_empty || !(200..300).contains(&self.status),
            Some((kind, _)) => matches!(*kind, "not_json" | "not_object" | "http" | "redirect"),
        }
    }
}

/// What one host logged.
#[derive(Clone, Debug)]
pub struct Logged {
    /// `hostIdentifier` of its lines.
    pub identifier: String,
    pub log_type: LogType,
    /// Number of its first line.
    pub first: u64,
    /// How often each line was sent, the first line first.
    pub sends: Vec<u32>,
    /// How many of them, from the first, the agent took for delivered.
    pub acknowledged: usize,
    /// How many the agent still holds.
    pub held: usize,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub fault: String,
    pub exchanges: usize,
    /// Connections that nobody took.
    pub refused: u64,
    /// Connections that were reset or closed before the handshake was done.
    pub cut: u64,
    /// Exchanges that failed, by kind and detail.
    pub failures: BTreeMap<String, usize>,
    pub node_invalid: usize,
    pub broken: Vec<Seen>,
    pub produced: usize,
    pub acknowledged: usize,
    pub held: usize,
    /// Acknowledged and not in the journal.
    pub lost: Vec<String>,
    /// Neither in the journal nor held by the agent.
    pub vanished: Vec<String>,
    /// Copies in the journal beyond the first.
    pub duplicates: usize,
    /// In the journal more often than sent.
    pub unexplained: Vec<String>,
    /// Lines of the journal that are no JSON object.
    pub torn: Vec<String>,
    /// From the fault to the end of the last exchange that it disturbed; zero when it disturbed none, `None` when
    /// nothing was served again.
    pub until_served: Option<Duration>,
}

/// A run's books, before they are judged.
#[derive(Debug)]
pub struct Books {
    pub fault: String,
    /// When the load had settled, and each time the fault was injected.
    pub settled_at: Instant,
    pub injected_at: Vec<Instant>,
    pub refused: u64,
    pub cut: u64,
    pub seen: Vec<Seen>,
    pub hosts: Vec<Logged>,
}

impl Books {
    /// Compares them with the journal of a gateway.
    pub fn judge(self, gateway: &Gateway) -> Verdict {
        let mut journal = Journal::default();
        for (directory, log_type) in [
            ("log/osquery_result", LogType::Result),
            ("log/osquery_status", LogType::Status),
        ] {
            journal.read(&gateway.state(directory), log_type);
        }
        self.judge_with(&journal)
    }

    fn judge_with(mut self, journal: &Journal) -> Verdict {
        self.seen.sort_by_key(|seen| seen.started_at);
        let mut verdict = Verdict {
            fault: self.fault,
            exchanges: self.seen.len(),
            refused: self.refused,
            cut: self.cut,
            failures: BTreeMap::new(),
            node_invalid: 0,
            broken: Vec::new(),
            produced: 0,
            acknowledged: 0,
            held: 0,
            lost: Vec::new(),
            vanished: Vec::new(),
            duplicates: 0,
            unexplained: Vec::new(),
            torn: journal.torn.clone(),
            until_served: until_served(&self.seen, self.settled_at, &self.injected_at),
        };
        for seen in &self.seen {
            if let Some((kind, detail)) = &seen.failure {
                *verdict.failures.entry(name(kind, detail)).or_default() += 1;
                verdict.node_invalid += usize::from(*kind == "node_invalid");
            }
            if seen.is_broken() {
                verdict.broken.push(seen.clone());
            }
        }
        for host in &self.hosts {
            verdict.add(host, journal);
        }
        verdict
    }
}

fn name(kind: &str, detail: &str) -> String {
    if detail.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind}: {detail}")
    }
}

impl Verdict {
    fn add(&mut self, host: &Logged, journal: &Journal) {
        self.produced += host.sends.len();
        self.acknowledged += host.acknowledged;
        self.held += host.held;
        for (index, sends) in host.sends.iter().enumerate() {
            let number = host.first + index as u64;
            let copies = journal.copies(&host.identifier, host.log_type, number);
            let line = || format!("{} {} {number}", host.identifier, host.log_type.label());
            let is_held = index >= host.sends.len() - host.held;
            if copies == 0 && index < host.acknowledged {
                self.lost.push(line());
            } else if copies == 0 && !is_held {
                self.vanished.push(line());
            }
            self.duplicates += copies.saturating_sub(1);
            if copies > *sends as usize {
                self.unexplained.push(line());
            }
        }
    }

    /// What holds whatever the fault was.
    pub fn assert_books_hold(&self) {
        self.assert_nothing_lost();
        let surplus = few(&self.unexplained);
        assert!(self.unexplained.is_empty(), "surplus {surplus:?}: {self}");
        // Every agent is served again, so nobody holds anything any more.
        assert_eq!(self.held, 0, "agents still hold lines: {self}");
        assert_eq!(self.acknowledged, self.produced, "{self}");
    }

    fn assert_nothing_lost(&self) {
        assert!(self.acknowledged > 0, "nothing was acknowledged: {self}");
        assert!(self.lost.is_empty(), "lost {:?}: {self}", few(&self.lost));
        let vanished = few(&self.vanished);
        assert!(self.vanished.is_empty(), "vanished {vanished:?}: {self}");
        assert_eq!(self.node_invalid, 0, "{self}");
        assert!(self.broken.is_empty(), "{:?}: {self}", few(&self.broken));
        assert!(self.torn.is_empty(), "torn {:?}: {self}", few(&self.torn));
    }

    /// For faults that leave somebody listening all the while.
    pub fn assert_none_refused(&self) {
        assert_eq!(self.refused, 0, "{self}");
    }

    /// For faults that, besides, end no process with connections.
    pub fn assert_none_cut(&self) {
        assert_eq!((self.refused, self.cut), (0, 0), "{self}");
    }

    /// For what no agent may notice.
    pub fn assert_none_failed(&self) {
        self.assert_none_cut();
        assert!(self.failures.is_empty(), "{self}");
    }

    /// The row of the table of faults.
    pub fn row(&self) -> crate::fault_table::Row {
        crate::fault_table::Row {
            fault: self.fault.clone(),
            refused: self.refused,
            cut: self.cut,
            lost: self.lost.len() + self.vanished.len(),
            duplicates: self.duplicates,
            acknowledged: self.acknowledged,
            exchanges: self.exchanges,
            failed: self.failures.values().sum(),
            until_served_ms: self
                .until_served
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            to,
            "{}: {} exchanges, {} refused, {} cut, {} lines acknowledged of {}, {} held, {} lost, {} duplicates, \
             served again after {:?}, failures {:?}",
            self.fault,
            self.exchanges,
            self.refused,
            self.cut,
            self.acknowledged,
            self.produced,
            self.held,
            self.lost.len() + self.vanished.len(),
            self.duplicates,
            self.until_served,
            self.failures
        )
    }
}

fn few<T>(all: &[T]) -> &[T] {
    all.get(..3).unwrap_or(all)
}

/// Whether exchanges, sorted by their begin, hold a streak; gives the place of its first.
pub fn streak(seen: &[&Seen], slow: Duration) -> Option<usize> {
    let mut from = 0;
    let mut logs = 0;
    for (index, exchange) in seen.iter().enumerate() {
        if is_disturbed(exchange, slow) {
            from = index + 1;
            logs = 0;
            continue;
        }
        logs += usize::from(exchange.route == Route::Log);
        if index + 1 - from >= STREAK && logs >= STREAK_LOGS {
            return Some(from);
        }
    }
    None
}

fn is_disturbed(seen: &Seen, slow: Duration) -> bool {
    seen.failure.is_some() || seen.latency() > slow
}

/// What counts as slow in a run: twice the slowest good exchange before the fault.
pub fn slow_limit(seen: &[Seen], settled_at: Instant, fault_at: Instant) -> Duration {
    let before = seen
        .iter()
        .filter(|seen| seen.started_at >= settled_at && seen.ended_at <= fault_at);
    let good = before.filter(|seen| seen.failure.is_none());
    let slowest = good.map(Seen::latency).max().unwrap_or_default();
    (slowest * 2).max(SLOW_MIN)
}

/// The longest that any of the injections disturbed the load. Where the machine is too busy for a streak that is as fast as
/// before, only what failed or was very slow counts as disturbed.
fn until_served(seen: &[Seen], settled_at: Instant, injected_at: &[Instant]) -> Option<Duration> {
    let slow = slow_limit(seen, settled_at, *injected_at.first()?);
    longest(seen, injected_at, slow).or_else(|| longest(seen, injected_at, slow.max(SLOW_MAX)))
}

fn longest(seen: &[Seen], injected_at: &[Instant], slow: Duration) -> Option<Duration> {
    let spans = injected_at.iter().enumerate().map(|(index, begin)| {
        let end = injected_at.get(index + 1);
        let touched: Vec<&Seen> = seen
            .iter()
            .filter(|seen| seen.ended_at >= *begin && end.is_none_or(|end| seen.started_at < *end))
            .collect();
        let first = streak(&touched, slow)?;
        let disturbed = touched.iter().take(first);
        let disturbed = disturbed.filter(|seen| is_disturbed(seen, slow));
        let last = disturbed.map(|seen| seen.ended_at).max();
        Some(last.map_or(Duration::ZERO, |last| {
            last.saturating_duration_since(*begin)
        }))
    });
    spans.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// Every line of a journal's directory, with the number of its copies.
#[derive(Debug, Default)]
struct Journal {
    copies: HashMap<(String, LogType, u64), usize>,
    torn: Vec<String>,
}

impl Journal {
    fn copies(&self, identifier: &str, log_type: LogType, number: u64) -> usize {
        let key = (identifier.to_owned(), log_type, number);
        self.copies.get(&key).copied().unwrap_or(0)
    }

    /// Reads the active file and the closed ones, packed or not.
    fn read(&mut self, directory: &Path, log_type: LogType) {
        for text in texts(directory) {
            for line in text.lines() {
                self.add(line, log_type);
            }
        }
    }

    fn add(&mut self, line: &str, log_type: LogType) {
        let Ok(Value::Object(object)) = serde_json::from_str(line) else {
            self.torn.push(line.chars().take(200).collect());
            return;
        };
        let number = match log_type {
            LogType::Result => object.get("counter").and_then(Value::as_u64),
            LogType::Status => object
                .get("message")
                .and_then(Value::as_str)
                .and_then(|message| message.rsplit(' ').next())
                .and_then(|number| number.parse().ok()),
        };
        let identifier = object.get("hostIdentifier").and_then(Value::as_str);
        if let (Some(identifier), Some(number)) = (identifier, number) {
            let key = (identifier.to_owned(), log_type, number);
            *self.copies.entry(key).or_default() += 1;
        }
    }
}

/// The texts of all log files; read again when one was packed or closed meanwhile.
fn texts(directory: &Path) -> Vec<String> {
    for _ in 0..20 {
        // A segment that is just being packed has two files of the same name for a moment.
        let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if let Some((stem, _)) = name.split_once(".log")
                && !name.starts_with('.')
                && [".log", ".log.gz", ".log.zst"].contains(&&name[stem.len()..])
            {
                files.insert(stem.to_owned(), path);
            }
        }
        let texts: Result<Vec<_>, _> = files.values().map(|path| text(path)).collect();
        match texts {
            Ok(texts) => return texts,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => panic!("{}: {error}", directory.display()),
        }
    }
    panic!("{} does not hold still", directory.display());
}

fn text(path: &Path) -> std::io::Result<String> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes)?,
        Some("zst") => zstd::stream::read::Decoder::new(file)?.read_to_end(&mut bytes)?,
        _ => { file }.read_to_end(&mut bytes)?,
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
