//! How many turns connections get whose handshake is in progress, before everybody else on the event loop has one again.
//!
//! A handshake's turn costs some 150 µs of signing, hundreds of times a turn of anything else. When thousands of peers
//! answer in the same moment, the link to control would wait for all of them, miss its pings and be cut. So after
//! [`TURNS_PER_LAP`] of them the others wait in a queue for the next lap of the event loop, and while somebody waits there
//! nobody new is accepted. Nothing is idle meanwhile, so no throughput is lost; and it is the peers that are ready who are
//! counted, so that slow ones, or long paths, take nobody's place.
//!
//! Pure but for the wakers. Owner of state: the worker. Each who waits holds the ticket that [`Turns::pass`] gave out.

use std::collections::VecDeque;
use std::task::Waker;

/// Some 5 ms of handshakes.
pub(crate) const TURNS_PER_LAP: usize = 32;

/// A place in the queue, or none. One number, since every connection has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// Of who does not wait.
    pub(crate) const NONE: Self = Self(0);
    /// Of who needs no turns any more; never handed to [`Turns::pass`].
    pub(crate) const OVER: Self = Self(u64::MAX);
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// In this lap.
    used: usize,
    waiting: VecDeque<Waker>,
    /// Tickets that were given out.
    given: u64,
    /// Of those, the first so many may pass.
    called: u64,
}

/// What [`Turns::pass`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Take the turn.
    Now,
    /// Wait to be woken. `is_first`: somebody has to call the next lap.
    Wait {
        /// Nobody waited before.
        is_first: bool,
    },
}

impl Turns {
    /// Asks for a turn; `ticket` is the asker's, kept between its calls.
    pub(crate) fn pass(&mut self, ticket: &mut Ticket, waker: &Waker) -> Pass {
        if *ticket != Ticket::NONE {
            if ticket.0 > self.called {
                return Pass::Wait { is_first: false };
            }
            *ticket = Ticket::NONE;
            return Pass::Now;
        }
        if self.waiting.is_empty() && self.used < TURNS_PER_LAP {
            self.used += 1;
            return Pass::Now;
        }
        self.given += 1;
        *ticket = Ticket(self.given);
        self.waiting.push_back(waker.clone());
        Pass::Wait {
            is_first: self.waiting.len() == 1,
        }
    }

    /// Everybody who was ready has had a turn: wakes the next ones. Whether more wait.
    pub(crate) fn begin_lap(&mut self) -> bool {
        self.used = 0;
        while self.used < TURNS_PER_LAP
            && let Some(waker) = self.waiting.pop_front()
        {
            self.used += 1;
            self.called += 1;
            waker.wake();
        }
        self.has_waiting()
    }

    /// As [`Turns::begin_lap`], unless somebody waits, whose laps others call.
    pub(crate) fn begin_lap_if_clear(&mut self) {
        if !self.has_waiting() {
            self.used = 0;
        }
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tickets ever given out.
    pub(crate) fn deferred(&self) -> u64 {
        self.given
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_comes_too_late_waits_for_the_next_lap() {
        let mut turns = Turns::default();
        for _ in 0..TURNS_PER_LAP {
            assert_eq!(turns.pass(&mut { Ticket::NONE }, Waker::noop()), Pass::Now);
        }
        let (mut first, mut second) = (Ticket::NONE, Ticket::NONE);
        let wait = |is_first| Pass::Wait { is_first };
        assert_eq!(turns.pass(&mut first, Waker::noop()), wait(true));
        assert_eq!(turns.pass(&mut second, Waker::noop()), wait(false));
        // Woken by its socket meanwhile.
        assert_eq!(turns.pass(&mut first, Waker::noop()), wait(false));
        turns.begin_lap_if_clear();
        assert!(turns.has_waiting());
        assert!(!turns.begin_lap());
        assert_eq!(turns.pass(&mut second, Waker::noop()), Pass::Now);
        assert_eq!(turns.pass(&mut first, Waker::noop()), Pass::Now);
        assert_eq!((first, second), (Ticket::NONE, Ticket::NONE));
        assert_eq!(turns.deferred(), 2);
    }

    proptest! {
        /// Each who asks passes in the end, in the order of asking, and no lap has more than its turns.
        #[test]
        fn laps_are_bounded_and_nobody_is_forgotten(asks in prop::collection::vec(0_usize..100, 1..20)) {
            let mut turns = Turns::default();
            let mut waiting: VecDeque<Ticket> = VecDeque::new();
            let mut laps = 0;
            let mut asks = asks.into_iter();
            loop {
                let mut passed = 0;
                // Who waits asks again, called or not.
                let mut is_blocked = false;
                waiting.retain_mut(|ticket| {
                    let pass = turns.pass(ticket, Waker::noop());
                    let is_through = pass == Pass::Now;
                    assert!(!(is_blocked && is_through), "out of turn");
                    is_blocked |= !is_through;
                    passed += usize::from(is_through);
                    !is_through
                });
                let next = asks.next();
                for _ in 0..next.unwrap_or_default() {
                    let mut ticket = Ticket::NONE;
                    match turns.pass(&mut ticket, Waker::noop()) {
                        Pass::Now => passed += 1,
                        Pass::Wait { is_first } => {
                            prop_assert_eq!(is_first, waiting.is_empty());
                            waiting.push_back(ticket);
                        }
                    }
                }
                prop_assert!(passed <= TURNS_PER_LAP);
                prop_assert_eq!(turns.has_waiting(), !waiting.is_empty());
                if next.is_none() && waiting.is_empty() {
                    break;
                }
                turns.begin_lap();
                laps += 1;
                prop_assert!(laps < 200);
            }
        }
    }
}
