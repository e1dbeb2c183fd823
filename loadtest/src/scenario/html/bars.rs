//! Horizontal bars with whiskers as inline SVG: a name and its value above each, so that neither is ever cut.

use std::fmt::Write as _;

use super::page::escape;

const WIDTH: f64 = 560.0;
const ROW: f64 = 46.0;
const BAR: f64 = 14.0;

/// One bar.
#[derive(Clone, Debug)]
pub(in super::super) struct Bar {
    /// On the left.
    pub(in super::super) name: String,
    /// On the right: the value with its unit, and the range if there is one.
    pub(in super::super) text: String,
    /// Which of the page's colours.
    pub(in super::super) colour: &'static str,
    /// Length.
    pub(in super::super) value: f64,
    /// Smallest and largest, for the whisker.
    pub(in super::super) range: Option<(f64, f64)>,
}

/// All bars on one scale from 0.
pub(super) fn draw(title: &str, bars: &[Bar]) -> String {
    let largest = bars
        .iter()
        .map(|bar| bar.range.map_or(bar.value, |(_, high)| high.max(bar.value)))
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    let length = |value: f64| {
        if largest > 0.0 && value.is_finite() {
            (value / largest).clamp(0.0, 1.0) * (WIDTH - 4.0)
        } else {
            0.0
        }
    };
    let mut body = String::new();
    let mut top = 0.0;
    for bar in bars {
        let (text_y, bar_y) = (top + 18.0, top + 26.0);
        // Writing to a String cannot fail.
        let _ = write!(
            body,
            "<text x=\"0\" y=\"{text_y}\">{}</text>\
             <text class=\"end strong\" x=\"{WIDTH}\" y=\"{text_y}\">{}</text>\
             <rect class=\"rail\" x=\"0\" y=\"{bar_y}\" width=\"{WIDTH}\" height=\"{BAR}\" rx=\"3\"/>\
             <rect class=\"bar {}\" x=\"0\" y=\"{bar_y}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"3\"/>",
            escape(&bar.name),
            escape(&bar.text),
            bar.colour,
            length(bar.value).max(1.0)
        );
        if let Some((low, high)) = bar.range {
            let (low, high) = (length(low), length(high));
            let (upper, middle, lower) = (bar_y + 3.0, bar_y + BAR / 2.0, bar_y + BAR - 3.0);
            let _ = write!(
                body,
                "<path class=\"whisker\" d=\"M{low:.1} {upper}V{lower}M{low:.1} {middle}H{high:.1}M{high:.1} {upper}V{lower}\"/>"
            );
        }
        top += ROW;
    }
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {top}\" role=\"img\" aria-label=\"{}\">{body}</svg>",
        escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, value: f64, range: Option<(f64, f64)>) -> Bar {
        Bar {
            name: name.to_owned(),
            text: format!("{value} µs"),
            colour: "c0",
            value,
            range,
        }
    }

    #[test]
    fn bars_share_a_scale_that_holds_the_whiskers() {
        let svg = draw(
            "CPU",
            &[
                bar("ours & co", 100.0, Some((90.0, 110.0))),
                bar("b", 400.0, Some((390.0, 445.0))),
            ],
        );
        assert!(svg.contains("ours &amp; co"));
        let full = WIDTH - 4.0;
        assert!(svg.contains(&format!("width=\"{:.1}\"", full * 100.0 / 445.0)));
        assert!(svg.contains(&format!("H{full:.1}")));
    }

    #[test]
    fn odd_values_draw_nothing_odd() {
        let svg = draw("t", &[bar("a", 0.0, None), bar("b", f64::NAN, None)]);
        assert!(!svg.contains("NaN\""), "{svg}");
    }
}
