//! What all nodes share of a campaign, in Redis: who was handed the query, who has answered, and the results.
//!
//! Three keys a campaign, in one slot of a cluster: `hosts` has a byte for each target in the order of ids (answered, how
//! often handed, in which epoch last), `rows` is the stream of results, `tally` the counts. All have an expiry. Invariants:
//! each script is atomic, so that a host is claimed once and its answer taken once; `hosts` is there from the beginning to
//! the end, so that its absence says that Redis lost what it had. Scripts are sent whole: a Redis that restarted knows none.

use fleet_protocol::agent::QueryResult;
use fleet_protocol::ids::{HostId, UnixSeconds};
use fleet_protocol::limits::{CAMPAIGN_AGE_MAX, CLAIM_EPOCH, HANDOUTS_MAX, REPLAY_TIME};
use redis::{Cmd, Value};

use super::Options;
use super::ledger::{Claim, Heard};
use super::ring::{BATCH_EVENTS, Cursor, Entry, HostResult};
use crate::bus::{Bus, Error};
use crate::model::campaign::{CampaignId, Tally};

/// Keys: hosts, rows, tally. Arguments: seconds to live, when the campaign began, why it is made anew or nothing for one that
/// has only begun. Answers whether it was made. Keys of another beginning are of another store.
const BEGIN: &str = "
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HGET', KEYS[3], 'began') == ARGV[2] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
redis.call('SET', KEYS[1], '', 'EX', ARGV[1])
redis.call('HSET', KEYS[3], 'began', ARGV[2])
redis.call('EXPIRE', KEYS[3], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('XADD', KEYS[2], '*', 'lost', ARGV[3])
  redis.call('EXPIRE', KEYS[2], ARGV[1])
end
return 1";

/// Keys: hosts. Arguments: seconds of an epoch, most hand-outs, places. Answers a letter for each place, or nothing when
/// the key is gone. A byte: 128 answered, 32 for each hand-out, and the last one's epoch modulo 32.
const CLAIM: &str = "
if redis.call('EXISTS', KEYS[1]) == 0 then return '' end
local epoch = math.floor(tonumber(redis.call('TIME')[1]) / tonumber(ARGV[1])) % 32
local said = {}
for i = 3, #ARGV do
  local byte = string.byte(redis.call('GETRANGE', KEYS[1], ARGV[i], ARGV[i])) or 0
  local times = math.floor(byte / 32)
  local letter
  if byte >= 128 then letter = 'A'
  elseif times > 0 and (epoch - byte) % 32 < 2 then letter = 'E'
  elseif times >= tonumber(ARGV[2]) then letter = 'X'
  else
    redis.call('SETRANGE', KEYS[1], ARGV[i], string.char((times + 1) * 32 + epoch))
    letter = times == 0 and 'F' or 'R'
  end
  said[#said + 1] = letter
end
return table.concat(said)";

/// Keys: hosts, rows, tally. Arguments: most rows, most bytes, then of each result: place, host, status,
/// rows, bytes, rows as JSON, message, statistics. Answers a letter for each result and then the counts, or nothing when
/// the keys are gone. The rows live as long as the hosts do, also when the campaign has just ended.
const TAKE: &str = "
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HEXISTS', KEYS[3], 'began') == 0 then return {} end
local names = {'answered', 'failed', 'rows', 'bytes', 'hosts_cut', 'rows_cut', 'bytes_cut'}
local sums = {}
for i, value in ipairs(redis.call('HMGET', KEYS[3], unpack(names))) do sums[i] = tonumber(value or 0) or 0 end
local said = {}
for i = 3, #ARGV, 8 do
  local byte = string.byte(redis.call('GETRANGE', KEYS[1], ARGV[i], ARGV[i])) or 0
  if byte >= 128 then said[#said + 1] = 'T'
  else
    redis.call('SETRANGE', KEYS[1], ARGV[i], string.char(byte + 128))
    said[#said + 1] = 'N'
    local rows, bytes = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
    sums[1] = sums[1] + 1
    if ARGV[i + 2] ~= '0' then sums[2] = sums[2] + 1 end
    if sums[3] + rows > tonumber(ARGV[1]) or sums[4] + bytes > tonumber(ARGV[2]) then
      sums[5], sums[6], sums[7] = sums[5] + 1, sums[6] + rows, sums[7] + bytes
    else
      redis.call('XADD', KEYS[2], '*', 'host', ARGV[i + 1], 'status', ARGV[i + 2],
        'rows', ARGV[i + 5], 'message', ARGV[i + 6], 'stats', ARGV[i + 7])
      sums[3], sums[4] = sums[3] + rows, sums[4] + bytes
    end
  end
end
local pairs = {}
for i, name in ipairs(names) do
  pairs[#pairs + 1] = name
  pairs[#pairs + 1] = string.format('%.0f', sums[i])
end
redis.call('HSET', KEYS[3], unpack(pairs))
local life = redis.call('PTTL', KEYS[1])
if life > 0 then redis.call('PEXPIRE', KEYS[2], life) end
local answer = {table.concat(said)}
for i = 1, #sums do answer[i + 1] = string.format('%.0f', sums[i]) end
return answer";

const TALLY: [&str; 7] = [
    "answered",
    "failed",
    "rows",
    "bytes",
    "hosts_cut",
    "rows_cut",
    "bytes_cut",
];
/// Bytes of results that one command brings, or one result that is larger.
const PIECE_BYTES: u64 = 1 << 20;
/// The longest life of a campaign, and what comes after it.
const LIFE_S: u64 = CAMPAIGN_AGE_MAX.as_secs() + REPLAY_TIME.as_secs();

const LOST: &str = "Redis lost the results before this one; hosts are asked again";

/// What Redis has of a campaign.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    /// Places of hosts that have answered.
    pub(crate) answered: Vec<u32>,
    pub(crate) tally: Tally,
    /// It had lost the campaign, which was begun again.
    pub(crate) is_new: bool,
}

/// What became of a batch of results.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Taken {
    /// In their order, and the counts after them.
    Heard(Vec<Heard>, Tally),
    /// Redis does not know the campaign any more.
    Lost,
}

fn keys(bus: &Bus, id: CampaignId) -> [String; 3] {
    let key = |name| format!("fleet:{}:{{c{id}}}:{name}", bus.database());
    [key("hosts"), key("rows"), key("tally")]
}

fn script(text: &str, keys: &[String]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(keys.len()).arg(keys);
    command
}

fn unreadable() -> Error {
    Error::Unavailable("an answer that makes no sense".into())
}

/// Makes the keys of a new campaign, unless another node was quicker.
pub(crate) async fn begin(bus: &Bus, id: CampaignId, began_at: UnixSeconds) -> Result<(), Error> {
    begin_unless_there(bus, id, began_at, "").await.map(drop)
}

async fn begin_unless_there(
    bus: &Bus,
    id: CampaignId,
    began_at: UnixSeconds,
    reason: &str,
) -> Result<bool, Error> {
    let mut command = script(BEGIN, &keys(bus, id));
    command.arg(LIFE_S).arg(began_at.0).arg(reason);
    Ok(bus.ask(&command).await? == Value::Int(1))
}

/// How a campaign stands. If Redis does not have it, it is begun again; a young one may only be about to begin, so that
/// nothing is lost.
pub(crate) async fn standing(
    bus: &Bus,
    id: CampaignId,
    began_at: UnixSeconds,
    is_young: bool,
) -> Result<Standing, Error> {
    let keys = keys(bus, id);
    let reason = if is_young { "" } else { LOST };
    let is_made = begin_unless_there(bus, id, began_at, reason).await?;
    let is_new = is_made && !is_young;
    let [hosts, _, _] = &keys;
    let mut command = redis::cmd("GET");
    command.arg(hosts);
    let bytes = match bus.ask(&command).await? {
        Value::BulkString(bytes) => bytes,
        _ => Vec::new(),
    };
    let answered = (0_u32..).zip(bytes).filter(|(_, byte)| *byte >= 128);
    Ok(Standing {
        answered: answered.map(|(place, _)| place).collect(),
        tally: tally(bus, id).await?,
        is_new,
    })
}

/// The counts.
pub(crate) async fn tally(bus: &Bus, id: CampaignId) -> Result<Tally, Error> {
    let [_, _, tally] = keys(bus, id);
    let mut command = redis::cmd("HMGET");
    command.arg(tally).arg(&TALLY);
    match bus.ask(&command).await? {
        Value::Array(values) => Ok(tally_of(&values)),
        _ => Err(unreadable()),
    }
}

/// Claims hosts, given by their places; `None` when Redis lost the campaign.
pub(crate) async fn claim(
    bus: &Bus,
    id: CampaignId,
    places: &[u64],
) -> Result<Option<Vec<Claim>>, Error> {
    let [hosts, _, _] = keys(bus, id);
    let mut command = script(CLAIM, &[hosts]);
    command
        .arg(CLAIM_EPOCH.as_secs())
        .arg(HANDOUTS_MAX)
        .arg(places);
    let answer = bus.ask(&command).await?;
    let letters = text_of(&answer).ok_or_else(unreadable)?;
    if letters.is_empty() {
        return Ok(None);
    }
    let claims: Vec<Claim> = letters
        .bytes()
        .map(|letter| match letter {
            b'F' => Claim::First,
            b'R' => Claim::Again,
            b'E' => Claim::Elsewhere,
            b'A' => Claim::Answered,
            b'X' => Claim::Exhausted,
            _ => Claim::No,
        })
        .collect();
    if claims.len() == places.len() {
        Ok(Some(claims))
    } else {
        Err(unreadable())
    }
}

/// Results in pieces of about [`PIECE_BYTES`] each, in their order: one command must arrive within its deadline.
pub(crate) fn pieces(results: Vec<(u64, HostResult)>) -> Vec<Vec<(u64, HostResult)>> {
    let mut pieces: Vec<Vec<(u64, HostResult)>> = Vec::new();
    let mut room = 0;
    for result in results {
        let bytes = result.1.bytes();
        match pieces.last_mut() {
            Some(piece) if bytes <= room => {
                room -= bytes;
                piece.push(result);
            }
            _ => {
                room = PIECE_BYTES.saturating_sub(bytes);
                pieces.push(vec![result]);
            }
        }
    }
    pieces
}

/// Takes results of one campaign, with the places of their hosts.
pub(crate) async fn take(
    bus: &Bus,
    id: CampaignId,
    results: &[(u64, HostResult)],
    options: &Options,
) -> Result<Taken, Error> {
    let mut command = script(TAKE, &keys(bus, id));
    command.arg(options.rows_max).arg(options.bytes_max);
    for (place, result) in results {
        command
            .arg(place)
            .arg(result.host.0)
            .arg(result.status)
            .arg(result.row_count)
            .arg(result.bytes())
            .arg(&result.rows)
            .arg(&result.message)
            .arg(&result.stats);
    }
    let Value::Array(values) = bus.ask(&command).await? else {
        return Err(unreadable());
    };
    let Some((letters, counts)) = values.split_first() else {
        return Ok(Taken::Lost);
    };
    let letters = text_of(letters).ok_or_else(unreadable)?;
    let heard: Vec<Heard> = letters
        .bytes()
        .map(|letter| match letter {
            b'N' => Heard::New,
            _ => Heard::Twice,
        })
        .collect();
    if heard.len() == results.len() {
        Ok(Taken::Heard(heard, tally_of(counts)))
    } else {
        Err(unreadable())
    }
}

/// How many results to read at once, so that they are about [`PIECE_BYTES`] if they are like those so far.
pub(crate) fn count_of(tally: &Tally) -> usize {
    let kept = tally.answered.saturating_sub(tally.hosts_cut).max(1);
    let each = (tally.bytes / kept).max(1);
    usize::try_from(PIECE_BYTES / each).map_or(BATCH_EVENTS, |count| count.clamp(1, BATCH_EVENTS))
}

/// The next results after a cursor, so many at most.
pub(crate) async fn read(
    bus: &Bus,
    id: CampaignId,
    after: Cursor,
    count: usize,
) -> Result<Vec<Entry>, Error> {
    let [_, rows, _] = keys(bus, id);
    let mut command = redis::cmd("XRANGE");
    command.arg(rows).arg(format!("({after}")).arg("+");
    command.arg("COUNT").arg(count);
    let Value::Array(values) = bus.ask(&command).await? else {
        return Err(unreadable());
    };
    let entries: Option<Vec<Entry>> = values.iter().map(entry_of).collect();
    entries.ok_or_else(unreadable)
}

/// The campaign has ended: its results can be read for a while, and are gone then.
pub(crate) async fn end(bus: &Bus, id: CampaignId) -> Result<(), Error> {
    for key in keys(bus, id) {
        let mut command = redis::cmd("EXPIRE");
        command.arg(key).arg(REPLAY_TIME.as_secs());
        bus.ask(&command).await?;
    }
    Ok(())
}

fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn tally_of(values: &[Value]) -> Tally {
    let mut numbers = values.iter().map(|value| {
        text_of(value)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    });
    let mut next = || numbers.next().unwrap_or(0);
    Tally {
        answered: next(),
        failed: next(),
        rows: next(),
        bytes: next(),
        hosts_cut: next(),
        rows_cut: next(),
        bytes_cut: next(),
    }
}

/// `[id, [name, value, …]]`
fn entry_of(value: &Value) -> Option<Entry> {
    let Value::Array(parts) = value else {
        return None;
    };
    let [id, Value::Array(fields)] = parts.as_slice() else {
        return None;
    };
    let cursor: Cursor = text_of(id)?.parse().ok()?;
    let field = |name: &str| {
        let pairs = fields.chunks_exact(2);
        let mut found = pairs.filter(|pair| pair.first().and_then(text_of) == Some(name));
        let value = found.next().and_then(|pair| pair.get(1)).and_then(text_of);
        value.map(str::to_owned)
    };
    if let Some(reason) = field("lost") {
        return Some(Entry::Lost { cursor, reason });
    }
    let result = QueryResult {
        name: String::new(),
        status: field("status")?.parse().ok()?,
        message: field("message")?,
        rows: field("rows")?,
        stats: field("stats")?,
    };
    let host = HostId(field("host")?.parse().ok()?);
    Some(Entry::Result(HostResult {
        cursor,
        ..HostResult::of(host, result)
    }))
}
