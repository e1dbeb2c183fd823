//! One request between its head and its answer: how much of it has arrived, and where its parts stand in the buffer.
//!
//! The buffer belongs to the connection and begins with the head's first byte.

use std::net::IpAddr;

use fleet_protocol::agent::Route;

use crate::client_certificate::{Certified, NamesNobody};
use crate::exchange::Head;
use crate::http::{Chunked, Framing, Malformed, RequestHead};

/// What is known of a request's sender besides what it says.
#[derive(Clone, Copy)]
pub(crate) struct Sender<'a> {
    /// Behind a balancer, the balancer's client.
    pub(crate) client: IpAddr,
    /// Whose certificate the connection was made with, if with any.
    pub(crate) certificate: Option<&'a Result<Certified, NamesNobody>>,
}

/// See the module.
pub(crate) struct Request {
    pub(crate) head: RequestHead,
    /// Most bytes of its body.
    pub(crate) bytes_max: usize,
    chunked: Option<Chunked>,
}

impl Request {
    pub(crate) fn new(head: RequestHead) -> Self {
        let is_chunked = matches!(head.framing, Framing::Chunked);
        Self {
            bytes_max: 0,
            chunked: is_chunked.then(|| Chunked::new(head.head_bytes)),
            head,
        }
    }

    /// Decodes what has arrived; true when the body is whole.
    pub(crate) fn advance(&mut self, buffer: &mut Vec<u8>) -> Result<bool, Malformed> {
        let Some(chunked) = &mut self.chunked else {
            return Ok(self.end().is_some_and(|end| buffer.len() >= end));
        };
        if matches!(self.head.framing, Framing::Length(_)) {
            return Ok(true);
        }
        let is_whole = chunked.decode(buffer)?;
        if is_whole {
            self.head.framing = Framing::Length(self.body_bytes());
        }
        Ok(is_whole)
    }

    /// Drops the part of the body that has arrived; returns its length.
    pub(crate) fn discard(&mut self, buffer: &mut Vec<u8>) -> u64 {
        let start = self.head.head_bytes;
        let end = self.chunked.as_ref().map_or(buffer.len(), Chunked::end);
        let end = end.clamp(start, buffer.len().max(start));
        buffer.drain(start.min(buffer.len())..end.min(buffer.len()));
        let dropped = (end - start) as u64;
        if let Some(chunked) = &mut self.chunked {
            chunked.set_end(start);
        }
        if let Framing::Length(left) = &mut self.head.framing {
            *left = left.saturating_sub(dropped);
        }
        dropped
    }

    /// Bytes of the body: claimed, or of a chunked one decoded so far.
    pub(crate) fn body_bytes(&self) -> u64 {
        match (&self.head.framing, &self.chunked) {
            (Framing::Length(bytes), _) => *bytes,
            (Framing::Chunked, Some(chunked)) => {
                chunked.end().saturating_sub(self.head.head_bytes) as u64
            }
            (Framing::Chunked, None) => 0,
        }
    }

    /// Where the request ends in the buffer; `None` while a chunked one goes on.
    pub(crate) fn end(&self) -> Option<usize> {
        match self.head.framing {
            Framing::Length(bytes) => self.head.head_bytes.checked_add(bytes.try_into().ok()?),
            Framing::Chunked => None,
        }
    }

    /// The caller removes the request from the buffer, up to the place that this returns.
    pub(crate) fn release(&mut self) -> Option<usize> {
        let end = self.end();
        self.head.head_bytes = 0;
        self.head.framing = Framing::Length(0);
        self.chunked = None;
        self.head.node_key = None;
        end
    }

    /// The head as the exchange sees it; `buffer` holds at least the head.
    pub(crate) fn view<'a>(&self, route: Route, buffer: &'a [u8], sender: Sender<'a>) -> Head<'a> {
        let key = self
            .head
            .node_key
            .clone()
            .and_then(|range| buffer.get(range));
        Head {
            route,
            node_key: key.and_then(|key| std::str::from_utf8(key).ok()),
            content_length: self.body_bytes(),
            is_gzip: self.head.is_gzip,
            accepts_gzip: self.head.accepts_gzip,
            client: sender.client,
            certificate: sender.certificate,
        }
    }

    /// Head and body of a whole request.
    pub(crate) fn parts<'a>(
        &self,
        route: Route,
        buffer: &'a mut [u8],
        sender: Sender<'a>,
    ) -> (Head<'a>, &'a mut [u8]) {
        let start = self.head.head_bytes.min(buffer.len());
        let (head, rest) = buffer.split_at_mut(start);
        let body = self
            .end()
            .and_then(|end| rest.get_mut(..end.checked_sub(start)?))
            .unwrap_or_default();
        (self.view(route, head, sender), body)
    }
}
