//! Numbers and times as people read them.

use super::super::tally::as_f64;

/// Three digits that count, thousands apart: `0.0421`, `4.21`, `42.1`, `421`, `42,100`.
pub(in super::super) fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if !value.is_finite() => return "–".to_owned(),
        _ if size >= 100.0 || size == 0.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ if size >= 0.1 => 3,
        _ => 4,
    };
    apart(&format!("{value:.decimals$}"))
}

/// The same for the label of a tick: without zeros that say nothing, thousands as `k` and `M`.
pub(super) fn tick(value: f64) -> String {
    let (value, unit) = match value.abs() {
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{}{unit}", apart(text))
}

/// A count.
pub(in super::super) fn count(value: u64) -> String {
    apart(&value.to_string())
}

/// Bytes in the unit that fits.
pub(in super::super) fn bytes(value: u64) -> String {
    let value = as_f64(value);
    if value >= 1_073_741_824.0 {
        format!("{} GiB", number(value / 1_073_741_824.0))
    } else if value >= 1_048_576.0 {
        format!("{} MiB", number(value / 1_048_576.0))
    } else if value >= 10_240.0 {
        format!("{} KiB", number(value / 1024.0))
    } else {
        format!("{} B", number(value))
    }
}

/// Commas between thousands of the whole part.
fn apart(text: &str) -> String {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text),
    };
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut grouped = String::with_capacity(text.len() + 4);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        let shown = [0.0, 0.042_13, 0.5, 4.213, 42.13, 421.3, 42_130.0, -1234.0].map(number);
        assert_eq!(
            shown,
            [
                "0", "0.0421", "0.500", "4.21", "42.1", "421", "42,130", "-1,234"
            ]
        );
        assert_eq!(number(f64::NAN), "–");
        assert_eq!(count(1_234_567), "1,234,567");
    }

    #[test]
    fn ticks_are_short() {
        let shown = [0.0, 0.25, 5.0, 2500.0, 12_500.0, 3_000_000.0].map(tick);
        assert_eq!(shown, ["0", "0.25", "5", "2,500", "12.5k", "3M"]);
    }

    #[test]
    fn bytes_have_a_unit() {
        assert_eq!(bytes(4_827), "4,827 B");
        assert_eq!(bytes(20 << 20), "20.0 MiB");
        assert_eq!(bytes(3 << 30), "3.00 GiB");
    }
}
