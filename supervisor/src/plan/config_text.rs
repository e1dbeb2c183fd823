//! The configuration that a plan advises, as YAML that `--config` takes.

use std::fmt::Write as _;

use fleet_sysctl::capacity::Plan;

/// First address of the example network of RFC 5737.
const FIRST_HOST: u64 = 10;
/// As many of its addresses as the text may name.
const ADDRESSES_MAX: u64 = 200;

/// The text.
pub(super) fn of(plan: &Plan) -> String {
    let advice = &plan.advice;
    let mut out = format!(
        "# Configuration for {}; addresses are examples. Check: config check --config FILE\n",
        match advice.machines {
            1 => "this size".to_owned(),
            machines => format!("each of {machines} machines"),
        }
    );
    out.push_str("server:\n");
    let addresses = advice.addresses.min(ADDRESSES_MAX);
    if addresses > 1 {
        let last = FIRST_HOST + addresses - 1;
        let _ = writeln!(
            out,
            "  address: 192.0.2.{FIRST_HOST}-192.0.2.{last}:8080  # behind one balancer address; one is enough without"
        );
    } else {
        out.push_str("  address: 0.0.0.0:8080\n");
    }
    let _ = writeln!(
        out,
        "  connections_per_worker_max: {}",
        advice.connections_per_worker
    );
    let _ = writeln!(out, "workers: {{count: {}}}", advice.workers);
    if !plan.demand.is_holding_reads {
        out.push_str("osquery: {distributed_hold: 0s}\n");
    }
    let _ = writeln!(out, "tune: {{hosts: {}}}", advice.hosts);
    if advice.has_stores {
        out.push_str(
            "mysql: {address: \"db.example.com:3306\", database: fleet, username: fleet}\n",
        );
        out.push_str("redis: {address: \"redis.example.com:6379\"}\n");
    }
    out
}
