//! What a viewer of a live query knows of it, from the messages of the server. Pure.
//!
//! A viewer that reconnects hears old results again; each host counts, and is shown, once.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Columns that the server adds to every row; the host is shown by itself.
const HOST_COLUMNS: [&str; 2] = ["host_hostname", "host_display_name"];

/// What one host answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) host: String,
    pub(super) rows: Vec<Map<String, Value>>,
    /// Why the host could not answer; there are no rows then.
    pub(super) error: Option<String>,
}

impl Answer {
    /// Columns without those that repeat the host's name.
    pub(super) fn columns(row: &Map<String, Value>) -> Vec<String> {
        let is_own = |name: &&String| !HOST_COLUMNS.contains(&name.as_str());
        row.keys().filter(is_own).cloned().collect()
    }
}

/// What a message was.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// A host's answer that was not seen before.
    Answer(Answer),
    /// The server says what is wrong.
    Problem(String),
    /// Counts, or something seen before.
    Nothing,
}

/// One campaign so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Campaign {
    targeted: Option<u64>,
    online: u64,
    is_finished: bool,
    /// Answers that the server has, when it said that no more will come.
    final_count: u64,
    seen: HashSet<String>,
}

impl Campaign {
    /// From the answer to the request that started it, which says how many hosts it is for.
    pub(super) fn of(campaign: &Value) -> Self {
        let metrics = campaign.get("Metrics");
        let count = |name: &str| metrics.and_then(|metrics| metrics.get(name)?.as_u64());
        Self {
            targeted: count("TotalHosts"),
            online: count("OnlineHosts").unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Takes a message.
    pub(super) fn take(&mut self, message: &str) -> Event {
        let Ok(Value::Object(mut message)) = serde_json::from_str(message) else {
            return Event::Problem("the server sent something that is no message".into());
        };
        let data = message.shift_remove("data").unwrap_or_default();
        let count = |name: &str| data.get(name).and_then(Value::as_u64);
        match message.get("type").and_then(Value::as_str) {
            Some("totals") => {
                self.targeted = count("count").or(self.targeted);
                self.online = count("online").unwrap_or(self.online);
                Event::Nothing
            }
            Some("status") => {
                self.is_finished = data.get("status").and_then(Value::as_str) == Some("finished");
                self.final_count = count("actual_results").unwrap_or_default();
                Event::Nothing
            }
            Some("result") => self.result(data),
            Some("error") => Event::Problem(match data {
                Value::String(text) => text,
                Value::Object(members) => members
                    .get("error")
                    .or_else(|| members.get("message"))
                    .and_then(Value::as_str)
                    .map_or_else(|| Value::Object(members.clone()).to_string(), str::to_owned),
                other => other.to_string(),
            }),
            // Of a newer server; nothing that we could say of it would help.
            _ => Event::Nothing,
        }
    }

    fn result(&mut self, mut data: Value) -> Event {
        let host = data.get("host").cloned().unwrap_or_default();
        let text = |name: &str| host.get(name).and_then(Value::as_str).unwrap_or_default();
        let name = [text("hostname"), text("display_name"), "?"];
        let name = name.into_iter().find(|name| !name.is_empty());
        let key = match host.get("id").and_then(Value::as_u64) {
            Some(id) => format!("#{id}"),
            None => name.unwrap_or_default().to_owned(),
        };
        if !self.seen.insert(key) {
            return Event::Nothing;
        }
        let error = data.get("error").and_then(Value::as_str);
        let error = error.filter(|error| !error.is_empty()).map(str::to_owned);
        let rows = match data.get_mut("rows").map(Value::take) {
            Some(Value::Array(rows)) => rows,
            _ => Vec::new(),
        };
        Event::Answer(Answer {
            host: name.unwrap_or_default().to_owned(),
            rows: rows
                .into_iter()
                .filter_map(|row| match row {
                    Value::Object(row) => Some(row),
                    _ => None,
                })
                .collect(),
            error,
        })
    }

    /// Hosts that have answered.
    pub(super) fn answered(&self) -> u64 {
        u64::try_from(self.seen.len()).unwrap_or(u64::MAX)
    }

    /// Answers that the server has counted, and that were not shown though it says that it is done.
    pub(super) fn missing(&self) -> Option<u64> {
        self.is_finished
            .then(|| self.final_count.saturating_sub(self.answered()))
    }

    /// Whether nothing more is to come, or, if told so, whether all who are online have answered.
    pub(super) fn is_done(&self, only_online: bool) -> bool {
        let Some(targeted) = self.targeted else {
            return false;
        };
        let answered = self.answered();
        answered >= targeted
            || (only_online && answered >= self.online)
            || (self.is_finished && answered >= self.final_count)
    }

    /// One line for people.
    pub(super) fn progress(&self) -> String {
        let targeted = self.targeted.unwrap_or_default();
        let percent = self.answered().saturating_mul(100) / targeted.max(1);
        format!(
            "{percent} % · {} answered / {} online / {targeted} targeted",
            self.answered(),
            self.online
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn started(total: u64, online: u64) -> Campaign {
        Campaign::of(&json!({"id": 1, "Metrics": {"TotalHosts": total, "OnlineHosts": online}}))
    }

    fn result(id: u64) -> String {
        json!({"type": "result", "data": {
            "distributed_query_execution_id": 1, "host": {"id": id, "hostname": format!("h{id}")},
            "rows": [{"a": "1", "host_hostname": "h", "host_display_name": "h"}], "error": null,
        }})
        .to_string()
    }

    #[test]
    fn it_ends_when_all_have_answered() {
        let mut campaign = started(2, 1);
        assert!(!campaign.is_done(false) && !campaign.is_done(true));
        let Event::Answer(answer) = campaign.take(&result(7)) else {
            panic!("an answer");
        };
        assert_eq!((answer.host.as_str(), answer.error), ("h7", None));
        assert_eq!(Answer::columns(&answer.rows[0]), ["a"]);
        assert!(campaign.is_done(true) && !campaign.is_done(false));
        assert_eq!(campaign.take(&result(7)), Event::Nothing, "seen before");
        assert_eq!(
            campaign.progress(),
            "50 % · 1 answered / 1 online / 2 targeted"
        );
        campaign.take(&result(8));
        assert!(campaign.is_done(false));
    }

    #[test]
    fn counts_follow_the_server() {
        let mut campaign = Campaign::of(&json!({"id": 1}));
        assert!(!campaign.is_done(true), "how many is not known");
        campaign.take(
            r#"{"type":"totals","data":{"count":3,"online":2,"offline":1,"missing_in_action":0}}"#,
        );
        campaign.take(r#"{"type":"status","data":{"expected_results":3,"actual_results":1,"status":"finished"}}"#);
        assert!(!campaign.is_done(false), "the one answer is still to come");
        assert_eq!(campaign.missing(), Some(1));
        campaign.take(&result(1));
        assert!(campaign.is_done(false));
        assert!(started(0, 0).is_done(false), "nobody is targeted");
    }

    #[test]
    fn errors_are_told() {
        let mut campaign = started(1, 1);
        assert_eq!(
            campaign.take(r#"{"type":"error","data":"campaign is gone"}"#),
            Event::Problem("campaign is gone".into())
        );
        assert_eq!(
            campaign.take(r#"{"type":"error","data":{"code":1,"error":"no"}}"#),
            Event::Problem("no".into())
        );
        let failed = json!({"type": "result", "data": {"host": {"hostname": "x"}, "rows": null, "error": "no such table"}});
        let Event::Answer(answer) = campaign.take(&failed.to_string()) else {
            panic!("an answer");
        };
        assert_eq!(answer.error.as_deref(), Some("no such table"));
        assert_eq!(campaign.take(r#"{"type":"later"}"#), Event::Nothing);
        assert!(matches!(campaign.take("{"), Event::Problem(_)));
    }

    proptest! {
        #[test]
        fn each_host_is_shown_once(ids in prop::collection::vec(1_u64..20, 0..100)) {
            let mut campaign = started(20, 20);
            let shown = ids.iter().filter(|id| matches!(campaign.take(&result(**id)), Event::Answer(_))).count();
            let distinct: HashSet<_> = ids.iter().collect();
            prop_assert_eq!(shown, distinct.len());
            prop_assert_eq!(campaign.answered(), distinct.len() as u64);
        }

        #[test]
        fn no_message_panics(text in "\\PC{0,60}") {
            started(1, 1).take(&text);
            started(1, 1).take(&format!(r#"{{"type":"result","data":{text:?}}}"#));
        }
    }
}
