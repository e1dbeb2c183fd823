//! What the supervisor does for its addresses: reloads, claims, what workers are told.

use super::upgrade::Upgrade;
use super::{Phase, Supervisor};
use crate::addresses::Difference;
use crate::claiming::News;
use crate::exit::Failure;
use crate::local_addresses::LocalAddresses;
use crate::reload::{self, Taken};
use crate::settings::Settings;
use crate::setup::Setup;
use crate::{sizing, wanted};
use fleet_protocol::admin::Reloaded;

impl Supervisor {
    /// Takes what the configuration says now, as far as that can be done while serving. A configuration that is wrong
    /// changes nothing.
    pub(super) fn reload(&mut self) -> Result<Reloaded, Failure> {
        if self.phase != Phase::Serving {
            return Err(Failure::unavailable("the server is stopping"));
        }
        if !self.upgrade.is_none() {
            return Err(Failure::unavailable(
                "an upgrade is under way; try again after it",
            ));
        }
        let Settings {
            config,
            mut warnings,
            ..
        } = (self.setup.reread)()?;
        let wanted = wanted::wanted(&config)?;
        let now = self.now();
        let mut candidate = self.setup.config.clone();
        let Taken {
            taken,
            at_next_start,
        } = reload::take(&mut candidate, &config);
        // All that can be wrong comes before anything is changed.
        let state_dir = self.setup.state.path();
        let fresh = self.setup.renewal.read(&candidate, state_dir)?;
        self.setup.config = candidate;
        let files = self.setup.renewal.take(fresh);
        if !(taken.is_empty() && files.is_empty()) {
            self.tell_reload();
        }
        let Difference {
            added,
            changed,
            withdrawn,
        } = self.setup.addresses.want(&self.setup.config, wanted, now);
        let workers = sizing::workers(&self.setup.config);
        let is_resized = self.resize(workers);
        self.retry();
        let files: Vec<_> = files
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        tracing::info!(
            ?added,
            ?changed,
            ?withdrawn,
            ?taken,
            ?files,
            workers,
            "reloaded"
        );
        self.setup.fit_connections();
        self.tend_limits();
        self.tend_addresses();
        self.publish();
        let flagfile = self.setup.write_flagfile().map(|_| ());
        let written = [self.setup.write_addresses(), flagfile].into_iter();
        warnings.extend(written.filter_map(|result| Some(result.err()?.to_string())));
        Ok(Reloaded {
            added,
            withdrawn,
            changed,
            taken,
            files,
            at_next_start,
            warnings,
            workers: is_resized.then_some(workers),
        })
    }

    /// Reads certificates again whose files have changed.
    pub(super) fn tend_certificates(&mut self) {
        let now = self.now();
        let Setup {
            renewal,
            config,
            state,
            ..
        } = &mut self.setup;
        let files = renewal.tend(config, state.path(), now);
        if files.is_empty() {
            return;
        }
        tracing::info!(?files, "certificate files have changed and are in use");
        if let Err(failure) = self.setup.write_flagfile() {
            tracing::warn!("{failure}");
        }
        self.tell_reload();
    }

    /// Has every process take what the configuration and the certificates are now; ours at once.
    fn tell_reload(&mut self) {
        fleet_child::log::set(&self.setup.config.logging);
        self.reloads += 1;
        self.tell_reloads();
    }

    /// Tells those that have not been told yet. Who cannot be told now, because it is starting or does not read, is told the
    /// next time.
    pub(super) fn tell_reloads(&mut self) {
        for place in &mut self.places {
            if !place.is_behind(self.reloads) {
                continue;
            }
            match self.setup.reload_message(place.role) {
                Ok(message) => place.tell_reload(message, self.reloads),
                Err(error) => {
                    let name = place.role.name();
                    tracing::error!("{name} is not told of the reload: {error:#}");
                }
            }
        }
    }

    pub(super) fn take_hang_up(&mut self) {
        if matches!(self.upgrade, Upgrade::Given(_) | Upgrade::Taking(_)) {
            return;
        }
        self.notify.reloading();
        let reloaded = self.reload();
        if self.is_announced {
            self.notify.ready();
        }
        match reloaded {
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
        // During an upgrade nothing is bound, claimed or let go.
        if self.phase != Phase::Serving || !self.upgrade.is_none() {
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
