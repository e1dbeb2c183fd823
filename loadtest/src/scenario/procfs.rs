//! CPU time and memory of other processes, read from `/proc`.

use std::fs;

use serde::Serialize;

/// Unit of CPU time in `/proc/PID/stat`: `USER_HZ` is 100 on Linux, whatever the kernel's tick.
const US_PER_TICK: u64 = 10_000;

/// What is known of a process at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Sample {
    /// Its id.
    pub(super) pid: u32,
    /// Role: the arguments, shortened.
    pub(super) name: String,
    /// User and system time so far.
    pub(super) cpu_us: u64,
    /// Resident memory.
    pub(super) rss_bytes: u64,
    /// Resident memory that is not file-backed.
    pub(super) anonymous_bytes: u64,
    /// Share of resident memory, shared pages divided among their users; 0 when it may not be read.
    pub(super) pss_bytes: u64,
    /// Open descriptors; 0 when they may not be read.
    pub(super) descriptors: u64,
}

/// Processes to watch: trees by their root, and single ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// Roots of trees; the root counts too.
    pub(super) trees: Vec<u32>,
    /// Single processes.
    pub(super) pids: Vec<u32>,
}

impl Watch {
    /// Whether there is nothing to watch.
    pub(super) fn is_empty(&self) -> bool {
        self.trees.is_empty() && self.pids.is_empty()
    }

    /// All of them now. Processes that are gone are left out.
    pub(super) fn sample(&self) -> Vec<Sample> {
        self.pids_now().into_iter().filter_map(sample).collect()
    }

    /// Which they are now.
    pub(super) fn pids_now(&self) -> Vec<u32> {
        let mut pids = self.pids.clone();
        if !self.trees.is_empty() {
            pids.extend(descendants(&parents(), &self.trees));
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// One process now; `None` when it is gone.
pub(super) fn sample(pid: u32) -> Option<Sample> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    Some(Sample {
        pid,
        name: name(pid),
        cpu_us: cpu_us(&stat)?,
        rss_bytes: kib(&status, "VmRSS:"),
        anonymous_bytes: kib(&status, "RssAnon:"),
        pss_bytes: kib(&rollup, "Pss:"),
        descriptors: u64::try_from(descriptors).unwrap_or(0),
    })
}

/// CPU so far (microseconds) and resident memory (bytes) of one process, from the two files that cost the kernel
/// nothing; `None` when it is gone.
pub(super) fn cpu_and_rss(pid: u32) -> Option<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some((cpu_us(&stat)?, pages * page_bytes()))
}

fn page_bytes() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

/// `(pid, parent)` of every process.
fn parents() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, after_name(&stat)?.nth(1)?.parse().ok()?))
        })
        .collect()
}

fn descendants(parents: &[(u32, u32)], roots: &[u32]) -> Vec<u32> {
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        let children = parents
            .iter()
            .filter(|(pid, of)| *of == parent && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect::<Vec<_>>();
        found.extend(children);
    }
    found
}

/// The fields after the name, which may hold spaces and brackets itself.
fn after_name(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(") ")?.1.split(' '))
}

fn cpu_us(stat: &str) -> Option<u64> {
    let mut fields = after_name(stat)?.skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * US_PER_TICK)
}

fn kib(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .map_or(0, |number| number * 1024)
}

/// `worker --slot 3`: the arguments without the program; the first 40 characters.
fn name(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let words: Vec<&str> = text.split('\0').filter(|word| !word.is_empty()).collect();
    let name = match words.as_slice() {
        [] => fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default(),
        // A title that the process wrote itself stands in the first word.
        [title] => title.rsplit('/').next().unwrap_or(title).to_owned(),
        [_, rest @ ..] => rest.join(" "),
    };
    name.trim().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_odd_names() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_us(stat), Some(3_000_000));
        assert_eq!(after_name(stat).unwrap().nth(1), Some("3"));
    }

    #[test]
    fn trees_hold_all_descendants_once() {
        let parents = [(2, 1), (3, 2), (4, 2), (5, 4), (9, 8)];
        let mut found = descendants(&parents, &[2]);
        found.sort_unstable();
        assert_eq!(found, [2, 3, 4, 5]);
    }

    #[test]
    fn this_process_can_be_sampled() {
        let own = sample(std::process::id()).unwrap();
        assert!(own.rss_bytes > 0 && own.descriptors > 2);
        let watch = Watch {
            trees: vec![std::process::id()],
            pids: vec![std::process::id()],
        };
        assert_eq!(watch.sample()[0].pid, std::process::id());
    }
}
