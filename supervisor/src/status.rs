//! `status`: the server at a glance, for people. Rendering is pure.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Color, Table};
use fleet_protocol::address::{AddressState, AddressView};
use fleet_protocol::admin::Status;
use fleet_protocol::slot::{SlotState, SlotView};
use fleet_protocol::stats::{Shed, WorkerStats};

use crate::table::table;
use crate::{certificate_status, kernel_status, sandbox_status};

/// A table longer than this is no glance any more.
const ADDRESSES_SHOWN_MAX: usize = 20;

/// The text, `width` columns wide at most.
pub(crate) fn text(status: &Status, width: u16, is_coloured: bool) -> String {
    let mut out = String::new();
    let doing = if status.is_draining { ", draining" } else { "" };
    let _ = writeln!(
        out,
        "fleet-supervisor {}  pid {}  up {}{doing}",
        status.version,
        status.pid,
        span(status.uptime_s)
    );
    let addresses = &status.gateway.addresses;
    let is_plain =
        |view: &AddressView| view.state == AddressState::Serving && view.reason.is_empty();
    let has_table = addresses.len() > 1 || !addresses.iter().all(is_plain);
    if !has_table {
        for address in &status.addresses {
            let _ = writeln!(out, "  {address}");
        }
    }
    let _ = writeln!(out, "  state in {}\n", status.state_dir);
    if has_table {
        let table = address_table(addresses, width, is_coloured);
        let _ = writeln!(out, "{}\n", table.trim_fmt());
    }
    let _ = writeln!(
        out,
        "{}\n",
        processes(status, width, is_coloured).trim_fmt()
    );
    let ends = ends(status, width, is_coloured);
    if !ends.is_empty() {
        let _ = writeln!(out, "{}\n", ends.trim_fmt());
    }
    out += &refusals(&status.gateway.slots, width);
    let _ = writeln!(
        out,
        "{}",
        dependencies(status, width, is_coloured).trim_fmt()
    );
    out += &certificate_status::text(&status.gateway);
    out += &sandbox_status::text(&status.gateway.sandboxes);
    out += &kernel_status::text(&status.gateway.settings, table(width, is_coloured));
    out
}

