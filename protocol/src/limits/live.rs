//! Bounds of live queries that are no options.

use std::time::Duration;

/// Campaigns that may run at once, on all gateways together.
pub const OPEN_CAMPAIGNS_MAX: u32 = 1000;
/// A campaign ends after this time, whoever looks.
pub const CAMPAIGN_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Results can be seen for so long after the end of their campaign.
pub const REPLAY_TIME: Duration = Duration::from_secs(600);
/// Records of ended campaigns are kept for so long.
pub const CAMPAIGN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Hosts are called in slices, one in each of these spans.
pub const CALL_INTERVAL: Duration = Duration::from_millis(50);
/// Hosts of one slice: 20,000 a second, each of which then answers over a connection of its own.
pub const CALLS_PER_SLICE: u64 = 1000;
/// A host that was handed a query and does not answer is asked again after one to two of these.
pub const CLAIM_EPOCH: Duration = Duration::from_secs(60);
/// A host is handed the query of a campaign so often at most.
pub const HANDOUTS_MAX: u8 = 3;
/// Bytes of results of all campaigns that control keeps in memory without Redis.
pub const HELD_RESULT_BYTES_MAX: u64 = 256 << 20;
