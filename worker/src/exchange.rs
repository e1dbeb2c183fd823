//! One agent request: from its head and body to its answer.
//!
//! What the tables know is answered alone and at once; a read with nothing due may be held by its session, and is then
//! [resumed](resume). The rest becomes a [`Pending`]: first a lookup if the key is
//! unknown here, then the request itself. Every answer is a JSON object; every refusal is counted.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use fleet_protocol::agent::{Answer, Log, Request, Route, Work, Write};
use fleet_protocol::feed::Host;
use fleet_protocol::ids::NodeKeyHash;
use fleet_protocol::link::BatchKind;
use fleet_protocol::reject::Reject;
use fleet_protocol::stats::Outcome;
use serde_json::{Map, Value, json};

use crate::answers::Content;
use crate::body;
use crate::client_certificate::{Certified, NamesNobody};
use crate::holds::IdleRead;
use crate::state::{REQUEST_BYTES_MAX, State, Ticket};
use crate::task::{Task, header_key, parse};
use crate::waiting::bytes_of;

/// Accepted, or nothing to do.
const EMPTY_OBJECT: Bytes = Bytes::from_static(b"{}");
/// A discovery query that lets every host through.
const DISCOVER_ALL: &str = "SELECT 1";

/// What the head says.
pub(crate) struct Head<'a> {
    pub(crate) route: Route,
    /// `Authorization: NodeKey …`, as sent.
    pub(crate) node_key: Option<&'a str>,
    pub(crate) content_length: u64,
    pub(crate) is_gzip: bool,
    /// The answer may be gzip.
    pub(crate) accepts_gzip: bool,
    /// Who sent it; behind a balancer, the balancer's client.
    pub(crate) client: IpAddr,
    /// Whose certificate the connection was made with, if with any.
    pub(crate) certificate: Option<&'a Result<Certified, NamesNobody>>,
}

/// What to do before the body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Early {
    /// Read all of it, then call [`answer`].
    ReadBody { bytes_max: usize },
    /// Drop the body up to `DISCARDED_BODY_BYTES_MAX` and answer with [`refuse`], or cut.
    Refuse(Reject),
}

/// What to write, and how the exchange counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// A JSON object, never empty.
    pub(crate) body: Bytes,
    /// Whether the body is compressed.
    pub(crate) is_gzip: bool,
    /// Close without an answer.
    pub(crate) must_cut: bool,
    pub(crate) outcome: Outcome,
}

/// An answer, or the wait for one.
pub(crate) enum Reply {
    Now(Response),
    Later(Pending),
    /// A read with nothing due: [`nothing_due`] now, or [`resume`] later.
    Idle(IdleRead),
}

/// Resolves to the answer within its own deadline. Dropping it cancels the request.
pub(crate) struct Pending(Pin<Box<dyn Future<Output = Response>>>);

