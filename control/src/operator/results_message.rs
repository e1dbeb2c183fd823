//! What viewers of a live query are told, in the shapes that Fleet's clients know. Pure.
//!
//! Invariant: a row is an object of texts, whatever the host sent; clients give up at anything else.

use std::fmt;

use fleet_protocol::ids::HostId;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::campaigns::HostResult;
use crate::model::campaign::CampaignId;
use crate::model::host_name::HostName;

/// Rows that cannot be shown.
const UNREADABLE: &str = "the host's rows are not readable";

/// Targets by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Totals {
    pub(super) count: u64,
    pub(super) online: u64,
    pub(super) offline: u64,
    pub(super) missing_in_action: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Standing {
    /// Hosts that are online, or have answered.
    pub(super) expected_results: u64,
    pub(super) actual_results: u64,
    pub(super) status: Stage,
}

/// Whether more may come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    #[default]
    Pending,
    /// All targets have answered, or the live query has ended.
    Finished,
}

#[derive(Serialize)]
struct HostData<'d> {
    id: HostId,
    hostname: &'d str,
    display_name: &'d str,
}

#[derive(Serialize)]
struct ResultData<'d> {
    distributed_query_execution_id: CampaignId,
    host: HostData<'d>,
    rows: &'d RawValue,
    stats: Option<&'d RawValue>,
    error: Option<&'d str>,
}

/// A host's answer as an object.
pub(super) fn result(campaign: CampaignId, name: &HostName, result: &HostResult) -> String {
    let (rows, error) = rows_and_error(name, result);
    let data = ResultData {
        distributed_query_execution_id: campaign,
        host: HostData {
            id: result.host,
            hostname: &name.hostname,
            display_name: &name.display_name,
        },
        rows: &rows,
        stats: statistics(&result.stats),
        error: error.as_deref(),
    };
    // Texts and numbers only.
    serde_json::to_string(&data).unwrap_or_default()
}

/// The rows with the host's names in each, and what went wrong.
pub(super) fn rows_and_error(
    name: &HostName,
    result: &HostResult,
) -> (Box<RawValue>, Option<String>) {
    let mut error = result.is_failed().then(|| match result.message.as_str() {
        "" => format!("the query failed with status {}", result.status),
        message => message.to_owned(),
    });
    let rows = named_rows(&result.rows, name);
    let rows = rows.and_then(|rows| RawValue::from_string(rows).ok());
    let rows = rows.unwrap_or_else(|| {
        error.get_or_insert_with(|| UNREADABLE.to_owned());
        RawValue::from_string("[]".into()).unwrap_or_default()
    });
    (rows, error)
}

/// Statistics as the host sent them, if clients can read them: numbers by name.
fn statistics(text: &str) -> Option<&RawValue> {
    let is_readable = serde_json::from_str::<Map<String, Value>>(text)
        .is_ok_and(|members| members.values().all(Value::is_u64));
    is_readable.then(|| serde_json::from_str(text).ok())?
}

/// Each row with two more columns. `None` when these are no rows.
fn named_rows(rows: &str, name: &HostName) -> Option<String> {
    let rows: Vec<&RawValue> = serde_json::from_str(rows).ok()?;
    let names = format!(
        "\"host_hostname\":{},\"host_display_name\":{}}}",
        Value::from(&*name.hostname),
        Value::from(&*name.display_name)
    );
    let mut out = String::from("[");
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        match serde_json::from_str::<PlainRow>(row.get()) {
            Ok(plain) => {
                out.push_str(row.get().trim_end().strip_suffix('}')?);
                if !plain.is_empty {
                    out.push(',');
                }
                out.push_str(&names);
            }
            Err(_) => out.push_str(&spelled_row(row.get(), name)?),
        }
    }
    out.push(']');
    Some(out)
}

