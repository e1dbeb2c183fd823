//! `ctl get addresses`

use serde_json::Value;

use super::table::{Column, render, text};

/// The table and, below it, what the gateway as a whole is worth to a balancer.
pub(super) fn render_list(body: &Value) -> String {
    let addresses = body.get("addresses").and_then(Value::as_array);
    let addresses = addresses.map(Vec::as_slice).unwrap_or_default();
    let weight = body
        .get("weight")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    let is_draining = body.get("draining").and_then(Value::as_bool) == Some(true);
    let summary = if is_draining {
        "draining\n".to_owned()
    } else {
        format!("weight {weight} %\n")
    };
    if addresses.is_empty() {
        return format!("no addresses\n{summary}");
    }
    let columns = [
        Column::Text("ADDRESS"),
        Column::Text("STATE"),
        Column::Number("OPEN"),
        Column::Number("ACCEPTS/S"),
        Column::Number("SHARE"),
        Column::Number("ACCEPTED"),
        Column::Number("REFUSED"),
        Column::Elastic("NOTES"),
    ];
    let rows = addresses.iter().map(row).collect();
    render(&columns, rows) + "\n" + &summary
}

fn row(address: &Value) -> Vec<String> {
    let number = |name: &str| {
        let value = address.get(name).and_then(Value::as_f64);
        value.unwrap_or_default()
    };
    let is = |name: &str| address.get(name).and_then(Value::as_bool) == Some(true);
    let reason = text(address, "reason");
    let notes: Vec<&str> = [
        (is("claimed"), "claimed"),
        (is("proxy_protocol"), "PROXY v2"),
        (!reason.is_empty(), reason.as_str()),
    ]
    .into_iter()
    .filter_map(|(holds, note)| holds.then_some(note))
    .collect();
    vec![
        text(address, "address"),
        text(address, "state"),
        text(address, "open"),
        format!("{:.1}", number("accepts_per_s")),
        format!("{:.0} %", 100.0 * number("share")),
        text(address, "accepted"),
        text(address, "refused"),
        notes.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_for_each_address() {
        let body = json!({
            "addresses": [
                {"address": "192.0.2.1:8080", "state": "serving", "reason": "", "claimed": true,
                 "proxy_protocol": true, "open": 12, "accepted": 3456, "accepts_per_s": 7.25, "refused": 2, "share": 0.5},
                {"address": "192.0.2.2:8080", "state": "degraded", "reason": "gone", "claimed": false,
                 "proxy_protocol": false, "open": 0, "accepted": 0, "accepts_per_s": 0.0, "refused": 0, "share": 0.0}
            ],
            "draining": false,
            "weight": 75
        });
        let text = render_list(&body);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "192.0.2.1:8080",
                "serving",
                "12",
                "7.2",
                "50",
                "%",
                "3456",
                "2",
                "claimed,",
                "PROXY",
                "v2"
            ]
        );
        assert_eq!(lines[2].last(), Some(&"gone"));
        assert_eq!(lines[4], ["weight", "75", "%"]);
        let empty = render_list(&json!({"addresses": [], "draining": true, "weight": 0}));
        assert_eq!(empty, "no addresses\ndraining\n");
    }
}
