//! A live query as the store keeps it.

use std::collections::BTreeSet;

use fleet_protocol::ids::UnixSeconds;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use super::label::LabelId;
use super::query::QueryId;

row_id!(
    /// A campaign's row.
    CampaignId
);

/// How a campaign stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Hosts are asked.
    Running,
    /// Every target has answered.
    Finished,
    /// Nobody looked for a while, or its longest time is over.
    Expired,
    /// An operator ended it.
    Stopped,
}

impl Status {
    /// For people, and as a metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Expired => "expired",
            Self::Stopped => "stopped",
        }
    }
}

/// What an operator asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NewCampaign {
    /// Of the saved query, or empty.
    pub(crate) name: String,
    /// The saved query.
    pub(crate) query_id: Option<QueryId>,
    /// What hosts run; not empty.
    pub(crate) sql: String,
    /// 0 is the local operator.
    pub(crate) user_id: u32,
    pub(crate) user_name: String,
    /// Host ids, from [`Campaigns::resolve`](crate::campaigns::Campaigns::resolve); not empty.
    pub(crate) targets: RoaringBitmap,
}

/// A campaign.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Campaign {
    pub(crate) id: CampaignId,
    pub(crate) name: String,
    pub(crate) query_id: Option<QueryId>,
    pub(crate) sql: String,
    pub(crate) user_id: u32,
    pub(crate) user_name: String,
    pub(crate) created_at: UnixSeconds,
    /// When it ends unless somebody looks; as of the read.
    pub(crate) expires_at: UnixSeconds,
    /// 0 while it runs.
    pub(crate) ended_at: UnixSeconds,
    pub(crate) status: Status,
    pub(crate) target_count: u64,
    /// As of its end; 0 before.
    pub(crate) tally: Tally,
}

/// What hosts have answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Hosts that have answered, with rows, without, or with an error.
    pub(crate) answered: u64,
    /// Of those, with an error.
    pub(crate) failed: u64,
    /// Rows kept.
    pub(crate) rows: u64,
    /// Bytes kept.
    pub(crate) bytes: u64,
    /// Hosts whose rows were left out, because the campaign had too many.
    pub(crate) hosts_cut: u64,
    /// Their rows.
    pub(crate) rows_cut: u64,
    /// Their bytes.
    pub(crate) bytes_cut: u64,
}

impl Tally {
    /// Whether something was left out.
    pub(crate) fn is_truncated(&self) -> bool {
        self.hosts_cut > 0
    }
}

/// Who is to be asked, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    /// Always asked.
    pub(crate) hosts: BTreeSet<u32>,
    /// Built-in and custom labels in any order.
    pub(crate) labels: BTreeSet<LabelId>,
}
