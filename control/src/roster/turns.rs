//! Whose turn it is to get due work: the roster's part of the pacing, see `pacer.rs`.

use fleet_protocol::feed::CHANGES_PER_FEED_MAX;
use fleet_protocol::ids::UnixSeconds;

use super::Roster;
use crate::directory::Place;
use crate::pacer::{Asker, Pacer, PacerStatistics, Turn, Wait};
use crate::work::LabelDemand;

impl Roster {
    /// Whether a host with due work gets it now; if not, when it is to ask again. Notes whether it waits.
    pub(super) fn ask_turn(
        &mut self,
        place: Place,
        demand: Option<LabelDemand>,
        now: UnixSeconds,
    ) -> Option<UnixSeconds> {
        let hosts = self.host_count();
        let entry = self.directory.get_mut(place)?;
        let asker = Asker {
            host: entry.id,
            since: self
                .schedule
                .waiting_since(&entry.work_state(), demand, entry.enrolled_at),
            interval_s: u32::from(entry.interval_s),
            wait: entry.wait,
        };
        let (put_off_until, wait) = match self.pacer.ask(&asker, hosts, now) {
            Turn::Now => (None, Wait::default()),
            Turn::At(at, wait) => (Some(at), wait),
        };
        entry.wait = wait;
        put_off_until
    }

    /// The time that a host which waits was told, unless what it waits for is another work than then.
    pub(super) fn turn_told(
        &mut self,
        place: Place,
        demand: Option<LabelDemand>,
    ) -> Option<UnixSeconds> {
        let entry = self
            .directory
            .get_mut(place)
            .filter(|entry| entry.wait.is_waiting())?;
        let since = self
            .schedule
            .waiting_since(&entry.work_state(), demand, entry.enrolled_at);
        if entry.wait.is_of(since) {
            return Some(entry.due_told_at);
        }
        self.pacer.leave(std::mem::take(&mut entry.wait));
        None
    }

    /// Forgets the hosts of some places that wait and do not come. The next place, or the first after the last.
    pub(crate) fn forget_lost(&mut self, from: usize, now: UnixSeconds) -> usize {
        if self.pacer.waiting() == 0 {
            return 0;
        }
        let to = from + CHANGES_PER_FEED_MAX;
        for place in self.directory.places(from, to) {
            if let Some(entry) = self.directory.get_mut(place)
                && entry.wait.is_waiting()
                && Pacer::is_lost(entry.due_told_at, u32::from(entry.interval_s), now)
            {
                self.pacer.leave(std::mem::take(&mut entry.wait));
            }
        }
        if to < self.directory.end() { to } else { 0 }
    }

    /// Hands out nothing in this second: an earlier process may have.
    pub(crate) fn skip_second(&mut self, now: UnixSeconds) {
        self.pacer.skip_second(now);
    }

    /// For metrics.
    pub(crate) fn pacer_statistics(&self) -> PacerStatistics {
        self.pacer.statistics(self.host_count())
    }

    /// Whether the configured rate is less than what the hosts make due in the long run; then how much that is.
    pub(crate) fn lacking_rate(&self) -> Option<u32> {
        let need = self.pacer.rate().need(self.host_count());
        (need > self.pacer.rate().per_second(self.host_count())).then_some(need)
    }

    pub(crate) fn host_count(&self) -> u32 {
        u32::try_from(self.directory.len()).unwrap_or(u32::MAX)
    }
}