fn processes(status: &Status, width: u16, is_coloured: bool) -> Table {
    let mut table = table(width, is_coloured);
    table.set_header([
        "PROCESS", "PID", "STATE", "UPTIME", "RESTARTS", "OPEN", "HELD", "EXCH/S", "HOSTS",
        "MEMORY",
    ]);
    for slot in &status.gateway.slots {
        table.add_row(worker(slot));
    }
    let control = &status.control;
    table.add_row([
        Cell::new("control"),
        Cell::new(pid(control.pid)),
        state(control.state),
        Cell::new(uptime(control.pid, control.uptime_s)),
        Cell::new(control.restarts),
        Cell::new("-"),
        Cell::new("-"),
        Cell::new("-"),
        Cell::new(control.stats.hosts),
        Cell::new(memory(control.stats.rss_bytes)),
    ]);
    if status.gateway.slots.len() > 1 {
        let slots = &status.gateway.slots;
        let sum = |count: fn(&WorkerStats) -> u32| -> u64 {
            let counts = slots.iter().map(|slot| u64::from(count(&slot.stats)));
            counts.sum()
        };
        let rate: f64 = slots.iter().map(|slot| slot.exchanges_per_s).sum();
        let bytes: u64 = slots.iter().map(|slot| slot.stats.rss_bytes).sum();
        table.add_row([
            Cell::new("all"),
            Cell::new(""),
            Cell::new(""),
            Cell::new(""),
            Cell::new(slots.iter().map(|slot| slot.restarts).sum::<u64>() + control.restarts),
            Cell::new(sum(|stats| stats.open_connections)),
            Cell::new(sum(|stats| stats.held_reads)),
            Cell::new(format!("{rate:.0}")),
            Cell::new(""),
            Cell::new(memory(bytes + control.stats.rss_bytes)),
        ]);
    }
    for index in [1, 3, 4, 5, 6, 7, 8, 9] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Why processes ended, and why slots are out of service.
fn ends(status: &Status, width: u16, is_coloured: bool) -> Table {
    let mut table = table(width, is_coloured);
    table.set_header(["PROCESS", "LAST END, AND WHAT IS NEXT"]);
    for slot in &status.gateway.slots {
        let retry = slot.retry_in_s.map(span).unwrap_or_default();
        let text = match slot.state {
            SlotState::Parked => {
                format!("{}; tried again in {retry} or at a reload", slot.parked_for)
            }
            SlotState::Backoff if !slot.last_end.is_empty() => {
                format!("{}; started again in {retry}", slot.last_end)
            }
            _ => slot.last_end.clone(),
        };
        if !text.is_empty() {
            table.add_row([format!("worker {}", slot.slot), text]);
        }
    }
    if !status.control.last_end.is_empty() {
        table.add_row(["control", &status.control.last_end]);
    }
    table
}

/// Those that do not serve first, when there are too many for a page.
fn address_table(addresses: &[AddressView], width: u16, is_coloured: bool) -> Table {
    let mut table = table(width, is_coloured);
    table.set_header([
        "ADDRESS",
        "STATE",
        "OPEN",
        "ACCEPTS/S",
        "SHARE",
        "REFUSED",
        "NOTE",
    ]);
    let mut shown: Vec<_> = addresses.iter().collect();
    if shown.len() > ADDRESSES_SHOWN_MAX {
        shown.sort_by_key(|view| view.state == AddressState::Serving);
        shown.truncate(ADDRESSES_SHOWN_MAX);
    }
    for view in &shown {
        let state = Cell::new(view.state.label()).fg(match view.state {
            AddressState::Serving => Color::Green,
            AddressState::Leaving => Color::Yellow,
            AddressState::Degraded => Color::Red,
        });
        let notes = [
            (view.is_claimed, "claimed"),
            (view.is_proxied, "PROXY header"),
            (!view.reason.is_empty(), &view.reason),
        ];
        let notes = notes.iter().filter(|(is_so, _)| *is_so);
        let notes: Vec<_> = notes.map(|(_, note)| *note).collect();
        table.add_row([
            Cell::new(view.address),
            state,
            Cell::new(view.open),
            Cell::new(format!("{:.0}", view.accepts_per_s)),
            Cell::new(format!("{:.0} %", view.share * 100.0)),
            Cell::new(view.refused),
            Cell::new(notes.join("; ")),
        ]);
    }
    let hidden = addresses.len() - shown.len();
    if hidden > 0 {
        table.add_row([format!("and {hidden} more; --json shows all")]);
    }
    for index in [2, 3, 4, 5] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn worker(slot: &SlotView) -> Vec<Cell> {
    let stats = &slot.stats;
    vec![
        Cell::new(format!("worker {}", slot.slot)),
        Cell::new(pid(slot.pid)),
        // It answers what it can alone; a worker that has not reported yet is not accused.
        if slot.state == SlotState::Ready && stats.rss_bytes > 0 && !stats.is_linked {
            Cell::new("unlinked").fg(Color::Yellow)
        } else {
            state(slot.state)
        },
        Cell::new(uptime(slot.pid, slot.uptime_s)),
        Cell::new(slot.restarts),
        Cell::new(stats.open_connections),
        Cell::new(stats.held_reads),
        Cell::new(format!("{:.0}", slot.exchanges_per_s)),
        Cell::new(stats.hosts),
        Cell::new(memory(stats.rss_bytes)),
    ]
}

/// Why something was not admitted since the workers started, the most frequent reason first; empty when everything was.
fn refusals(slots: &[SlotView], width: u16) -> String {
    let count = |shed: Shed| {
        let of = |slot: &SlotView| slot.stats.shed.get(shed as usize).copied();
        (slots.iter().filter_map(of).sum::<u64>(), shed.label())
    };
    let mut counts: Vec<_> = Shed::ALL.into_iter().map(count).collect();
    counts.retain(|(count, _)| *count > 0);
    counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    if counts.is_empty() {
        return String::new();
    }
    let mut out = String::new();
    let mut line = String::from("refused:");
    for (count, label) in counts {
        let text = format!(" {count} {label}");
        if line.len() + text.len() > usize::from(width) {
            let _ = writeln!(out, "{line}");
            line = String::from("        ");
        }
        line += &text;
    }
    let _ = writeln!(out, "{line}\n");
    out
}

fn dependencies(status: &Status, width: u16, is_coloured: bool) -> Table {
    let mut table = table(width, is_coloured);
    table.set_header(["NEEDS", "HEALTH", "WHERE OR WHY"]);
    for dependency in &status.control.stats.dependencies {
        let health = if dependency.is_healthy {
            Cell::new("ok").fg(Color::Green)
        } else {
            Cell::new("failing").fg(Color::Red)
        };
        table.add_row([
            Cell::new(&dependency.name),
            health,
            Cell::new(&dependency.detail),
        ]);
    }
    if status.control.stats.dependencies.is_empty() {
        table.add_row(["-", "unknown", "control has not reported yet"]);
    }
    table
}

fn state(state: SlotState) -> Cell {
    let cell = Cell::new(state.label());
    match state {
        SlotState::Ready => cell.fg(Color::Green),
        SlotState::Starting | SlotState::Draining | SlotState::Backoff => cell.fg(Color::Yellow),
        SlotState::Parked => cell.fg(Color::Red),
        SlotState::Stopped => cell,
    }
}

fn pid(pid: Option<u32>) -> String {
    pid.map_or_else(|| "-".into(), |pid| pid.to_string())
}

fn uptime(pid: Option<u32>, seconds: u64) -> String {
    match pid {
        Some(_) => span(seconds),
        None => "-".into(),
    }
}

/// Two units are enough: `3d 4h`, `5m 6s`.
fn span(seconds: u64) -> String {
    let minutes = seconds / 60;
    let (hours, days) = (minutes / 60, minutes / 1440);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        (_, _, _) => format!("{days}d {}h", hours % 24),
    }
}

fn memory(bytes: u64) -> String {
    match bytes >> 20 {
        _ if bytes == 0 => "-".into(),
        mib if mib >= 10 * 1024 => format!("{} GiB", mib / 1024),
        mib => format!("{mib} MiB"),
    }
}

/// Time between two looks of `--watch`.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
