//! What is shown to operators, and no decision hangs on: from a replica when one is level, else from the primary.

use fleet_protocol::ids::HostId;

use super::Store;
use super::error::Result;
use super::pools::Purpose;
use crate::model::host::{HostDetail, HostFilter, HostRow};
use crate::model::label::Label;
use crate::model::pack::Pack;
use crate::model::query::Query;

/// See the module. Each call is its namesake of [`Store`].
pub(crate) struct Reports<'s>(&'s Store);

impl Store {
    /// For lists and counts.
    pub(crate) fn reports(&self) -> Reports<'_> {
        Reports(self)
    }
}

impl Reports<'_> {
    pub(crate) async fn host_list(&self, filter: &HostFilter) -> Result<Vec<HostRow>> {
        self.0.host_list_for(Purpose::Report, filter).await
    }

    pub(crate) async fn host_detail(&self, name: &str) -> Result<Option<HostDetail>> {
        self.0.host_detail_for(Purpose::Report, name).await
    }

    pub(crate) async fn host_rows(&self, ids: &[HostId]) -> Result<Vec<HostRow>> {
        self.0.host_rows(Purpose::Report, ids).await
    }

    pub(crate) async fn host_count_of(&self, filter: &HostFilter) -> Result<u64> {
        self.0.host_count_of(Purpose::Report, filter).await
    }

    pub(crate) async fn queries(&self) -> Result<Vec<Query>> {
        self.0.queries_for(Purpose::Report).await
    }

    pub(crate) async fn packs(&self) -> Result<Vec<Pack>> {
        self.0.packs_for(Purpose::Report).await
    }

    pub(crate) async fn label_specs(&self) -> Result<Vec<Label>> {
        self.0.label_specs_for(Purpose::Report).await
    }

    pub(crate) async fn labels(&self) -> Result<Vec<Label>> {
        self.0.labels_for(Purpose::Report).await
    }
}
