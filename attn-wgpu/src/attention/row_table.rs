//! Masks that are not a window around the query's position, as a table that kernels read.

use attn_core::{Lengths, Mask};

/// Words of one tile's entry.
const TILE_WORDS: usize = 6;

/// The table of a mask for row tiles of `tile` queries, and the word at which its rows begin.
///
/// Per tile: end of the sink that all its rows see, end of the sink that any row sees; then start,
/// inner start, inner end and end of the rest: some row sees a key of `[start, end)`, all rows see
/// all keys of `[inner start, inner end)`. Per row: end of the sink, start and end of the rest.
pub(super) fn row_table(mask: &Mask, lengths: Lengths, tile: usize) -> (Vec<u32>, usize) {
    let tiles = lengths.queries.div_ceil(tile);
    let first_row = tiles * TILE_WORDS;
    let mut words = vec![0u32; first_row + 3 * lengths.queries];
    for number in 0..tiles {
        let queries = number * tile..((number + 1) * tile).min(lengths.queries);
        let (mut sink_all, mut sink_any) = (usize::MAX, 0);
        let (mut start, mut end) = (usize::MAX, 0);
        let (mut inner_start, mut inner_end) = (0, usize::MAX);
        for query in queries {
            let row = mask.row(lengths, query);
            let at = first_row + 3 * query;
            words[at..at + 3].copy_from_slice(&[row.sink as u32, row.start as u32, row.end as u32]);
            sink_all = sink_all.min(row.sink);
            sink_any = sink_any.max(row.sink);
            inner_start = inner_start.max(row.start);
            inner_end = inner_end.min(row.end);
            if row.start < row.end {
                start = start.min(row.start);
                end = end.max(row.end);
            }
        }
        let start = start.min(end);
        if inner_start >= inner_end {
            (inner_start, inner_end) = (start, start);
        }
        let entry = [sink_all, sink_any, start, inner_start, inner_end, end].map(|x| x as u32);
        words[number * TILE_WORDS..][..TILE_WORDS].copy_from_slice(&entry);
    }
    (words, first_row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_their_rows_and_inner_ranges_are_seen_by_all() {
        let cu = vec![0, 13, 30, 31, 50, 72];
        let masks = [
            Mask::documents(&cu, Mask::Causal),
            Mask::documents(&cu, Mask::Full),
            Mask::GlobalWindow { window: 7, global: 9 },
            Mask::PrefixLm { prefix: 11 },
            Mask::ShareQuestion { cu: cu.clone() },
            Mask::CausalBlockwise { cu: cu.clone() },
            Mask::BlockCausalDocuments { cu, block: 8 },
        ];
        let lengths = Lengths::new(72, 72);
        for mask in masks {
            for tile in [1, 5, 32, 128] {
                let (words, first_row) = row_table(&mask, lengths, tile);
                for query in 0..lengths.queries {
                    let entry = &words[query / tile * TILE_WORDS..][..TILE_WORDS];
                    let row = &words[first_row + 3 * query..][..3];
                    for key in 0..72 {
                        let allowed = mask.allows(lengths, query, key as usize);
                        let by_row = key < row[0] || (row[1] <= key && key < row[2]);
                        assert_eq!(by_row, allowed, "{mask:?} {tile} {query} {key}");
                        let visited = key < entry[1] || (entry[2] <= key && key < entry[5]);
                        let inner = key < entry[0] || (entry[3] <= key && key < entry[4]);
                        assert!(visited || !allowed, "{mask:?} {tile} {query} {key}");
                        assert!(allowed || !inner, "{mask:?} {tile} {query} {key}");
                    }
                }
            }
        }
    }
}
