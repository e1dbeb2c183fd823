//! One host, for people. Pure.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::Value;

use super::table::{age, bytes, span, text};

/// Lines of `name  value`; what is not known is left out.
pub(super) fn render(host: &Value, now: SystemTime) -> String {
    let number = |name: &str| host.get(name).and_then(Value::as_u64).unwrap_or_default();
    let mut lines = Lines::default();
    let seen = age(host.get("seen_time"), now);
    lines.add(
        "status",
        &[&text(host, "status"), &format!("heard of {seen}")],
    );
    lines.add("id", &[&text(host, "id")]);
    lines.add("identifier", &[&text(host, "osquery_host_id")]);
    let clones: Vec<String> = host
        .get("clones")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(Value::to_string)
        .collect();
    lines.add(
        "clones",
        &[&labelled("same identifier: ", &clones.join(", "))],
    );
    lines.add("uuid", &[&text(host, "uuid")]);
    lines.add("os", &[&text(host, "os_version"), &text(host, "platform")]);
    lines.add("osquery", &[&text(host, "osquery_version")]);
    let model = format!(
        "{} {}",
        text(host, "hardware_vendor"),
        text(host, "hardware_model")
    );
    let serial = labelled("serial ", &text(host, "hardware_serial"));
    lines.add("hardware", &[model.trim(), &serial]);
    let cores = match (number("cpu_physical_cores"), number("cpu_logical_cores")) {
        (_, 0) => String::new(),
        (0, threads) => format!("{threads} threads"),
        (cores, threads) => format!("{cores} cores, {threads} threads"),
    };
    lines.add("cpu", &[&text(host, "cpu_brand"), &cores]);
    if number("memory") > 0 {
        lines.add("memory", &[&bytes(number("memory"))]);
    }
    if number("disk_space_total") > 0 {
        let free = bytes(number("disk_space_free"));
        lines.add(
            "disk",
            &[&format!(
                "{free} of {} free",
                bytes(number("disk_space_total"))
            )],
        );
    }
    let mac = text(host, "primary_mac");
    let heard_from = labelled("heard from ", &text(host, "public_ip"));
    lines.add("address", &[&text(host, "primary_ip"), &mac, &heard_from]);
    if number("uptime") > 0 {
        lines.add("uptime", &[&span(number("uptime") / 1_000_000_000)]);
    }
    lines.add("enrolled", &[&age(host.get("last_enrolled_at"), now)]);
    lines.add("details", &[&age(host.get("detail_updated_at"), now)]);
    let labels: Vec<String> = host
        .get("labels")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|label| text(label, "name"))
        .collect();
    lines.add("labels", &[&labels.join(", ")]);
    let name = [text(host, "hostname"), text(host, "display_name")]
        .into_iter()
        .find(|name| !name.is_empty());
    format!("{}\n{}", name.unwrap_or_default(), lines.0)
}

fn labelled(label: &str, text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("{label}{text}")
    }
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, parts: &[&str]) {
        let parts: Vec<_> = parts
            .iter()
            .copied()
            .filter(|part| !part.is_empty())
            .collect();
        if !parts.is_empty() {
            let _ = writeln!(self.0, "  {name:<11} {}", parts.join(", "));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let host = json!({
            "id": 7, "hostname": "web-1", "osquery_host_id": "u-1", "status": "online",
            "seen_time": "2026-01-01T00:00:00Z", "last_enrolled_at": "2026-01-01T00:00:00Z",
            "detail_updated_at": "2000-01-01T00:00:00Z", "memory": 0, "labels": [{"id": 1, "name": "All Hosts"}],
        });
        let now = humantime::parse_rfc3339("2026-01-01T00:00:05Z").unwrap();
        assert_eq!(
            render(&host, now),
            "web-1\n  \
             status      online, heard of 5 s ago\n  \
             id          7\n  \
             identifier  u-1\n  \
             enrolled    5 s ago\n  \
             details     never\n  \
             labels      All Hosts\n"
        );
    }
}
