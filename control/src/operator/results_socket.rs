//! The WebSocket on which Fleet's clients watch a live query: the raw transport of what Fleet mounts as SockJS.
//!
//! Invariants: nobody sees anything before its token was checked; a viewer that does not read is waited for, and one that
//! is gone is found out; what waits for a viewer is one message.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::Response;
use fleet_protocol::secret::Secret;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::Office;
use super::actor::Actor;
use super::campaigns;
use super::conversation::{Conversation, SAID_BYTES_MAX, Step};
use super::fault::Fault;
use super::telling::Dialect;
use super::viewing::Viewing;
use crate::model::campaign::CampaignId;

/// From the upgrade until the viewer has said who it is and what it wants.
const INTRODUCTION_DEADLINE: Duration = Duration::from_secs(10);
/// How often a viewer is asked whether it is there, and whether its session still counts.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A viewer of which nothing was heard for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A viewer takes a message within this time, or is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// After the last message the viewer has this long to close.
const FAREWELL: Duration = Duration::from_secs(60);
/// Bytes that the connection reads at once; viewers say little.
const READ_BUFFER_BYTES: usize = 4 << 10;

/// `GET /results/websocket`
pub(super) async fn open(
    State(office): State<Arc<Office>>,
    actor: Actor,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Fault> {
    let upgrade = upgrade.map_err(|_| Fault::unreadable("this path takes WebSockets only"))?;
    let is_any_origin = office.deps.config.server.websockets_allow_unsafe_origin;
    if !is_any_origin && !is_own_origin(&headers) {
        return Err(Fault::foreign_origin());
    }
    let permit = office.stranger_permit()?;
    Ok(upgrade
        .max_message_size(SAID_BYTES_MAX)
        .max_frame_size(SAID_BYTES_MAX)
        .read_buffer_size(READ_BUFFER_BYTES)
        // A message is sent before the next one is asked for.
        .write_buffer_size(0)
        .on_upgrade(async move |socket| {
            let mut socket = Watched { socket, office, actor, permit };
            let farewell = socket.serve().await;
            socket.close(farewell).await;
        }))
}

/// A browser says which page asks; only our own may, since nothing else keeps a page from using what the browser knows.
fn is_own_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(HeaderValue::to_str);
    let origin = match text(header::ORIGIN) {
        None => return true,
        Some(Err(_)) => return false,
        Some(Ok(origin)) => origin,
    };
    let Some(Ok(host)) = text(header::HOST) else {
        return false;
    };
    let Ok(origin) = origin.parse::<Uri>() else {
        return false;
    };
    let port = match origin.scheme_str() {
        Some("https") => 443,
        Some("http") => 80,
        _ => return false,
    };
    let (Some(origin), Ok(host)) = (
        origin.authority(),
        host.parse::<axum::http::uri::Authority>(),
    ) else {
        return false;
    };
    let ports = [origin.port_u16(), host.port_u16()].map(|given| given.unwrap_or(port));
    origin.host().eq_ignore_ascii_case(host.host()) && ports[0] == ports[1]
}

/// What is said last.
enum Farewell {
    /// The viewer left, or cannot be reached.
    None,
    /// There is nothing more to see.
    Done,
    /// This server ends; another one, or the next, will serve.
    Drain,
    /// For people.
    Reason(String),
}

struct Watched {
    socket: WebSocket,
    office: Arc<Office>,
    /// Who opened the connection, and then whose token it was.
    actor: Actor,
    /// That of a stranger, and then that of a viewer.
    permit: OwnedSemaphorePermit,
}

impl Watched {
    async fn serve(&mut self) -> Farewell {
        let mut conversation = Conversation::default();
        let introduction = timeout(INTRODUCTION_DEADLINE, self.introduce(&mut conversation));
        match introduction.await {
            Err(_) => Farewell::Reason("nothing was said in time".into()),
            Ok(Err(farewell)) => farewell,
            Ok(Ok((campaign, token))) => match self.office.viewer_permit() {
                Ok(permit) => {
                    self.permit = permit;
                    self.watch(campaign, &token, &mut conversation).await
                }
                Err(fault) => Farewell::Reason(fault.reason()),
            },
        }
    }

