//! What a viewer says on a WebSocket, and in which order. Pure.
//!
//! Two messages: who it is, and which live query it wants to see. Nothing else is ever expected from it.

use fleet_protocol::secret::Secret;
use serde::Deserialize;
use serde_json::Value;

use crate::model::campaign::CampaignId;

/// Bytes of a message of a viewer.
pub(super) const SAID_BYTES_MAX: usize = 16 << 10;

/// What is to be done about a message.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Find out whose token this is.
    Check(Secret),
    /// Show this campaign.
    Watch(CampaignId),
    /// Tell the viewer why, and close.
    End(&'static str),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Silent,
    Checked,
    Watching,
}

/// One viewer's side so far.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    stage: Stage,
}

#[derive(Deserialize)]
struct Said<'s> {
    #[serde(rename = "type")]
    kind: &'s str,
    #[serde(default)]
    data: Value,
}

impl Conversation {
    /// The next message, which is assumed to be granted.
    pub(super) fn hear(&mut self, text: &str) -> Step {
        let Ok(said) = serde_json::from_str::<Said<'_>>(text) else {
            return Step::End("the message is not readable");
        };
        let (stage, step) = match (self.stage, said.kind) {
            (Stage::Silent, "auth") => match said.data.get("token").and_then(Value::as_str) {
                Some(token) => (Stage::Checked, Step::Check(Secret::new(token))),
                None => return Step::End("the message auth lacks its token"),
            },
            (Stage::Silent, _) => return Step::End("the first message must be auth"),
            (Stage::Checked, "select_campaign") => match campaign(&said.data) {
                Some(id) => (Stage::Watching, Step::Watch(id)),
                None => return Step::End("the message select_campaign lacks its campaign_id"),
            },
            (Stage::Checked, _) => return Step::End("the second message must be select_campaign"),
            (Stage::Watching, _) => {
                return Step::End("a connection shows one campaign, and hears nothing more");
            }
        };
        self.stage = stage;
        step
    }
}

fn campaign(data: &Value) -> Option<CampaignId> {
    let id = data.get("campaign_id")?.as_u64()?;
    u32::try_from(id).ok().map(CampaignId)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUTH: &str = r#"{"type":"auth","data":{"token":"hunter2"}}"#;
    const SELECT: &str = r#"{"type":"select_campaign","data":{"campaign_id":17}}"#;

    #[test]
    fn two_messages_are_a_conversation() {
        let mut viewer = Conversation::default();
        assert_eq!(viewer.hear(AUTH), Step::Check(Secret::new("hunter2")));
        assert_eq!(viewer.hear(SELECT), Step::Watch(CampaignId(17)));
        assert!(matches!(viewer.hear(SELECT), Step::End(_)));
    }

    #[test]
    fn nothing_comes_before_its_turn() {
        for first in [
            SELECT,
            "{}",
            "",
            "[]",
            r#"{"type":"auth"}"#,
            r#"{"type":"auth","data":{"token":1}}"#,
        ] {
            let mut viewer = Conversation::default();
            assert!(matches!(viewer.hear(first), Step::End(_)), "{first}");
        }
        for second in [
            AUTH,
            r#"{"type":"select_campaign"}"#,
            r#"{"type":"select_campaign","data":{"campaign_id":"17"}}"#,
            r#"{"type":"select_campaign","data":{"campaign_id":4294967296}}"#,
        ] {
            let mut viewer = Conversation::default();
            viewer.hear(AUTH);
            assert!(matches!(viewer.hear(second), Step::End(_)), "{second}");
        }
    }

    proptest! {
        #[test]
        fn nobody_watches_who_was_not_checked(texts in prop::collection::vec(
            prop_oneof![Just(AUTH.to_owned()), Just(SELECT.to_owned()), "\\PC{0,40}"], 0..8,
        )) {
            let (mut viewer, mut checks) = (Conversation::default(), 0);
            for text in texts {
                match viewer.hear(&text) {
                    Step::Check(_) => checks += 1,
                    Step::Watch(_) => prop_assert_eq!(checks, 1),
                    Step::End(reason) => {
                        prop_assert!(!reason.contains("hunter2"));
                        break;
                    }
                }
            }
        }
    }
}
