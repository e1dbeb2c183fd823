//! Plots over the time of the run.

use super::super::tally::as_f64;
use super::super::timeline::Moment;
use super::axis::Axis;
use super::page::{Figure, Page};
use super::plot::{self, Series};

const MIB: f64 = 1_048_576.0;

/// Adds the section, if something was seen.
pub(super) fn add(page: &mut Page, timeline: &[Moment]) {
    let Some(last) = timeline.last() else {
        return;
    };
    let plots = Plots {
        timeline,
        x: Axis::of_time(last.at_s),
    };
    let mut figures = plots.of_agents();
    if timeline.iter().any(|moment| moment.server_rss_bytes > 0) {
        figures.extend(plots.of_server());
    }
    page.section(
        "Over time",
        "One value a second, for what ended in that second.",
    );
    page.figures(&figures);
}

struct Plots<'a> {
    timeline: &'a [Moment],
    x: Axis,
}

impl Plots<'_> {
    fn of_agents(&self) -> Vec<Figure> {
        let mut figures = vec![
            self.latency(),
            self.of_one(
                "Exchanges",
                "Logical requests that ended, whatever their end.",
                "per second",
                ("c0", |moment| moment.exchanges_per_s),
            ),
            self.of_one(
                "Under way",
                "Exchanges that have begun and not ended, at the end of each second.",
                "exchanges",
                ("c0", |moment| as_f64(moment.in_flight)),
            ),
            self.of_one(
                "Open sockets",
                "Of the generator, at the end of each second.",
                "sockets",
                ("c2", |moment| as_f64(moment.open)),
            ),
        ];
        if self.timeline.iter().any(|moment| moment.failed_per_s > 0.0) {
            figures.push(self.of_one(
                "Failures",
                "What an agent takes for failed.",
                "per second",
                ("bad", |moment| moment.failed_per_s),
            ));
        }
        figures
    }

    fn of_server(&self) -> [Figure; 2] {
        [
            self.of_one(
                "CPU of the server",
                "All its processes together; 100 is one core.",
                "% of a core",
                ("c2", |moment| moment.server_cpu_percent),
            ),
            self.of_one(
                "Memory of the server",
                "Resident, all its processes together; shared pages count for each.",
                "MiB",
                ("c3", |moment| as_f64(moment.server_rss_bytes) / MIB),
            ),
        ]
    }

    fn latency(&self) -> Figure {
        let series = [
            Series::line("largest", "c4", self.points(|moment| moment.max_ms)),
            Series::line("p99", "c1", self.points(|moment| moment.p99_ms)),
            Series::line("p50", "c0", self.points(|moment| moment.p50_ms)),
        ];
        let (low, high) = plot::range(&series);
        let y = Axis::of_latencies(low, high, "milliseconds");
        let note = if y.is_log() {
            "From the intended moment to the end of the answer. Logarithmic."
        } else {
            "From the intended moment to the end of the answer."
        };
        let svg = plot::draw("Latency over time", &self.x, &y, &series);
        Figure::of_lines("Latency", note, &series, svg)
    }

    /// One quantity with its colour, above 0.
    fn of_one(
        &self,
        title: &str,
        note: &str,
        unit: &str,
        (colour, value): (&'static str, fn(&Moment) -> f64),
    ) -> Figure {
        let series = [Series::area(title, colour, self.points(value))];
        let y = Axis::from_zero(plot::range(&series).1, unit);
        Figure::of_lines(
            title,
            note,
            &series,
            plot::draw(title, &self.x, &y, &series),
        )
    }

    fn points(&self, value: fn(&Moment) -> f64) -> Vec<(f64, f64)> {
        self.timeline
            .iter()
            .map(|moment| (moment.at_s, value(moment)))
            .collect()
    }
}
