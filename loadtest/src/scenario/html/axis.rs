//! Scales: where a value stands on an axis, and which values get a tick. Pure.

use super::number;

/// Ticks that an axis has at most.
const TICKS_MAX: usize = 12;
/// A latency axis is logarithmic when its largest value is so many times the smallest.
const LOG_FROM: f64 = 15.0;

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Linear,
    Log,
}

/// A range of values, both ends on a tick or not, as its maker chose.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    kind: Kind,
    low: f64,
    high: f64,
    /// Values with their labels.
    pub(super) ticks: Vec<(f64, String)>,
    /// Quantity and unit.
    pub(super) title: String,
}

impl Axis {
    /// From 0 to a round value that is not below `high`.
    pub(super) fn from_zero(high: f64, title: &str) -> Self {
        let high = if high.is_finite() && high > 0.0 {
            high
        } else {
            1.0
        };
        let step = step(high, 5.0);
        let high = (high / step - 1e-9).ceil() * step;
        Self::linear(0.0, high, step, title)
    }

    /// Exactly from `low` to `high`, with round ticks in between.
    pub(super) fn exact(low: f64, high: f64, title: &str) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        Self::linear(low, high, step(high - low, 6.0), title)
    }

    /// For values that are all above 0: logarithmic when they are far apart, else from 0.
    pub(super) fn of_latencies(low: f64, high: f64, title: &str) -> Self {
        if low > 0.0 && high / low >= LOG_FROM {
            Self::log(low, high, title)
        } else {
            Self::from_zero(high, title)
        }
    }

    /// Of seconds, in the unit that suits their number.
    pub(super) fn of_time(seconds: f64) -> Self {
        let (unit, name) = match seconds {
            s if s > 3.0 * 3600.0 => (3600.0, "h"),
            s if s > 180.0 => (60.0, "min"),
            _ => (1.0, "s"),
        };
        let mut axis = Self::exact(0.0, seconds / unit, &format!("time since start, {name}"));
        axis.high *= unit;
        for (value, _) in &mut axis.ticks {
            *value *= unit;
        }
        axis
    }

    /// Of 1/(1-p): each step is one nine more, so that the rare slow requests have room.
    pub(super) fn of_percentiles(largest: f64) -> Self {
        let mut ticks = vec![(1.0, "0".to_owned())];
        let mut nines = 10.0;
        while nines <= largest * 1.01 && ticks.len() < TICKS_MAX {
            let percent = 100.0 - 100.0 / nines;
            ticks.push((nines, format!("{}", (percent * 1e9).round() / 1e9)));
            nines *= 10.0;
        }
        Self {
            kind: Kind::Log,
            low: 1.0,
            high: largest.max(10.0),
            ticks,
            title: "percentile, %".to_owned(),
        }
    }

    fn linear(low: f64, high: f64, step: f64, title: &str) -> Self {
        let mut ticks = Vec::new();
        // The sum makes 0 of -0.
        let mut multiple = (low / step - 1e-9).ceil() + 0.0;
        while multiple * step <= high + step * 1e-6 && ticks.len() < TICKS_MAX {
            let value = multiple * step;
            ticks.push((value, number::tick(value)));
            multiple += 1.0;
        }
        Self {
            kind: Kind::Linear,
            low,
            high,
            ticks,
            title: title.to_owned(),
        }
    }

    /// From the 1, 2 or 5 below `low` to the one above `high`.
    fn log(low: f64, high: f64, title: &str) -> Self {
        let (low, high) = (round_down(low), round_up(high));
        let decades = (high / low).log10();
        let mut ticks = Vec::new();
        let mut decade = 10f64.powf(low.log10().floor());
        while decade <= high * 1.001 {
            for factor in [1.0, 2.0, 5.0] {
                let value = decade * factor;
                // Over many decades only whole ones are labelled.
                let is_shown = factor == 1.0 || decades <= 2.2;
                if is_shown && (low * 0.999..=high * 1.001).contains(&value) {
                    ticks.push((value, number::tick(value)));
                }
            }
            decade *= 10.0;
        }
        ticks.truncate(TICKS_MAX);
        Self {
            kind: Kind::Log,
            low,
            high,
            ticks,
            title: title.to_owned(),
        }
    }

    /// Where a value stands: 0 at the low end, 1 at the high one. Values outside stand at the end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = match self.kind {
            Kind::Linear => (value - self.low) / (self.high - self.low),
            Kind::Log => (value.max(self.low) / self.low).log10() / (self.high / self.low).log10(),
        };
        if place.is_finite() {
            place.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }

    /// Whether equal distances are equal factors.
    pub(super) fn is_log(&self) -> bool {
        self.kind == Kind::Log
    }
}

