//! The table as people read it, from the one that the program uses. Pure.

use std::fmt::Write as _;

use crate::settings::SETTINGS;

/// Markdown.
pub fn markdown() -> String {
    let mut out = String::from(
        "| setting | where | wanted | since | why | cost | source |\n|---|---|---|---|---|---|---|\n",
    );
    for setting in SETTINGS {
        let since = setting
            .since
            .map_or_else(String::new, |kernel| kernel.to_string());
        let advice = if setting.is_advice() {
            "advice only: "
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "| `{}` | {} | {advice}{} | {since} | {} | {} | {} |",
            setting.key,
            setting.place_name(),
            setting.how,
            setting.why,
            setting.cost,
            setting.source
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_holds_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        assert!(
            readme.contains(&markdown()),
            "put this into sysctl/README.md:\n{}",
            markdown()
        );
    }
}
