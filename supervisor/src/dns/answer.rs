//! From the bytes of a question to the bytes of its answer. Pure but for the turns.
//!
//! The one name that is delegated to us is a zone of its own: its apex has addresses, SOA and NS, and nothing is below
//! it. We never ask anybody else. When nothing serves, or nothing of a family that is configured, we answer SERVFAIL: it is
//! not remembered as an absence, and a resolver goes on to the next server of the delegation, which is another gateway;
//! the whole list would send agents to where nobody listens, and an empty answer would be remembered until the SOA's
//! minimum.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use fleet_protocol::config::Dns;
use fleet_protocol::slot::Gateway;
use fleet_protocol::weight;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, LowerQuery, Metadata, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, HINFO, NS, SOA};
use hickory_server::proto::rr::{DNSClass, LowerName, Name, RData, Record, RecordType};
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::Request;
use hickory_server::zone_handler::MessageResponseBuilder;

use super::order::{Family, is_lost, order};

/// Largest UDP answer, as most servers have it: it passes everywhere in one packet.
const UDP_BYTES_MAX: u16 = 1232;
/// What every client takes on UDP.
const UDP_BYTES_MIN: u16 = 512;
/// Most addresses in a UDP answer, whatever is configured: who asks may have named another as the sender, who would get
/// the answer, and 16 are some nine times the question (AAAA: 15 times). Each is a whole set, as those of `answers_max`
/// are: what is told is chosen anew for each answer, so it is no part of a list of which the rest must come by TCP.
const UDP_ADDRESSES_MAX: usize = 16;
/// Records after the question of a question: EDNS, and room for a signature that we do not look at.
const EXTRAS_MAX: u16 = 2;
/// EDNS version that we do not know.
const BAD_VERSION: ResponseCode = ResponseCode::BADVERS;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// In one packet.
    Udp,
    /// In a stream.
    Tcp,
}

/// The zone of the one name.
#[derive(Debug)]
pub(crate) struct Zone {
    name: Name,
    lower: LowerName,
    nameservers: Vec<Name>,
    ttl_s: u32,
    answers_max: usize,
    /// Of A and of AAAA. Apart, because most clients ask for both, and would see every second turn only.
    turns: [AtomicU64; 2],
}

/// What goes into an answer.
#[derive(Debug, Default)]
struct Content {
    code: ResponseCode,
    is_ours: bool,
    answers: Vec<Record>,
    /// Instead of answers: how long their absence may be remembered.
    soa: Option<Record>,
}

impl Content {
    fn error(code: ResponseCode) -> Self {
        Self {
            code,
            ..Self::default()
        }
    }
}

impl Zone {
    /// Of the configuration, in which a name is given.
    pub(crate) fn new(dns: &Dns) -> anyhow::Result<Self> {
        let name = |text: &str| -> anyhow::Result<Name> {
            let mut name =
                Name::from_ascii(text).with_context(|| format!("{text:?} is no name"))?;
            name.set_fqdn(true);
            Ok(name)
        };
        let apex = name(&dns.name)?;
        Ok(Self {
            lower: LowerName::new(&apex),
            name: apex,
            nameservers: dns
                .nameservers
                .iter()
                .map(|text| name(text))
                .collect::<Result<_, _>>()?,
            ttl_s: u32::try_from(dns.ttl.as_secs()).unwrap_or(u32::MAX),
            answers_max: match dns.answers_max {
                0 => usize::MAX,
                max => max.into(),
            },
            turns: Default::default(),
        })
    }

    /// The answer; `None` to what is not answered at all: scraps, and answers, lest two servers talk for ever.
    pub(crate) fn answer(
        &self,
        question: &[u8],
        from: SocketAddr,
        transport: Transport,
        gateway: &Gateway,
    ) -> Option<Vec<u8>> {
        let head: &[u8; 12] = question.first_chunk()?;
        let [_, _, flags, _, questions @ .., extras_high, extras_low] = head;
        let is_answer = flags & 0x80 != 0;
        let operation = flags >> 3 & 0x0f;
        if is_answer {
            return None;
        }
        if operation != 0 {
            return Some(refusal(head, ResponseCode::NotImp));
        }
        // One question and nothing in answer and authority. Counts are looked at before anything is allocated for them.
        let is_plain = *questions == [0, 1, 0, 0, 0, 0]
            && u16::from_be_bytes([*extras_high, *extras_low]) <= EXTRAS_MAX;
        let request = is_plain
            .then(|| Request::from_bytes(question.to_vec(), from, Protocol::Udp).ok())
            .flatten();
        let Some(request) = request else {
            return Some(refusal(head, ResponseCode::FormErr));
        };
        let [query] = request.queries.queries() else {
            return Some(refusal(head, ResponseCode::FormErr));
        };
        let content = if request.version() > 0 {
            Content::error(BAD_VERSION)
        } else {
            self.content(query, transport, gateway)
        };
        encode(&request, content, transport).or_else(|| Some(refusal(head, ResponseCode::ServFail)))
    }

