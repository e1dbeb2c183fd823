//! From an answer to its last byte, and the goodbye.

use std::time::Instant;

use bytes::Bytes;
use fleet_protocol::limits;

use super::Connection;
use crate::buffers::Scratch;
use crate::exchange::Response;
use crate::http;
use crate::phase::Phase;
use crate::tls::RECORD_BYTES_MAX;

/// Plaintext of a long answer that is encrypted ahead of the socket.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

impl Connection {
    /// Fills `scratch.out` with more of a long answer, once the socket has taken what was there.
    pub(crate) fn produce(&mut self, scratch: &mut Scratch, now: Instant) {
        let Phase::Writing { is_kept_alive } = self.phase else {
            return;
        };
        let part = self
            .unsent
            .split_to(self.unsent.len().min(OUTPUT_BYTES_MAX));
        if self.layer.seal(&part, &mut scratch.out).is_err() {
            self.phase = Phase::Closed;
            return;
        }
        if self.unsent.is_empty() {
            self.end_answer(is_kept_alive, scratch, now);
        }
    }

    /// The socket has taken everything; true when that ended an answer.
    pub(crate) fn flushed(&mut self, now: Instant) -> bool {
        if !std::mem::take(&mut self.is_flushing) {
            return false;
        }
        match self.phase {
            Phase::Idle => self.deadline = now + self.policy.keep_alive_idle,
            Phase::Closing => self.deadline = now + limits::CLOSE_DEADLINE,
            _ => {}
        }
        true
    }

    pub(super) fn write_answer(
        &mut self,
        response: Response,
        is_kept_alive: bool,
        scratch: &mut Scratch,
        now: Instant,
    ) {
        if response.must_cut {
            self.phase = Phase::Closed;
            return;
        }
        let text = &mut scratch.text;
        text.clear();
        let length = response.body.len();
        http::write_answer_head(
            text,
            response.status,
            length,
            response.is_gzip,
            is_kept_alive,
        );
        self.unsent = response.body;
        let room = RECORD_BYTES_MAX.saturating_sub(text.len());
        let first = self.unsent.split_to(self.unsent.len().min(room));
        text.extend_from_slice(&first);
        self.deadline = self.exchange_end.max(now + limits::CLOSE_DEADLINE);
        if self.layer.seal(text, &mut scratch.out).is_err() {
            self.phase = Phase::Closed;
        } else if self.unsent.is_empty() {
            self.end_answer(is_kept_alive, scratch, now);
        } else {
            self.phase = Phase::Writing { is_kept_alive };
        }
    }

    fn end_answer(&mut self, is_kept_alive: bool, scratch: &mut Scratch, now: Instant) {
        self.unsent = Bytes::new();
        if is_kept_alive {
            self.phase = Phase::Idle;
            self.is_flushing = true;
        } else {
            let deadline = self.deadline;
            self.close(scratch, now);
            // The end of the exchange bounds the write; the wait for the peer's close begins after it.
            self.deadline = deadline;
        }
    }

    /// Says goodbye; then the peer has its time to close.
    pub(super) fn close(&mut self, scratch: &mut Scratch, now: Instant) {
        let _ = self.layer.close(&mut scratch.out);
        self.finish(now);
    }

    pub(super) fn finish(&mut self, now: Instant) {
        self.layer.discard();
        self.plain = Vec::new();
        self.phase = Phase::Closing;
        self.is_flushing = true;
        self.deadline = now + limits::CLOSE_DEADLINE;
    }
}
