//! Request bodies, members in the order in which osquery writes them. Pure.

use std::io::Write as _;

use base64::Engine as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use fleet_protocol::agent::LogType;
use serde_json::{Map, Value, json};

use crate::host::Host;
use crate::tables::Rows;
use crate::verdict::Object;

/// The finished result of one distributed query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryOutcome {
    /// Name under which it was handed out.
    pub name: String,
    /// What it gave.
    pub rows: Rows,
}

/// `{"node_key":…}`: config and read.
pub fn key_only(node_key: &str) -> Vec<u8> {
    let mut body = b"{\"node_key\":".to_vec();
    push_string(&mut body, node_key);
    body.push(b'}');
    body
}

/// Enroll.
pub fn enroll(host: &Host, secret: &str) -> Vec<u8> {
    let body = json!({
        "enroll_secret": secret,
        "host_identifier": host.uuid(),
        "platform_type": host.platform().mask(),
        "host_details": host.details(),
    });
    body.to_string().into_bytes()
}

/// Distributed write: results of all finished queries, one body.
pub fn write(node_key: &str, outcomes: &[QueryOutcome], has_stats: bool) -> Vec<u8> {
    let (mut queries, mut statuses) = (Map::new(), Map::new());
    let (mut messages, mut stats) = (Map::new(), Map::new());
    for outcome in outcomes {
        let (rows, status, message) = match &outcome.rows {
            Rows::Some(rows) => {
                let rows = rows.iter().cloned().map(Value::Object).collect();
                (rows, 0, "")
            }
            Rows::Error(message) => (Vec::new(), 1, message.as_str()),
        };
        queries.insert(outcome.name.clone(), Value::Array(rows));
        statuses.insert(outcome.name.clone(), status.into());
        messages.insert(outcome.name.clone(), message.into());
        let cost = json!({"wall_time_ms": 3, "user_time": 2, "system_time": 1, "memory": 4096});
        stats.insert(outcome.name.clone(), cost);
    }
    let mut body = Object::new();
    body.insert("queries".into(), queries.into());
    body.insert("statuses".into(), statuses.into());
    body.insert("messages".into(), messages.into());
    if has_stats {
        body.insert("stats".into(), stats.into());
    }
    body.insert("node_key".into(), node_key.into());
    Value::Object(body).to_string().into_bytes()
}

/// Log without compression: the key stands last.
pub fn log(node_key: &str, log_type: LogType, lines: &[&[u8]]) -> Vec<u8> {
    let mut body = b"{\"data\":".to_vec();
    push_lines(&mut body, lines);
    body.extend_from_slice(b",\"log_type\":");
    push_string(&mut body, log_type.label());
    body.extend_from_slice(b",\"node_key\":");
    push_string(&mut body, node_key);
    body.push(b'}');
    body
}

/// Log with compression: the key stands first.
pub fn log_gzip(node_key: &str, log_type: LogType, lines: &[&[u8]]) -> Vec<u8> {
    let mut body = b"{\"node_key\":".to_vec();
    push_string(&mut body, node_key);
    body.extend_from_slice(b",\"log_type\":");
    push_string(&mut body, log_type.label());
    body.extend_from_slice(b",\"data\":");
    push_lines(&mut body, lines);
    body.push(b'}');
    gzip(&body)
}

/// Start of a carve.
pub fn carve_begin(node_key: &str, carve: &CarveNames, size: usize, block_size: usize) -> Vec<u8> {
    let body = json!({
        "block_count": size.div_ceil(block_size),
        "block_size": block_size,
        "carve_size": size,
        "carve_id": carve.carve_id,
        "request_id": carve.request_id,
        "node_key": node_key,
    });
    body.to_string().into_bytes()
}

/// The agent's names of a carve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarveNames {
    /// A UUID.
    pub carve_id: String,
    /// Another; repeated in each block.
    pub request_id: String,
}

/// One block of a carve; it holds no node key.
pub fn carve_block(session_id: &str, request_id: &str, block_id: usize, data: &[u8]) -> Vec<u8> {
    let body = json!({
        "block_id": block_id,
        "session_id": session_id,
        "request_id": request_id,
        "data": base64::engine::general_purpose::STANDARD.encode(data),
    });
    body.to_string().into_bytes()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::fast());
    // Writing to a Vec cannot fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default()
}

fn push_lines(body: &mut Vec<u8>, lines: &[&[u8]]) {
    body.reserve(lines.iter().map(|line| line.len() + 1).sum::<usize>() + 128);
    body.push(b'[');
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(line);
    }
    body.push(b']');
}

fn push_string(body: &mut Vec<u8>, text: &str) {
    body.extend_from_slice(Value::from(text).to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_key_is_last_without_and_first_with_compression() {
        let lines: [&[u8]; 2] = [br#"{"a":1}"#, b"{\"b\":\"\xff\"}"];
        assert_eq!(
            log("abc", LogType::Result, &lines),
            b"{\"data\":[{\"a\":1},{\"b\":\"\xff\"}],\"log_type\":\"result\",\"node_key\":\"abc\"}"
        );
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(log_gzip("abc", LogType::Status, &[]).as_slice())
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(
            plain,
            br#"{"node_key":"abc","log_type":"status","data":[]}"#
        );
        assert_eq!(key_only("a\"b"), br#"{"node_key":"a\"b"}"#);
    }

    #[test]
    fn writes_keep_the_order_of_members() {
        let row = Object::from_iter([("version".to_owned(), "5.23.1".into())]);
        let outcomes = [
            QueryOutcome {
                name: "c17-412".into(),
                rows: Rows::Some(vec![row]),
            },
            QueryOutcome {
                name: "bad".into(),
                rows: Rows::Error("no such table: nope".into()),
            },
        ];
        let body = String::from_utf8(write("abc", &outcomes, false)).unwrap();
        assert_eq!(
            body,
            r#"{"queries":{"c17-412":[{"version":"5.23.1"}],"bad":[]},"statuses":{"c17-412":0,"bad":1},"messages":{"c17-412":"","bad":"no such table: nope"},"node_key":"abc"}"#
        );
        assert!(
            String::from_utf8(write("abc", &outcomes, true))
                .unwrap()
                .contains("wall_time_ms")
        );
    }

    #[test]
    fn enrolments_have_a_realistic_size() {
        let body = enroll(&Host::new(1, 1), "s3cr3t");
        assert!((1300..2200).contains(&body.len()), "{}", body.len());
        assert!(body.starts_with(br#"{"enroll_secret":"s3cr3t","host_identifier":""#));
    }

    #[test]
    fn blocks_hold_no_key() {
        let block = String::from_utf8(carve_block("s", "r", 3, b"abc")).unwrap();
        assert_eq!(
            block,
            r#"{"block_id":3,"session_id":"s","request_id":"r","data":"YWJj"}"#
        );
    }
}
