//! What keeps things: store, bus, journal.

use std::fmt::Error;

use prometheus_client::registry::Unit;

use super::text::{Page, by, plain};
use crate::bus::BusStatistics;
use crate::journal::LogStatistics;
use crate::spool::SpoolStatistics;
use crate::store::{Standing, StoreStatistics};

/// Statements and the pool.
pub(super) fn store(
    page: &mut Page<'_>,
    engine: &str,
    store: &StoreStatistics,
) -> Result<(), Error> {
    page.gauge(
        by(
            "fleet_control_store_engine",
            "1 for the engine in use.",
            "engine",
        ),
        None,
        [([engine], 1)],
    )?;
    let statements = || store.statements.iter();
    page.counter(
        by(
            "fleet_control_store_statements",
            "Statements executed.",
            "statement",
        ),
        None,
        statements().map(|of| ([of.name], of.count)),
    )?;
    page.counter(
        by(
            "fleet_control_store_statement_errors",
            "Statements that failed.",
            "statement",
        ),
        None,
        statements().map(|of| ([of.name], of.errors)),
    )?;
    page.durations(
        by(
            "fleet_control_store_statement_duration",
            "Time of a statement, without the wait for a connection.",
            "statement",
        ),
        statements().map(|of| ([of.name], &of.latency_us)),
    )?;
    page.durations(
        plain(
            "fleet_control_store_acquire_duration",
            "Wait for a connection from the pool.",
        ),
        [([], &store.acquire_us)],
    )?;
    page.counter(
        plain(
            "fleet_control_store_retries",
            "Transactions tried again after a deadlock or lock wait.",
        ),
        None,
        [([], store.retries)],
    )?;
    gate(page, store)?;
    replicas(page, store)?;
    backfills(page, store)?;
    page.gauge(
        by(
            "fleet_control_store_connections",
            "Connections of the pool.",
            "state",
        ),
        None,
        [
            (
                ["busy"],
                u64::from(store.connections.saturating_sub(store.idle_connections)),
            ),
            (["idle"], u64::from(store.idle_connections)),
        ],
    )
}

/// By the number of their migration; none before the store was asked.
fn backfills(page: &mut Page<'_>, store: &StoreStatistics) -> Result<(), Error> {
    let all = store.fillings.iter();
    let all: Vec<(String, u64)> = all
        .map(|of| (of.migration.to_string(), of.rows_left()))
        .collect();
    page.gauge(
        by(
            "fleet_control_store_backfill_rows_left",
            "Rows that a migration has to look at yet; agents are served meanwhile.",
            "migration",
        ),
        None,
        all.iter().map(|(number, left)| ([number.as_str()], *left)),
    )
}

/// Addresses are of the configuration, so they are few.
fn replicas(page: &mut Page<'_>, store: &StoreStatistics) -> Result<(), Error> {
    let all = || store.replicas.iter();
    page.gauge(
        by(
            "fleet_control_store_replica_level",
            "1 when the replica knows every change that this gateway knows, and so serves operators' reads.",
            "replica",
        ),
        None,
        all().map(|of| ([of.address.as_str()], u64::from(of.standing == Standing::Level))),
    )?;
    page.gauge(
        by(
            "fleet_control_store_replica_lag",
            "Changes that the replica lacked when it last answered.",
            "replica",
        ),
        None,
        all().map(|of| ([of.address.as_str()], of.lag)),
    )?;
    page.counter(
        by(
            "fleet_control_store_replica_reads",
            "Operators' reads that the replica served.",
            "replica",
        ),
        None,
        all().map(|of| ([of.address.as_str()], of.reads)),
    )?;
    page.counter(
        by(
            "fleet_control_store_replica_passed",
            "Operators' reads that went past the replica, because it was behind or away.",
            "replica",
        ),
        None,
        all().map(|of| ([of.address.as_str()], of.passed)),
    )
}

/// What stands before the pool.
fn gate(page: &mut Page<'_>, store: &StoreStatistics) -> Result<(), Error> {
    let gate = &store.gate;
    for (name, help, is_so) in [
        (
            "fleet_control_store_breaker_open",
            "1 while calls of the store fail at once, because it does not answer.",
            gate.is_open,
        ),
        (
            "fleet_control_store_read_only",
            "1 while writes fail at once, because the server is read-only.",
            gate.is_read_only,
        ),
    ] {
        page.gauge(plain(name, help), None, [([], u64::from(is_so))])?;
    }
    for (name, help, count) in [
        (
            "fleet_control_store_breaker_openings",
            "Times that the breaker opened.",
            gate.opened,
        ),
        (
            "fleet_control_store_breaker_refused",
            "Calls that failed at once.",
            gate.refused,
        ),
        (
            "fleet_control_store_demotions",
            "Times that the server turned out to be read-only.",
            gate.demoted,
        ),
    ] {
        page.counter(plain(name, help), None, [([], count)])?;
    }
    Ok(())
}

/// Results that wait for the store.
pub(super) fn spool(page: &mut Page<'_>, spool: &SpoolStatistics) -> Result<(), Error> {
    page.gauge(
        plain(
            "fleet_control_spool_waiting",
            "Batches of results that wait for the store.",
        ),
        None,
        [([], spool.waiting)],
    )?;
    page.gauge(
        plain("fleet_control_spool_size", "Size of the file."),
        Some(Unit::Bytes),
        [([], spool.bytes)],
    )?;
    page.counter(
        by(
            "fleet_control_spool_batches",
            "Batches of results by what became of them.",
            "outcome",
        ),
        None,
        [
            (["kept"], spool.kept),
            (["replayed"], spool.replayed),
            (["refused"], spool.refused),
            (["failed"], spool.failed),
            (["damaged"], spool.damaged),
        ],
    )?;
    page.counter(
        plain(
            "fleet_control_spool_outdated",
            "Kept results of single hosts that were left out: the store had newer ones, or lost the host.",
        ),
        None,
        [([], spool.outdated)],
    )
}

