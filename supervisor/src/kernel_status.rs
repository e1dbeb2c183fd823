//! The kernel's settings in `status`: one line when they hold, those that do not else. Pure.

use comfy_table::{Cell, Color, Table};
use fleet_protocol::slot::SettingView;

/// Settings that are listed; `tune` shows all.
const LISTED_MAX: usize = 8;

/// Lines below the other tables; nothing when nobody looked.
pub(crate) fn text(settings: &[SettingView], mut table: Table) -> String {
    if settings.is_empty() {
        return String::new();
    }
    let holding = settings
        .iter()
        .filter(|setting| setting.holds == Some(true))
        .count();
    let low: Vec<&SettingView> = settings
        .iter()
        .filter(|setting| setting.holds == Some(false))
        .collect();
    if low.is_empty() {
        return format!("\nkernel: {holding} settings hold\n");
    }
    table.set_header(["KERNEL", "NOW", "WANTED"]);
    for setting in low.iter().take(LISTED_MAX) {
        table.add_row([
            Cell::new(&setting.key),
            Cell::new(&setting.now).fg(Color::Yellow),
            Cell::new(&setting.wanted),
        ]);
    }
    let more = match low.len().saturating_sub(LISTED_MAX) {
        0 => String::new(),
        more => format!("{more} more do not; "),
    };
    format!(
        "\n{}\n{more}{holding} settings hold; `tune` says what these are for\n",
        table.trim_fmt()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: &str, holds: Option<bool>) -> SettingView {
        SettingView {
            key: key.into(),
            now: "128".into(),
            wanted: "4096".into(),
            holds,
        }
    }

    #[test]
    fn good_ones_are_counted_and_low_ones_listed() {
        assert_eq!(text(&[], Table::new()), "");
        let good = [setting("a", Some(true)), setting("b", None)];
        assert_eq!(text(&good, Table::new()), "\nkernel: 1 settings hold\n");
        let many: Vec<_> = (0..20)
            .map(|index| setting(&format!("key{index}"), Some(false)))
            .collect();
        let text = text(&many, Table::new());
        assert!(text.contains("key7") && !text.contains("key8"), "{text}");
        assert!(text.contains("12 more do not; 0 settings hold"), "{text}");
    }
}
