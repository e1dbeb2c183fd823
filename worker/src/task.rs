//! What an agent asks, parsed: whose key it names, and what its body says.

use std::borrow::Cow;
use std::net::IpAddr;

use fleet_protocol::agent::{CarveBegin, CarveBlock, Enroll, QueryResult, Route};
use fleet_protocol::ids::NodeKeyHash;
use fleet_protocol::reject::Reject;

use crate::body;
use crate::exchange::Head;
use crate::log_body::{self, Lines};
use crate::scan::Malformed;
use crate::state::State;

/// A parsed body.
pub(crate) enum Task {
    CarveBegin(Box<CarveBegin>),
    CarveBlock(CarveBlock),
    Config { accepts_gzip: bool },
    Enroll(Box<Enroll>),
    Log(Lines),
    Read,
    Write(Vec<QueryResult>, IpAddr),
}

impl Task {
    /// Bytes that it holds while it waits.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Log(lines) => lines.bytes.len(),
            Self::Write(results, _) => results
                .iter()
                .map(|result| result.rows.len() + result.stats.len() + result.message.len())
                .sum(),
            Self::CarveBlock(block) => block.data.len(),
            Self::CarveBegin(_) | Self::Config { .. } | Self::Enroll(_) | Self::Read => 0,
        }
    }
}

/// The key (header first, body else) and what is asked.
pub(crate) fn parse(
    state: &State,
    head: &Head<'_>,
    body: &[u8],
) -> Result<(Option<NodeKeyHash>, Task), Reject> {
    let text = body::text(body);
    let malformed = |_: Malformed| Reject::BodyMalformed;
    let (body_key, task) = match head.route {
        Route::Config => {
            let accepts_gzip = head.accepts_gzip;
            (
                body::node_key(&text).map_err(malformed)?,
                Task::Config { accepts_gzip },
            )
        }
        Route::Read => (body::node_key(&text).map_err(malformed)?, Task::Read),
        Route::Enroll => {
            let enroll = body::enroll(&text, head.client).map_err(malformed)?;
            (Cow::Borrowed(""), Task::Enroll(Box::new(enroll)))
        }
        Route::Write => {
            let (key, results) = body::write(&text).map_err(malformed)?;
            (key, Task::Write(results, head.client))
        }
        Route::Log => {
            let log = log_body::parse(&text, state.body_limits.inflated(Route::Log))?;
            (log.node_key, Task::Log(log.lines))
        }
        Route::CarveBegin => {
            let (key, carve) = body::carve_begin(&text).map_err(malformed)?;
            (key, Task::CarveBegin(Box::new(carve)))
        }
        Route::CarveBlock => {
            let block = body::carve_block(&text).map_err(malformed)?;
            (Cow::Borrowed(""), Task::CarveBlock(block))
        }
    };
    let key = header_key(state, head).or_else(|| hash_if_present(state, &body_key));
    Ok((key, task))
}

/// By the head alone.
pub(crate) fn header_key(state: &State, head: &Head<'_>) -> Option<NodeKeyHash> {
    hash_if_present(state, head.node_key.unwrap_or_default())
}

fn hash_if_present(state: &State, node_key: &str) -> Option<NodeKeyHash> {
    let node_key = node_key.trim();
    (!node_key.is_empty()).then(|| state.hash(node_key))
}
