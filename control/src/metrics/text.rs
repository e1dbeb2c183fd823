//! One metric family at a time, from plain numbers to text.

use std::fmt::Error;

use fleet_protocol::stats::{BUCKET_BOUNDS_COUNT, BUCKET_BOUNDS_US, Histogram};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// Label values of one series, in the order of the family's label names.
pub(super) type Values<'a, const N: usize> = [&'a str; N];

/// Writes families.
pub(super) struct Page<'a>(pub(super) DescriptorEncoder<'a>);

/// What a family is called.
#[derive(Clone, Copy)]
pub(super) struct Name<const N: usize> {
    /// Without unit and `_total`.
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: [&'static str; N],
}

/// A family of one series.
pub(super) const fn plain(name: &'static str, help: &'static str) -> Name<0> {
    Name {
        name,
        help,
        labels: [],
    }
}

/// A family with one label.
pub(super) const fn by(name: &'static str, help: &'static str, label: &'static str) -> Name<1> {
    Name {
        name,
        help,
        labels: [label],
    }
}

fn labels<'a, const N: usize>(
    name: &Name<N>,
    values: &Values<'a, N>,
) -> Vec<(&'static str, &'a str)> {
    name.labels
        .iter()
        .copied()
        .zip(values.iter().copied())
        .collect()
}

impl Page<'_> {
    /// Counts of events; `unit` when they are not events but bytes.
    pub(super) fn counter<'v, const N: usize>(
        &mut self,
        name: Name<N>,
        unit: Option<Unit>,
        series: impl IntoIterator<Item = (Values<'v, N>, u64)>,
    ) -> Result<(), Error> {
        let mut family =
            self.0
                .encode_descriptor(name.name, name.help, unit.as_ref(), MetricType::Counter)?;
        for (values, value) in series {
            if N == 0 {
                family.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                continue;
            }
            family
                .encode_family(&labels(&name, &values))?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    /// Numbers that go up and down.
    pub(super) fn gauge<'v, const N: usize>(
        &mut self,
        name: Name<N>,
        unit: Option<Unit>,
        series: impl IntoIterator<Item = (Values<'v, N>, u64)>,
    ) -> Result<(), Error> {
        let mut family =
            self.0
                .encode_descriptor(name.name, name.help, unit.as_ref(), MetricType::Gauge)?;
        for (values, value) in series {
            if N == 0 {
                family.encode_gauge(&value)?;
                continue;
            }
            family
                .encode_family(&labels(&name, &values))?
                .encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Durations: kept in microseconds, shown in seconds. Series without an observation are left out.
    pub(super) fn durations<'v, const N: usize>(
        &mut self,
        name: Name<N>,
        series: impl IntoIterator<Item = (Values<'v, N>, &'v Histogram)>,
    ) -> Result<(), Error> {
        self.histogram(name, Some(Unit::Seconds), &BUCKET_BOUNDS_US, 1e6, series)
    }

    /// Sizes in things. Series without an observation are left out.
    pub(super) fn counts<'v, const N: usize>(
        &mut self,
        name: Name<N>,
        series: impl IntoIterator<Item = (Values<'v, N>, &'v Histogram)>,
    ) -> Result<(), Error> {
        self.histogram(name, None, &BUCKET_BOUNDS_COUNT, 1.0, series)
    }

    fn histogram<'v, const N: usize>(
        &mut self,
        name: Name<N>,
        unit: Option<Unit>,
        bounds: &[u64; 14],
        divisor: f64,
        series: impl IntoIterator<Item = (Values<'v, N>, &'v Histogram)>,
    ) -> Result<(), Error> {
        let mut family =
            self.0
                .encode_descriptor(name.name, name.help, unit.as_ref(), MetricType::Histogram)?;
        for (values, histogram) in series {
            if histogram.count() == 0 {
                continue;
            }
            let bounds = bounds
                .iter()
                .map(|bound| as_f64(*bound) / divisor)
                .chain([f64::INFINITY]);
            // The encoder sums up over buckets itself.
            let buckets: Vec<(f64, u64)> = bounds.zip(histogram.buckets).collect();
            family
                .encode_family(&labels(&name, &values))?
                .encode_histogram::<NoLabelSet>(
                    as_f64(histogram.sum) / divisor,
                    histogram.count(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "beyond 2^53 a shown number may be off by one"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}
