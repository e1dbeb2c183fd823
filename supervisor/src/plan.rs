//! `plan`: how large a gateway must be for a fleet. The arithmetic is in `fleet_sysctl::capacity`.

mod config_text;
mod page;
mod table;

use clap::{Args, ValueEnum};
use fleet_sysctl::capacity::{
    self, Certificate, Demand, Error, Figures, Intervals, Plan, measured,
};
use serde_json::json;

use crate::exit::Failure;

/// Columns of a page.
const WIDTH: usize = 100;

/// Options of `plan`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Enrolled hosts, all of them online
    #[arg(long, value_name = "N", required_unless_present = "table")]
    hosts: Option<u64>,
    /// How often an agent asks: fleet (config 60 s, read 10 s, log 10 s), osctrl (300, 60, 600), flagfile (10, 10, 10), or
    /// custom, with the three intervals
    #[arg(
        long,
        alias = "interval_profile",
        value_name = "PROFILE",
        default_value = "fleet",
        hide_possible_values = true
    )]
    interval_profile: Profile,
    /// Seconds between two configs of an agent (config_refresh), with custom
    #[arg(long, alias = "config_interval", value_name = "SECONDS")]
    config_interval: Option<u32>,
    /// Seconds between two reads (distributed_interval), with custom
    #[arg(long, alias = "read_interval", value_name = "SECONDS")]
    read_interval: Option<u32>,
    /// Seconds between two log turns (logger_tls_period), with custom
    #[arg(long, alias = "log_interval", value_name = "SECONDS")]
    log_interval: Option<u32>,
    /// Kind of the server's certificate: ecdsa (P-256) or rsa (2048 bits)
    #[arg(
        long,
        value_name = "KIND",
        default_value = "ecdsa",
        hide_possible_values = true
    )]
    cert: CertificateKind,
    /// Log lines of a host in an hour, results and statuses together
    #[arg(
        long,
        alias = "lines_per_host_hour",
        value_name = "N",
        default_value_t = 12.0
    )]
    lines_per_host_hour: f64,
    /// Mean length of a log line in bytes
    #[arg(long, alias = "line_bytes", value_name = "N", default_value_t = 550)]
    line_bytes: u32,
    /// Size the configuration for reads that are answered at once (osquery.distributed_hold: 0s); the page shows both in
    /// any case
    #[arg(long, alias = "no_held_reads")]
    no_held_reads: bool,
    /// Print the table of common sizes beside Fleet's reference architectures instead
    #[arg(long, conflicts_with = "hosts")]
    table: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Known ways to set up agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    Fleet,
    Osctrl,
    Flagfile,
    Custom,
}

/// As [`Certificate`], for the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CertificateKind {
    Ecdsa,
    Rsa,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Fleet => "fleet",
            Self::Osctrl => "osctrl",
            Self::Flagfile => "flagfile",
            Self::Custom => "custom",
        }
    }
}

impl Options {
    fn intervals(&self) -> Result<Intervals, Failure> {
        let given = [self.config_interval, self.read_interval, self.log_interval];
        let known = match self.interval_profile {
            Profile::Fleet => Intervals::FLEET,
            Profile::Osctrl => Intervals::OSCTRL,
            Profile::Flagfile => Intervals::FLAGFILE,
            Profile::Custom => {
                let [Some(config), Some(read), Some(log)] = given else {
                    return Err(Failure::usage(
                        "--interval-profile custom needs --config-interval, --read-interval and --log-interval",
                    ));
                };
                return Ok(Intervals::new(config, read, log));
            }
        };
        if given.iter().any(Option::is_some) {
            return Err(Failure::usage(
                "--config-interval, --read-interval and --log-interval are for --interval-profile custom",
            ));
        }
        Ok(known)
    }

    fn demand(&self, hosts: u64) -> Result<Demand, Failure> {
        Ok(Demand {
            hosts,
            intervals: self.intervals()?,
            certificate: match self.cert {
                CertificateKind::Ecdsa => Certificate::Ecdsa,
                CertificateKind::Rsa => Certificate::Rsa,
            },
            lines_per_host_hour: self.lines_per_host_hour,
            line_bytes: self.line_bytes,
            is_holding_reads: !self.no_held_reads,
        })
    }

    fn plan(&self, hosts: u64) -> Result<Plan, Failure> {
        let demand = self.demand(hosts)?;
        let figures = Figures::new(measured().map_err(failure)?);
        capacity::plan(demand, &figures).map_err(failure)
    }
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Hosts(_) => Failure::usage(format!("--hosts: {error}")),
        Error::Interval => Failure::usage(error.to_string()),
        Error::Lines => Failure::usage(format!("--lines-per-host-hour: {error}")),
        Error::Figure(_) | Error::Data(_) => Failure::fatal(error.to_string()),
    }
}

/// What `plan` prints.
pub(crate) fn text(options: &Options) -> Result<String, Failure> {
    let Some(hosts) = options.hosts else {
        return table::text(options);
    };
    let plan = options.plan(hosts)?;
    let config = config_text::of(&plan);
    if options.json {
        let file = measured().map_err(failure)?;
        let sources = capacity::Fact::ALL.map(|fact| (fact.id(), fact.text()));
        return pretty(&json!({
            "plan": plan,
            "profile": options.interval_profile.name(),
            "config": config,
            "facts": sources.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "measured": file,
        }));
    }
    let profile = options.interval_profile.name();
    let page = page::text(&plan, profile, measured().map_err(failure)?);
    Ok(page + &config)
}

fn pretty(value: &serde_json::Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::fatal(error.to_string()))
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
