//! How large a gateway must be: from hosts and their intervals to cores, memory, descriptors, addresses, store and network.
//!
//! Pure arithmetic over measured figures (`data/measured.json`) and [`Fact`]s. Invariant: every line of a [`Plan`] names
//! what it follows from, and nothing that is not measured, given or listed as a fact goes into it.
//!
//! Figures of one worker are taken to hold for many: workers share nothing but the control process.

mod addresses;
mod fact;
mod figures;
mod lines;
mod load;
mod reference;
mod size;

use serde::{Serialize, Serializer};

pub use fact::Fact;
pub use figures::{Figures, measured};
pub use fleet_protocol::measured::Figure;
pub use reference::{REFERENCE_SIZES, ReferenceSize};
pub use size::{Advice, DESCRIPTORS_RESERVE};

/// Largest number of hosts that a plan is made for.
pub const HOSTS_MAX: u64 = 100_000_000;
/// Beyond this many hosts a plan advises MySQL and Redis: the largest load that the embedded store was measured under.
pub const EMBEDDED_STORE_HOSTS_MAX: u64 = 20_000;

/// Kind of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Certificate {
    /// ECDSA with P-256.
    Ecdsa,
    /// RSA with 2048 bits.
    Rsa,
}

/// How often an agent does what, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Intervals {
    /// `config_refresh`.
    pub config_s: u32,
    /// `distributed_interval`.
    pub read_s: u32,
    /// `logger_tls_period`.
    pub log_s: u32,
}

impl Intervals {
    /// Fleet's agent.
    pub const FLEET: Self = Self::new(60, 10, 10);
    /// osctrl's defaults.
    pub const OSCTRL: Self = Self::new(300, 60, 600);
    /// Fleet's flagfile for plain osquery.
    pub const FLAGFILE: Self = Self::new(10, 10, 10);

    /// Seconds between configs, reads, and logs.
    pub const fn new(config_s: u32, read_s: u32, log_s: u32) -> Self {
        Self {
            config_s,
            read_s,
            log_s,
        }
    }
}

/// What the gateway is to carry.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Demand {
    /// Enrolled hosts, all online.
    pub hosts: u64,
    /// Of every host.
    pub intervals: Intervals,
    /// Of the server.
    pub certificate: Certificate,
    /// Log lines of one host in an hour, results and statuses together.
    pub lines_per_host_hour: f64,
    /// Mean length of a line.
    pub line_bytes: u32,
    /// Advise for reads that are held as by default, and not for `osquery.distributed_hold: 0s`.
    pub is_holding_reads: bool,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No hosts, or too many.
    #[error("{0} hosts: a plan is made for 1 to {HOSTS_MAX} hosts")]
    Hosts(u64),
    /// An interval of nothing.
    #[error("an interval must be at least 1 s")]
    Interval,
    /// Not a rate.
    #[error("log lines per host and hour must be 0 to 1000000")]
    Lines,
    /// The data file lacks a figure.
    #[error("the measured figures lack {0}; make them anew with fleet-loadtest calibrate")]
    Figure(&'static str),
    /// The data file is none.
    #[error("the measured figures cannot be read: {0}")]
    Data(String),
}

/// What a value is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Things.
    Count,
    /// Things a second.
    PerSecond,
    /// Busy processor cores.
    Cores,
    /// Bytes.
    Bytes,
    /// Bytes a second.
    BytesPerSecond,
    /// Bits a second.
    BitsPerSecond,
    /// Minutes of one core.
    CoreMinutes,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A measured figure.
    Figure(Figure),
    /// Something known.
    Fact(Fact),
}

impl Source {
    /// As it stands in brackets.
    pub fn id(self) -> &'static str {
        match self {
            Self::Figure(figure) => figure.id(),
            Self::Fact(fact) => fact.id(),
        }
    }
}

impl From<Figure> for Source {
    fn from(figure: Figure) -> Self {
        Self::Figure(figure)
    }
}

impl From<Fact> for Source {
    fn from(fact: Fact) -> Self {
        Self::Fact(fact)
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

/// One line of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Heading under which it stands.
    pub group: &'static str,
    /// What it is.
    pub name: &'static str,
    /// Of both values.
    pub unit: Unit,
    /// With reads that are answered at once.
    pub at_once: f64,
    /// With held reads.
    pub held: f64,
    /// What it follows from.
    pub sources: Vec<Source>,
}

/// A capacity plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// For what.
    pub demand: Demand,
    /// In the order in which people read them.
    pub lines: Vec<Line>,
    /// What to configure, with or without held reads as the demand says.
    pub advice: Advice,
}

impl Plan {
    /// The line of that name.
    pub fn line(&self, name: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.name == name)
    }

    /// A line's value as the demand says.
    pub fn advised(&self, line: &Line) -> f64 {
        if self.demand.is_holding_reads {
            line.held
        } else {
            line.at_once
        }
    }
}

/// Makes a plan.
pub fn plan(demand: Demand, figures: &Figures<'_>) -> Result<Plan, Error> {
    let Demand {
        hosts, intervals, ..
    } = demand;
    if !(1..=HOSTS_MAX).contains(&hosts) {
        return Err(Error::Hosts(hosts));
    }
    let Intervals {
        config_s,
        read_s,
        log_s,
    } = intervals;
    if [config_s, read_s, log_s].contains(&0) {
        return Err(Error::Interval);
    }
    if !(0.0..=1e6).contains(&demand.lines_per_host_hour) {
        return Err(Error::Lines);
    }
    let column = |is_held| {
        let load = load::Load::of(&demand, is_held, figures)?;
        size::Size::of(&demand, load, figures)
    };
    let (at_once, held) = (column(false)?, column(true)?);
    let chosen = if demand.is_holding_reads {
        &held
    } else {
        &at_once
    };
    Ok(Plan {
        demand,
        advice: chosen.advice(&demand),
        lines: lines::of(&demand, &at_once, &held),
    })
}

/// Counts stay far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The next whole number; values that no machine reaches become the largest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from float saturates, and values are never negative"
)]
fn ceil(value: f64) -> u64 {
    value.ceil() as u64
}

#[cfg(test)]
#[path = "capacity/tests.rs"]
mod tests;
