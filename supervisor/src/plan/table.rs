//! Common sizes beside Fleet's reference architectures.

use comfy_table::{CellAlignment, Table, presets};
use fleet_sysctl::capacity::{Plan, REFERENCE_SIZES, ReferenceSize};
use serde_json::json;

use super::{Options, page};
use crate::exit::Failure;

/// Lines of a plan that the table shows, and how it calls them.
const COLUMNS: [(&str, &str); 4] = [
    ("all requests = TLS handshakes", "REQUESTS"),
    ("cores to have", "CORES"),
    ("memory to have", "MEMORY"),
    ("statements", "STORE"),
];

/// The table, or its rows as JSON.
pub(super) fn text(options: &Options) -> Result<String, Failure> {
    let rows = REFERENCE_SIZES
        .iter()
        .map(|size| options.plan(size.hosts).map(|plan| (size, plan)))
        .collect::<Result<Vec<_>, _>>()?;
    if options.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(size, plan)| json!({"fleet": size, "plan": plan}))
            .collect();
        return super::pretty(&json!(rows));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let header = ["HOSTS"]
        .into_iter()
        .chain(COLUMNS.map(|(_, heading)| heading))
        .chain(["FLEET: SERVERS", "DATABASE", "REDIS"]);
    table.set_header(header);
    for (size, plan) in &rows {
        table.add_row(row(size, plan));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for column in table.column_iter_mut().take(1 + COLUMNS.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let table: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    Ok(format!(
        "Profile {}. Left: this gateway, a TLS handshake for each request (traced by `plan --hosts N`).\n\n{}\n\n{NOTE}",
        options.interval_profile.name(),
        table.join("\n")
    ))
}

fn row(size: &ReferenceSize, plan: &Plan) -> Vec<String> {
    let mut cells = vec![page::count(size.hosts)];
    cells.extend(COLUMNS.map(|(name, _)| {
        plan.line(name)
            .map_or_else(String::new, |line| page::shown(line, plan.advised(line)))
    }));
    if size.servers.is_empty() {
        cells.push("none published".to_owned());
    } else {
        cells.extend([size.servers, size.database, size.redis].map(str::to_owned));
    }
    cells
}

/// What must be known to compare.
const NOTE: &str = "\
Right: Fleet's reference architectures on AWS; in brackets how many of a kind their newer edition
has. A db.r6g.16xlarge has 64 vCPU. They end TLS at a load balancer, which is not in the table, and
do more than this gateway (device management, vulnerabilities). For 1,000,000 hosts Fleet publishes
none.
";