    /// Hears who it is and what it wants to see.
    async fn introduce(
        &mut self,
        conversation: &mut Conversation,
    ) -> Result<(CampaignId, Secret), Farewell> {
        let mut token = Secret::default();
        loop {
            let text = match self.socket.recv().await {
                None | Some(Err(_) | Ok(Message::Close(_))) => return Err(Farewell::None),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Binary(_))) => {
                    return Err(Farewell::Reason("messages must be texts".into()));
                }
                Some(Ok(Message::Text(text))) => text,
            };
            match conversation.hear(&text) {
                Step::End(reason) => return Err(Farewell::Reason(reason.into())),
                Step::Check(given) => {
                    self.check(&given).await?;
                    token = given;
                }
                Step::Watch(campaign) => return Ok((campaign, token)),
            }
        }
    }

    /// Whether the token opens this; the local operator needs none.
    async fn check(&mut self, token: &Secret) -> Result<(), Farewell> {
        if self.actor.is_local() {
            return Ok(());
        }
        let guard = &self.office.guard;
        let found = guard.session_of(token.reveal(), self.actor.address).await;
        match found {
            Ok(Some(actor)) if !actor.must_reset => {
                self.actor = actor;
                Ok(())
            }
            Ok(_) => Err(Farewell::Reason(
                "unauthorized: this needs a valid token".into(),
            )),
            Err(_) => Err(Farewell::Reason(
                "the token could not be checked; try again".into(),
            )),
        }
    }

    async fn watch(
        &mut self,
        campaign: CampaignId,
        token: &Secret,
        conversation: &mut Conversation,
    ) -> Farewell {
        let id = campaign.to_string();
        let viewing = async {
            let seen = campaigns::visible(&self.office, &self.actor, &id).await?;
            let office = Arc::clone(&self.office);
            let viewing = Viewing::begin(office, campaign, None, Dialect::Fleet).await?;
            Ok::<_, Fault>((seen, viewing))
        };
        let (seen, mut viewing) = match viewing.await {
            Ok(both) => both,
            Err(fault) => return Farewell::Reason(fault.reason()),
        };
        let office = Arc::clone(&self.office);
        let mut pings = interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let mut over_at = None;
        loop {
            let over = over_at.unwrap_or_else(|| Instant::now() + FAREWELL);
            tokio::select! {
                message = viewing.next(), if over_at.is_none() => match message {
                    Some(message) => {
                        if !self.send(Message::Text(message.text().into())).await {
                            return Farewell::None;
                        }
                        // Whoever takes messages is there.
                        heard_at = Instant::now();
                    }
                    None => over_at = Some(Instant::now() + FAREWELL),
                },
                () = sleep_until(over), if over_at.is_some() => return Farewell::Done,
                said = self.socket.recv() => match said {
                    None | Some(Err(_) | Ok(Message::Close(_))) => return Farewell::None,
                    Some(Ok(Message::Text(text))) => {
                        if let Step::End(reason) = conversation.hear(&text) {
                            return Farewell::Reason(reason.into());
                        }
                    }
                    Some(Ok(_)) => heard_at = Instant::now(),
                },
                _ = pings.tick() => {
                    if heard_at.elapsed() >= SILENCE_MAX {
                        return Farewell::None;
                    }
                    if !campaigns::still_sees(&office, &self.actor, token, &seen).await {
                        let reason = "unauthorized: the session is over, or may not see this";
                        return Farewell::Reason(reason.into());
                    }
                    if !self.send(Message::Ping(Vec::new().into())).await {
                        return Farewell::None;
                    }
                }
                () = office.drained() => return Farewell::Drain,
            }
        }
    }

    /// False when the viewer does not take it.
    async fn send(&mut self, message: Message) -> bool {
        matches!(
            timeout(SEND_DEADLINE, self.socket.send(message)).await,
            Ok(Ok(()))
        )
    }

    async fn close(mut self, farewell: Farewell) {
        let (code, reason) = match farewell {
            Farewell::None => return,
            Farewell::Done => (close_code::NORMAL, String::new()),
            Farewell::Drain => (close_code::AWAY, "the server ends".to_owned()),
            Farewell::Reason(reason) => {
                let text = serde_json::json!({"type": "error", "data": reason}).to_string();
                if !self.send(Message::Text(text.into())).await {
                    return;
                }
                (close_code::POLICY, String::new())
            }
        };
        let frame = CloseFrame {
            code,
            reason: reason.into(),
        };
        if !self.send(Message::Close(Some(frame))).await {
            return;
        }
        // The other side closes as well, or is not waited for.
        let closing = async { while let Some(Ok(_)) = self.socket.recv().await {} };
        tokio::select! {
            () = closing => {}
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_others_are_refused() {
        let is_own = |origin: &str, host: &str| {
            let mut headers = HeaderMap::new();
            if !origin.is_empty() {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            headers.insert(header::HOST, host.parse().unwrap());
            is_own_origin(&headers)
        };
        for (origin, host) in [
            ("", "fleet.example"),
            ("https://fleet.example", "fleet.example"),
            ("https://fleet.example", "FLEET.example:443"),
            ("http://fleet.example:8080", "fleet.example:8080"),
            ("https://[::1]:8080", "[::1]:8080"),
        ] {
            assert!(is_own(origin, host), "{origin} at {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "fleet.example"),
            ("https://fleet.example:8443", "fleet.example"),
            ("https://fleet.example.evil.example", "fleet.example"),
            ("null", "fleet.example"),
            ("file://", "fleet.example"),
            ("chrome-extension://fleet.example", "fleet.example"),
            ("https://user@evil.example", "fleet.example"),
        ] {
            assert!(!is_own(origin, host), "{origin} at {host}");
        }
    }
}
