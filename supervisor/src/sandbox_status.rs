//! How processes are confined, in `status`: one line when all are the same. Pure.

use fleet_protocol::sandbox::SandboxView;

/// Lines below the tables; nothing while no process has said anything.
pub(crate) fn text(views: &[SandboxView]) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for view in views {
        let sandbox = &view.sandbox;
        let mut what = format!("{}, uid {}", sandbox.level.label(), sandbox.uid);
        for lack in &sandbox.lacks {
            what += "; ";
            what += lack;
        }
        let kind = match view.process.split_once(' ') {
            Some((kind, _)) => kind,
            None => &view.process,
        };
        match groups.iter_mut().find(|(of, _)| *of == what) {
            Some((_, kinds)) if kinds.contains(&kind) => {}
            Some((_, kinds)) => kinds.push(kind),
            None => groups.push((what, vec![kind])),
        }
    }
    let line =
        |(what, kinds): &(String, Vec<&str>)| format!("\nsandbox ({}): {what}", kinds.join(", "));
    let lines: String = groups.iter().map(line).collect();
    if lines.is_empty() {
        return lines;
    }
    lines + "\n"
}

#[cfg(test)]
mod tests {
    use fleet_protocol::sandbox::{Level, Sandbox};

    use super::*;

    #[test]
    fn processes_that_are_alike_share_a_line() {
        let view = |process: &str, level, uid, lacks: &[&str]| SandboxView {
            process: process.into(),
            sandbox: Sandbox {
                level,
                uid,
                lacks: lacks.iter().map(ToString::to_string).collect(),
            },
        };
        assert_eq!(text(&[]), "");
        let views = [
            view("control", Level::Partial, 0, &["this", "that"]),
            view("worker 0", Level::Full, 99, &[]),
            view("worker 1", Level::Full, 99, &[]),
        ];
        assert_eq!(
            text(&views),
            "\nsandbox (control): partial, uid 0; this; that\nsandbox (worker): full, uid 99\n"
        );
    }
}
