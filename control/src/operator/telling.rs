//! What a viewer of a live query is told besides results, and when: only what has changed. Pure.

use fleet_protocol::ids::HostId;
use roaring::RoaringBitmap;
use serde::Serialize;
use serde_json::{Value, json};

use super::results_message::{Stage, Standing, Totals};
use crate::campaigns::{Cursor, Progress};
use crate::model::campaign::Status;

/// How a viewer wants to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Fleet's four messages; whatever else there is to say is an `error`.
    Fleet,
    /// Everything that is known.
    Gateway,
}

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Totals,
    Status,
    Result,
    /// Earlier results are gone.
    Lost,
    /// For people: something does not go as it should.
    Error,
    /// Nothing more comes.
    End,
}

impl Kind {
    /// As messages and events are called.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Totals => "totals",
            Self::Status => "status",
            Self::Result => "result",
            Self::Lost => "lost",
            Self::Error => "error",
            Self::End => "end",
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// JSON.
    pub(super) data: String,
    /// Whoever goes on from here has seen it.
    pub(super) cursor: Option<Cursor>,
}

impl Message {
    fn of(kind: Kind, data: &impl Serialize) -> Self {
        Self {
            kind,
            // Texts and numbers only.
            data: serde_json::to_string(data).unwrap_or_default(),
            cursor: None,
        }
    }

    /// As one text, `{"type", "data"}`.
    pub(super) fn text(&self) -> String {
        format!(r#"{{"type":"{}","data":{}}}"#, self.kind.word(), self.data)
    }
}

/// What one viewer has been told.
#[derive(Debug)]
pub(super) struct Telling {
    dialect: Dialect,
    totals: Totals,
    last_totals: Option<Message>,
    last_status: Option<Message>,
    /// Hosts whose results it has.
    shown: RoaringBitmap,
    targeted: u64,
    is_over: bool,
    is_waiting: bool,
    hosts_cut: u64,
}

impl Telling {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            totals: Totals::default(),
            last_totals: None,
            last_status: None,
            shown: RoaringBitmap::new(),
            targeted: u64::MAX,
            is_over: false,
            is_waiting: false,
            hosts_cut: 0,
        }
    }

    /// A host's result is to be shown; false when it was, and the viewer cannot tell that from another host's.
    pub(super) fn shows(&mut self, host: HostId) -> bool {
        self.shown.insert(host.0) || self.dialect == Dialect::Gateway
    }

    /// After results.
    pub(super) fn after_results(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        if self.dialect == Dialect::Fleet {
            messages.extend(self.standing());
        }
        messages
    }

    /// Results were lost, and hosts are asked again.
    pub(super) fn lost(&mut self, cursor: Cursor, reason: &str) -> Message {
        let message = match self.dialect {
            Dialect::Fleet => Message::of(Kind::Error, &reason),
            Dialect::Gateway => Message::of(Kind::Lost, &json!({ "reason": reason })),
        };
        Message {
            cursor: Some(cursor),
            ..message
        }
    }

    /// How it stands now.
    pub(super) fn progress(&mut self, progress: &Progress) -> Vec<Message> {
        let counts = &progress.counts;
        self.targeted = progress.targeted;
        self.totals = Totals {
            count: progress.targeted,
            online: counts.online,
            offline: counts.offline,
            missing_in_action: counts.mia,
        };
        let mut messages = Vec::new();
        let totals = Message::of(Kind::Totals, &self.totals);
        messages.extend(changed(&mut self.last_totals, totals));
        match self.dialect {
            Dialect::Fleet => {
                messages.extend(self.standing());
                messages.extend(self.troubles(progress));
            }
            Dialect::Gateway => {
                let status = Message::of(Kind::Status, &body(progress));
                messages.extend(changed(&mut self.last_status, status));
            }
        }
        messages
    }

    /// There will be no more results.
    pub(super) fn ended(&mut self, progress: &Progress) -> Vec<Message> {
        self.is_over = true;
        let mut messages = self.progress(progress);
        match (self.dialect, progress.status) {
            (Dialect::Gateway, _) => messages.push(Message::of(Kind::End, &body(progress))),
            (Dialect::Fleet, Status::Running | Status::Finished) => {}
            (Dialect::Fleet, Status::Stopped) => {
                messages.push(Message::of(Kind::Error, &"the live query was stopped"));
            }
            (Dialect::Fleet, Status::Expired) => {
                messages.push(Message::of(Kind::Error, &"the live query has expired"));
            }
        }
        messages
    }

    fn standing(&mut self) -> Option<Message> {
        let shown = self.shown.len();
        let is_finished = self.is_over || shown >= self.targeted;
        let standing = Standing {
            expected_results: self.totals.online.max(shown),
            actual_results: shown,
            status: if is_finished {
                Stage::Finished
            } else {
                Stage::Pending
            },
        };
        changed(&mut self.last_status, Message::of(Kind::Status, &standing))
    }

    /// Each once.
    fn troubles(&mut self, progress: &Progress) -> Vec<Message> {
        let mut messages = Vec::new();
        let cut = progress.tally.hosts_cut;
        // The first time, and at the end how many they were.
        if cut > self.hosts_cut && (self.hosts_cut == 0 || self.is_over) {
            let reason = format!(
                "truncated: the live query has as many rows or bytes as it may have; {} rows of \
                 {cut} hosts are left out",
                progress.tally.rows_cut
            );
            messages.push(Message::of(Kind::Error, &reason));
            self.hosts_cut = cut;
        }
        if progress.is_waiting && !self.is_waiting {
            let reason = "Redis does not answer; hosts are asked when it is back";
            messages.push(Message::of(Kind::Error, &reason));
        }
        self.is_waiting = progress.is_waiting;
        messages
    }
}

