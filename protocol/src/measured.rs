//! The measured figures that capacity is planned from: what each is called, its unit, and the file that holds them.
//!
//! `fleet-loadtest calibrate` writes the file, `fleet-supervisor plan` counts with it. Here stands what both must agree on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Shape of the file; a file of another format is not read.
pub const FORMAT: u32 = 1;

/// Declares the figures: name in code, name in file and plan, unit, and what was measured.
macro_rules! figures {
    ($( $name:ident $id:literal $unit:literal $what:literal; )+) => {
        /// One measured figure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Figure {
            $( #[doc = $what] $name, )+
        }

        impl Figure {
            /// Every one.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )+ ];

            /// Its name in the file and in a plan.
            pub const fn id(self) -> &'static str {
                match self { $( Self::$name => $id, )+ }
            }

            /// The unit of its value.
            pub const fn unit(self) -> &'static str {
                match self { $( Self::$name => $unit, )+ }
            }

            /// What was measured.
            pub const fn what(self) -> &'static str {
                match self { $( Self::$name => $what, )+ }
            }
        }
    };
}

figures! {
    ReadEcdsa "read-ecdsa" "µs" "CPU of all processes for one exchange: connection, full TLS 1.3 handshake with an ECDSA P-256 certificate, read with nothing due, close";
    ConfigEcdsa "config-ecdsa" "µs" "the same for a config request";
    ReadRsa "read-rsa" "µs" "as read-ecdsa, with an RSA-2048 certificate";
    ConfigRsa "config-rsa" "µs" "as config-ecdsa, with an RSA-2048 certificate";
    LogRequest "log-request" "µs" "CPU of all processes for one log request of one line, on disk before the answer (ECDSA)";
    LogRequestControl "log-request-control" "µs" "of log-request, the control process's part";
    LogLine "log-line" "µs" "CPU of all processes for each further line of a log request";
    LogLineControl "log-line-control" "µs" "of log-line, the control process's part";
    Enroll "enroll" "µs" "CPU of all processes for one enrolment (ECDSA)";
    EnrollControl "enroll-control" "µs" "of enroll, the control process's part";
    Details "details" "µs" "CPU of all processes for one host's round of detail queries: handing out, taking and storing the results, and a read with nothing due (ECDSA)";
    DetailsControl "details-control" "µs" "of details, the control process's part";
    ReadUp "read-up" "bytes" "TCP payload from agent to server in one read exchange, handshake included";
    ReadDown "read-down" "bytes" "TCP payload from server to agent in one read exchange with the ECDSA certificate, no chain";
    ReadDownRsa "read-down-rsa" "bytes" "the same with the RSA-2048 certificate";
    ConfigUp "config-up" "bytes" "TCP payload from agent to server in one config exchange";
    ConfigDown "config-down" "bytes" "TCP payload from server to agent in one config exchange, config of a new server (ECDSA)";
    LogUp "log-up" "bytes" "TCP payload from agent to server in one log exchange, its line not counted";
    LogDown "log-down" "bytes" "TCP payload from server to agent in one log exchange";
    DetailsUp "details-up" "bytes" "TCP payload from agent to server in one host's round of detail queries";
    DetailsDown "details-down" "bytes" "TCP payload from server to agent in one host's round of detail queries";
    Segments "segments" "segments" "TCP segments of one read exchange, both directions";
    Connection "connection" "bytes" "memory of the worker for one open idle TLS connection, used once before";
    BaseSupervisor "base-supervisor" "bytes" "resident memory of the supervisor";
    BaseWorker "base-worker" "bytes" "resident memory of a worker after the load steps, connections closed, the calibration's hosts known";
    BaseControl "base-control" "bytes" "resident memory of the control process after the load steps, the calibration's hosts known";
    StoreIdle "store-idle" "statements/s" "statements that the gateway sends its store while agents read and fetch configs and nothing is due";
    StoreEnroll "store-enroll" "statements" "statements of one enrolment that is alone in its batch";
    StoreDetails "store-details" "statements" "statements of one host's round of detail queries, alone in its batches";
}

/// A whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// [`FORMAT`].
    pub format: u32,
    /// Day of the measurement, `YYYY-MM-DD`.
    pub date: String,
    /// Where it was made.
    pub machine: Machine,
    /// Which build of the server.
    pub server: String,
    /// The command that made it.
    pub command: String,
    /// What a reader must know besides.
    pub notes: Vec<String>,
    /// By [`Figure::id`].
    pub figures: BTreeMap<String, Sample>,
}

/// The machine of a measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Model of its processor.
    pub cpu: String,
    /// Cores that the system shows.
    pub cores: u32,
    /// Memory.
    pub memory_gib: u64,
    /// Kernel release.
    pub kernel: String,
}

/// One measured value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Median.
    pub value: f64,
    /// Lowest round.
    pub low: f64,
    /// Highest round.
    pub high: f64,
    /// Rounds.
    pub rounds: u32,
    /// [`Figure::unit`], for people.
    pub unit: String,
    /// [`Figure::what`], for people.
    pub what: String,
}

impl Sample {
    /// The median of rounds and their spread; `None` without rounds, or when one of them is no number.
    pub fn of(figure: Figure, rounds: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let is_number = low.is_finite() && high.is_finite();
        Some(Self {
            value: tenths(*sorted.get(sorted.len() / 2)?),
            low: tenths(low),
            high: tenths(high),
            rounds: u32::try_from(sorted.len()).ok()?,
            unit: figure.unit().to_owned(),
            what: figure.what().to_owned(),
        })
        .filter(|_| is_number)
    }
}

/// More digits than one would say more than was measured.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Measured {
    /// Sets a figure from its rounds; none are no figure.
    pub fn set(&mut self, figure: Figure, rounds: &[f64]) {
        if let Some(sample) = Sample::of(figure, rounds) {
            self.figures.insert(figure.id().to_owned(), sample);
        }
    }

    /// The value of a figure, if it was measured.
    pub fn value(&self, figure: Figure) -> Option<f64> {
        self.figures.get(figure.id()).map(|sample| sample.value)
    }

    /// Figures that are not there.
    pub fn missing(&self) -> Vec<&'static str> {
        Figure::ALL
            .iter()
            .map(|figure| figure.id())
            .filter(|id| !self.figures.contains_key(*id))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut ids: Vec<_> = Figure::ALL.iter().map(|figure| figure.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), Figure::ALL.len());
    }

    #[test]
    fn a_sample_is_the_median_of_its_rounds() {
        let sample = Sample::of(Figure::Enroll, &[3.0, 1.0, 2.04]).unwrap();
        assert_eq!(
            (sample.low, sample.value, sample.high, sample.rounds),
            (1.0, 2.0, 3.0, 3)
        );
        assert_eq!(Sample::of(Figure::Enroll, &[]), None);
        assert_eq!(Sample::of(Figure::Enroll, &[1.0, f64::NAN]), None);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let mut measured = Measured::default();
        assert_eq!(measured.missing().len(), Figure::ALL.len());
        measured.set(Figure::ReadRsa, &[1.0]);
        assert_eq!(measured.value(Figure::ReadRsa), Some(1.0));
        assert!(!measured.missing().contains(&"read-rsa"));
    }
}
