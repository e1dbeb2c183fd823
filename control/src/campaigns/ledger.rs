//! Which targets of a campaign are still to be asked, were asked, and have answered. Pure: `now` is an argument.
//!
//! Without Redis this is the truth; with it, what this node believes, and Redis has the last word on who is handed the
//! query. Invariants: a host is in one of `pending`, `handed`, `answered`, `silent`; who was handed the query is not
//! handed it again before an epoch has passed without an answer, nor more than [`HANDOUTS_MAX`] times.

use fleet_protocol::ids::UnixSeconds;
use fleet_protocol::limits::{CLAIM_EPOCH, HANDOUTS_MAX};
use roaring::RoaringBitmap;

/// What a claim for a host came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is handed the query for the first time.
    First,
    /// It did not answer, and is handed the query again.
    Again,
    /// Somebody handed it the query a moment ago.
    Elsewhere,
    /// It has answered.
    Answered,
    /// It was asked often enough.
    Exhausted,
    /// It is none of the hosts to be asked now.
    No,
}

impl Claim {
    /// Whether the host gets the query.
    pub(crate) fn is_granted(self) -> bool {
        matches!(self, Self::First | Self::Again)
    }
}

/// What an answer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The first one of this host.
    New,
    /// It has answered before.
    Twice,
    /// It is no target.
    Unasked,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    targets: RoaringBitmap,
    pending: RoaringBitmap,
    /// In this epoch.
    handed: RoaringBitmap,
    /// In the epoch before.
    handed_before: RoaringBitmap,
    answered: RoaringBitmap,
    /// Asked often enough; an answer is still welcome.
    silent: RoaringBitmap,
    /// Those handed the query at least once, twice and so on.
    handouts: [RoaringBitmap; HANDOUTS_MAX as usize],
    epoch: u32,
}

impl Ledger {
    /// Everybody is to be asked.
    pub(crate) fn new(targets: RoaringBitmap, now: UnixSeconds) -> Self {
        Self {
            pending: targets.clone(),
            targets,
            epoch: epoch(now),
            ..Self::default()
        }
    }

    pub(crate) fn targets(&self) -> &RoaringBitmap {
        &self.targets
    }

    /// Those to be asked.
    pub(crate) fn pending(&self) -> &RoaringBitmap {
        &self.pending
    }

    pub(crate) fn answered(&self) -> &RoaringBitmap {
        &self.answered
    }

    /// Those that were asked as often as they may be.
    pub(crate) fn silent_count(&self) -> u64 {
        self.silent.len()
    }

    /// A host's place among the targets, which is the same on every node.
    pub(crate) fn rank(&self, host: u32) -> Option<u64> {
        let is_target = self.targets.contains(host);
        is_target.then(|| self.targets.rank(host).saturating_sub(1))
    }

    /// The host at a place.
    pub(crate) fn host_at(&self, rank: u32) -> Option<u32> {
        self.targets.select(rank)
    }

    /// Hands the query to a host, if it is its turn.
    pub(crate) fn claim(&mut self, host: u32) -> Claim {
        if !self.pending.remove(host) {
            return Claim::No;
        }
        for (before, handouts) in self.handouts.iter_mut().enumerate() {
            if handouts.insert(host) {
                self.handed.insert(host);
                return if before == 0 {
                    Claim::First
                } else {
                    Claim::Again
                };
            }
        }
        self.silent.insert(host);
        Claim::Exhausted
    }

    /// Takes what Redis said of a host.
    pub(crate) fn note(&mut self, host: u32, claim: Claim) {
        if !self.targets.contains(host) || self.answered.contains(host) {
            return;
        }
        match claim {
            Claim::First | Claim::Again | Claim::Elsewhere => {
                self.leave(host);
                self.handed.insert(host);
            }
            Claim::Answered => {
                self.answer(host);
            }
            Claim::Exhausted => {
                self.leave(host);
                self.silent.insert(host);
            }
            Claim::No => {}
        }
    }

    /// What an answer of a host would come to.
    pub(crate) fn judge(&self, host: u32) -> Heard {
        if !self.targets.contains(host) {
            Heard::Unasked
        } else if self.answered.contains(host) {
            Heard::Twice
        } else {
            Heard::New
        }
    }

    /// A host has answered.
    pub(crate) fn answer(&mut self, host: u32) -> Heard {
        let heard = self.judge(host);
        if heard == Heard::New {
            self.leave(host);
            self.answered.insert(host);
        }
        heard
    }

    /// Moves on to the epoch of `now`; those that did not answer in time are to be asked again, and returned.
    pub(crate) fn turn(&mut self, now: UnixSeconds) -> RoaringBitmap {
        let mut again = RoaringBitmap::new();
        let epochs = epoch(now).saturating_sub(self.epoch);
        self.epoch = self.epoch.max(epoch(now));
        for _ in 0..epochs.min(2) {
            let handed = std::mem::take(&mut self.handed);
            let late = std::mem::replace(&mut self.handed_before, handed);
            let is_exhausted = self.handouts.last().map(|last| &late & last);
            let exhausted = is_exhausted.unwrap_or_default();
            again |= &late - &exhausted;
            self.silent |= exhausted;
        }
        self.pending |= &again;
        again
    }

