//! Log bodies: the `data` array cut into lines in the one pass that also finds the other members.

use std::borrow::Cow;

use bytes::Bytes;
use fleet_protocol::agent::LogType;
use fleet_protocol::reject::Reject;

use crate::scan::{self, Kind, Malformed, Scanner, Value};

/// A parsed log body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogBody<'a> {
    /// `""` when absent.
    pub(crate) node_key: Cow<'a, str>,
    pub(crate) lines: Lines,
}

/// What is to be stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lines {
    pub(crate) log_type: LogType,
    /// One JSON value a line, each ended by a line break.
    pub(crate) bytes: Bytes,
    pub(crate) count: u32,
}

/// Parses a log body whose lines may take `bytes_max`. Members come in any order, the last of two alike counts.
pub(crate) fn parse(text: &str, bytes_max: usize) -> Result<LogBody<'_>, Reject> {
    let mut scanner = Scanner::new(text);
    let mut node_key = Cow::Borrowed("");
    let mut log_type = None;
    let mut lines = None;
    let malformed = |_: Malformed| Reject::BodyMalformed;
    let mut items = scanner.open(b'{').map_err(malformed)?;
    while scanner.has_next(&mut items).map_err(malformed)? {
        let key = scanner.key().map_err(malformed)?;
        if key == "data" && scanner.peek() == Some(b'[') {
            lines = Some(Cutter::cut(&mut scanner, text.len(), bytes_max)?);
            continue;
        }
        let value = scanner.value().map_err(malformed)?;
        match key.as_ref() {
            "node_key" => node_key = value.as_str().unwrap_or_default(),
            "log_type" => log_type = value.as_str(),
            "data" => lines = is_nothing(&value).then(|| Cutter::new(0, 0)),
            _ => {}
        }
    }
    scanner.end().map_err(malformed)?;
    let cutter = lines.ok_or(Reject::BodyMalformed)?;
    let log_type = LogType::ALL
        .into_iter()
        .find(|known| Some(known.label()) == log_type.as_deref())
        .ok_or(Reject::BodyMalformed)?;
    Ok(LogBody {
        node_key,
        lines: Lines {
            log_type,
            bytes: cutter.bytes.into(),
            count: cutter.count,
        },
    })
}

/// Old agents put `""` or null where there is nothing.
fn is_nothing(value: &Value<'_>) -> bool {
    value.kind() == Kind::Null || value.raw == r#""""#
}

struct Cutter {
    bytes: Vec<u8>,
    bytes_max: usize,
    count: u32,
}