/// A row of other values than texts.
fn spelled_row(row: &str, name: &HostName) -> Option<String> {
    let mut row: Map<String, Value> = serde_json::from_str(row).ok()?;
    for value in row.values_mut() {
        let text = match value.take() {
            Value::Null => String::new(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        *value = text.into();
    }
    row.insert("host_hostname".into(), (*name.hostname).into());
    row.insert("host_display_name".into(), (*name.display_name).into());
    serde_json::to_string(&row).ok()
}

/// Reads a row only to see that its values are texts, as nearly all are.
struct PlainRow {
    is_empty: bool,
}

impl<'de> Deserialize<'de> for PlainRow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Columns;

        impl<'de> Visitor<'de> for Columns {
            type Value = PlainRow;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row of texts")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<PlainRow, M::Error> {
                let mut is_empty = true;
                while map.next_entry::<IgnoredAny, Text>()?.is_some() {
                    is_empty = false;
                }
                Ok(PlainRow { is_empty })
            }
        }

        deserializer.deserialize_map(Columns)
    }
}

/// Any text, which is not kept.
struct Text;

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, _: &str) -> Result<Text, E> {
                Ok(Text)
            }
        }

        deserializer.deserialize_str(Reader)
    }
}

#[cfg(test)]
mod tests {
    use fleet_protocol::agent::QueryResult;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn name() -> HostName {
        HostName {
            hostname: "web-1".into(),
            display_name: "Web \"one\"".into(),
        }
    }

    fn answer(status: i64, message: &str, rows: &str, stats: &str) -> Value {
        let sent = QueryResult {
            name: String::new(),
            status,
            message: message.into(),
            rows: rows.into(),
            stats: stats.into(),
        };
        let text = result(CampaignId(9), &name(), &HostResult::of(HostId(7), sent));
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_result_has_fleets_shape() {
        let stats = r#"{"wall_time_ms":3,"user_time":1,"system_time":0,"memory":4096}"#;
        let got = answer(0, "", r#"[{"a":"1"}, {} ]"#, stats);
        let names = json!({"host_hostname": "web-1", "host_display_name": "Web \"one\""});
        let mut row = json!({"a": "1"});
        row.as_object_mut()
            .unwrap()
            .extend(names.as_object().unwrap().clone());
        assert_eq!(
            got,
            json!({
                "distributed_query_execution_id": 9,
                "host": {"id": 7, "hostname": "web-1", "display_name": "Web \"one\""},
                "rows": [row, names],
                "stats": {"wall_time_ms": 3, "user_time": 1, "system_time": 0, "memory": 4096},
                "error": null,
            })
        );
    }

    #[test]
    fn errors_are_told_with_or_without_a_text() {
        let failed = answer(1, "no such table: x", "", "");
        assert_eq!(failed["error"], "no such table: x");
        assert_eq!(
            (&failed["rows"], &failed["stats"]),
            (&json!([]), &Value::Null)
        );
        assert_eq!(
            answer(2, "", "", "")["error"],
            "the query failed with status 2"
        );
    }

    #[test]
    fn clients_get_texts_and_nothing_else() {
        let row = &answer(
            0,
            "",
            r#"[{"a":1,"b":null,"c":"x","d":[true],"host_hostname":0}]"#,
            "",
        )["rows"][0];
        for (column, text) in [
            ("a", "1"),
            ("b", ""),
            ("c", "x"),
            ("d", "[true]"),
            ("host_hostname", "web-1"),
        ] {
            assert_eq!(row[column], text, "{column}");
        }
        let odd = answer(0, "", r#"["x"]"#, r#"{"memory":"much"}"#);
        assert_eq!((&odd["rows"], &odd["stats"]), (&json!([]), &Value::Null));
        assert_eq!(odd["error"], UNREADABLE);
    }

    proptest! {
        #[test]
        fn any_rows_of_texts_pass_unchanged(
            rows in prop::collection::vec(
                prop::collection::btree_map("[a-z]{1,4}", "\\PC{0,9}|[\"\\\\}{,]{0,4}", 0..4),
                0..5,
            ),
        ) {
            let text = serde_json::to_string_pretty(&rows).unwrap();
            let named: Vec<std::collections::BTreeMap<String, String>> =
                serde_json::from_str(&named_rows(&text, &name()).unwrap()).unwrap();
            prop_assert_eq!(named.len(), rows.len());
            for (mut named, row) in named.into_iter().zip(rows) {
                prop_assert_eq!(named.remove("host_hostname").unwrap(), "web-1");
                prop_assert!(named.remove("host_display_name").is_some());
                prop_assert_eq!(named, row);
            }
        }
    }
}
