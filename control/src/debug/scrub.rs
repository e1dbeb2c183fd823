//! Takes secrets out of texts that are shown to somebody who looks for a fault. Pure.

use fleet_protocol::secret::MASK;
use serde_json::Value;

/// Sections of InnoDB's page that hold numbers only.
const SECTIONS: [&str; 9] = [
    "BACKGROUND THREAD",
    "SEMAPHORES",
    "FILE I/O",
    "INSERT BUFFER AND ADAPTIVE HASH INDEX",
    "ADAPTIVE HASH INDEX",
    "LOG",
    "BUFFER POOL AND MEMORY",
    "INDIVIDUAL BUFFER POOL INFO",
    "ROW OPERATIONS",
];
/// Those that quote what was asked, and rows.
const SECRETIVE: [&str; 3] = [
    "TRANSACTIONS",
    "LATEST DETECTED DEADLOCK",
    "LATEST FOREIGN KEY ERROR",
];
/// Most characters of a statement.
const STATEMENT_CHARS_MAX: usize = 200;

/// The beginning of a statement, up to the first text in it: servers show values in place of parameters. What follows a
/// quotation mark is not looked into, since a comment may hold one, too.
pub(crate) fn statement(text: &str) -> String {
    let (shown, is_cut) = match text.find(['\'', '"']) {
        Some(at) => (text.get(..at).unwrap_or_default(), true),
        None => (text, false),
    };
    let mut short: String = shown.chars().take(STATEMENT_CHARS_MAX).collect();
    if short.len() < shown.len() {
        short.push('…');
    } else if is_cut {
        short.push_str(MASK);
    }
    short
}

/// The status page of InnoDB without the sections that quote statements and rows.
pub(crate) fn innodb_status(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let is_rule = |line: &str| line.len() > 2 && line.bytes().all(|byte| byte == b'-');
    let mut out = String::new();
    let mut is_shown = false;
    // Behind the rule that closes a heading, which opens none.
    let mut heading_end = 0;
    for (index, line) in lines.iter().enumerate() {
        let next = |by: usize| lines.get(index + by).copied().unwrap_or_default();
        if index >= heading_end && is_rule(line) && is_rule(next(2)) {
            heading_end = index + 3;
            is_shown = SECTIONS.contains(&next(1));
            if SECRETIVE.contains(&next(1)) {
                let title = next(1);
                out.push_str(&format!(
                    "{line}\n{title} is left out: it quotes statements\n"
                ));
            }
        }
        if is_shown {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The texts of a document, with the passwords of URLs masked.
pub(crate) fn urls(value: &mut Value) {
    match value {
        Value::String(text) => *text = url_passwords(text),
        Value::Array(items) => items.iter_mut().for_each(urls),
        Value::Object(members) => members.values_mut().for_each(urls),
        _ => {}
    }
}

fn url_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(['/', ',', ' ', '?']).unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                out.push_str(MASK);
                out.push('@');
                out.push_str(host);
            }
            None => out.push_str(authority),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_taken_out_of_statements() {
        for (text, expected) in [
            ("SELECT 1 FROM t WHERE a = ?", "SELECT 1 FROM t WHERE a = ?"),
            (
                "INSERT INTO t VALUES ('hunter2', 5)",
                "INSERT INTO t VALUES (********",
            ),
            ("SELECT 1 /* it's */, 'hunter2'", "SELECT 1 /* it********"),
            ("SELECT \"hunter2", "SELECT ********"),
        ] {
            assert_eq!(statement(text), expected);
        }
        assert!(statement(&"x".repeat(500)).chars().count() <= STATEMENT_CHARS_MAX + 1);
    }

    #[test]
    fn rows_are_taken_out_of_the_status_page() {
        let page = "====\n2026 INNODB MONITOR OUTPUT\n====\n\
            ----------\nSEMAPHORES\n----------\nwaits: 5\n\
            ------------\nTRANSACTIONS\n------------\nPurge done for trx's n:o < 5\n\
            UPDATE t SET a = 'hunter2'\n 0: len 7; hex 68756e74657232; asc hunter2;;\n---TRANSACTION 5\n\
            --------\nFILE I/O\n--------\nreads: 7\n";
        let shown = innodb_status(page);
        assert!(
            !shown.contains("hunter2") && !shown.contains("6875"),
            "{shown}"
        );
        for part in ["waits: 5", "reads: 7", "TRANSACTIONS is left out"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn urls_lose_their_passwords() {
        let mut value = json!({
            "a": "rediss://u:hunter2@db:7000/0,redis://:hunter2@b",
            "b": ["http://plain/x", 5, "no@url"],
        });
        urls(&mut value);
        let expected = json!({
            "a": "rediss://********@db:7000/0,redis://********@b",
            "b": ["http://plain/x", 5, "no@url"],
        });
        assert_eq!(value, expected);
    }

    proptest! {
        #[test]
        fn a_quoted_text_never_stays(
            before in "[a-z =(]{0,20}", secret in "[A-Z]{6,12}", after in "[a-z =)']{0,20}",
        ) {
            let shown = statement(&format!("{before}'{secret}'{after}"));
            prop_assert!(!shown.contains(&secret));
            prop_assert!(shown.starts_with(&before));
        }
    }
}
