//! What one host of a storm went through: pure judgement of each exchange, and the host's story since the storm began.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fleet_protocol::agent::Route;
use tokio::time::Instant;

use super::population::Recorder;
use crate::agent::{Exchange, Observer};
use crate::verdict::Failure;

/// How a server treated an agent in one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It got what it wanted.
    Served,
    /// It was told to come back, by an `error` object or a cut: it keeps what it has.
    Told,
    /// Nothing within the agent's 16 s.
    Silent,
    /// Nobody listened, or TLS or the socket failed: no word of a server to its agent.
    Unreached,
    /// An agent would take a refusal for a success, or its key for unknown, or not understand the answer.
    Violation,
    /// This machine had no descriptor or port left: says nothing about the server.
    Own,
}

impl Treatment {
    /// Of an exchange with a host that the server knows, or one that enrolls.
    pub(super) fn of(exchange: &Exchange) -> Self {
        match exchange.failure() {
            None if exchange.body.is_empty() || !(200..300).contains(&exchange.status) => {
                Self::Violation
            }
            None => Self::Served,
            Some(Failure::Error(_) | Failure::NoNodeKey | Failure::NoSession) => Self::Told,
            Some(Failure::Reset | Failure::Closed) => Self::Told,
            Some(Failure::Refused | Failure::Tls(_) | Failure::Socket(_)) => Self::Unreached,
            Some(Failure::Timeout) => Self::Silent,
            Some(Failure::Local(_)) => Self::Own,
            Some(
                Failure::NotJson
                | Failure::NotObject
                | Failure::NodeInvalid
                | Failure::Http(_)
                | Failure::Redirect(_),
            ) => Self::Violation,
        }
    }
}

/// What happened to one host since the storm began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Story {
    /// Until the first answer that it could use, or the first word to come back.
    pub(super) first_word: Option<Duration>,
    /// Until the first success of any kind.
    pub(super) first_success: Option<Duration>,
    /// Until it had had a success of each kind that it wanted.
    pub(super) all_served: Option<Duration>,
    pub(super) told: u32,
    pub(super) silent: u32,
    pub(super) unreached: u32,
    pub(super) violations: u32,
    pub(super) own: u32,
    pub(super) config: bool,
    pub(super) read: bool,
    pub(super) log: bool,
}

impl Story {
    /// It was told to come back before it got anything.
    pub(super) fn is_told_first(&self) -> bool {
        self.first_word
            .is_some_and(|word| self.first_success.is_none_or(|success| word < success))
    }

    /// Goes on by one exchange that ended `since` the storm began. `wants_log` says that the host has lines to deliver.
    fn go_on(&mut self, route: Route, treatment: Treatment, since: Duration, wants_log: bool) {
        match treatment {
            Treatment::Served => {}
            Treatment::Told => self.told += 1,
            Treatment::Silent => self.silent += 1,
            Treatment::Unreached => self.unreached += 1,
            Treatment::Violation => self.violations += 1,
            Treatment::Own => self.own += 1,
        }
        if matches!(treatment, Treatment::Served | Treatment::Told) {
            self.first_word.get_or_insert(since);
        }
        if treatment != Treatment::Served {
            return;
        }
        self.first_success.get_or_insert(since);
        match route {
            Route::Config => self.config = true,
            Route::Read => self.read = true,
            Route::Log => self.log = true,
            Route::Enroll | Route::Write | Route::CarveBegin | Route::CarveBlock => {}
        }
        if self.config && self.read && (self.log || !wants_log) {
            self.all_served.get_or_insert(since);
        }
    }
}

/// Observes one host: for the run's counts, and for the host's story.
pub(super) struct Witness {
    recorder: Arc<Recorder>,
    wants_log: bool,
    story: Mutex<Story>,
}

impl Witness {
    pub(super) fn new(recorder: &Arc<Recorder>, wants_log: bool) -> Arc<Self> {
        Arc::new(Self {
            recorder: recorder.clone(),
            wants_log,
            story: Mutex::default(),
        })
    }

    /// The story so far.
    pub(super) fn story(&self) -> Story {
        *self.story.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Witness {
    fn observe(&self, exchange: &Exchange, intended_at: Instant) {
        self.recorder.observe(exchange, intended_at);
        let Some(begin) = self.recorder.shared.marks.begin_of(1) else {
            return;
        };
        // What was under way before the storm does not belong to it.
        if intended_at < begin {
            return;
        }
        let since = exchange.ended_at.saturating_duration_since(begin);
        let mut story = self.story.lock().unwrap_or_else(PoisonError::into_inner);
        let was_served = story.all_served.is_some();
        story.go_on(
            exchange.route,
            Treatment::of(exchange),
            since,
            self.wants_log,
        );
        if !was_served && story.all_served.is_some() {
            super::lane::Shared::count(&self.recorder.shared.done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Object;

    fn exchange(status: u16, body: &str, failure: Option<Failure>) -> Exchange {
        let now = Instant::now();
        Exchange {
            route: Route::Read,
            verdict: failure.map_or(Ok(Object::new()), Err),
            status,
            headers: Vec::new(),
            body: body.into(),
            connections: 1,
            is_resent: false,
            waited: std::time::Duration::ZERO,
            sent_bytes: 0,
            started_at: now,
            ended_at: now,
        }
    }

    #[test]
    fn a_made_up_success_is_a_violation() {
        let of = |status, body, failure| Treatment::of(&exchange(status, body, failure));
        assert_eq!(of(200, "{}", None), Treatment::Served);
        assert_eq!(of(200, "", None), Treatment::Violation);
        assert_eq!(of(503, "", None), Treatment::Violation);
        assert_eq!(of(500, r#"{"message":"boom"}"#, None), Treatment::Violation);
        let busy = Failure::Error("busy".into());
        assert_eq!(of(503, r#"{"error":"busy"}"#, Some(busy)), Treatment::Told);
        assert_eq!(of(0, "", Some(Failure::Reset)), Treatment::Told);
        assert_eq!(of(0, "", Some(Failure::Timeout)), Treatment::Silent);
        for failure in [Failure::Refused, Failure::Tls("alert".into())] {
            assert_eq!(of(0, "", Some(failure)), Treatment::Unreached);
        }
        let invalid = Some(Failure::NodeInvalid);
        assert_eq!(of(401, "{}", invalid), Treatment::Violation);
        assert_eq!(of(502, "<p>", Some(Failure::NotJson)), Treatment::Violation);
    }

    #[test]
    fn a_host_is_served_when_each_kind_was() {
        let s = Duration::from_secs;
        let mut story = Story::default();
        story.go_on(Route::Config, Treatment::Silent, s(16), true);
        story.go_on(Route::Config, Treatment::Unreached, s(17), true);
        assert_eq!(story.first_word, None);
        story.go_on(Route::Log, Treatment::Told, s(17), true);
        assert!(story.is_told_first());
        story.go_on(Route::Config, Treatment::Served, s(18), true);
        assert!(story.is_told_first());
        story.go_on(Route::Read, Treatment::Served, s(19), true);
        assert_eq!(story.all_served, None);
        story.go_on(Route::Log, Treatment::Served, s(25), true);
        story.go_on(Route::Log, Treatment::Served, s(35), true);
        assert_eq!(
            [story.first_word, story.first_success, story.all_served],
            [Some(s(17)), Some(s(18)), Some(s(25))]
        );
        assert_eq!((story.told, story.silent, story.unreached), (1, 1, 1));
        assert_eq!(story.violations, 0);
    }
}
