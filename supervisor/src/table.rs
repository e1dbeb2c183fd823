//! Tables without lines, as `status` and `tune` print them.

use comfy_table::{ContentArrangement, Table, presets};

/// An empty one, `width` columns wide at most.
pub(crate) fn table(width: u16, is_coloured: bool) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width);
    if is_coloured {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}
