//! Masks that are not a window around the query's position, as a table that kernels read; and for
//! every mask the queries that a tile of keys is visited by, for the backward pass.

use std::ops::Range;

use attn_core::{BitMask, Lengths, Mask, RowKeys};

/// Words of a row that is not explicit bits: end of the sink, start and end of the rest, position,
/// first key of the document.
const ROW_WORDS: usize = 5;

/// A run of keys (or queries) that a tile visits; `full` if all of its rows see all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: usize,
    end: usize,
    full: bool,
}

/// The table of a mask, and the word at which its rows begin.
///
/// Per tile, and once behind the last: the number of its first segment. Then the segments: start,
/// end, 1 if full. Then the rows, [`ROW_WORDS`] words each, or the bits of an explicit mask.
pub(super) fn mask_table(
    mask: &Mask,
    lengths: Lengths,
    tile: usize,
    side: Side,
) -> (Vec<u32>, usize) {
    let length = match side {
        Side::Queries => lengths.queries,
        Side::Keys => lengths.keys,
    };
    let tiles = length.div_ceil(tile);
    let mut words = vec![0; tiles + 1];
    let rows = rows_of(mask, lengths);
    let mut count = 0;
    let mut all = Vec::new();
    for number in 0..tiles {
        let range = number * tile..((number + 1) * tile).min(length);
        let segments = match (side, mask) {
            (Side::Queries, Mask::Bits(bits)) => of_bits(bits, range),
            (Side::Queries, _) => of_rows(&rows[range]),
            (Side::Keys, Mask::Bits(bits)) => of_keys(lengths.queries, |query| {
                Seen::of(range.clone().filter(|&key| bits.get(query, key)).count(), range.len())
            }),
            (Side::Keys, _) => of_keys(lengths.queries, |query| {
                let row = &rows[query];
                let within =
                    |a: usize, b: usize| b.min(range.end).saturating_sub(a.max(range.start));
                Seen::of(within(0, row.sink) + within(row.start, row.end), range.len())
            }),
        };
        count += segments.len() as u32;
        words[number + 1] = count;
        all.extend(segments);
    }
    words.extend(all.iter().flat_map(|s| [s.start as u32, s.end as u32, u32::from(s.full)]));
    let first_row = words.len();
    match mask {
        Mask::Bits(bits) => words.extend_from_slice(bits.words()),
        _ => {
            words.reserve(ROW_WORDS * lengths.queries);
            for (query, row) in rows.iter().enumerate() {
                let place = mask.place(lengths, query);
                let (position, first_key) = (place.position as i32 as u32, place.first_key as u32);
                words.extend([
                    row.sink as u32,
                    row.start as u32,
                    row.end as u32,
                    position,
                    first_key,
                ]);
            }
        }
    }
    (words, first_row)
}

/// What the tiles are tiles of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Tiles of queries visit keys: forward, and the gradient of the queries.
    Queries,
    /// Tiles of keys visit queries: the gradients of keys and values.
    Keys,
}

fn rows_of(mask: &Mask, lengths: Lengths) -> Vec<RowKeys> {
    match mask {
        Mask::Bits(_) => Vec::new(),
        _ => (0..lengths.queries).map(|query| mask.row(lengths, query)).collect(),
    }
}

/// Segments of a tile whose rows see these keys: a sweep over the ends of their intervals.
fn of_rows(rows: &[RowKeys]) -> Vec<Segment> {
    let mut ends: Vec<(usize, isize)> = Vec::with_capacity(4 * rows.len());
    for row in rows {
        for interval in [0..row.sink, row.start..row.end] {
            if !interval.is_empty() {
                ends.extend([(interval.start, 1), (interval.end, -1)]);
            }
        }
    }
    ends.sort_unstable();
    let mut segments = Vec::new();
    let mut seen_by = 0;
    for (i, &(at, change)) in ends.iter().enumerate() {
        seen_by += change;
        let next = ends.get(i + 1).map_or(at, |&(next, _)| next);
        if seen_by > 0 {
            let full = seen_by as usize == rows.len();
            push(&mut segments, Segment { start: at, end: next, full });
        }
    }
    segments
}

/// Segments of a tile of rows of bits, at the granularity of words.
fn of_bits(bits: &BitMask, rows: Range<usize>) -> Vec<Segment> {
    let width = bits.words_per_row();
    let mut segments = Vec::new();
    for word in 0..width {
        let (start, end) = (word * 32, (word * 32 + 32).min(bits.keys()));
        let whole = u32::MAX >> (32 - (end - start));
        let of_row = |row: usize| bits.words()[row * width + word];
        let any = rows.clone().fold(0, |any, row| any | of_row(row));
        let all = rows.clone().fold(whole, |all, row| all & of_row(row));
        if any != 0 {
            push(&mut segments, Segment { start, end, full: all == whole });
        }
    }
    segments
}

