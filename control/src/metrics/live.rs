//! Live queries.

use std::fmt::Error;

use prometheus_client::registry::Unit;

use super::text::{Page, by, plain};
use crate::campaigns::CampaignsStatistics;

/// `called`: hosts that are called and have not come yet.
pub(super) fn live(
    page: &mut Page<'_>,
    live: &CampaignsStatistics,
    called: u64,
) -> Result<(), Error> {
    for (name, help, value) in [
        ("fleet_live_queries", "Live queries that run.", live.open),
        (
            "fleet_live_query_viewers",
            "Viewers of live queries on this gateway.",
            live.viewers,
        ),
        (
            "fleet_live_query_called_hosts",
            "Hosts that a live query waits for, and that have not read since.",
            called,
        ),
        (
            "fleet_live_query_calls_waiting",
            "Hosts that are to be called: there are bounds to how many in a second.",
            live.calls_waiting,
        ),
    ] {
        page.gauge(plain(name, help), None, [([], value)])?;
    }
    page.gauge(
        plain(
            "fleet_live_query_held",
            "Results of live queries in control's memory.",
        ),
        Some(Unit::Bytes),
        [([], live.held_bytes)],
    )?;
    counters(page, live)
}

fn counters(page: &mut Page<'_>, live: &CampaignsStatistics) -> Result<(), Error> {
    page.counter(
        by(
            "fleet_live_query_handed",
            "Queries handed to hosts: first, or again because no answer came.",
            "handout",
        ),
        None,
        [(["first"], live.handed), (["again"], live.handed_again)],
    )?;
    page.counter(
        by(
            "fleet_live_query_results",
            "Results by what became of them.",
            "outcome",
        ),
        None,
        live.results.iter().map(|(name, count)| ([*name], *count)),
    )?;
    for (name, help, value) in [
        ("fleet_live_query_calls", "Hosts called.", live.called),
        (
            "fleet_live_query_claims_failed",
            "Hosts that read while Redis did not answer; they are called again.",
            live.claims_failed,
        ),
        ("fleet_live_query_rows", "Rows taken.", live.rows),
        (
            "fleet_live_query_truncated_results",
            "Results whose rows were left out, because there were too many.",
            live.cut,
        ),
        (
            "fleet_live_query_lost",
            "Live queries whose results were lost with Redis or a restart, and whose hosts were asked again.",
            live.lost,
        ),
        (
            "fleet_live_query_news_missed",
            "News of other gateways that were not understood or came too fast.",
            live.news_missed,
        ),
    ] {
        page.counter(plain(name, help), None, [([], value)])?;
    }
    page.counter(
        plain("fleet_live_query_result", "Bytes of rows taken."),
        Some(Unit::Bytes),
        [([], live.bytes)],
    )
}
