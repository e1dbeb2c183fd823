//! Bodies of agents' requests, parsed as leniently as agents need: unknown members are ignored, members come in any
//! order, the last of two alike counts, and text that is not UTF-8 is taken with replacement characters. Log bodies
//! have their own file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use fleet_protocol::agent::{CarveBegin, CarveBlock, Enroll, QueryResult};
use fleet_protocol::ids::HostId;
use fleet_protocol::reject::Reject;
use fleet_protocol::secret::Secret;
use hashbrown::HashMap;

use crate::scan::{Kind, Malformed, Scanner, Value};

/// Padding and stray bits do not matter to the bytes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Columns in all tables of an enrollment, and query names in a write. Agents stay far below; a record takes many times
/// the few bytes that one may cost on the wire.
const RECORDS_MAX: usize = 16_384;
/// Status of a result whose status makes no sense: not 0, so that nobody takes it for success.
const STATUS_UNREADABLE: i64 = 1;

/// Inflates a gzip body to at most `bytes_max`.
pub(crate) fn inflate(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, Reject> {
    let limit = u64::try_from(bytes_max)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let mut out = Vec::with_capacity(body.len().saturating_mul(4).min(bytes_max));
    MultiGzDecoder::new(body)
        .take(limit)
        .read_to_end(&mut out)
        .map_err(|_| Reject::BodyMalformed)?;
    if out.len() > bytes_max {
        return Err(Reject::BodyTooLarge);
    }
    Ok(out)
}

/// The body as text; bytes that are not UTF-8 become replacement characters.
pub(crate) fn text(body: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(body)
}

/// Calls `each` with every member of a body.
fn members<'a>(text: &'a str, mut each: impl FnMut(&str, Value<'a>)) -> Result<(), Malformed> {
    let mut scanner = Scanner::new(text);
    let mut items = scanner.open(b'{')?;
    while scanner.has_next(&mut items)? {
        let key = scanner.key()?;
        each(&key, scanner.value()?);
    }
    scanner.end()
}

/// The node key of a config or read body; `""` when absent.
pub(crate) fn node_key(text: &str) -> Result<Cow<'_, str>, Malformed> {
    let mut node_key = Cow::Borrowed("");
    members(text, |key, value| {
        if key == "node_key" {
            node_key = value.as_str().unwrap_or_default();
        }
    })?;
    Ok(node_key)
}

/// An enroll body.
pub(crate) fn enroll(text: &str, address: IpAddr) -> Result<Enroll, Malformed> {
    let mut enroll = Enroll {
        secret: Secret::default(),
        identifier: String::new(),
        platform_type: String::new(),
        details: BTreeMap::new(),
        address,
    };
    let mut details = None;
    members(text, |key, value| match key {
        "enroll_secret" => enroll.secret = Secret::new(value.to_text()),
        "host_identifier" => enroll.identifier = value.to_text(),
        "platform_type" => enroll.platform_type = value.to_text(),
        "host_details" => details = Some(value),
        _ => {}
    })?;
    let mut tables = Vec::new();
    if let Some(details) = details {
        details.members(|table, row| tables.push((table, row)))?;
    }
    let mut left = RECORDS_MAX.checked_sub(tables.len()).ok_or(Malformed)?;
    for (table, row) in tables {
        if row.kind() != Kind::Object {
            continue;
        }
        let mut columns = BTreeMap::new();
        row.members(|column, value| {
            if columns.len() <= left {
                columns.insert(column.into_owned(), value.to_text());
            }
        })?;
        left = left.checked_sub(columns.len()).ok_or(Malformed)?;
        enroll.details.insert(table.into_owned(), columns);
    }
    Ok(enroll)
}

