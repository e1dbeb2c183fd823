//! What comes before everything else: a balancer's PROXY header, and the ClientHello; and the fields in which balancers
//! name a request's client.

use std::rc::Rc;
use std::time::Instant;

use fleet_protocol::limits;
use fleet_protocol::networks::Networks;
use fleet_protocol::proxy_header::{self, HEADER_BYTES_MAX, Origin, SIGNATURE};
use fleet_protocol::stats::ProxyHeader;

use super::Connection;
use crate::buffers::Scratch;
use crate::client_hello::{self, Look};
use crate::http::{self, RequestHead};
use crate::phase::Phase;
use crate::terms::Terms;
use crate::tls::Layer;

impl Connection {
    /// What came of the PROXY header, once.
    pub(crate) fn take_proxy_header(&mut self) -> Option<ProxyHeader> {
        self.proxy_header.take()
    }

    /// Waits for the header, if this peer may send one. TLS begins behind it, so that a connection that sends none
    /// costs nothing.
    pub(super) fn expect_header(&mut self, tls: Option<&Rc<Terms>>, balancers: &Networks) {
        if balancers.contains(self.peer.ip()) {
            let tls = tls.cloned();
            self.phase = Phase::Preface { tls };
        } else {
            self.end_preface(ProxyHeader::Untrusted);
        }
    }

    /// Begins with what the client itself sends.
    pub(super) fn begin(&mut self, tls: Option<&Rc<Terms>>, now: Instant) {
        if let Some(terms) = tls {
            self.phase = Phase::Hello {
                terms: Rc::clone(terms),
            };
            // From accept on, as the end of the exchange is.
            self.deadline = self
                .exchange_end
                .checked_sub(limits::EXCHANGE_DEADLINE)
                .map_or(self.exchange_end, |accepted| {
                    accepted + self.policy.handshake_deadline.get()
                });
        } else {
            self.phase = Phase::Head { scanned: 0 };
            self.deadline = now + self.policy.head_deadline.get();
        }
    }

    /// Waits for the whole ClientHello, so that silent and slow peers cost no TLS state; which terms are theirs shows in
    /// it. Nearly always it is whole in one read, and is not copied.
    pub(super) fn receive_hello(&mut self, bytes: &mut [u8], scratch: &mut Scratch, now: Instant) {
        let is_first = self.plain.is_empty();
        if !is_first {
            self.plain.extend_from_slice(bytes);
        }
        let look = client_hello::look(if is_first { bytes } else { &self.plain });
        let Phase::Hello { terms } = &self.phase else {
            return;
        };
        let config = match look {
            Look::Partial => {
                if is_first {
                    scratch.lend(&mut self.plain, bytes.len(), None);
                    self.plain.extend_from_slice(bytes);
                }
                return;
            }
            Look::PlainHttp => return self.refuse_plain_http(scratch, now),
            Look::Whole { offers_alpn: true } => &terms.others,
            Look::Whole { offers_alpn: false } | Look::Opaque => &terms.agents,
        };
        match Layer::new(config) {
            Ok(layer) => {
                self.layer = layer;
                self.phase = Phase::Handshake;
            }
            Err(error) => {
                tracing::error!(%error, "TLS cannot begin");
                self.phase = Phase::Closed;
                return;
            }
        }
        if is_first {
            self.receive_records(bytes, scratch, now);
        } else {
            let mut hello = std::mem::take(&mut self.plain);
            self.receive_records(&mut hello, scratch, now);
        }
    }

    /// Takes the header off the front, where one is due; gives what is left for the next layer. A header that is not
    /// due ends the connection: nobody may say on its behalf who it is.
    pub(super) fn receive_preface<'b>(
        &mut self,
        bytes: &'b mut [u8],
        scratch: &mut Scratch,
        now: Instant,
    ) -> &'b mut [u8] {
        let used = match self.phase {
            Phase::Preface { .. } => self.receive_header(bytes, scratch, now),
            Phase::Hello { .. } | Phase::Handshake | Phase::Head { scanned: 0 }
                if self.plain.is_empty() =>
            {
                0
            }
            _ => return bytes,
        };
        let rest = bytes.get_mut(used..).unwrap_or_default();
        if rest.starts_with(&SIGNATURE) {
            self.end_preface(ProxyHeader::Unexpected);
            return &mut [];
        }
        rest
    }

    /// Bytes that were the header's, or are of no use any more.
    fn receive_header(&mut self, bytes: &[u8], scratch: &mut Scratch, now: Instant) -> usize {
        let kept = self.plain.len();
        let decoded = if kept == 0 {
            // Nearly always the whole header comes at once, and the client's first bytes with it.
            proxy_header::decode(bytes)
        } else {
            let more = bytes.len().min(HEADER_BYTES_MAX.saturating_sub(kept));
            let more = bytes.get(..more).unwrap_or_default();
            self.plain.extend_from_slice(more);
            proxy_header::decode(&self.plain)
        };
        match decoded {
            Ok(Some(header)) => {
                self.plain.clear();
                self.begin_behind(header.origin, now);
                if matches!(self.phase, Phase::Closed) {
                    return bytes.len();
                }
                return header.length.saturating_sub(kept);
            }
            Ok(None) if kept == 0 => {
                scratch.lend(&mut self.plain, bytes.len(), None);
                self.plain.extend_from_slice(bytes);
            }
            Ok(None) => {}
            Err(proxy_header::Error::Signature) => self.end_preface(ProxyHeader::Missing),
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "refused");
                self.end_preface(ProxyHeader::Malformed);
            }
        }
        bytes.len()
    }

    fn begin_behind(&mut self, origin: Origin, now: Instant) {
        let Phase::Preface { tls } = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return;
        };
        self.proxy_header = Some(ProxyHeader::Local);
        if let Origin::Client { source, .. } = origin {
            self.proxy_header = Some(ProxyHeader::Taken);
            self.peer = source;
            self.client = source.ip();
            if !self.policy.admits_connection(self.client, now) {
                // Counted there. `begin` would spend on TLS.
                return;
            }
        }
        self.begin(tls.as_ref(), now);
    }

    /// The connection is over before it began.
    pub(super) fn end_preface(&mut self, outcome: ProxyHeader) {
        self.proxy_header = Some(outcome);
        self.phase = Phase::Closed;
    }

    /// Learns from a request's fields, if whoever sends them is believed, who sent it; and reuses the connections of
    /// balancers as HTTP/1.1 does, without being asked.
    pub(super) fn read_forwarding(&mut self, head: &mut RequestHead) {
        let trusted = &self.policy.trusted_proxies;
        let peer = self.peer.ip();
        self.client = peer;
        if trusted.believes(peer) {
            let text = self.plain.get(..head.head_bytes).unwrap_or_default();
            self.client = http::client_address(text, trusted, peer);
            // What a proxy shows is its own certificate, whoever sends requests through it and whether it says who.
            self.certificate = None;
        }
        // Agents speak TLS: who does not, or has a proxy's address, is a balancer.
        if matches!(self.layer, Layer::Plain) || trusted.knows(peer) {
            head.wants_keep_alive |= head.is_persistent;
        }
    }
}
