//! The threads of this process: name, state, processor time. It has no more of Go's "goroutines".

use serde_json::{Value, json};

/// More are not listed.
const THREADS_MAX: usize = 1024;

/// Reads `/proc/self/task`; `None` where that cannot be seen, as in a process that is confined.
pub(crate) fn list() -> Option<Value> {
    let directory = std::fs::read_dir("/proc/self/task").ok()?;
    let mut threads = Vec::new();
    for entry in directory.flatten().take(THREADS_MAX) {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        threads.extend(thread(&stat));
    }
    Some(threads.into())
}

/// From a line of `/proc/PID/task/TID/stat`, see proc(5). Pure.
fn thread(stat: &str) -> Option<Value> {
    let (id, rest) = stat.split_once(" (")?;
    // A name may hold brackets; what follows does not.
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(json!({
        "id": id.parse::<u32>().ok()?,
        "name": name,
        "state": fields.first()?,
        // In the kernel's ticks, 100 a second.
        "user_ticks": number(11)?,
        "system_ticks": number(12)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let stat = "71 (a) (b) S 1 71 71 0 -1 4194304 100 0 0 0 12 34 0 0 20 0 4 0 5 6 7";
        let expected = json!({
            "id": 71, "name": "a) (b", "state": "S", "user_ticks": 12, "system_ticks": 34,
        });
        assert_eq!(thread(stat), Some(expected));
        assert_eq!(thread("71 (a"), None);
        let own = list().unwrap();
        assert!(!own.as_array().unwrap().is_empty());
    }
}
