//! What happened in a run, or in many.

/// What happened in a run, or in many.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) events: u64,
    pub(crate) exchanges: u64,
    pub(crate) answered: u64,
    pub(crate) refused: u64,
    pub(crate) full: u64,
    pub(crate) late: u64,
    pub(crate) cut: u64,
    pub(crate) turned_away: u64,
    pub(crate) stored_twice: u64,
    pub(crate) joined: u64,
    pub(crate) answered_again: u64,
    pub(crate) oddities: u64,
    pub(crate) kills: u64,
    pub(crate) breaks: u64,
    pub(crate) parked: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.exchanges += other.exchanges;
        self.answered += other.answered;
        self.refused += other.refused;
        self.full += other.full;
        self.late += other.late;
        self.cut += other.cut;
        self.turned_away += other.turned_away;
        self.stored_twice += other.stored_twice;
        self.joined += other.joined;
        self.answered_again += other.answered_again;
        self.oddities += other.oddities;
        self.kills += other.kills;
        self.breaks += other.breaks;
        self.parked += other.parked;
    }
}

impl Counts {
    /// A simulation in which something never happens shows nothing about it.
    pub(crate) fn assert_everything_happened(&self, seeds: u64) {
        if seeds < 100 {
            return;
        }
        for (name, count) in [
            ("answers", self.answered),
            ("refusals", self.refused),
            ("full queues", self.full),
            ("late exchanges", self.late),
            ("cut exchanges", self.cut),
            ("closed doors", self.turned_away),
            ("lines stored by two lives of control", self.stored_twice),
            ("batches that were joined", self.joined),
            ("batches that were answered again", self.answered_again),
            ("answers that came twice", self.oddities),
            ("kills", self.kills),
            ("broken links", self.breaks),
            ("parked slots", self.parked),
        ] {
            assert!(count > 0, "no {name} in {seeds} seeds: {self:?}");
        }
    }
}
