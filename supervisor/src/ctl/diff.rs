//! What applying would change, as a unified diff of YAML documents. Pure.

use std::fmt::Write as _;

use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::{document, yaml};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[36m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";

/// Lines around a change.
const CONTEXT_LINES: usize = 3;

/// The server's `changes` as text; `None` when there are none.
pub(super) fn render(changes: &[Value], has_colour: bool) -> Option<String> {
    let mut text = String::new();
    for change in changes {
        let action = change.get("action").and_then(Value::as_str);
        if action != Some("none") {
            one(&mut text, change, has_colour);
        }
    }
    (!text.is_empty()).then_some(text)
}

fn one(text: &mut String, change: &Value, has_colour: bool) {
    let member = |name: &str| change.get(name).cloned().unwrap_or_default();
    let kind = member("kind").as_str().unwrap_or_default().to_owned();
    let name = member("name").as_str().unwrap_or_default().to_owned();
    let title = if name.is_empty() {
        kind.clone()
    } else {
        format!("{kind} {name:?}")
    };
    let print = |spec: Value| match spec {
        Value::Null => String::new(),
        spec => yaml::print(&document::tidy(&kind, spec)),
    };
    let (before, after) = (print(member("before")), print(member("after")));
    let old = if before.is_empty() {
        "(none)".to_owned()
    } else {
        format!("{title} now")
    };
    paint(text, has_colour, BOLD, &format!("--- {old}\n"));
    paint(
        text,
        has_colour,
        BOLD,
        &format!("+++ {title} after apply\n"),
    );
    let diff = TextDiff::from_lines(before.as_str(), after.as_str());
    let mut unified = diff.unified_diff();
    for hunk in unified.context_radius(CONTEXT_LINES).iter_hunks() {
        paint(text, has_colour, CYAN, &format!("{}\n", hunk.header()));
        for line in hunk.iter_changes() {
            let (sign, colour) = match line.tag() {
                ChangeTag::Delete => ('-', RED),
                ChangeTag::Insert => ('+', GREEN),
                ChangeTag::Equal => (' ', ""),
            };
            paint(text, has_colour, colour, &format!("{sign}{}", line.value()));
        }
    }
}

fn paint(text: &mut String, has_colour: bool, colour: &str, line: &str) {
    if has_colour && !colour.is_empty() {
        let _ = writeln!(text, "{colour}{}{RESET}", line.trim_end_matches('\n'));
    } else {
        text.push_str(line);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changes() -> Vec<Value> {
        vec![
            json!({"kind": "query", "name": "same", "action": "none", "before": {"a": 1}, "after": {"a": 1}}),
            json!({
                "kind": "query", "name": "up", "action": "replace",
                "before": {"name": "up", "query": "SELECT 1", "interval": 60},
                "after": {"name": "up", "query": "SELECT 1", "interval": 90},
            }),
            json!({
                "kind": "label", "name": "new", "action": "create", "before": null,
                "after": {"name": "new"},
            }),
        ]
    }

    #[test]
    fn changed_lines_are_marked() {
        assert_eq!(
            render(&changes(), false).unwrap(),
            "--- query \"up\" now\n\
             +++ query \"up\" after apply\n\
             @@ -3,4 +3,4 @@\n \
             spec:\n   name: up\n   query: SELECT 1\n-  interval: 60\n+  interval: 90\n\
             --- (none)\n\
             +++ label \"new\" after apply\n\
             @@ -0,0 +1,4 @@\n\
             +apiVersion: v1\n+kind: label\n+spec:\n+  name: new\n"
        );
    }

    #[test]
    fn no_change_is_no_text() {
        assert_eq!(render(&changes()[..1], true), None);
        assert_eq!(render(&[], true), None);
    }

    #[test]
    fn colours_stay_on_their_line() {
        let text = render(&changes(), true).unwrap();
        assert!(text.contains("\x1b[31m-  interval: 60\x1b[0m\n\x1b[32m+  interval: 90\x1b[0m\n"));
        assert_eq!(text.matches("\x1b[").count() % 2, 0);
    }
}