/// Commands and wakes.
pub(super) fn bus(
    page: &mut Page<'_>,
    engine: &str,
    is_healthy: bool,
    bus: &BusStatistics,
) -> Result<(), Error> {
    page.gauge(
        by(
            "fleet_control_bus_healthy",
            "1 when the bus works, by engine.",
            "engine",
        ),
        None,
        [([engine], u64::from(is_healthy))],
    )?;
    for (name, help, value) in [
        ("fleet_control_bus_commands", "Commands sent.", bus.commands),
        (
            "fleet_control_bus_errors",
            "Commands that failed.",
            bus.errors,
        ),
        ("fleet_control_bus_wakes", "Wakes heard.", bus.wakes),
        (
            "fleet_control_bus_reconnects",
            "Connections lost.",
            bus.reconnects,
        ),
    ] {
        page.counter(plain(name, help), None, [([], value)])?;
    }
    page.durations(
        plain("fleet_control_bus_command_duration", "Time of a command."),
        [([], &bus.latency_us)],
    )
}

/// Appends and segments, by log type.
pub(super) fn journal(
    page: &mut Page<'_>,
    all: &[(&'static str, LogStatistics)],
) -> Result<(), Error> {
    type Counter = (&'static str, &'static str, fn(&LogStatistics) -> u64);
    let counters: [Counter; 11] = [
        (
            "fleet_control_journal_appends",
            "Appends acknowledged.",
            |log| log.appends,
        ),
        (
            "fleet_control_journal_lines",
            "Lines acknowledged.",
            |log| log.lines,
        ),
        (
            "fleet_control_journal_syncs",
            "Syncs, each for a group of appends.",
            |log| log.syncs,
        ),
        (
            "fleet_control_journal_failures",
            "Appends refused because the file system failed.",
            |log| log.failures,
        ),
        (
            "fleet_control_journal_torn_lines",
            "Times that an unfinished end was cut off at opening and put aside.",
            |log| log.torn_lines,
        ),
        (
            "fleet_control_journal_index_faults",
            "Indexes that were unreadable, or knew more than their file had.",
            |log| log.index_faults,
        ),
        (
            "fleet_control_journal_retired",
            "Files that were closed because a sync had failed.",
            |log| log.retired,
        ),
        (
            "fleet_control_journal_duplicate_batches",
            "Batches that a host sent again within a minute, or 16 s for status logs; acknowledged, not stored again.",
            |log| log.duplicate_batches,
        ),
        (
            "fleet_control_journal_duplicate_lines",
            "Lines in batches that were sent again.",
            |log| log.duplicate_lines,
        ),
        (
            "fleet_control_journal_rotations",
            "Segments closed.",
            |log| log.rotations,
        ),
        (
            "fleet_control_journal_displaced",
            "Times that the active file was changed from outside.",
            |log| log.displaced,
        ),
    ];
    for (name, help, value) in counters {
        let series = all.iter().map(|(label, log)| ([*label], value(log)));
        page.counter(by(name, help, "log_type"), None, series)?;
    }
    journal_sizes(page, all)?;
    journal_times(page, all)
}

fn journal_sizes(page: &mut Page<'_>, all: &[(&'static str, LogStatistics)]) -> Result<(), Error> {
    let logs = || all.iter();
    page.counter(
        by(
            "fleet_control_journal_appended",
            "Bytes acknowledged.",
            "log_type",
        ),
        Some(Unit::Bytes),
        logs().map(|(label, log)| ([*label], log.bytes)),
    )?;
    page.counter(
        by(
            "fleet_control_journal_torn",
            "Bytes that were cut off at opening and put aside.",
            "log_type",
        ),
        Some(Unit::Bytes),
        logs().map(|(label, log)| ([*label], log.torn_bytes)),
    )?;
    page.gauge(
        by(
            "fleet_control_journal_remembered_batches",
            "Batches of the last minute, or 16 s for status logs, that would be known again.",
            "log_type",
        ),
        None,
        logs().map(|(label, log)| ([*label], log.remembered_batches)),
    )?;
    page.gauge(
        by(
            "fleet_control_journal_waiting",
            "Bytes that wait.",
            "log_type",
        ),
        Some(Unit::Bytes),
        logs().map(|(label, log)| ([*label], log.waiting_bytes)),
    )?;
    page.gauge(
        by(
            "fleet_control_journal_segment",
            "Size of the active file.",
            "log_type",
        ),
        Some(Unit::Bytes),
        logs().map(|(label, log)| ([*label], log.segment_bytes)),
    )?;
    page.gauge(
        by(
            "fleet_control_journal_healthy",
            "1 when lines can be stored.",
            "log_type",
        ),
        None,
        logs().map(|(label, log)| ([*label], u64::from(log.is_healthy))),
    )
}

fn journal_times(page: &mut Page<'_>, all: &[(&'static str, LogStatistics)]) -> Result<(), Error> {
    let logs = || all.iter();
    page.durations(
        by(
            "fleet_control_journal_append_duration",
            "From the arrival of an append to its acknowledgement.",
            "log_type",
        ),
        logs().map(|(label, log)| ([*label], &log.append_us)),
    )?;
    page.durations(
        by(
            "fleet_control_journal_sync_duration",
            "One write and one sync.",
            "log_type",
        ),
        logs().map(|(label, log)| ([*label], &log.sync_us)),
    )
}
