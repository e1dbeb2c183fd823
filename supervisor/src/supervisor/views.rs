//! What the supervisor shows: to operators, to those who spread agents, to systemd and on standard output.

use std::io::Write as _;
use std::sync::Arc;

use fleet_protocol::admin::Status;
use fleet_protocol::slot::{Gateway, SlotState};

use super::upgrade::Upgrade;
use super::{Phase, Supervisor};
use crate::place::{Place, Role};

impl Supervisor {
    pub(super) fn print_banner(&mut self, is_settled: bool) {
        if let Some(banner) = self.banner.take() {
            if !is_settled {
                tracing::warn!("not everything is ready yet; `status` shows what is missing");
            }
            let mut out = std::io::stdout().lock();
            // A closed standard output is no reason to stop serving.
            let _ = out.write_all(banner.as_bytes()).and_then(|()| out.flush());
        }
    }

    /// Tells systemd once that we serve.
    pub(super) fn announce(&mut self) {
        if !self.is_announced && self.upgrade.is_none() {
            self.is_announced = true;
            // Whoever waited for the start reads the line at once.
            self.tell_status();
            self.notify.ready();
        }
    }

    /// Tells those who spread agents, and gives what it told.
    pub(super) fn publish(&self) -> Gateway {
        let gateway = self.gateway();
        self.gateway.send_replace(Arc::new(gateway.clone()));
        gateway
    }

    fn is_draining(&self) -> bool {
        self.phase != Phase::Serving || self.is_away
    }

    pub(super) fn tell_status(&mut self) {
        let ready = |place: &&Place| place.slot.state() == SlotState::Ready;
        let (ready, all) = (self.workers().filter(ready).count(), self.setup.workers);
        let control = self.places.first().map(|place| place.slot.state().label());
        let what = match (&self.upgrade, self.phase) {
            (Upgrade::None, Phase::Serving) => "serves",
            (Upgrade::None, _) => "is stopping",
            _ => "is being upgraded",
        };
        self.notify.status(format!(
            "{what}: {ready} of {all} workers ready, control {}",
            control.unwrap_or_default()
        ));
    }

    fn gateway(&self) -> Gateway {
        let now = self.now();
        Gateway {
            slots: self
                .places
                .iter()
                .filter_map(|place| place.slot_view(now))
                .collect(),
            control_restarts: self.places.first().map_or(0, |place| place.slot.restarts()),
            control_hangs: self.places.first().map_or(0, |place| place.slot.hangs()),
            is_draining: self.is_draining(),
            addresses: self.setup.addresses.views(),
            settings: self.setup.settings.clone(),
            sandboxes: self.places.iter().filter_map(Place::sandbox_view).collect(),
            certificates: self.setup.renewal.credentials.views.clone(),
            certificate_trouble: self.setup.renewal.trouble.clone(),
        }
    }

    pub(super) fn status(&self) -> Status {
        let now = self.now();
        let control = self.places.first().map(|place| place.control_view(now));
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: now.as_secs(),
            is_draining: self.is_draining(),
            addresses: self.setup.urls(),
            state_dir: self.setup.state.path().display().to_string(),
            gateway: self.gateway(),
            control: control.unwrap_or_else(|| Place::new(Role::Control).control_view(now)),
        }
    }
}
