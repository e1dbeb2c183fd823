//! A comparison as tables for the terminal.

use super::super::report::{Spread, table};
use super::result::{Comparison, Contest, Side, shown};

/// All of it.
pub(super) fn render(comparison: &Comparison) -> String {
    let machine = &comparison.machine;
    let mut parts = vec![machine.lines()];
    let versions: Vec<String> = machine
        .versions
        .iter()
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    parts.push(versions.join("\n"));
    parts.extend(comparison.contests.iter().map(contest));
    parts.extend(comparison.notes.iter().cloned());
    parts.join("\n\n")
}

fn contest(contest: &Contest) -> String {
    let is_held = contest.sides.iter().any(|side| !side.pss_bytes.is_empty());
    let mut header = vec!["server", contest.unit, "min", "max", "ours is (min – max)"];
    if is_held {
        header.push("PSS bytes");
    } else {
        header.extend(["per s", "p50 ms", "p99", "client CPU %", "failed"]);
    }
    let mut rows = table(&header);
    for side in &contest.sides {
        let mut row = cost(side);
        row.extend(if is_held { held(side) } else { load(side) });
        rows.add_row(row);
    }
    format!("{}: {}\n{rows}", contest.name, contest.quantity)
}

fn cost(side: &Side) -> Vec<String> {
    let cost = Spread::of(&side.cost);
    vec![
        side.name.to_owned(),
        format!("{:.1}", cost.median),
        format!("{:.1}", cost.min),
        format!("{:.1}", cost.max),
        side.ratio.map_or_else(String::new, shown),
    ]
}

fn held(side: &Side) -> Vec<String> {
    vec![format!("{:.1}", Spread::of(&side.pss_bytes).median)]
}

fn load(side: &Side) -> Vec<String> {
    let (p50, p99) = side
        .latency_ms
        .map_or((0.0, 0.0), |latency| (latency.p50, latency.p99));
    vec![
        format!("{:.0}", Spread::of(&side.per_s).median),
        format!("{p50:.2}"),
        format!("{p99:.2}"),
        format!("{:.0}", Spread::of(&side.generator_percent).median),
        side.failed().to_string(),
    ]
}
