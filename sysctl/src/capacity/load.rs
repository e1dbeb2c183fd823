//! Requests a second, and the processor time that they take.

use fleet_protocol::config::Config;
use fleet_protocol::hold;
use fleet_protocol::measured::Figure;

use super::{Certificate, Demand, Error, Figures, as_f64};

/// Microseconds in a second.
const US: f64 = 1e6;
/// Exchanges of one round of detail queries: a read that hands them out, the write, and a read with nothing due.
const DETAILS_EXCHANGES: f64 = 3.0;
/// Log requests of one turn at most: results and statuses.
const LOG_REQUESTS_PER_TURN: f64 = 2.0;

/// Requests a second by route, and what they cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) config: f64,
    pub(super) read: f64,
    pub(super) log: f64,
    /// Distributed writes: results of detail queries.
    pub(super) write: f64,
    pub(super) lines: f64,
    /// Reads that are open at the same time because they are held.
    pub(super) held: f64,
    /// Cores that all processes keep busy.
    pub(super) busy_cores: f64,
    /// Of these, the control process.
    pub(super) control_cores: f64,
    /// Processor seconds to enroll every host once and take its first details.
    pub(super) enroll_s: f64,
}

impl Load {
    /// All requests: each is a connection and a handshake.
    pub(super) fn requests(&self) -> f64 {
        self.config + self.read + self.log + self.write
    }

    pub(super) fn of(demand: &Demand, is_held: bool, figures: &Figures<'_>) -> Result<Self, Error> {
        let hosts = as_f64(demand.hosts);
        let intervals = demand.intervals;
        let hold_s = if is_held { held_read_s() } else { 0.0 };
        let read = hosts / (f64::from(intervals.read_s) + hold_s);
        let config = hosts / f64::from(intervals.config_s);
        let lines = hosts * demand.lines_per_host_hour / 3600.0;
        let log = lines.min(hosts * LOG_REQUESTS_PER_TURN / f64::from(intervals.log_s));
        let write = hosts / details_interval_s();
        let get = |figure| figures.get(figure).map(|us| us / US);
        let (read_s, config_s, rsa_s) = match demand.certificate {
            Certificate::Ecdsa => (get(Figure::ReadEcdsa)?, get(Figure::ConfigEcdsa)?, 0.0),
            Certificate::Rsa => {
                let more = get(Figure::ReadRsa)? - get(Figure::ReadEcdsa)?;
                let read = get(Figure::ReadRsa)?;
                (read, get(Figure::ConfigRsa)?, more.max(0.0))
            }
        };
        let log_s = get(Figure::LogRequest)? + rsa_s;
        let details_s = get(Figure::Details)? + DETAILS_EXCHANGES * rsa_s;
        // The first line of a request is in the request's figure.
        let further_lines = lines - log;
        let busy_cores = config * config_s
            + read * read_s
            + log * log_s
            + further_lines * get(Figure::LogLine)?
            + write * details_s;
        let control_cores = log * get(Figure::LogRequestControl)?
            + further_lines * get(Figure::LogLineControl)?
            + write * get(Figure::DetailsControl)?;
        Ok(Self {
            config,
            read,
            log,
            write,
            lines,
            held: read * hold_s,
            busy_cores,
            control_cores,
            enroll_s: hosts * (get(Figure::Enroll)? + rsa_s + details_s),
        })
    }
}

/// `osquery.distributed_hold`, in the mean over many hosts.
fn held_read_s() -> f64 {
    hold::mean(Config::default().osquery.distributed_hold).as_secs_f64()
}

/// `osquery.detail_update_interval`.
fn details_interval_s() -> f64 {
    Config::default()
        .osquery
        .detail_update_interval
        .as_secs_f64()
}
