//! Enough of osquery's SQL to answer the queries that a fleet server hands out.
//!
//! `SELECT columns FROM table [WHERE column op literal AND/OR …]` is evaluated over one template row per table; of a
//! join only the first table is read, unless the query's name says what is wanted. Tables that the template lacks give
//! "no such table", as an agent without them does.

use serde_json::{Map, Value, json};

use crate::host::{Host, Platform};
use crate::verdict::Object;

/// What a query gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Its rows; every value is a string.
    Some(Vec<Object>),
    /// SQLite's message.
    Error(String),
}

/// Runs one distributed query. The name decides for queries whose SQL joins tables.
pub fn run(host: &Host, name: &str, sql: &str) -> Rows {
    let detail = name.strip_prefix("fleet_detail_query_").unwrap_or_default();
    match joined(host, detail) {
        Some(row) => Rows::Some(vec![row]),
        None => select(host, sql),
    }
}

/// Whether a discovery query returns rows; an error discards everything that was handed out.
pub fn discovers(host: &Host, sql: &str) -> Result<bool, String> {
    match select(host, sql) {
        Rows::Some(rows) => Ok(!rows.is_empty()),
        Rows::Error(message) => Err(message),
    }
}

fn joined(host: &Host, detail: &str) -> Option<Object> {
    if detail.starts_with("network_interface") {
        return Some(object(json!({
            "address": host.address(), "mac": host.mac(), "interface": "eth0"
        })));
    }
    if detail.starts_with("disk_space") {
        let percent = 20 + host.number(5) % 60;
        return Some(object(json!({
            "percent_disk_space_available": percent.to_string(),
            "gigs_disk_space_available": (5 * percent).to_string(),
            "gigs_total_disk_space": "500"
        })));
    }
    if detail.starts_with("os_windows")
        || detail == "os_unix_like"
        || detail == "os_version_windows"
    {
        let mut row = object(host.os_version());
        for (column, value) in [
            ("kernel_version", "6.5.0-41-generic"),
            ("display_version", "23H2"),
        ] {
            row.insert(column.to_owned(), value.into());
        }
        return Some(row);
    }
    None
}

/// The template rows of a table; `None` when this platform has no such table.
fn table(host: &Host, name: &str) -> Option<Vec<Object>> {
    let row = match name {
        "os_version" => host.os_version(),
        "osquery_info" => host.osquery_info(),
        "platform_info" => host.platform_info(),
        "system_info" => host.system_info(),
        "time" => json!({"unix_time": "1759253850", "timezone": "UTC"}),
        "kernel_info" => json!({
            "version": "6.5.0-41-generic", "path": "/boot/vmlinuz", "device": "", "arguments": "ro"
        }),
        "uptime" => uptime(host),
        "osquery_flags" => return Some(osquery_flags()),
        "interface_details" | "interface_addresses" | "routes" => json!({
            "interface": "eth0", "address": host.address(), "mac": host.mac(),
            "mask": "255.255.255.0", "type": "6", "destination": "0.0.0.0"
        }),
        "mounts" if host.platform() != Platform::Windows => json!({
            "path": "/", "device": "/dev/sda1", "type": "ext4", "blocks": "131072000",
            "blocks_available": "65536000", "blocks_free": "65536000", "blocks_size": "4096"
        }),
        "logical_drives" if host.platform() == Platform::Windows => json!({
            "device_id": "C:", "file_system": "NTFS", "free_space": "268435456000",
            "size": "536870912000", "type": "Unknown", "boot_partition": "1"
        }),
        "users" => json!({
            "uid": "1000", "gid": "1000", "username": "alex", "directory": "/home/alex",
            "shell": "/bin/bash", "type": "local", "uuid": ""
        }),
        "processes" => json!({
            "pid": "1", "name": "systemd", "path": "/usr/lib/systemd/systemd", "parent": "0",
            "resident_size": "12000000"
        }),
        "deb_packages" if host.platform() == Platform::Linux => json!({
            "name": "openssl", "version": "3.0.2-0ubuntu1.15", "arch": "amd64"
        }),
        "apps" if host.platform() == Platform::MacOs => json!({
            "name": "Safari.app", "bundle_identifier": "com.apple.Safari",
            "bundle_short_version": "17.5", "path": "/Applications/Safari.app"
        }),
        "programs" | "windows_security_center" if host.platform() == Platform::Windows => json!({
            "name": "7-Zip", "version": "23.01", "publisher": "Igor Pavlov", "antivirus": "Good"
        }),
        "file" | "carves" | "yara_events" => return Some(Vec::new()),
        _ => return None,
    };
    Some(vec![object(row)])
}

fn uptime(host: &Host) -> Value {
    let seconds = 3600 + host.number(6) % 8_000_000;
    json!({
        "days": (seconds / 86_400).to_string(), "hours": (seconds / 3600 % 24).to_string(),
        "minutes": (seconds / 60 % 60).to_string(), "seconds": (seconds % 60).to_string(),
        "total_seconds": seconds.to_string()
    })
}

