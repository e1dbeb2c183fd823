//! Worker ↔ control: batches with ids and credit, replies, feed.
//!
//! During an upgrade workers of the previous build speak with control of the next one, and the other way round. So what
//! is here, in [`agent`](crate::agent), in [`feed`](crate::feed) and in [`Reject`](crate::reject::Reject) is append-only:
//! a variant or a struct that has been released never changes its fields or its place. What is new comes as a variant at
//! the end, makes [`VERSION`](crate::frame::VERSION) one larger, and is sent only on a link whose agreed version has it.
//! `wire_tests.rs` fails when an encoding changes.

use serde::{Deserialize, Serialize};

use crate::agent::{Answer, Request};
use crate::feed::Feed;
use crate::frame::{Kind, MESSAGE_BYTES_MAX, Message};
use crate::ids::{BatchId, RequestId};

/// Batches hold requests of one kind; each kind has its own queue, timer and credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BatchKind {
    /// Unknown node keys.
    Lookup,
    /// Enrolments, and hosts of certificates.
    Enroll,
    /// Reads with something due.
    Read,
    /// Distributed results.
    Write,
    /// Log lines.
    Log,
    /// Carve starts and blocks.
    Carve,
    /// Seen marks.
    Seen,
}

impl BatchKind {
    /// Every kind, in the order of its discriminant.
    pub const ALL: [Self; 7] = [
        Self::Lookup,
        Self::Enroll,
        Self::Read,
        Self::Write,
        Self::Log,
        Self::Carve,
        Self::Seen,
    ];

    /// The kind that a request travels in.
    pub fn of(request: &Request) -> Self {
        match request {
            Request::Lookup(_) => Self::Lookup,
            Request::Enroll(_) | Request::Adopt(_) => Self::Enroll,
            Request::Read(_) => Self::Read,
            Request::Write(_) => Self::Write,
            Request::Log(_) => Self::Log,
            Request::CarveBegin(_) | Request::CarveBlock(_) => Self::Carve,
            Request::Seen(_) => Self::Seen,
        }
    }

    /// Metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Enroll => "enroll",
            Self::Read => "read",
            Self::Write => "write",
            Self::Log => "log",
            Self::Carve => "carve",
            Self::Seen => "seen",
        }
    }

    /// Place in arrays with one element a kind.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// How many batches of a kind may be in flight on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Which kind.
    pub kind: BatchKind,
    /// The window. A reply gives back the one that its batch took.
    pub batches: u16,
}

/// Requests that travel together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Unique within the worker's life; the same when the batch is sent again.
    pub id: BatchId,
    /// Of every request in it.
    pub kind: BatchKind,
    /// Oldest first.
    pub requests: Vec<(RequestId, Request)>,
}

/// One answer for each request of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchReply {
    /// Which batch.
    pub id: BatchId,
    /// Its kind, whose credit returns.
    pub kind: BatchKind,
    /// In the batch's order.
    pub answers: Vec<(RequestId, Answer)>,
}

/// What a worker sends after its hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Work.
    Batch(Batch),
    /// Are you there?
    Ping(u64),
    /// Yes.
    Pong(u64),
}

impl Message for FromWorker {
    const KIND: Kind = Kind::FromWorker;
    const BYTES_MAX: usize = MESSAGE_BYTES_MAX;
}

/// What control sends after its hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromControl {
    /// Answers.
    Reply(BatchReply),
    /// Changes that the worker must know.
    Feed(Feed),
    /// A new window.
    Credit(Credit),
    /// Are you there?
    Ping(u64),
    /// Yes.
    Pong(u64),
    /// Control is about to exit: send nothing new, expect the replies to what is in flight.
    GoAway,
}

impl Message for FromControl {
    const KIND: Kind = Kind::FromControl;
    const BYTES_MAX: usize = MESSAGE_BYTES_MAX;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense() {
        for (index, kind) in BatchKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index);
        }
    }
}
