//! Cuts a batch into statements of few fixed sizes, so that the prepared statements are few and are found again.
//!
//! Pure. A piece may hold fewer rows than its statement: the last row is then repeated, which is harmless because
//! every multi-row statement here is idempotent by key.

use std::ops::Range;

/// Rows (or list items) that a statement may have.
pub(super) const ROW_COUNTS: [usize; 5] = [1, 8, 64, 512, 2048];
/// SQLite's limit of parameters; MySQL's is 65,535.
pub(super) const PARAMETERS_MAX: usize = 32_766;
/// About the most bytes of one statement, well below any `max_allowed_packet`.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// One statement of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which rows of the input.
    pub(super) rows: Range<usize>,
    /// Rows in the statement; at least as many.
    pub(super) count: usize,
}

impl Piece {
    /// Indices of the rows to bind, the last one repeated as often as needed.
    pub(super) fn indices(&self) -> impl Iterator<Item = usize> + use<> {
        let last = self.rows.end.saturating_sub(1);
        let padding = self.count.saturating_sub(self.rows.len());
        self.rows.clone().chain(std::iter::repeat_n(last, padding))
    }
}

/// The statements for `total` rows of `columns` parameters each.
pub(super) fn pieces(total: usize, columns: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    cut(0..total, columns, &mut pieces);
    pieces
}

/// The same, with at most about [`BYTES_MAX`] in one statement (twice that with repeated rows).
pub(super) fn weighed_pieces(weights: &[usize], columns: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, weight) in weights.iter().enumerate() {
        if bytes + weight > BYTES_MAX && index > start {
            cut(start..index, columns, &mut pieces);
            (start, bytes) = (index, 0);
        }
        bytes += weight;
    }
    cut(start..weights.len(), columns, &mut pieces);
    pieces
}

fn cut(rows: Range<usize>, columns: usize, pieces: &mut Vec<Piece>) {
    let most = PARAMETERS_MAX / columns.max(1);
    let mut start = rows.start;
    while start < rows.end {
        let left = rows.end - start;
        let count = row_count(left, most);
        let end = start + left.min(count);
        pieces.push(Piece {
            rows: start..end,
            count,
        });
        start = end;
    }
}

/// The largest size that is filled; or the next one up, if at least half of it is filled.
fn row_count(left: usize, most: usize) -> usize {
    let mut best = 1;
    for count in ROW_COUNTS {
        if count <= most && count / 2 <= left {
            best = count;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(total: usize, columns: usize) -> Vec<usize> {
        pieces(total, columns)
            .iter()
            .map(|piece| piece.count)
            .collect()
    }

    #[test]
    fn batches_become_few_statements() {
        assert_eq!(counts(0, 2), [0; 0]);
        assert_eq!(counts(1, 2), [1]);
        assert_eq!(counts(3, 2), [1, 1, 1]);
        assert_eq!(counts(256, 20), [512]);
        assert_eq!(counts(20_000, 2), [2048; 10]);
        // 2048 rows of 20 columns are more parameters than SQLite takes.
        assert_eq!(counts(2048, 20), [512; 4]);
    }

    #[test]
    fn heavy_rows_go_alone() {
        let pieces = weighed_pieces(&[10, BYTES_MAX, 10, 10, 10, 10], 2);
        let rows: Vec<_> = pieces.iter().map(|piece| piece.rows.clone()).collect();
        assert_eq!(rows, [0..1, 1..2, 2..6]);
    }

    proptest! {
        #[test]
        fn pieces_cover_each_row_once(total in 0_usize..6000, columns in 1_usize..40) {
            let mut next = 0;
            for piece in pieces(total, columns) {
                prop_assert_eq!(piece.rows.start, next);
                prop_assert!(!piece.rows.is_empty());
                prop_assert!(ROW_COUNTS.contains(&piece.count));
                prop_assert!(piece.count * columns <= PARAMETERS_MAX);
                prop_assert_eq!(piece.indices().count(), piece.count);
                prop_assert!(piece.indices().all(|index| piece.rows.contains(&index)));
                next = piece.rows.end;
            }
            prop_assert_eq!(next, total);
        }
    }
}