fn osquery_flags() -> Vec<Object> {
    [
        ("distributed_interval", "10"),
        ("config_tls_refresh", "60"),
        ("config_refresh", "60"),
        ("logger_tls_period", "10"),
    ]
    .into_iter()
    .map(|(name, value)| {
        object(json!({
            "name": name, "value": value, "type": "uint64", "default_value": "0",
            "description": "", "shell_only": "0"
        }))
    })
    .collect()
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// One `SELECT`.
fn select(host: &Host, sql: &str) -> Rows {
    let tokens = tokens(sql);
    let lower: Vec<String> = tokens.iter().map(|token| token.to_lowercase()).collect();
    if lower.first().map(String::as_str) != Some("select") {
        return Rows::Error(format!("near \"{}\": syntax error", first_word(sql)));
    }
    let Some(from) = lower.iter().position(|token| token == "from") else {
        // `SELECT 1`
        let column = tokens.get(1).map_or("1", String::as_str);
        return Rows::Some(vec![object(json!({ column: unquoted(column) }))]);
    };
    let name = lower.get(from + 1).map_or("", String::as_str);
    if name == "osquery_registry" {
        return registry(host, &tokens);
    }
    let Some(rows) = table(host, name) else {
        return Rows::Error(format!("no such table: {name}"));
    };
    let condition = lower
        .iter()
        .position(|token| token == "where")
        .and_then(|at| tokens.get(at + 1..))
        .unwrap_or_default();
    let columns = columns(tokens.get(1..from).unwrap_or_default());
    let rows: Vec<Object> = rows
        .into_iter()
        .filter(|row| holds(row, condition))
        .map(|row| project(row, &columns))
        .collect();
    Rows::Some(rows)
}

/// `SELECT 1 FROM osquery_registry WHERE … name = 'x'`: the usual discovery of an optional table.
fn registry(host: &Host, tokens: &[String]) -> Rows {
    let asked = tokens
        .windows(3)
        .find_map(|window| match window {
            [column, op, literal] if column.eq_ignore_ascii_case("name") && op.starts_with('=') => {
                Some(unquoted(literal).to_lowercase())
            }
            _ => None,
        })
        .unwrap_or_default();
    let is_there = table(host, &asked).is_some();
    let row = object(json!({"1": "1", "name": asked}));
    Rows::Some(if is_there { vec![row] } else { Vec::new() })
}

/// `(column, alias)` pairs; empty for everything.
fn columns(tokens: &[String]) -> Vec<(String, String)> {
    let mut columns = Vec::new();
    for part in tokens.split(|token| token == ",") {
        match part {
            [column] => columns.push((bare(column), bare(column))),
            [column, alias] => columns.push((bare(column), bare(alias))),
            [column, word, alias] if word.eq_ignore_ascii_case("as") => {
                columns.push((bare(column), bare(alias)));
            }
            // Functions and expressions: the whole row must do.
            _ => return Vec::new(),
        }
    }
    if columns.iter().any(|(column, _)| column == "*") {
        columns.clear();
    }
    columns
}

fn project(mut row: Object, columns: &[(String, String)]) -> Object {
    if columns.is_empty() {
        return row;
    }
    columns
        .iter()
        .map(|(column, alias)| {
            let is_literal = column.starts_with(|c: char| c.is_ascii_digit() || c == '\'');
            let value = if is_literal {
                unquoted(column).into()
            } else {
                row.get_mut(column).map_or("".into(), Value::take)
            };
            (alias.clone(), value)
        })
        .collect()
}

/// `AND` binds tighter than `OR`; what is not `column op literal` is taken as true.
fn holds(row: &Object, condition: &[String]) -> bool {
    let end = condition
        .iter()
        .position(|token| ["order", "group", "limit", ";"].contains(&token.to_lowercase().as_str()))
        .unwrap_or(condition.len());
    let condition = condition.get(..end).unwrap_or_default();
    condition.is_empty()
        || condition
            .split(|token| token.eq_ignore_ascii_case("or"))
            .any(|alternative| {
                alternative
                    .split(|token| token.eq_ignore_ascii_case("and"))
                    .all(|term| term_holds(row, term))
            })
}

fn term_holds(row: &Object, term: &[String]) -> bool {
    let term: Vec<&str> = term
        .iter()
        .map(String::as_str)
        .filter(|token| !matches!(*token, "(" | ")"))
        .collect();
    let [column, op, literal] = term.as_slice() else {
        return true;
    };
    let literal = unquoted(literal);
    let column = bare(column);
    let is_literal = column.starts_with(|c: char| c.is_ascii_digit());
    let value = if is_literal {
        column.as_str()
    } else {
        row.get(&column).and_then(Value::as_str).unwrap_or_default()
    };
    let order = match (value.parse::<f64>(), literal.parse::<f64>()) {
        (Ok(value), Ok(literal)) => value.partial_cmp(&literal),
        _ => Some(value.cmp(literal)),
    };
    match op.to_lowercase().as_str() {
        "=" | "==" | "is" => value == literal,
        "!=" | "<>" => value != literal,
        ">" => order.is_some_and(std::cmp::Ordering::is_gt),
        ">=" => order.is_some_and(std::cmp::Ordering::is_ge),
        "<" => order.is_some_and(std::cmp::Ordering::is_lt),
        "<=" => order.is_some_and(std::cmp::Ordering::is_le),
        "like" => like(value, literal),
        _ => true,
    }
}

/// `%` at the ends only, which is how labels use it.
fn like(value: &str, pattern: &str) -> bool {
    let (value, pattern) = (value.to_lowercase(), pattern.to_lowercase());
    let core = pattern.trim_matches('%');
    match (pattern.starts_with('%'), pattern.ends_with('%')) {
        (true, true) => value.contains(core),
        (true, false) => value.ends_with(core),
        (false, true) => value.starts_with(core),
        (false, false) => value == core,
    }
}

/// Column without table and quotes, in lower case.
fn bare(column: &str) -> String {
    if column.starts_with('\'') {
        return column.to_owned();
    }
    let column = column.rsplit('.').next().unwrap_or(column);
    column.trim_matches(['"', '`']).to_lowercase()
}

fn unquoted(literal: &str) -> &str {
    literal.trim_matches(['\'', '"'])
}

fn first_word(sql: &str) -> &str {
    sql.split_whitespace().next().unwrap_or_default()
}

/// Words, quoted literals, operators.
fn tokens(sql: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = sql.trim().trim_end_matches(';').trim_end();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            c if c.is_whitespace() => {
                rest = rest.trim_start();
                continue;
            }
            '\'' | '"' => rest
                .get(1..)
                .and_then(|tail| tail.find(first))
                .map_or(rest.len(), |end| end + 2),
            '=' | '!' | '<' | '>' => {
                let is_op = |c: char| matches!(c, '=' | '!' | '<' | '>');
                rest.find(|c: char| !is_op(c)).unwrap_or(rest.len())
            }
            ',' | '(' | ')' | ';' => 1,
            _ => rest
                .find(|c: char| c.is_whitespace() || ",()=!<>;'\"".contains(c))
                .unwrap_or(rest.len()),
        };
        let (token, tail) = rest.split_at(length.max(first.len_utf8()));
        tokens.push(token.to_owned());
        rest = tail;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux() -> Host {
        Host::new(1, 1).with_platform(Platform::Linux)
    }

    fn rows(sql: &str) -> Vec<Object> {
        match run(&linux(), "x", sql) {
            Rows::Some(rows) => rows,
            Rows::Error(message) => panic!("{sql}: {message}"),
        }
    }

    #[test]
    fn columns_and_conditions_are_honoured() {
        let all = rows("SELECT * FROM os_version LIMIT 1;");
        assert_eq!(all[0]["platform"], "ubuntu");
        let some = rows("select os.name as n, version FROM os_version os WHERE major >= 22");
        assert_eq!(some[0].len(), 2);
        assert_eq!(some[0]["n"], "Ubuntu");
        assert!(rows("SELECT 1 FROM os_version WHERE platform = 'darwin'").is_empty());
        let label =
            "SELECT 1 FROM os_version WHERE platform='rhel' OR platform_like LIKE '%debian%'";
        assert_eq!(rows(label).len(), 1);
        assert!(rows("SELECT 1 FROM osquery_info WHERE version < '5'").is_empty());
        assert_eq!(rows("SELECT 1")[0]["1"], "1");
    }

    #[test]
    fn missing_tables_fail_and_are_not_discovered() {
        let Rows::Error(message) = run(&linux(), "x", "SELECT * FROM nope") else {
            panic!("rows from nowhere");
        };
        assert_eq!(message, "no such table: nope");
        let registry = |name: &str| {
            format!("SELECT 1 FROM osquery_registry WHERE active = true AND name = '{name}'")
        };
        assert_eq!(discovers(&linux(), &registry("mounts")), Ok(true));
        assert_eq!(discovers(&linux(), &registry("logical_drives")), Ok(false));
        assert!(discovers(&linux(), "DROP TABLE x").is_err());
    }

    #[test]
    fn joins_are_answered_by_name() {
        let join = "SELECT a.address, b.mac FROM interface_addresses a JOIN interface_details b";
        let Rows::Some(rows) = run(&linux(), "fleet_detail_query_network_interface_unix", join)
        else {
            panic!("no rows");
        };
        assert_eq!(rows[0]["address"], "10.0.0.1");
    }

    #[test]
    fn odd_sql_never_panics() {
        for sql in [
            "",
            ";",
            "SELECT",
            "select from",
            "SELECT 'é FROM x",
            "sélect * from é",
            "SELECT * FROM",
        ] {
            let _ = run(&linux(), "x", sql);
        }
    }
}