/// How much of a tile of keys a query sees.
#[derive(PartialEq, Eq)]
enum Seen {
    Nothing,
    Some,
    All,
}

impl Seen {
    fn of(count: usize, all: usize) -> Self {
        match count {
            0 => Seen::Nothing,
            _ if count == all => Seen::All,
            _ => Seen::Some,
        }
    }
}

/// Segments of queries for a tile of keys.
fn of_keys(queries: usize, seen: impl Fn(usize) -> Seen) -> Vec<Segment> {
    let mut segments = Vec::new();
    for query in 0..queries {
        let seen = seen(query);
        if seen != Seen::Nothing {
            push(&mut segments, Segment { start: query, end: query + 1, full: seen == Seen::All });
        }
    }
    segments
}

/// Adds a segment, joined with the last one where they are neighbours of one kind.
fn push(segments: &mut Vec<Segment>, next: Segment) {
    match segments.last_mut() {
        _ if next.start >= next.end => {}
        Some(last) if last.end == next.start && last.full == next.full => last.end = next.end,
        _ => segments.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks() -> Vec<Mask> {
        let cu = vec![0, 13, 30, 31, 50, 72];
        vec![
            Mask::Full,
            Mask::Causal,
            Mask::Window { left: 9, right: 2 },
            Mask::documents(&cu, Mask::Causal),
            Mask::documents(&cu, Mask::Full),
            Mask::SinkWindow { left: 10, sinks: 3 },
            Mask::GlobalWindow { window: 7, global: 9 },
            Mask::PrefixLm { prefix: 11 },
            Mask::ShareQuestion { cu: cu.clone() },
            Mask::CausalBlockwise { cu: cu.clone() },
            Mask::BlockCausalDocuments { cu, block: 8 },
            Mask::Bits(BitMask::from_fn(72, 72, |query, key| (query / 16 + key / 20) % 2 == 0)),
            Mask::Bits(BitMask::from_fn(72, 72, |query, key| (query * 7 + key * 5) % 3 == 0)),
            Mask::Bits(BitMask::from_fn(72, 72, |_, _| false)),
        ]
    }

    #[test]
    fn segments_cover_what_is_allowed_and_full_ones_nothing_else() {
        let lengths = Lengths::new(72, 72);
        for mask in masks() {
            for (tile, side) in [1, 5, 32, 128]
                .into_iter()
                .flat_map(|tile| [(tile, Side::Queries), (tile, Side::Keys)])
            {
                let (words, first_row) = mask_table(&mask, lengths, tile, side);
                let tiles = 72usize.div_ceil(tile);
                let segment = |number: u32| {
                    let at = tiles + 1 + 3 * number as usize;
                    (words[at] as usize, words[at + 1] as usize, words[at + 2] == 1)
                };
                for mine in 0..72 {
                    let numbers = words[mine / tile]..words[mine / tile + 1];
                    for other in 0..72 {
                        let (query, key) =
                            if side == Side::Queries { (mine, other) } else { (other, mine) };
                        let allowed = mask.allows(lengths, query, key);
                        let mut visits =
                            numbers.clone().map(segment).filter(|s| s.0 <= other && other < s.1);
                        let visit = visits.next();
                        let case = format!("{mask:?} {tile} {side:?} {query} {key}");
                        assert!(visits.next().is_none(), "visited twice: {case}");
                        assert!(visit.is_some() || !allowed, "not visited: {case}");
                        assert!(visit.is_none_or(|visit| !visit.2 || allowed), "not full: {case}");
                    }
                }
                if !matches!(mask, Mask::Bits(_)) {
                    for query in 0..72u32 {
                        let row = &words[first_row + ROW_WORDS * query as usize..][..ROW_WORDS];
                        for key in 0..72u32 {
                            let by_row = key < row[0] || (row[1] <= key && key < row[2]);
                            assert_eq!(by_row, mask.allows(lengths, query as usize, key as usize));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_that_nobody_sees_are_skipped_and_whole_ones_are_full() {
        let block = |query: usize, key: usize| (query / 64 + key / 64).is_multiple_of(2);
        let mask = Mask::Bits(BitMask::from_fn(256, 256, block));
        let (words, _) = mask_table(&mask, Lengths::new(256, 256), 64, Side::Queries);
        assert_eq!(words[..5], [0, 2, 4, 6, 8]);
        assert_eq!(words[5..11], [0, 64, 1, 128, 192, 1]);
    }
}
