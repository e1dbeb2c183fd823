//! A session whose distributed read is held: when the hold begins, and what becomes of the read at its end.
//!
//! Invariants: a read is held only while it is known to be answered in time, and every hold ends in an answer unless the
//! agent goes away; while it lasts, the session keeps no buffer.

use std::rc::Rc;
use std::task::Context;
use std::time::Instant;

use fleet_protocol::ids::HostId;
use fleet_protocol::stats::{HoldEnd, Outcome};
use fleet_protocol::{hold, limits};

use super::Session;
use crate::buffers::Scratch;
use crate::exchange::{self, Reply};
use crate::holds::{Hold, IdleRead, Surroundings, Verdict};

impl Session {
    /// Holds a read with nothing due, or answers it.
    pub(super) fn hold_or_answer(
        &mut self,
        read: IdleRead,
        context: &Context<'_>,
        scratch: &mut Scratch,
        now: Instant,
    ) {
        let holds = &self.worker.state.holds;
        self.hold = self
            .hold_until(read.host(), now)
            .and_then(|until| Hold::new(holds, read, until, context.waker()))
            .map(Box::new);
        if self.hold.is_none() {
            self.respond(exchange::nothing_due(), scratch, now);
            return;
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.outcome = Outcome::Abandoned;
        }
        self.connection.hold();
    }

    /// `None` for a read that is answered at once.
    fn hold_until(&self, host: HostId, now: Instant) -> Option<Instant> {
        let state = &self.worker.state;
        if state.distributed_hold.is_zero() || self.is_leaving() {
            return None;
        }
        // The agent's time began when it connected, ours when it was accepted.
        if !self.permit.listening.is_calm(now) {
            return None;
        }
        if !self.worker.door.has_spare() {
            state.holds.borrow_mut().count(HoldEnd::Crowded);
            return None;
        }
        // Of a request that waits for its answer: `ANSWER_DEADLINE` from accept.
        let answer_end = self.connection.deadline()?;
        let latest =
            answer_end.checked_sub(limits::ANSWER_DEADLINE - limits::HELD_READ_DEADLINE)?;
        let until = (now + hold::of(state.distributed_hold, host)).min(latest);
        (now < until).then_some(until)
    }

    /// Whether the hold goes on; `None` when there is none.
    pub(super) fn judge_hold(&self, now: Instant) -> Option<Verdict> {
        let hold = self.hold.as_ref()?;
        let state = &self.worker.state;
        let host = state.host_of(&hold.read()?);
        Some(hold.judge(&Surroundings {
            now,
            unix_now: state.unix_seconds(now),
            work_due_at: host.map(|host| host.work_due_at),
            is_leaving: self.is_leaving(),
            is_crowded: self.worker.door.is_shut(),
        }))
    }

    /// When the session must be woken at the latest.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let deadline = self.connection.deadline()?;
        Some(match self.judge_hold(now) {
            Some(Verdict::Goes(at)) => at.min(deadline),
            _ => deadline,
        })
    }

    /// Ends the hold and serves the read as if it came now, but at once.
    pub(super) fn resume(&mut self, end: HoldEnd, scratch: &mut Scratch, now: Instant) {
        let Some(read) = self.end_hold(end, now) else {
            return;
        };
        let state = Rc::clone(&self.worker.state);
        match exchange::resume(&state, read, now) {
            Reply::Now(response) => self.respond(response, scratch, now),
            Reply::Later(pending) => self.pending = Some(pending),
            Reply::Idle(_) => self.respond(exchange::nothing_due(), scratch, now),
        }
    }

    /// What was held, if anything was. Its time counts from here.
    pub(super) fn end_hold(&mut self, end: HoldEnd, now: Instant) -> Option<IdleRead> {
        let read = self.hold.take()?.end(end);
        if let Some(exchange) = &mut self.exchange {
            exchange.since = now;
            exchange.outcome = Outcome::Broken;
        }
        read
    }

    fn is_leaving(&self) -> bool {
        self.worker.drain.is_begun() || self.permit.listening.is_withdrawn()
    }
}