fn changed(last: &mut Option<Message>, message: Message) -> Option<Message> {
    if last.as_ref() == Some(&message) {
        return None;
    }
    *last = Some(message.clone());
    Some(message)
}

/// Everything that is known of how a campaign stands.
pub(super) fn body(progress: &Progress) -> Value {
    let (counts, tally) = (&progress.counts, &progress.tally);
    json!({
        "status": progress.status.label(),
        "targeted": progress.targeted,
        "online": counts.online,
        "offline": counts.offline,
        "missing_in_action": counts.mia,
        "new": counts.new,
        "answered": tally.answered,
        "failed": tally.failed,
        "silent": progress.silent,
        "rows": tally.rows,
        "bytes": tally.bytes,
        "truncated": tally.is_truncated(),
        "hosts_cut": tally.hosts_cut,
        "rows_cut": tally.rows_cut,
        "bytes_cut": tally.bytes_cut,
        "waiting": progress.is_waiting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::Counts;
    use crate::model::campaign::Tally;

    fn progress(online: u64, answered: u64) -> Progress {
        Progress {
            status: Status::Running,
            counts: Counts {
                enrolled: 3,
                online,
                offline: 3 - online,
                ..Counts::default()
            },
            targeted: 3,
            tally: Tally {
                answered,
                ..Tally::default()
            },
            silent: 0,
            is_waiting: false,
        }
    }

    fn texts(messages: &[Message]) -> Vec<String> {
        messages.iter().map(Message::text).collect()
    }

    #[test]
    fn fleet_hears_what_has_changed_and_nothing_twice() {
        let mut telling = Telling::new(Dialect::Fleet);
        assert_eq!(
            texts(&telling.progress(&progress(2, 0))),
            [
                r#"{"type":"totals","data":{"count":3,"online":2,"offline":1,"missing_in_action":0}}"#,
                r#"{"type":"status","data":{"expected_results":2,"actual_results":0,"status":"pending"}}"#,
            ]
        );
        assert_eq!(texts(&telling.progress(&progress(2, 1))), [""; 0]);
        assert!(telling.shows(HostId(7)));
        assert!(!telling.shows(HostId(7)), "asked again after a loss");
        assert_eq!(
            texts(&telling.after_results()),
            [
                r#"{"type":"status","data":{"expected_results":2,"actual_results":1,"status":"pending"}}"#
            ]
        );
        assert_eq!(texts(&telling.after_results()), [""; 0]);
        assert!(telling.shows(HostId(8)) && telling.shows(HostId(9)));
        let finished = r#"{"type":"status","data":{"expected_results":3,"actual_results":3,"status":"finished"}}"#;
        assert_eq!(texts(&telling.after_results()), [finished]);
    }

    #[test]
    fn a_late_viewer_is_not_told_the_end_before_the_results() {
        let mut telling = Telling::new(Dialect::Fleet);
        let over = Progress {
            status: Status::Finished,
            ..progress(3, 3)
        };
        let said = texts(&telling.progress(&over)).concat();
        assert!(said.contains("pending"), "{said}");
        let said = texts(&telling.ended(&over)).concat();
        assert!(said.contains("finished"), "{said}");
    }

    #[test]
    fn what_fleet_has_no_word_for_is_an_error() {
        let mut telling = Telling::new(Dialect::Fleet);
        telling.progress(&progress(3, 0));
        let mut odd = progress(3, 0);
        odd.is_waiting = true;
        odd.tally.hosts_cut = 1;
        odd.tally.rows_cut = 5;
        let said = texts(&telling.progress(&odd));
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(
            said[0].contains(r#""error","data":"truncated"#)
                && said[0].contains("5 rows of 1 hosts")
        );
        assert!(said[1].contains("Redis"));
        assert_eq!(texts(&telling.progress(&odd)), [""; 0], "once");
        odd.status = Status::Stopped;
        odd.tally.hosts_cut = 4;
        let said = texts(&telling.ended(&odd)).concat();
        assert!(
            said.contains("of 4 hosts") && said.contains("was stopped"),
            "{said}"
        );
        assert!(said.contains("finished"), "{said}");
        let lost = telling.lost(Cursor { ms: 5, number: 6 }, "gone");
        assert_eq!(lost.text(), r#"{"type":"error","data":"gone"}"#);
    }

    #[test]
    fn our_own_viewers_hear_everything() {
        let mut telling = Telling::new(Dialect::Gateway);
        let said = telling.progress(&progress(2, 1));
        assert_eq!([said[0].kind, said[1].kind], [Kind::Totals, Kind::Status]);
        let status: Value = serde_json::from_str(&said[1].data).unwrap();
        assert_eq!(
            (&status["answered"], &status["status"]),
            (&json!(1), &json!("running"))
        );
        assert!(telling.shows(HostId(7)) && telling.shows(HostId(7)));
        let lost = telling.lost(Cursor { ms: 5, number: 6 }, "gone");
        assert_eq!(
            (lost.kind, lost.data.as_str()),
            (Kind::Lost, r#"{"reason":"gone"}"#)
        );
        assert_eq!(lost.cursor, Some(Cursor { ms: 5, number: 6 }));
        let said = telling.ended(&progress(2, 1));
        assert_eq!(
            said.iter().map(|message| message.kind).collect::<Vec<_>>(),
            [Kind::End]
        );
    }
}
