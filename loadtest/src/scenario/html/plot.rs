//! A line plot as inline SVG. Colours and text sizes come from the page's style.

use std::fmt::Write as _;

use super::axis::Axis;
use super::page::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 32.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 52.0;
/// Points that a line is drawn with; of more, each of that many stretches gives its smallest and largest.
const POINTS_MAX: usize = 1_000;

/// One line.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// What the legend calls it.
    pub(super) name: String,
    /// Which of the page's colours.
    pub(super) colour: &'static str,
    /// By x, ascending.
    pub(super) points: Vec<(f64, f64)>,
    /// The space below is tinted.
    pub(super) is_filled: bool,
}

impl Series {
    /// A plain line.
    pub(super) fn line(name: &str, colour: &'static str, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.to_owned(),
            colour,
            points,
            is_filled: false,
        }
    }

    /// A line with the space below it tinted.
    pub(super) fn area(name: &str, colour: &'static str, points: Vec<(f64, f64)>) -> Self {
        Self {
            is_filled: true,
            ..Self::line(name, colour, points)
        }
    }
}

/// Smallest value above 0 and largest value of all lines; `(0, 0)` without values.
pub(super) fn range(series: &[Series]) -> (f64, f64) {
    let values = || {
        series
            .iter()
            .flat_map(|line| &line.points)
            .map(|(_, y)| *y)
            .filter(|y| y.is_finite())
    };
    let low = values().filter(|y| *y > 0.0).fold(f64::INFINITY, f64::min);
    let high = values().fold(0.0, f64::max);
    (if low.is_finite() { low } else { 0.0 }, high)
}

/// The drawing; `title` is what a reader hears who does not see it.
pub(super) fn draw(title: &str, x: &Axis, y: &Axis, series: &[Series]) -> String {
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    );
    frame(&mut svg, x, y);
    for line in series {
        draw_line(&mut svg, line, x, y);
    }
    svg.push_str("</svg>");
    svg
}

fn at_x(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)
}

fn at_y(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)
}

/// Grid, labels and titles of both axes. Writing to a String cannot fail.
fn frame(svg: &mut String, x: &Axis, y: &Axis) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for (value, label) in &y.ticks {
        let at = at_y(y, *value);
        let _ = write!(
            svg,
            "<path class=\"hair\" d=\"M{LEFT} {at:.1}H{right}\"/>\
             <text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 7.0,
            at + 4.5,
            escape(label)
        );
    }
    for (value, label) in &x.ticks {
        let at = at_x(x, *value);
        let _ = write!(
            svg,
            "<path class=\"hair\" d=\"M{at:.1} {TOP}V{bottom}\"/>\
             <text class=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
            bottom + 18.0,
            escape(label)
        );
    }
    let _ = write!(
        svg,
        "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\
         <text class=\"middle unit\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\
         <text class=\"middle unit\" transform=\"translate(15 {:.1}) rotate(-90)\">{}</text>",
        f64::midpoint(LEFT, right),
        HEIGHT - 10.0,
        escape(&x.title),
        f64::midpoint(TOP, bottom),
        escape(&y.title)
    );
}

fn draw_line(svg: &mut String, line: &Series, x: &Axis, y: &Axis) {
    let mut path = String::new();
    let mut points = Vec::new();
    let mut letter = 'M';
    for (at, value) in thin(&line.points) {
        // A logarithmic axis has no place for 0: the line breaks off there.
        if !value.is_finite() || (y.is_log() && value <= 0.0) {
            letter = 'M';
            continue;
        }
        let (at, height) = (at_x(x, at), at_y(y, value));
        // Writing to a String cannot fail.
        let _ = write!(path, "{letter}{at:.1} {height:.1}");
        points.push((at, height));
        letter = 'L';
    }
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return;
    };
    let colour = line.colour;
    if line.is_filled {
        let bottom = HEIGHT - BOTTOM;
        let _ = write!(
            svg,
            "<path class=\"area {colour}\" d=\"{path}L{:.1} {bottom}L{:.1} {bottom}Z\"/>",
            last.0, first.0
        );
    }
    if points.len() == 1 {
        let _ = write!(
            svg,
            "<circle class=\"dot {colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
            first.0, first.1
        );
    }
    let _ = write!(
        svg,
        "<path class=\"line {colour}\" d=\"{path}\"><title>{}</title></path>",
        escape(&line.name)
    );
}

/// At most about [`POINTS_MAX`] points, in which no peak and no dip is missing.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS_MAX / 2);
    let mut kept = Vec::with_capacity(POINTS_MAX + 2);
    for stretch in points.chunks(stretch) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (Some(low), Some(high)) = (
            stretch.iter().min_by(by_value),
            stretch.iter().max_by(by_value),
        ) else {
            continue;
        };
        let (first, second) = if low.0 <= high.0 {
            (low, high)
        } else {
            (high, low)
        };
        kept.push(*first);
        if second.0 > first.0 {
            kept.push(*second);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinned_lines_keep_peaks_and_dips() {
        let mut points: Vec<(f64, f64)> = (0..20_000).map(|x| (f64::from(x), 10.0)).collect();
        points[7_777].1 = 99.0;
        points[12_345].1 = 1.0;
        let thinned = thin(&points);
        assert!(thinned.len() <= POINTS_MAX + 2, "{}", thinned.len());
        assert!(thinned.contains(&(7_777.0, 99.0)) && thinned.contains(&(12_345.0, 1.0)));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thin(&points[..50]), points[..50]);
    }

    #[test]
    fn lines_stay_inside_the_frame() {
        let series = [Series::area(
            "a<b",
            "c0",
            vec![(0.0, 0.0), (5.0, 3.0), (9.0, 1e12)],
        )];
        let (low, high) = range(&series);
        assert!((low - 3.0).abs() < 1e-9 && high > 1e11);
        let x = Axis::of_time(9.0);
        let svg = draw("t\"", &x, &Axis::from_zero(10.0, "ms"), &series);
        assert!(svg.contains("a&lt;b") && svg.contains("t&quot;"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains(&format!("L{:.1} {TOP:.1}", WIDTH - RIGHT)));
    }

    #[test]
    fn lines_break_off_where_there_is_no_value() {
        let points = vec![(0.0, 1.0), (1.0, 2.0), (2.0, 0.0), (3.0, 90.0), (4.0, 50.0)];
        let y = Axis::of_latencies(1.0, 90.0, "ms");
        let line = [Series::line("p50", "c0", points)];
        let svg = draw("t", &Axis::of_time(4.0), &y, &line);
        let path = svg.rsplit("<path class=\"line").next().unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 2, "{path}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(range(&[]), (0.0, 0.0));
        let axis = Axis::from_zero(1.0, "");
        let svg = draw("t", &axis, &axis, &[Series::line("a", "c0", Vec::new())]);
        assert!(!svg.contains("class=\"line"));
    }
}