/// A distributed write body: node key (`""` when absent) and one result for each query name.
pub(crate) fn write(text: &str) -> Result<(Cow<'_, str>, Vec<QueryResult>), Malformed> {
    let mut node_key = Cow::Borrowed("");
    let [mut queries, mut statuses, mut messages, mut stats] = [None; 4];
    members(text, |key, value| match key {
        "node_key" => node_key = value.as_str().unwrap_or_default(),
        "queries" => queries = Some(value),
        "statuses" => statuses = Some(value),
        "messages" => messages = Some(value),
        "stats" => stats = Some(value),
        _ => {}
    })?;
    let mut results = Results::default();
    let mut outcome = Ok(());
    for_members(queries, |name, value| {
        if let Some(result) = results.named(name, true) {
            match rows(&value) {
                Ok(rows) => result.rows = rows,
                Err(malformed) => outcome = Err(malformed),
            }
        }
    })?;
    outcome?;
    for_members(statuses, |name, value| {
        if let Some(result) = results.named(name, true) {
            result.status = status(&value);
        }
    })?;
    for_members(messages, |name, value| {
        if let Some(result) = results.named(name, false) {
            result.message = value.to_text();
        }
    })?;
    for_members(stats, |name, value| {
        if let Some(result) = results.named(name, false)
            && value.kind() == Kind::Object
        {
            result.stats = value.to_json();
        }
    })?;
    if results.list.len() > RECORDS_MAX {
        return Err(Malformed);
    }
    Ok((node_key, results.list))
}

fn for_members<'a>(
    object: Option<Value<'a>>,
    each: impl FnMut(Cow<'a, str>, Value<'a>),
) -> Result<(), Malformed> {
    object.map_or(Ok(()), |object| object.members(each))
}

/// Results by name, in the order in which the names came.
#[derive(Default)]
struct Results<'a> {
    list: Vec<QueryResult>,
    places: HashMap<Cow<'a, str>, usize>,
}

impl<'a> Results<'a> {
    /// The result with this name, made if `may_add` and there is room; the empty name has none.
    fn named(&mut self, name: Cow<'a, str>, may_add: bool) -> Option<&mut QueryResult> {
        if name.is_empty() {
            return None;
        }
        let place = match self.places.get(&name) {
            Some(place) => *place,
            None if may_add && self.list.len() <= RECORDS_MAX => {
                self.list.push(QueryResult {
                    name: name.clone().into_owned(),
                    status: 0,
                    message: String::new(),
                    rows: "[]".into(),
                    stats: String::new(),
                });
                self.places.insert(name, self.list.len() - 1);
                self.list.len() - 1
            }
            None => return None,
        };
        self.list.get_mut(place)
    }
}

/// The row objects of an array. Anything else stands for no rows: old agents send `""`.
fn rows(value: &Value<'_>) -> Result<String, Malformed> {
    let mut out = Vec::with_capacity(if value.kind() == Kind::Array {
        value.raw.len()
    } else {
        2
    });
    out.push(b'[');
    value.elements(|row| {
        if row.kind() == Kind::Object {
            if out.len() > 1 {
                out.push(b',');
            }
            row.append_line(&mut out);
        }
    })?;
    out.push(b']');
    // UTF-8 went in.
    String::from_utf8(out).map_err(|_| Malformed)
}

fn status(value: &Value<'_>) -> i64 {
    let text = value.to_text();
    let whole = text
        .trim()
        .split_once('.')
        .map_or(text.trim(), |(whole, _)| whole);
    match value.kind() {
        Kind::Null => 0,
        Kind::Number | Kind::String => whole.parse().unwrap_or(STATUS_UNREADABLE),
        Kind::Literal if value.raw == "false" => 0,
        _ => STATUS_UNREADABLE,
    }
}

/// A number, or a string that holds one.
fn count(value: &Value<'_>) -> Option<u64> {
    match value.kind() {
        Kind::Number | Kind::String => value.to_text().trim().parse().ok(),
        _ => None,
    }
}

/// A carve begin body: node key (`""` when absent) and the carve, whose host the caller fills in.
pub(crate) fn carve_begin(text: &str) -> Result<(Cow<'_, str>, CarveBegin), Malformed> {
    let mut node_key = Cow::Borrowed("");
    let [mut block_count, mut block_size, mut carve_size] = [None; 3];
    let [mut carve_id, mut request_id] = [const { String::new() }; 2];
    members(text, |key, value| match key {
        "node_key" => node_key = value.as_str().unwrap_or_default(),
        "block_count" => block_count = count(&value),
        "block_size" => block_size = count(&value),
        "carve_size" => carve_size = count(&value),
        "carve_id" => carve_id = value.to_text(),
        "request_id" => request_id = value.to_text(),
        _ => {}
    })?;
    let carve = CarveBegin {
        host: HostId::default(),
        block_count: block_count.ok_or(Malformed)?,
        block_size: block_size.ok_or(Malformed)?,
        carve_size: carve_size.ok_or(Malformed)?,
        carve_id,
        request_id,
    };
    Ok((node_key, carve))
}