impl Cutter {
    fn new(capacity: usize, bytes_max: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
            bytes_max,
            count: 0,
        }
    }

    fn cut(scanner: &mut Scanner<'_>, text_bytes: usize, bytes_max: usize) -> Result<Self, Reject> {
        // A line ends with one byte where the array had a comma or bracket, so most bodies never outgrow this.
        let mut cutter = Self::new(text_bytes.min(bytes_max), bytes_max);
        let malformed = |_: Malformed| Reject::BodyMalformed;
        let mut items = scanner.open(b'[').map_err(malformed)?;
        while scanner.has_next(&mut items).map_err(malformed)? {
            let value = scanner.value().map_err(malformed)?;
            cutter.push(&value)?;
        }
        Ok(cutter)
    }

    fn push(&mut self, value: &Value<'_>) -> Result<(), Reject> {
        // Old agents send each line as a string that holds the object.
        let content = value.as_str();
        let inner = content.as_deref().and_then(|text| scan::whole(text).ok());
        match inner.filter(|inner| inner.kind() == Kind::Object) {
            Some(object) => object.append_line(&mut self.bytes),
            None => value.append_line(&mut self.bytes),
        }
        self.bytes.push(b'\n');
        self.count = self.count.checked_add(1).ok_or(Reject::BodyTooLarge)?;
        if self.bytes.len() > self.bytes_max {
            return Err(Reject::BodyTooLarge);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> (String, u32) {
        let body = parse(text, 1 << 20).unwrap();
        let bytes = body.lines.bytes.to_vec();
        (String::from_utf8(bytes).unwrap(), body.lines.count)
    }

    #[test]
    fn members_come_in_any_order() {
        for text in [
            r#"{"data":[{"a":1},{"b":"2"}],"log_type":"result","node_key":"k"}"#,
            r#"{"node_key":"k","log_type":"result","data":[{"a":1},{"b":"2"}]}"#,
            r#"{"log_type":"status","data":[{"old":1}],"node_key":"k","x":[{}],"data":[{"a":1} , {"b":"2"}],"log_type":"result"}"#,
        ] {
            let body = parse(text, 1 << 20).unwrap();
            assert_eq!(body.node_key, "k");
            assert_eq!(body.lines.log_type, LogType::Result);
            assert_eq!(body.lines.bytes, "{\"a\":1}\n{\"b\":\"2\"}\n");
            assert_eq!(body.lines.count, 2);
        }
    }

    #[test]
    fn nothing_to_store_is_fine() {
        for data in ["[]", "null", "\"\"", "[ \n ]"] {
            let text = format!(r#"{{"log_type":"status","data":{data}}}"#);
            assert_eq!(lines(&text), (String::new(), 0), "{data}");
        }
    }

    #[test]
    fn each_element_is_one_line() {
        let (text, count) = lines(
            "{\"log_type\":\"status\",\"data\":[{\n\"a\":\r\n\"x\\ny\"},\"{\\\"s\\\": 1}\",\"plain\",[1,\n2],3,null]}",
        );
        assert_eq!(
            text,
            "{\"a\":\"x\\ny\"}\n{\"s\": 1}\n\"plain\"\n[1,2]\n3\nnull\n"
        );
        assert_eq!(count, 6);
    }

    #[test]
    fn wrong_bodies_are_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"data":[]}"#,
            r#"{"data":[],"log_type":"results"}"#,
            r#"{"data":[],"log_type":1}"#,
            r#"{"log_type":"result"}"#,
            r#"{"data":{},"log_type":"result"}"#,
            r#"{"data":"x","log_type":"result"}"#,
            r#"{"data":[{"a":1}"#,
            r#"{"data":[{"a":1}],"log_type":"result"}}"#,
            r#"{"data":[{"a":1},],"log_type":"result"}"#,
        ] {
            assert_eq!(parse(text, 100), Err(Reject::BodyMalformed), "{text}");
        }
        let long = r#"{"data":[{"a":"0123456789"}],"log_type":"result"}"#;
        assert_eq!(parse(long, 8), Err(Reject::BodyTooLarge));
    }

    proptest! {
        #[test]
        fn lines_hold_the_elements(
            elements in prop::collection::vec(prop::collection::btree_map(".{0,8}", ".{0,24}", 0..5), 0..8),
            is_pretty in any::<bool>(),
        ) {
            let body = serde_json::json!({"data": elements, "log_type": "result", "node_key": "k"});
            let text = if is_pretty { serde_json::to_string_pretty(&body)? } else { body.to_string() };
            let parsed = parse(&text, 1 << 20).unwrap();
            let lines = String::from_utf8(parsed.lines.bytes.to_vec())?;
            prop_assert_eq!(lines.matches('\n').count(), elements.len());
            prop_assert_eq!(parsed.lines.count as usize, elements.len());
            for (line, element) in lines.lines().zip(&elements) {
                let value: serde_json::Value = serde_json::from_str(line)?;
                prop_assert_eq!(&value, &serde_json::json!(element));
            }
        }
    }

    /// Prints the speed; asserts nothing about it.
    #[test]
    fn ten_mebibytes() {
        let line = r#"{"name":"pack/ir/processes","hostIdentifier":"4C4C4544-0047-3510-8052-B4C04F5A3232","calendarTime":"Tue Sep 30 17:37:30 2025 UTC","unixTime":1759253850,"epoch":0,"counter":12,"numerics":false,"decorations":{"hostname":"web-0427"},"columns":{"pid":"97830","path":"/opt/osquery/bin/osqueryd","cmdline":"/opt/osquery/bin/osqueryd --flagfile /etc/osquery/osquery.flags \"quoted\""},"action":"added"}"#;
        let count = (10 << 20) / line.len();
        let mut text = String::from("{\"data\":[");
        text.push_str(&vec![line; count].join(","));
        text.push_str("],\"log_type\":\"result\",\"node_key\":\"k\"}");
        let begin = Instant::now();
        let body = parse(&text, text.len()).unwrap();
        println!("{} bytes in {:?}", text.len(), begin.elapsed());
        assert_eq!(body.lines.count as usize, count);
        let mut huge = String::from("{\"log_type\":\"result\",\"data\":[{\"a\":\"");
        huge.push_str(&"x".repeat(1 << 20));
        huge.push_str("\"}]}");
        assert_eq!(parse(&huge, huge.len()).unwrap().lines.count, 1);
    }
}