    /// What was answered is lost: everybody is to be asked again.
    pub(crate) fn restart(&mut self, now: UnixSeconds) {
        *self = Self::new(std::mem::take(&mut self.targets), now);
    }

    /// Takes a host that has not answered from where it is.
    fn leave(&mut self, host: u32) {
        for set in [
            &mut self.pending,
            &mut self.handed,
            &mut self.handed_before,
            &mut self.silent,
        ] {
            set.remove(host);
        }
    }

    /// Every target has answered.
    pub(crate) fn is_complete(&self) -> bool {
        self.answered.len() >= self.targets.len()
    }
}

fn epoch(now: UnixSeconds) -> u32 {
    let span = u32::try_from(CLAIM_EPOCH.as_secs()).unwrap_or(u32::MAX);
    now.0 / span.max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const START: u32 = 1_800_000_000;

    #[derive(Clone, Debug)]
    enum Step {
        Read(u32),
        Answer(u32),
        Wait(u32),
        Elsewhere(u32),
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0_u32..12).prop_map(Step::Read),
            3 => (0_u32..12).prop_map(Step::Answer),
            3 => (1_u32..90).prop_map(Step::Wait),
            1 => (0_u32..12).prop_map(Step::Elsewhere),
            1 => Just(Step::Restart),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn nobody_is_asked_twice_unless_silent_and_each_answer_counts_once(steps in steps()) {
            let targets: RoaringBitmap = (0..10).collect();
            let mut now = UnixSeconds(START);
            let mut ledger = Ledger::new(targets, now);
            let mut handed = BTreeMap::<u32, Vec<u32>>::new();
            let mut answered = BTreeMap::<u32, u32>::new();
            for step in steps {
                match step {
                    Step::Read(host) => {
                        let claim = ledger.claim(host);
                        let times = handed.entry(host).or_default();
                        if claim.is_granted() {
                            prop_assert!(host < 10);
                            prop_assert!(!answered.contains_key(&host), "asked after its answer");
                            prop_assert_eq!(claim == Claim::First, times.is_empty());
                            if let Some(last) = times.last() {
                                prop_assert!(now.0 - last > 60, "asked again after {} s", now.0 - last);
                            }
                            times.push(now.0);
                            prop_assert!(times.len() <= usize::from(HANDOUTS_MAX));
                        }
                    }
                    Step::Answer(host) => {
                        let heard = ledger.answer(host);
                        let count = answered.entry(host).or_default();
                        match heard {
                            Heard::Unasked => prop_assert!(host >= 10),
                            Heard::Twice => prop_assert!(*count > 0),
                            Heard::New => {
                                prop_assert_eq!(*count, 0);
                                *count += 1;
                            }
                        }
                        if host >= 10 {
                            answered.remove(&host);
                        }
                    }
                    Step::Wait(seconds) => {
                        now.0 += seconds;
                        ledger.turn(now);
                    }
                    Step::Elsewhere(host) => ledger.note(host, Claim::Elsewhere),
                    Step::Restart => {
                        ledger.restart(now);
                        handed.clear();
                        answered.clear();
                    }
                }
                let sets = [&ledger.pending, &ledger.handed, &ledger.handed_before, &ledger.answered, &ledger.silent];
                let sum: u64 = sets.iter().map(|set| set.len()).sum();
                prop_assert_eq!(sum, 10, "each host is in one set: {:?}", sets);
            }
        }
    }

    #[test]
    fn who_does_not_answer_is_asked_again_and_then_left() {
        let mut now = UnixSeconds(START);
        let mut ledger = Ledger::new([5].into(), now);
        let mut claims = Vec::new();
        for _ in 0..60 {
            claims.push(ledger.claim(5));
            now.0 += 10;
            ledger.turn(now);
        }
        claims.retain(|claim| *claim != Claim::No);
        assert_eq!(claims, [Claim::First, Claim::Again, Claim::Again]);
        assert_eq!(ledger.silent_count(), 1);
        assert_eq!(ledger.answer(5), Heard::New, "late is better than never");
        assert!(ledger.is_complete());
    }

    #[test]
    fn places_are_dense() {
        let ledger = Ledger::new([7, 1_000_000, 4_000_000_000].into(), UnixSeconds(START));
        assert_eq!(ledger.rank(7), Some(0));
        assert_eq!(ledger.rank(4_000_000_000), Some(2));
        assert_eq!(ledger.rank(8), None);
        assert_eq!(ledger.host_at(1), Some(1_000_000));
        assert_eq!(ledger.host_at(3), None);
    }
}
