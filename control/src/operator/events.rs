//! A live query as Server-Sent Events: `totals`, `status`, `result`, `lost` and `end`. The id of a result is its place, and
//! whoever comes again with `Last-Event-ID` goes on after it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use fleet_protocol::secret::Secret;
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Office;
use super::actor::Actor;
use super::campaigns::{self, AfterParameter};
use super::fault::Fault;
use super::guard::bearer;
use super::listen::Endless;
use super::telling::{Dialect, Message};
use super::viewing::Viewing;
use crate::model::campaign::Campaign;

/// A comment is sent after so long a silence, so that nothing on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How often it is looked whether the viewer's session still counts.
const CHECK_INTERVAL: Duration = Duration::from_secs(20);

/// `GET /gateway/campaigns/{id}/events`
pub(super) async fn stream(
    State(office): State<Arc<Office>>,
    actor: Actor,
    Path(id): Path<String>,
    Query(parameters): Query<AfterParameter>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let permit = office.viewer_permit()?;
    let campaign = campaigns::visible(&office, &actor, &id).await?;
    let token = Secret::new(bearer(&headers).unwrap_or_default().to_owned());
    let last = headers.get("last-event-id").map(HeaderValue::to_str);
    let last = match last {
        None => parameters.cursor()?,
        Some(text) => campaigns::cursor("Last-Event-ID", Some(text.unwrap_or("?")))?,
    };
    let viewing = Viewing::begin(Arc::clone(&office), campaign.id, last, Dialect::Gateway);
    let viewing = viewing.await?;
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let streaming = Streaming {
        office,
        viewing,
        actor,
        token,
        campaign,
        checks,
        _permit: permit,
    };
    let events = stream::unfold(streaming, next);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would collect events before it passes them on.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    let headers = response.headers_mut();
    headers.insert(unbuffered, HeaderValue::from_static("no"));
    response.extensions_mut().insert(Endless);
    Ok(response)
}

struct Streaming {
    office: Arc<Office>,
    viewing: Viewing,
    actor: Actor,
    /// Empty for the local operator.
    token: Secret,
    campaign: Campaign,
    checks: Interval,
    _permit: OwnedSemaphorePermit,
}

async fn next(mut streaming: Streaming) -> Option<(Result<Event, Infallible>, Streaming)> {
    let message = loop {
        tokio::select! {
            // A viewer that is always told something is looked at all the same.
            biased;
            // The viewer comes again, and goes on where it was.
            () = streaming.office.drained() => return None,
            _ = streaming.checks.tick() => {
                let Streaming { office, actor, token, campaign, .. } = &streaming;
                if !campaigns::still_sees(office, actor, token, campaign).await {
                    // Whoever comes again is told why not.
                    return None;
                }
            }
            message = streaming.viewing.next() => break message?,
        }
    };
    Some((Ok(event_of(message)), streaming))
}

fn event_of(message: Message) -> Event {
    let event = Event::default().event(message.kind.word());
    let event = match message.cursor {
        Some(cursor) => event.id(cursor.to_string()),
        None => event,
    };
    // JSON texts of ours have no line breaks, but rows are as the host wrote them.
    event.data(message.data.replace(['\n', '\r'], " "))
}
