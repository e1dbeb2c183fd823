//! What the supervisor does for its addresses: reloads, claims, what workers are told.

use super::{Phase, Supervisor};
use crate::addresses::Difference;
use crate::claiming::News;
use crate::exit::Failure;
use crate::local_addresses::LocalAddresses;
use crate::settings::Settings;
use crate::{reload, sizing, wanted};
use fleet_protocol::admin::Reloaded;

impl Supervisor {
    /// Takes what the configuration says now, as far as that can be done while serving. A configuration that is wrong
    /// changes nothing.
    pub(super) fn reload(&mut self) -> Result<Reloaded, Failure> {
        if self.phase != Phase::Serving {
            return Err(Failure::unavailable("the server is stopping"));
        }
        let Settings {
            config,
            mut warnings,
            ..
        } = (self.setup.reread)()?;
        let wanted = wanted::wanted(&config)?;
        let now = self.now();
        let at_next_start = reload::take(&mut self.setup.config, &config);
        let Difference {
            added,
            changed,
            withdrawn,
        } = self.setup.addresses.want(&self.setup.config, wanted, now);
        let workers = sizing::workers(&self.setup.config);
        let is_resized = self.resize(workers);
        self.retry();
        tracing::info!(?added, ?changed, ?withdrawn, workers, "reloaded");
        self.tend_addresses();
        self.publish();
        if let Err(failure) = self.setup.write_addresses() {
            warnings.push(failure.to_string());
        }
        Ok(Reloaded {
            added,
            withdrawn,
            changed,
            at_next_start,
            warnings,
            workers: is_resized.then_some(workers),
        })
    }

    pub(super) fn take_hang_up(&mut self) {
        match self.reload() {
            Ok(reloaded) => {
                for warning in &reloaded.warnings {
                    tracing::warn!("{warning}");
                }
                if !reloaded.at_next_start.is_empty() {
                    tracing::warn!(
                        "these options have changed and take effect at the next start: {}",
                        reloaded.at_next_start.join(", ")
                    );
                }
            }
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

    /// Hears of many at once: what follows is done once for all.
    pub(super) fn hear_claims(&mut self, news: impl Iterator<Item = News>) {
        let now = self.now();
        for (claim, refusal) in news {
            let refusal = refusal.as_deref();
            self.setup.addresses.hear_claim(claim, refusal, now);
        }
        self.tend_addresses();
        self.publish();
    }

    pub(super) fn update_listeners(&mut self) {
        for place in &mut self.places {
            place.update_listeners(&self.setup.addresses);
        }
    }
}
