//! What the supervisor does for its addresses: reloads, claims, what workers are told.

use fleet_protocol::admin::Reloaded;
use ipnet::IpNet;

use super::{Phase, Supervisor};
use crate::exit::Failure;
use crate::local_addresses::LocalAddresses;
use crate::settings::Settings;
use crate::{reload, wanted};

impl Supervisor {
    /// Takes what the configuration says now, as far as that can be done while serving. A configuration that is wrong
    /// changes nothing.
    pub(super) fn reload(&mut self) -> Result<Reloaded, Failure> {
        if self.phase != Phase::Serving {
            return Err(Failure::unavailable("the server is stopping"));
        }
        let Settings {
            config, warnings, ..
        } = (self.setup.reread)()?;
        let wanted = wanted::wanted(&config)?;
        let now = self.now();
        let at_next_start = reload::take(&mut self.setup.config, &config);
        let (added, withdrawn) = self.setup.addresses.want(&self.setup.config, wanted, now);
        tracing::info!(?added, ?withdrawn, "reloaded");
        self.tend_addresses();
        self.publish();
        self.setup.write_addresses()?;
        Ok(Reloaded {
            added,
            withdrawn,
            at_next_start,
            warnings,
        })
    }

    pub(super) fn take_hang_up(&mut self) {
        match self.reload() {
            Ok(reloaded) if reloaded.at_next_start.is_empty() => {}
            Ok(reloaded) => tracing::warn!(
                "these options have changed and take effect at the next start: {}",
                reloaded.at_next_start.join(", ")
            ),
            Err(failure) => {
                tracing::error!("SIGHUP: nothing is changed: {failure}");
            }
        }
    }

    /// Does what is due for the addresses, and tells the workers.
    pub(super) fn tend_addresses(&mut self) {
        if self.phase != Phase::Serving {
            return;
        }
        let now = self.now();
        let effects = self.setup.addresses.turn(&LocalAddresses::read(), now);
        for effect in effects {
            self.claiming.order(effect);
        }
        self.update_listeners();
    }

    pub(super) fn hear_claim(&mut self, claim: IpNet, refusal: Option<&str>) {
        let now = self.now();
        self.setup.addresses.hear_claim(claim, refusal, now);
        self.tend_addresses();
        self.publish();
    }

    pub(super) fn update_listeners(&mut self) {
        for place in &mut self.places {
            place.update_listeners(&self.setup.addresses);
        }
    }
}
