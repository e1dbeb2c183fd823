//! How TLS begins, whose certificate it brings, and how it fails: counted once, and said to peers that speak plain HTTP.

use std::cell::RefCell;
use std::time::Instant;

use fleet_protocol::stats::{Handshake, TlsFailure, WorkerStats};

use super::Connection;
use crate::buffers::Scratch;
use crate::client_certificate::Certified;
use crate::http;
use crate::tls::Error;
use crate::tls_failure;

/// To a peer that speaks HTTP without TLS. An agent takes it for "try again".
const PLAIN_HTTP_BODY: &[u8] = br#"{"error":"this port speaks TLS, use https"}"#;

impl Connection {
    /// Counts what has become known of TLS since the last call.
    pub(crate) fn count_tls(&mut self, stats: &RefCell<WorkerStats>) {
        let handshake = self.take_handshake();
        let failure = self.tls_failure.take();
        if handshake.is_none() && failure.is_none() {
            return;
        }
        let mut stats = stats.borrow_mut();
        let bump = |counts: &mut [u64], place: usize| {
            if let Some(count) = counts.get_mut(place) {
                *count += 1;
            }
        };
        if let Some(handshake) = handshake {
            bump(&mut stats.handshakes, handshake as usize);
        }
        if let Some(failure) = failure {
            bump(&mut stats.tls_failures, failure as usize);
        }
        if handshake == Some(Handshake::Done)
            && let Some(session) = self.tls_session
        {
            bump(&mut stats.tls_sessions, session as usize);
        }
    }

    /// Learns, once the handshake is over, whom the peer's certificate names.
    pub(super) fn read_certificate(&mut self) {
        let Some(leaf) = self.layer.client_certificate() else {
            return;
        };
        let certificate = Certified::of(leaf);
        if let Err(reason) = &certificate {
            tracing::debug!(peer = %self.peer, %reason, "a verified certificate names no host");
        }
        self.certificate = Some(Box::new(certificate));
    }

    pub(super) fn fail_tls(&mut self, error: &Error, now: Instant) {
        tracing::debug!(peer = %self.peer, %error, "connection fails in TLS");
        self.end_tls(tls_failure::kind(error), now);
    }

    /// Answers as servers do whose clients forgot the `s` of `https`.
    pub(super) fn refuse_plain_http(&mut self, scratch: &mut Scratch, now: Instant) {
        tracing::debug!(peer = %self.peer, "plain HTTP on a port that speaks TLS");
        http::write_answer_head(&mut scratch.out, 400, PLAIN_HTTP_BODY.len(), false, false);
        scratch.out.extend_from_slice(PLAIN_HTTP_BODY);
        self.end_tls(TlsFailure::PlainHttp, now);
    }

    fn end_tls(&mut self, failure: TlsFailure, now: Instant) {
        self.tls_failure = Some(failure);
        if self.is_handshaking() {
            self.handshake = Some(Handshake::Failed);
        }
        self.finish(now);
    }
}