impl Pending {
    fn new(future: impl Future<Output = Response> + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for Pending {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Response> {
        self.0.as_mut().poll(context)
    }
}

/// Decides by the head alone: what is too large, comes from a key that was unknown a moment ago, is asked too often, or
/// would find its queue full or late, costs no more than its head.
pub(crate) fn begin(state: &State, head: &Head<'_>, now: Instant) -> Early {
    let bytes_max = state.body_limits.of(head.route);
    let Some(content_length) = usize::try_from(head.content_length)
        .ok()
        .filter(|length| *length <= bytes_max)
    else {
        return Early::Refuse(Reject::BodyTooLarge);
    };
    let key = header_key(state, head).filter(|_| needs_host(head.route));
    let is_known = key.is_some_and(|key| state.table.borrow().host(&key).is_some());
    if let Some(key) = key
        && !is_known
        && state.negative.borrow().contains(&key, now)
    {
        return Early::Refuse(Reject::NodeKeyUnknown);
    }
    let mut gate = state.gate.borrow_mut();
    // Who names no key in the head is asked about when it is known.
    let is_in = match (key, head.route) {
        (Some(key), route) => !is_known || gate.admit_request(&key, route, now),
        (None, Route::Enroll) => gate.admit_enrolment(head.client, now),
        (None, Route::CarveBlock) => gate.admit_route(Route::CarveBlock, now),
        (None, _) => true,
    };
    if !is_in {
        return Early::Refuse(Reject::TooManyRequests);
    }
    if let Some(kind) = kind_always_asked(head.route)
        && let Some(refusal) = state.waiting.borrow().refusal(kind, content_length, now)
    {
        gate.count(refusal.into());
        return Early::Refuse(Reject::Busy);
    }
    Early::ReadBody { bytes_max }
}

/// Answers a whole request; `body` is as on the wire.
pub(crate) fn answer(state: &State, head: &Head<'_>, body: &mut [u8], now: Instant) -> Reply {
    let parsed = if head.is_gzip {
        body::inflate(body, state.body_limits.inflated(head.route))
            .and_then(|inflated| parse(state, head, &inflated))
    } else {
        parse(state, head, body)
    };
    let result = parsed.and_then(|(key, task)| match task {
        Task::Enroll(enroll) => through(state, head.route, Request::Enroll(enroll), now),
        Task::CarveBlock(block) => {
            // The session id is the credential; a known key only marks its host.
            if let Some(host) = key.and_then(|key| state.table.borrow().host(&key)) {
                state.seen.borrow_mut().mark(host.id);
            }
            through(state, head.route, Request::CarveBlock(block), now)
        }
        task => match (key, head.certificate) {
            (None, Some(Ok(_))) if !state.gate.borrow_mut().admit_route(head.route, now) => {
                Err(Reject::TooManyRequests)
            }
            (None, Some(Ok(certified))) => certified::serve(state, head, certified, task, now),
            (None, Some(Err(_))) => Err(Reject::CertificateNamesNobody),
            _ => authenticate(state, head, key, task, now),
        },
    });
    result.unwrap_or_else(|reject| Reply::Now(refuse(state, Some(head.route), reject)))
}

/// Serves a read that was held, as if it came now. One whose key is no longer the host's has nothing due; its agent
/// hears of the key with its next request.
pub(crate) fn resume(state: &State, read: IdleRead, now: Instant) -> Reply {
    let Some(host) = state.host_of(&read) else {
        return Reply::Idle(read);
    };
    let reply = if read.is_certified() {
        certified::serve_known(state, Route::Read, &host, Task::Read, now)
    } else {
        serve(state, Route::Read, &host, Task::Read, now)
    };
    reply.unwrap_or_else(|reject| Reply::Now(refuse(state, Some(Route::Read), reject)))
}

/// The answer to a read when there is no work.
pub(crate) fn nothing_due() -> Response {
    accepted(EMPTY_OBJECT, Outcome::Alone)
}

/// The answer of a refusal, which it counts. `None` for a path that is no agent path.
pub(crate) fn refuse(state: &State, route: Option<Route>, reject: Reject) -> Response {
    state.count_reject(route, reject);
    let answer = reject.answer(route);
    Response {
        status: answer.status,
        body: Bytes::from_static(answer.body.as_bytes()),
        is_gzip: false,
        must_cut: reject.must_cut(route),
        outcome: Outcome::Refused,
    }
}

fn needs_host(route: Route) -> bool {
    !matches!(route, Route::Enroll | Route::CarveBlock)
}

/// The kind of a route whose requests go to control (almost) always.
fn kind_always_asked(route: Route) -> Option<BatchKind> {
    match route {
        Route::Enroll => Some(BatchKind::Enroll),
        Route::Write => Some(BatchKind::Write),
        Route::Log => Some(BatchKind::Log),
        Route::CarveBegin | Route::CarveBlock => Some(BatchKind::Carve),
        Route::Config | Route::Read => None,
    }
}

/// Finds the host of a key, here or through control, and goes on.
fn authenticate(
    state: &State,
    head: &Head<'_>,
    key: Option<NodeKeyHash>,
    task: Task,
    now: Instant,
) -> Result<Reply, Reject> {
    let route = head.route;
    let is_in_head = head.node_key.is_some_and(|key| !key.trim().is_empty());
    let key = key.ok_or(Reject::NodeKeyMissing)?;
    // The borrow ends here; what follows borrows again.
    let known = state.table.borrow().host(&key);
    if let Some(host) = known {
        // A key in the head has been through.
        if !is_in_head && !state.gate.borrow_mut().admit_request(&key, route, now) {
            return Err(Reject::TooManyRequests);
        }
        return serve(state, route, &host, task, now);
    }
    if state.negative.borrow().contains(&key, now) {
        return Err(Reject::NodeKeyUnknown);
    }
    let parked = state.park(task.bytes())?;
    let ticket = state.look_up(key, now)?;
    let state = state.handle().ok_or(Reject::Draining)?;
    Ok(Reply::Later(Pending::new(async move {
        let deadline = ticket.deadline();
        let host = match ticket.answer().await {
            Answer::Host(Some(host)) => Ok(host),
            Answer::Host(None) => Err(Reject::NodeKeyUnknown),
            Answer::Refused(reject) => Err(reject),
            _ => Err(Reject::Internal),
        };
        drop(parked);
        serve_looked_up(state, route, host, task, deadline).await
    })))
}

async fn serve_looked_up(
    state: Rc<State>,
    route: Route,
    host: Result<Host, Reject>,
    task: Task,
    deadline: Instant,
) -> Response {
    let reply = host.and_then(|host| {
        let asked = match alone(&state, &host, task, Instant::now()) {
            Ok(Alone::Ask(request)) => ask(&state, request, Instant::now()),
            // Control had a part in it.
            Ok(Alone::Answer(body)) => return Ok(Err(accepted(body, Outcome::Control))),
            Ok(Alone::NothingDue) => return Ok(Err(accepted(EMPTY_OBJECT, Outcome::Control))),
            Err(reject) => Err(reject),
        };
        asked.map(Ok)
    });
    match reply {
        Ok(Ok(ticket)) => {
            let answer = ticket.with_deadline(deadline).answer().await;
            respond(&state, route, answer)
        }
        Ok(Err(response)) => response,
        Err(reject) => refuse(&state, Some(route), reject),
    }
}

/// Serves a request of a known host.
fn serve(
    state: &State,
    route: Route,
    host: &Host,
    task: Task,
    now: Instant,
) -> Result<Reply, Reject> {
    match alone(state, host, task, now)? {
        Alone::Answer(body) => Ok(Reply::Now(accepted(body, Outcome::Alone))),
        Alone::NothingDue => Ok(Reply::Idle(IdleRead::of(host))),
        Alone::Ask(request) => through(state, route, request, now),
    }
}

/// What the worker can say by itself.
enum Alone {
    Answer(Content),
    /// To a read.
    NothingDue,
    Ask(Request),
}

fn alone(state: &State, host: &Host, task: Task, now: Instant) -> Result<Alone, Reject> {
    state.seen.borrow_mut().mark(host.id);
    Ok(match task {
        Task::Config { accepts_gzip } => {
            let config = state.table.borrow().config(host.answer, accepts_gzip);
            // The feed tells answers before their hosts; without one, nothing but "later" is true.
            Alone::Answer(config.ok_or(Reject::ControlUnavailable)?)
        }
        Task::Read if state.unix_seconds(now) < host.work_due_at => Alone::NothingDue,
        Task::Read => Alone::Ask(Request::Read(host.id)),
        Task::Write(results, _) if results.is_empty() => Alone::Answer(EMPTY_OBJECT.into()),
        Task::Write(results, address) => Alone::Ask(Request::Write(Write {
            host: host.id,
            address,
            results,
        })),
        Task::Log(lines) if lines.count == 0 => Alone::Answer(EMPTY_OBJECT.into()),
        Task::Log(lines) => Alone::Ask(Request::Log(Log {
            host: host.id,
            log_type: lines.log_type,
            lines: lines.bytes,
            line_count: lines.count,
        })),
        Task::CarveBegin(mut carve) => {
            carve.host = host.id;
            Alone::Ask(Request::CarveBegin(*carve))
        }
        // Both are served without a host.
        Task::CarveBlock(block) => Alone::Ask(Request::CarveBlock(block)),
        Task::Enroll(enroll) => Alone::Ask(Request::Enroll(enroll)),
    })
}

fn ask(state: &State, request: Request, now: Instant) -> Result<Ticket, Reject> {
    if bytes_of(&request) > REQUEST_BYTES_MAX {
        return Err(Reject::BodyTooLarge);
    }
    state.ask(request, now)
}

fn through(state: &State, route: Route, request: Request, now: Instant) -> Result<Reply, Reject> {
    let ticket = ask(state, request, now)?;
    let state = state.handle().ok_or(Reject::Draining)?;
    Ok(Reply::Later(Pending::new(async move {
        let answer = ticket.answer().await;
        respond(&state, route, answer)
    })))
}

/// Control's answer in the agent's words.
fn respond(state: &State, route: Route, answer: Answer) -> Response {
    let body = match (route, answer) {
        (_, Answer::Refused(reject)) => return refuse(state, Some(route), reject),
        (Route::Write | Route::Log | Route::CarveBlock, Answer::Accepted) => EMPTY_OBJECT,
        (Route::CarveBegin, Answer::CarveStarted { session_id }) => {
            json!({ "session_id": session_id.reveal() })
                .to_string()
                .into()
        }
        (Route::Enroll, Answer::Enrolled { node_key, .. }) => {
            json!({ "node_key": node_key.reveal() }).to_string().into()
        }
        (Route::Read, Answer::Work(work)) => work_body(work),
        _ => {
            state.count_oddity();
            return refuse(state, Some(route), Reject::Internal);
        }
    };
    accepted(body, Outcome::Control)
}

fn accepted(body: impl Into<Content>, outcome: Outcome) -> Response {
    let Content { bytes, is_gzip } = body.into();
    Response {
        status: 200,
        body: bytes,
        is_gzip,
        must_cut: false,
        outcome,
    }
}

/// An agent stops at the first empty name or text, and once one query has a discovery skips those that have none.
fn work_body(work: Work) -> Bytes {
    let mut queries = Map::new();
    let mut discovery = Map::new();
    let is_discovered = work.queries.iter().any(|query| !query.discovery.is_empty());
    for query in work.queries {
        if query.name.is_empty() || query.sql.trim().is_empty() {
            continue;
        }
        if is_discovered {
            let sql = if query.discovery.is_empty() {
                DISCOVER_ALL.into()
            } else {
                query.discovery
            };
            discovery.insert(query.name.clone(), Value::String(sql));
        }
        queries.insert(query.name, Value::String(query.sql));
    }
    let mut body = Map::new();
    if !queries.is_empty() {
        body.insert("queries".into(), Value::Object(queries));
    }
    if !discovery.is_empty() {
        body.insert("discovery".into(), Value::Object(discovery));
    }
    if let Some(accelerate_s) = work.accelerate_s {
        body.insert("accelerate".into(), accelerate_s.into());
    }
    if body.is_empty() {
        return EMPTY_OBJECT;
    }
    Value::Object(body).to_string().into()
}

#[path = "exchange_certified.rs"]
mod certified;

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