    fn content(&self, query: &LowerQuery, transport: Transport, gateway: &Gateway) -> Content {
        let name = query.name();
        let is_known_class = matches!(query.query_class(), DNSClass::IN | DNSClass::ANY);
        let kind = query.query_type();
        let is_transfer = matches!(kind, RecordType::AXFR | RecordType::IXFR);
        if !is_known_class || is_transfer || !self.lower.zone_of(name) {
            return Content::error(ResponseCode::Refused);
        }
        if *name != self.lower {
            return Content {
                code: ResponseCode::NXDomain,
                is_ours: true,
                soa: Some(self.soa(self.name.clone())),
                ..Content::default()
            };
        }
        // As it was asked, in its mixture of cases.
        let owner = query.original().name();
        let family = match kind {
            RecordType::A => Some(Family::V4),
            RecordType::AAAA => Some(Family::V6),
            _ => None,
        };
        if family
            .is_some_and(|family| weight::trouble(gateway).is_some() || is_lost(gateway, family))
        {
            return Content::error(ResponseCode::ServFail);
        }
        let answers = match kind {
            RecordType::NS => self.nameservers(owner),
            RecordType::SOA => vec![self.soa(owner.clone())],
            // All that there is would be an answer many times the question's size, to whoever is named as its sender;
            // RFC 8482 has this instead.
            RecordType::ANY => vec![self.record(
                owner,
                RData::HINFO(HINFO::new("RFC8482".into(), String::new())),
            )],
            _ => family.map_or_else(Vec::new, |family| {
                self.addresses(owner, family, transport, gateway)
            }),
        };
        Content {
            code: ResponseCode::NoError,
            is_ours: true,
            soa: answers.is_empty().then(|| self.soa(owner.clone())),
            answers,
        }
    }

    fn addresses(
        &self,
        owner: &Name,
        family: Family,
        transport: Transport,
        gateway: &Gateway,
    ) -> Vec<Record> {
        let answers_max = match transport {
            Transport::Udp => self.answers_max.min(UDP_ADDRESSES_MAX),
            Transport::Tcp => self.answers_max,
        };
        let [v4, v6] = &self.turns;
        let turns = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let turn = turns.fetch_add(1, Ordering::Relaxed);
        order(gateway, family, turn)
            .into_iter()
            .take(answers_max)
            .map(|ip| match ip {
                IpAddr::V4(ip) => self.record(owner, RData::A(A(ip))),
                IpAddr::V6(ip) => self.record(owner, RData::AAAA(AAAA(ip))),
            })
            .collect()
    }

    fn nameservers(&self, owner: &Name) -> Vec<Record> {
        let names = self.nameservers.iter().cloned();
        names
            .map(|name| self.record(owner, RData::NS(NS(name))))
            .collect()
    }

    fn soa(&self, owner: Name) -> Record {
        let primary = self.nameservers.first().unwrap_or(&self.name).clone();
        // An address that takes no mail, for want of one that does.
        let mailbox = Name::from_ascii("hostmaster")
            .and_then(|label| label.append_domain(&self.name))
            .unwrap_or_else(|_| self.name.clone());
        let span = i32::try_from(self.ttl_s).unwrap_or(i32::MAX);
        // Nobody transfers this zone, so its number never needs to change. The minimum is how long an absence is
        // remembered.
        let soa = SOA::new(primary, mailbox, 1, span, span, span, self.ttl_s);
        self.record(&owner, RData::SOA(soa))
    }

    fn record(&self, owner: &Name, data: RData) -> Record {
        Record::from_rdata(owner.clone(), self.ttl_s, data)
    }
}

/// `None` when it cannot be written, which would be a mistake of ours.
fn encode(request: &Request, content: Content, transport: Transport) -> Option<Vec<u8>> {
    let edns = request.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES_MAX)
            .set_dnssec_ok(asked.flags().dnssec_ok);
        edns
    });
    let bytes_max = match (transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(asked)) => asked.max_payload().clamp(UDP_BYTES_MIN, UDP_BYTES_MAX),
        (Transport::Udp, None) => UDP_BYTES_MIN,
    };
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.authoritative = content.is_ours;
    metadata.response_code = content.code;
    metadata.checking_disabled = false;
    let write = |metadata: Metadata, answers: &[Record], soa: Option<&Record>| {
        let mut bytes = Vec::with_capacity(UDP_BYTES_MIN.into());
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(bytes_max);
        let nothing: &[Record] = &[];
        let info = MessageResponseBuilder::new(&request.queries, edns.as_ref())
            .build(metadata, answers, nothing, soa, nothing)
            .destructive_emit(&mut encoder)
            .ok()?;
        Some((info.truncation, bytes))
    };
    let (is_cut, bytes) = write(metadata, &content.answers, content.soa.as_ref())?;
    if !is_cut {
        return Some(bytes);
    }
    // Part of a list is of no use to a client that must come again by TCP anyway, and it is small.
    metadata.truncation = true;
    write(metadata, &[], None).map(|(_, bytes)| bytes)
}

/// A head alone, of the operation and with the code.
fn refusal(head: &[u8; 12], code: ResponseCode) -> Vec<u8> {
    let [id_high, id_low, flags, ..] = *head;
    let mut bytes = vec![id_high, id_low, 0x80 | flags & 0x79, code.low()];
    bytes.resize(head.len(), 0);
    bytes
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
