//! What the supervisor tells workers of the limits: the gateway's, and among how many slots they are divided.

use fleet_protocol::slot::{SlotLimits, SlotState};

use super::{Phase, Supervisor};

impl Supervisor {
    /// Tells those workers that do not know. Their number changes with each that begins or ceases to serve.
    pub(super) fn tend_limits(&mut self) {
        if self.phase != Phase::Serving {
            return;
        }
        let is_serving = |place: &&crate::place::Place| place.slot.state() == SlotState::Ready;
        let serving = self.workers().filter(is_serving).count();
        let limits = SlotLimits {
            allowed: self.setup.allowed(),
            slots: u16::try_from(serving).unwrap_or(u16::MAX).max(1),
        };
        for place in &mut self.places {
            place.update_limits(&limits);
        }
    }
}
