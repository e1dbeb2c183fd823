//! What a look at one setting gave. Pure.

use fleet_protocol::slot::SettingView;
use serde::Serialize;

use crate::settings::{Place, Setting};
use crate::size::Size;
use crate::value::{self, Rule};

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Numbers or a word.
    Text(String),
    /// As [`Reading::Text`], and another value is written down for the next login.
    Pending {
        /// Of this process.
        now: String,
        /// Of the next login.
        written: String,
    },
    /// It is not here; why.
    Absent(String),
    /// It cannot be read; why.
    Unreadable(String),
}

/// How a setting stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Good enough.
    Holds,
    /// Should be changed.
    Low,
    /// Written down, but this process was started before.
    Pending,
    /// Not on this machine.
    Absent,
    /// Cannot be told.
    Unknown,
    /// Otherwise than advised; counts for nothing.
    Advice,
}

impl Verdict {
    /// A lower-case word for people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Low => "change",
            Self::Pending => "pending",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
            Self::Advice => "advice",
        }
    }

    /// Whether a machine in this state is as well set up as it can be.
    pub fn is_good(self) -> bool {
        !matches!(self, Self::Low)
    }
}

/// One setting of this machine.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which.
    pub setting: &'static Setting,
    /// Its value, such as `4096`; empty when there is none.
    pub now: String,
    /// The least that is wanted.
    pub wanted: String,
    /// What to set, so that nothing is lowered.
    pub target: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What to know about the verdict; may be empty.
    pub note: String,
}

impl Finding {
    /// Judges what was read.
    pub fn judge(setting: &'static Setting, size: &Size, reading: Reading) -> Self {
        let numbers = (setting.wanted)(size);
        let wanted = match setting.rule {
            Rule::Avoid(_, good) => good.to_owned(),
            _ => value::text(&numbers),
        };
        let mut finding = Self {
            setting,
            now: String::new(),
            target: wanted.clone(),
            wanted,
            verdict: Verdict::Absent,
            note: String::new(),
        };
        let (now, written) = match reading {
            Reading::Text(now) => (now, None),
            Reading::Pending { now, written } => (now, value::parse(&written)),
            Reading::Absent(note) => {
                finding.note = note;
                return finding;
            }
            Reading::Unreadable(note) => {
                finding.verdict = Verdict::Unknown;
                finding.note = note;
                return finding;
            }
        };
        finding.compare(&numbers, now);
        let is_written = written.is_some_and(|written| setting.rule.holds(&written, &numbers));
        if is_written && finding.verdict == Verdict::Low {
            finding.verdict = Verdict::Pending;
            finding.note = "holds from the next login".into();
        }
        finding
    }

    fn compare(&mut self, wanted: &[u64], now: String) {
        let rule = self.setting.rule;
        let bad = if self.setting.is_advice() {
            Verdict::Advice
        } else {
            Verdict::Low
        };
        if let Rule::Avoid(words, _) = rule {
            self.verdict = if words.contains(&now.as_str()) {
                bad
            } else {
                Verdict::Holds
            };
            self.now = now;
            return;
        }
        let Some(numbers) = value::parse(&now).filter(|numbers| numbers.len() == wanted.len())
        else {
            self.verdict = Verdict::Unknown;
            self.note = "its value is not of the kind that is known here".into();
            self.now = now;
            return;
        };
        self.verdict = if rule.holds(&numbers, wanted) {
            Verdict::Holds
        } else {
            bad
        };
        self.target = value::text(&rule.merge(&numbers, wanted));
        self.now = value::text(&numbers);
        if self.verdict == Verdict::Low && self.setting.place == Place::Cgroup {
            self.note = "only who runs this control group can raise it".into();
        }
    }

    /// For `status` and `/metrics`; advice is no part of them.
    pub fn view(&self) -> Option<SettingView> {
        let holds = match self.verdict {
            Verdict::Holds => Some(true),
            Verdict::Low | Verdict::Pending => Some(false),
            Verdict::Absent | Verdict::Unknown => None,
            Verdict::Advice => return None,
        };
        (!self.setting.is_advice()).then(|| SettingView {
            key: self.setting.key.into(),
            now: self.now.clone(),
            wanted: self.wanted.clone(),
            holds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{self, SETTINGS};

    const SIZE: Size = Size {
        hosts: 30_000,
        cores: 2,
        memory_bytes: 8 << 30,
        page_bytes: 4096,
        connections: 30_000,
        listeners: 2,
    };

    fn judge(key: &str, reading: Reading) -> Finding {
        Finding::judge(settings::find(key).unwrap(), &SIZE, reading)
    }

    fn text(text: &str) -> Reading {
        Reading::Text(text.into())
    }

    #[test]
    fn a_low_value_is_raised_and_a_high_one_left() {
        let low = judge(settings::SOMAXCONN, text("128"));
        assert_eq!((low.verdict, low.target.as_str()), (Verdict::Low, "16384"));
        assert_eq!(low.view().unwrap().holds, Some(false));
        let high = judge(settings::SOMAXCONN, text("65535"));
        assert_eq!(
            (high.verdict, high.target.as_str()),
            (Verdict::Holds, "65535")
        );
        let partly = judge("net.ipv4.tcp_rmem", text("4096\t131072\t65536"));
        assert_eq!(partly.target, "4096 131072 1048576");
    }

    #[test]
    fn modes_are_set_whatever_they_were() {
        let loopback = judge("net.ipv4.tcp_tw_reuse", text("2"));
        assert_eq!(
            (loopback.verdict, loopback.target.as_str()),
            (Verdict::Low, "1")
        );
        assert_eq!(
            judge("net.ipv4.tcp_tw_reuse", text("1")).verdict,
            Verdict::Holds
        );
    }

    #[test]
    fn advice_counts_for_nothing() {
        let always = judge("transparent_hugepage", text("always"));
        assert_eq!(always.verdict, Verdict::Advice);
        assert!(always.verdict.is_good() && always.view().is_none());
        assert_eq!(
            judge("clocksource", text("kvm-clock")).verdict,
            Verdict::Holds
        );
        assert_eq!(
            judge("net.ipv4.tcp_tw_reuse_delay", text("5000")).verdict,
            Verdict::Advice
        );
    }

    #[test]
    fn what_is_written_down_waits_for_a_login() {
        let pending = |written: &str| Reading::Pending {
            now: "1024 4096".into(),
            written: written.into(),
        };
        assert_eq!(
            judge(settings::NOFILE, pending("1024000 1024000")).verdict,
            Verdict::Pending
        );
        assert_eq!(
            judge(settings::NOFILE, pending("65536 65536")).verdict,
            Verdict::Low
        );
        assert_eq!(judge(settings::NOFILE, pending("")).verdict, Verdict::Low);
    }

    #[test]
    fn what_is_not_understood_is_not_judged() {
        for odd in ["", "yes", "1 2 3", "-5"] {
            let finding = judge(settings::SOMAXCONN, text(odd));
            assert_eq!(finding.verdict, Verdict::Unknown, "{odd}");
            assert_eq!(finding.view().unwrap().holds, None);
        }
        for setting in SETTINGS {
            let finding = Finding::judge(setting, &SIZE, Reading::Absent("no".into()));
            assert_eq!(finding.verdict, Verdict::Absent);
        }
    }
}
