//! Who is let in: operators are answered, and the world is told where agents may go.

use fleet_protocol::admin::{Reply, Request};

use super::{Phase, Supervisor};
use crate::admin::{self, Ask};
use crate::exit::Failure;

impl Supervisor {
    /// Answers operators, and tells the world where agents may go.
    pub(super) fn open_doors(&mut self) -> Result<(), Failure> {
        let trouble = |error: std::io::Error| Failure::fatal(format!("cannot start: {error}"));
        let listener = self.setup.local.admin().map_err(trouble)?;
        let asks = self.asks.clone();
        let admin = tokio::spawn(async move {
            if let Err(error) = admin::serve(listener, asks).await {
                tracing::error!(%error, "the admin socket is lost; status and stop do not work");
            }
        });
        self.admin = Some(admin.abort_handle());
        if let Some(spread) = self.setup.spread.take() {
            self.spread_items = spread.items().map_err(trouble)?;
            self.spread_tasks = spread.run(&self.gateway.subscribe());
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, ask: Ask) {
        let reply = match ask.request {
            Request::Upgrade { binary } => return self.begin_upgrade(binary, ask.reply),
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Stop => {
                if self.phase == Phase::Serving {
                    tracing::info!("an operator asks to stop");
                    self.cancel_upgrade("the server is asked to stop");
                    self.begin_drain();
                }
                Ok(Reply::Stopping {
                    pid: std::process::id(),
                })
            }
            Request::Drain(what) => self.drain(what).map(|text| Reply::Draining { text }),
            Request::Reload => self.reload().map(Reply::Reloaded),
        };
        let reply = reply.unwrap_or_else(|failure| Reply::Error {
            reason: failure.to_string(),
            code: failure.code(),
        });
        // The asker may have gone.
        let _ = ask.reply.try_send(reply);
    }
}
