//! A live query as Server-Sent Events: `totals`, `status`, `result`, `lost` and `end`. The id of a result is its place, and
//! whoever comes again with `Last-Event-ID` goes on after it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::Office;
use super::actor::Actor;
use super::campaigns::{self, AfterParameter};
use super::fault::Fault;
use super::listen::Endless;
use super::telling::{Dialect, Message};
use super::viewing::Viewing;

/// A comment is sent after so long a silence, so that nothing on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

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
    let last = headers.get("last-event-id").map(HeaderValue::to_str);
    let last = match last {
        None => parameters.cursor()?,
        Some(text) => campaigns::cursor("Last-Event-ID", Some(text.unwrap_or("?")))?,
    };
    let viewing = Viewing::begin(Arc::clone(&office), campaign.id, last, Dialect::Gateway);
    let viewing = viewing.await?;
    let events = stream::unfold((office, viewing, permit), next);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would collect events before it passes them on.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    let headers = response.headers_mut();
    headers.insert(unbuffered, HeaderValue::from_static("no"));
    response.extensions_mut().insert(Endless);
    Ok(response)
}

type Streaming = (Arc<Office>, Viewing, OwnedSemaphorePermit);

async fn next(mut streaming: Streaming) -> Option<(Result<Event, Infallible>, Streaming)> {
    let (office, viewing, _) = &mut streaming;
    let message = tokio::select! {
        message = viewing.next() => message?,
        // The viewer comes again, and goes on where it was.
        () = office.drained() => return None,
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
