//! What an agent still has to deliver: log lines and results of distributed queries. Pure.

use std::collections::VecDeque;

use fleet_protocol::agent::LogType;
use serde_json::Value;

use crate::bodies::QueryOutcome;
use crate::client::Client;
use crate::host::Host;
use crate::schedule::LogBackoff;
use crate::tables;
use crate::verdict::Object;

/// State of the distributed thread.
#[derive(Default)]
pub(crate) struct Distributed {
    pub(crate) client: Client,
    /// Finished queries; they stay until a write succeeds.
    pub(crate) unsent: Vec<QueryOutcome>,
    /// Polls are faster until then.
    pub(crate) accelerated_until: Option<tokio::time::Instant>,
}

/// What a read handed out, as far as an agent takes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Name and SQL, in order.
    pub queries: Vec<(String, String)>,
    /// Seconds of faster polling.
    pub accelerate_s: Option<u64>,
    /// Something in the answer stopped the agent from taking (all of) it.
    pub is_cut_short: bool,
}

/// Takes work out of the answer to a read, with osquery's rules: discovery first; one failing or malformed discovery
/// discards everything; only queries with a discovery that gave rows are taken — or all, when no discovery gave any;
/// a malformed query stops the scan but keeps what came before.
pub fn accept_work(host: &Host, answer: &Object) -> Work {
    let mut work = Work::default();
    let mut discovered = Vec::new();
    for (name, sql) in members(answer, "discovery") {
        let rows = sql
            .filter(|sql| !sql.is_empty() && !name.is_empty())
            .ok_or_else(String::new)
            .and_then(|sql| tables::discovers(host, sql));
        match rows {
            Ok(true) => discovered.push(name),
            Ok(false) => {}
            Err(_) => {
                work.is_cut_short = true;
                return work;
            }
        }
    }
    for (name, sql) in members(answer, "queries") {
        match sql {
            Some(sql) if !sql.is_empty() && !name.is_empty() => {
                if discovered.is_empty() || discovered.contains(&name) {
                    work.queries.push((name.to_owned(), sql.to_owned()));
                }
            }
            _ => {
                work.is_cut_short = true;
                return work;
            }
        }
    }
    work.accelerate_s = answer.get("accelerate").and_then(Value::as_u64);
    work
}

fn members<'a>(answer: &'a Object, name: &str) -> impl Iterator<Item = (&'a str, Option<&'a str>)> {
    answer
        .get(name)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, sql)| (name.as_str(), sql.as_str()))
}

/// State of the logger thread.
#[derive(Default)]
pub(crate) struct Logger {
    pub(crate) client: Client,
    pub(crate) buffer: LogBuffer,
    pub(crate) backoffs: [Pause; LogType::ALL.len()],
}

/// Backoff of one log type and its end.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pause {
    pub(crate) backoff: LogBackoff,
    pub(crate) until: Option<tokio::time::Instant>,
}

/// Lines that wait, oldest first.
#[derive(Debug, Default)]
pub(crate) struct LogBuffer {
    results: VecDeque<(u64, Vec<u8>)>,
    statuses: VecDeque<(u64, Vec<u8>)>,
    next_number: u64,
}

impl LogBuffer {
    pub(crate) fn push(&mut self, log_type: LogType, line: Vec<u8>) {
        let number = self.next_number;
        self.next_number += 1;
        self.lines_mut(log_type).push_back((number, line));
    }

    pub(crate) fn len(&self, log_type: LogType) -> usize {
        self.lines(log_type).len()
    }

    pub(crate) fn lines(&self, log_type: LogType) -> &VecDeque<(u64, Vec<u8>)> {
        match log_type {
            LogType::Result => &self.results,
            LogType::Status => &self.statuses,
        }
    }

    fn lines_mut(&mut self, log_type: LogType) -> &mut VecDeque<(u64, Vec<u8>)> {
        match log_type {
            LogType::Result => &mut self.results,
            LogType::Status => &mut self.statuses,
        }
    }

    /// How many of each type a round takes: results first, `lines_max` together.
    pub(crate) fn batch(&self, lines_max: usize) -> (usize, usize) {
        let results = self.results.len().min(lines_max);
        (results, self.statuses.len().min(lines_max - results))
    }

    /// Deletes the oldest of a type, after they were delivered.
    pub(crate) fn delete(&mut self, log_type: LogType, count: usize) {
        let lines = self.lines_mut(log_type);
        lines.drain(..count.min(lines.len()));
    }

    /// Drops the oldest lines of both types beyond `lines_max`; 0 for no bound. Gives how many.
    pub(crate) fn purge(&mut self, lines_max: usize) -> usize {
        let waiting = self.results.len() + self.statuses.len();
        if lines_max == 0 || waiting <= lines_max {
            return 0;
        }
        for _ in lines_max..waiting {
            let oldest = |lines: &VecDeque<(u64, Vec<u8>)>| {
                lines.front().map_or(u64::MAX, |(number, _)| *number)
            };
            if oldest(&self.results) < oldest(&self.statuses) {
                self.results.pop_front();
            } else {
                self.statuses.pop_front();
            }
        }
        waiting - lines_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Platform;

    fn accept(answer: &str) -> Work {
        let host = Host::new(1, 1).with_platform(Platform::Linux);
        accept_work(&host, &serde_json::from_str(answer).unwrap())
    }

    fn names(work: &Work) -> Vec<&str> {
        work.queries.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn discovery_decides() {
        let work = accept(
            r#"{"queries":{"a":"SELECT 1","b":"SELECT 2","c":"SELECT 3"},
                "discovery":{"a":"SELECT 1","b":"SELECT 1 FROM os_version WHERE platform='x'"},
                "accelerate":60}"#,
        );
        assert_eq!(names(&work), ["a"]);
        assert_eq!(work.accelerate_s, Some(60));
        let none = r#"{"queries":{"a":"SELECT 1","b":"SELECT 2"},
                       "discovery":{"b":"SELECT 1 FROM os_version WHERE platform='x'"}}"#;
        assert_eq!(names(&accept(none)), ["a", "b"]);
        let failing = r#"{"queries":{"a":"SELECT 1"},"discovery":{"a":"SELECT 1 FROM nope"}}"#;
        assert_eq!(names(&accept(failing)), [""; 0]);
    }

    #[test]
    fn a_bad_entry_stops_the_scan() {
        let work = accept(r#"{"queries":{"a":"SELECT 1","b":"","c":"SELECT 1"},"accelerate":"9"}"#);
        assert_eq!(names(&work), ["a"]);
        assert!(work.is_cut_short);
        assert_eq!(accept(r#"{"accelerate":"9"}"#).accelerate_s, None);
        assert_eq!(accept("{}"), Work::default());
    }

    #[test]
    fn batches_take_results_first_and_purge_the_oldest() {
        let mut buffer = LogBuffer::default();
        for number in 0..10_u8 {
            let log_type = if number % 2 == 0 {
                LogType::Result
            } else {
                LogType::Status
            };
            buffer.push(log_type, vec![number]);
        }
        assert_eq!(buffer.batch(1024), (5, 5));
        assert_eq!(buffer.batch(7), (5, 2));
        assert_eq!(buffer.batch(3), (3, 0));
        assert_eq!(buffer.purge(0), 0);
        assert_eq!(buffer.purge(7), 3);
        assert_eq!(buffer.lines(LogType::Result)[0].1, [4]);
        assert_eq!(buffer.lines(LogType::Status)[0].1, [3]);
        buffer.delete(LogType::Status, 99);
        assert_eq!(buffer.len(LogType::Status), 0);
    }
}