/// The round step, 1, 2, 2.5 or 5 times a power of ten, that divides `span` into about `parts`.
fn step(span: f64, parts: f64) -> f64 {
    let wanted = span / parts;
    let power = 10f64.powf(wanted.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= wanted * 0.999)
        .unwrap_or(10.0 * power)
}

fn round_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let fits = |factor: &f64| factor * power <= value * 1.001;
    [5.0, 2.0, 1.0].into_iter().find(fits).unwrap_or(1.0) * power
}

fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let fits = |factor: &f64| factor * power >= value * 0.999;
    [1.0, 2.0, 5.0].into_iter().find(fits).unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_cover_the_values() {
        let axis = Axis::from_zero(4_321.0, "per s");
        assert_eq!(
            labels(&axis),
            ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]
        );
        assert!((axis.place(2_500.0) - 0.5).abs() < 1e-9);
        assert!((axis.place(9_999.0) - 1.0).abs() < 1e-9);
        assert_eq!(labels(&Axis::from_zero(0.0, "")).last(), Some(&"1"));
        assert_eq!(labels(&Axis::from_zero(0.3, "")).last(), Some(&"0.3"));
    }

    #[test]
    fn ticks_are_few_and_inside_for_any_size() {
        for exponent in -6..=9 {
            for factor in [1.0, 1.7, 3.3, 9.9] {
                let high = factor * 10f64.powi(exponent);
                let axis = Axis::from_zero(high, "");
                assert!((3..=8).contains(&axis.ticks.len()), "{high}: {axis:?}");
                let last = axis.ticks.last().unwrap().0;
                assert!(last >= high * 0.999 && axis.place(last) <= 1.0, "{high}");
            }
        }
    }

    #[test]
    fn latencies_far_apart_stand_on_a_logarithmic_axis() {
        let axis = Axis::of_latencies(1.4, 83.0, "ms");
        assert!(axis.is_log());
        assert_eq!(labels(&axis), ["1", "2", "5", "10", "20", "50", "100"]);
        assert!((axis.place(10.0) - 0.5).abs() < 1e-9);
        let wide = Axis::of_latencies(0.5, 9_000.0, "ms");
        assert_eq!(labels(&wide), ["1", "10", "100", "1,000", "10k"]);
        assert!(!Axis::of_latencies(5.0, 20.0, "ms").is_log());
        assert!(!Axis::of_latencies(0.0, 20.0, "ms").is_log());
    }

    #[test]
    fn times_have_a_unit_that_suits() {
        let axis = Axis::of_time(600.0);
        assert_eq!(axis.title, "time since start, min");
        assert_eq!(labels(&axis), ["0", "2", "4", "6", "8", "10"]);
        assert!((axis.place(300.0) - 0.5).abs() < 1e-9);
        assert_eq!(labels(&Axis::of_time(0.0)).first(), Some(&"0"));
    }

    #[test]
    fn each_nine_is_one_step() {
        let axis = Axis::of_percentiles(10_000.0);
        assert_eq!(labels(&axis), ["0", "90", "99", "99.9", "99.99"]);
        assert!((axis.place(100.0) - 0.5).abs() < 1e-9);
    }
}
