//! Requests of agents that are known by their certificate: those with no node key over a connection that showed one.
//!
//! Invariants: who they are comes from the certificate, never from the body; they are never told `node_invalid`, which
//! would make them enroll.

use std::rc::Rc;
use std::time::Instant;

use fleet_protocol::agent::{Adopt, Answer, Request, Route};
use fleet_protocol::feed::Host;
use fleet_protocol::reject::Reject;
use fleet_protocol::stats::Outcome;

use super::{
    Alone, EMPTY_OBJECT, Head, Pending, Reply, Response, accepted, alone, ask, refuse, respond,
};
use crate::client_certificate::Certified;
use crate::holds::IdleRead;
use crate::state::{State, Ticket};
use crate::task::Task;

/// Serves such a request; a host that nobody knows yet is adopted first.
pub(super) fn serve(
    state: &State,
    head: &Head<'_>,
    certified: &Certified,
    task: Task,
    now: Instant,
) -> Result<Reply, Reject> {
    let route = head.route;
    let known = state.table.borrow().host(&certified.key);
    if let Some(host) = known {
        return serve_known(state, route, &host, task, now);
    }
    let parked = state.park(task.bytes())?;
    let adopt = Request::Adopt(Box::new(Adopt {
        key: certified.key,
        identity: certified.identity.clone(),
        address: head.client,
        kind: certified.kind,
    }));
    let ticket = ask(state, adopt, now)?;
    let state = state.handle().ok_or(Reject::Draining)?;
    Ok(Reply::Later(Pending::new(async move {
        let deadline = ticket.deadline();
        let answer = ticket.answer().await;
        drop(parked);
        match serve_adopted(&state, answer, task) {
            Ok(Alone::Answer(body)) => accepted(body, Outcome::Control),
            Ok(Alone::NothingDue) => accepted(EMPTY_OBJECT, Outcome::Control),
            Ok(Alone::Ask(request)) => match ask(&state, request, Instant::now()) {
                Ok(ticket) => finish(&state, route, ticket.with_deadline(deadline)).await,
                Err(reject) => refuse(&state, Some(route), reject),
            },
            Err(reject) => refuse(&state, Some(route), reject),
        }
    })))
}

/// Serves a request of a known host.
pub(super) fn serve_known(
    state: &State,
    route: Route,
    host: &Host,
    task: Task,
    now: Instant,
) -> Result<Reply, Reject> {
    let ticket = match alone(state, host, task, now)? {
        Alone::Answer(body) => return Ok(Reply::Now(accepted(body, Outcome::Alone))),
        Alone::NothingDue => return Ok(Reply::Idle(IdleRead::of_certified(host))),
        Alone::Ask(request) => ask(state, request, now)?,
    };
    let state = state.handle().ok_or(Reject::Draining)?;
    Ok(Reply::Later(Pending::new(async move {
        finish(&state, route, ticket).await
    })))
}

fn serve_adopted(state: &State, answer: Answer, task: Task) -> Result<Alone, Reject> {
    match answer {
        Answer::Host(Some(host)) => alone(state, &host, task, Instant::now()),
        Answer::Refused(reject) => Err(reject),
        _ => {
            state.count_oddity();
            Err(Reject::Internal)
        }
    }
}

async fn finish(state: &Rc<State>, route: Route, ticket: Ticket) -> Response {
    let answer = match ticket.answer().await {
        // The host was deleted a moment ago: the next request adopts it again.
        Answer::Refused(Reject::NodeKeyUnknown) => Answer::Refused(Reject::Internal),
        answer => answer,
    };
    respond(state, route, answer)
}