/// A carve block body, its content decoded.
pub(crate) fn carve_block(text: &str) -> Result<CarveBlock, Malformed> {
    let mut block_id = None;
    let [mut session_id, mut request_id] = [const { String::new() }; 2];
    let mut data = None;
    members(text, |key, value| match key {
        "block_id" => block_id = count(&value),
        "session_id" => session_id = value.to_text(),
        "request_id" => request_id = value.to_text(),
        "data" => data = value.as_str(),
        _ => {}
    })?;
    if session_id.is_empty() {
        return Err(Malformed);
    }
    Ok(CarveBlock {
        block_id: block_id.ok_or(Malformed)?,
        session_id: Secret::new(session_id),
        request_id,
        data: decode_base64(&data.ok_or(Malformed)?)?,
    })
}

fn decode_base64(text: &str) -> Result<Bytes, Malformed> {
    if let Ok(data) = BASE64.decode(text) {
        return Ok(data.into());
    }
    // Some encoders break lines.
    let packed: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    BASE64
        .decode(packed)
        .map(Bytes::from)
        .map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::Ipv4Addr;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_is_inflated_up_to_its_bound() {
        let body = vec![b'x'; 100_000];
        let packed = gzip(&body);
        assert_eq!(inflate(&packed, body.len()).unwrap(), body);
        let bomb = inflate(&packed, body.len() - 1);
        assert_eq!(bomb, Err(Reject::BodyTooLarge));
        for bad in [&b"{}"[..], &packed[..packed.len() - 9], &[]] {
            let result = inflate(bad, 1 << 20);
            assert!(matches!(result, Err(Reject::BodyMalformed)) || bad.is_empty());
        }
    }

    #[test]
    fn node_key_stands_anywhere() {
        for (text, key) in [
            (r#"{"node_key":"k"}"#, "k"),
            (
                r#" { "x" : [1,{"node_key":"no"}] , "node_key" : "k" } "#,
                "k",
            ),
            (r#"{"node_key":"old","node_key":"k"}"#, "k"),
            (r#"{"node\u005fkey":"\u006b"}"#, "k"),
            (r#"{"node_key":null}"#, ""),
            (r#"{"node_key":7}"#, ""),
            ("{}", ""),
        ] {
            assert_eq!(node_key(text).unwrap(), key, "{text}");
        }
        for text in ["", "[]", "null", "{", "{}x", r#""k""#] {
            assert_eq!(node_key(text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn enroll_values_become_text() {
        let body = r#"{"enroll_secret":"s\/1","host_identifier":"h","platform_type":9,"extra":1,
            "host_details":{"os_version":{"major":22,"name":"Ubuntu","none":null,"is":true},
            "broken":"","osquery_info":{}}}"#;
        let enroll = enroll(body, ADDRESS).unwrap();
        assert_eq!(enroll.secret.reveal(), "s/1");
        assert_eq!(enroll.identifier, "h");
        assert_eq!(enroll.platform_type, "9");
        assert_eq!(enroll.detail("os_version", "major"), "22");
        assert_eq!(enroll.detail("os_version", "none"), "");
        assert_eq!(enroll.detail("os_version", "is"), "true");
        assert_eq!(enroll.details.len(), 2);
    }

    #[test]
    fn an_empty_enroll_is_left_to_control() {
        let enroll = enroll("{}", ADDRESS).unwrap();
        assert!(enroll.secret.is_empty());
        assert!(enroll.details.is_empty());
    }

    #[test]
    fn writes_are_taken_in_every_shape() {
        let body = r#"{"queries":{"a":[{"v":"1"}, {"v":"2"}],"old":"","none":null,"odd":["",{"x":"y"}]},
            "statuses":{"a":0,"old":"1","none":null,"odd":"x","only":2,"":3},
            "messages":{"a":"","old":"no such table","stranger":"?"},
            "stats":{"a":{"wall_time_ms":3},"old":""},"node_key":"k","later":{}}"#;
        let (key, results) = write(body).unwrap();
        assert_eq!(key, "k");
        let seen: Vec<_> = results
            .iter()
            .map(|r| (r.name.as_str(), r.status, r.rows.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", 0, r#"[{"v":"1"},{"v":"2"}]"#),
                ("old", 1, "[]"),
                ("none", 0, "[]"),
                ("odd", 1, r#"[{"x":"y"}]"#),
                ("only", 2, "[]"),
            ]
        );
        assert_eq!(results[0].stats, r#"{"wall_time_ms":3}"#);
        assert_eq!(results[1].message, "no such table");
        assert_eq!(results[1].stats, "");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        let mut body = br#"{"queries":{"q":[{"v":"caf"#.to_vec();
        body.extend_from_slice(b"\xff\xfe\xc3\"}]},\"node_key\":\"k\"}");
        let text = text(&body);
        let (key, results) = write(&text).unwrap();
        assert_eq!(key, "k");
        assert_eq!(results[0].rows, "[{\"v\":\"caf\u{fffd}\u{fffd}\u{fffd}\"}]");
    }

    #[test]
    fn carves_tolerate_numbers_in_strings() {
        let body = r#"{"block_count":"3","block_size":8192,"carve_size":20000,"carve_id":"c",
            "request_id":"r","node_key":"k"}"#;
        let (key, carve) = carve_begin(body).unwrap();
        assert_eq!(key, "k");
        assert_eq!((carve.block_count, carve.block_size), (3, 8192));
        assert_eq!(carve_begin(r#"{"node_key":"k"}"#), Err(Malformed));
        assert_eq!(
            carve_begin(r#"{"block_count":-1,"block_size":1,"carve_size":1}"#),
            Err(Malformed)
        );
    }

    #[test]
    fn blocks_are_decoded() {
        for data in [
            "aGVsbG8gd29ybGQ=",
            "aGVsbG8gd29ybGQ",
            "aGVs\\nbG8gd29ybGQ=\\n",
        ] {
            let body =
                format!(r#"{{"block_id":0,"session_id":"s","request_id":"r","data":"{data}"}}"#);
            assert_eq!(carve_block(&body).unwrap().data, "hello world", "{data}");
        }
        for body in [
            r#"{"block_id":0,"session_id":"s","data":"*"}"#,
            r#"{"block_id":0,"session_id":"","data":""}"#,
            r#"{"session_id":"s","data":""}"#,
            r#"{"block_id":0,"session_id":"s"}"#,
        ] {
            assert!(carve_block(body).is_err(), "{body}");
        }
    }

    #[test]
    fn records_are_bounded() {
        let members = |count: usize| {
            let members: Vec<_> = (0..count).map(|n| format!("\"{n}\":0")).collect();
            members.join(",")
        };
        for (count, is_ok) in [(RECORDS_MAX - 1, true), (RECORDS_MAX + 1, false)] {
            let members = members(count);
            let body = format!(r#"{{"statuses":{{{members}}}}}"#);
            assert_eq!(write(&body).is_ok(), is_ok, "{count}");
            let body = format!(r#"{{"host_details":{{"t":{{{members}}}}}}}"#);
            assert_eq!(enroll(&body, ADDRESS).is_ok(), is_ok, "{count}");
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
            let text = text(&bytes);
            let _ = (node_key(&text), enroll(&text, ADDRESS), write(&text));
            let _ = (carve_begin(&text), carve_block(&text), inflate(&bytes, 1024));
        }

        #[test]
        fn rows_keep_their_values(
            rows in prop::collection::vec(prop::collection::btree_map(".{0,8}", ".{0,16}", 0..4), 0..5),
            name in ".{1,12}",
        ) {
            let body = serde_json::json!({"queries": {name.clone(): rows}, "statuses": {name.clone(): 0}});
            let body = body.to_string();
            let (_, results) = write(&body).unwrap();
            prop_assert_eq!(&results[0].name, &name);
            let parsed: serde_json::Value = serde_json::from_str(&results[0].rows)?;
            prop_assert_eq!(parsed, serde_json::json!(rows));
        }
    }
}
