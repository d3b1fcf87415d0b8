use std::cmp::Ordering;
use std::ops::Range;

use super::Rows;
use super::rows::slice_of;

/// Groups of queries with the keys of each.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Part {
    /// The queries of each group.
    pub rows: Rows,
    /// The keys of each group.
    pub entries: Entries,
    /// Added to every logit of an entry `[nnz]`: neither NaN nor +inf, and not for [`Entries::Bits`].
    /// A key in several entries of one group has the largest of their biases.
    pub bias: Option<Vec<f32>>,
    /// Whether a key in several entries of one group counts as often, each time with its own bias,
    /// as for samples drawn with replacement.
    pub multiset: bool,
    /// Which of several rotated copies of the query each entry uses `[nnz]`. Reserved:
    /// [`super::SparsePlan::check`] accepts only `None`.
    pub q_slot: Option<Vec<u32>>,
}

impl Part {
    /// Sets of keys without bias.
    pub fn new(rows: Rows, entries: Entries) -> Self {
        Part { rows, entries, bias: None, multiset: false, q_slot: None }
    }

    /// The same with a bias for each entry.
    pub fn with_bias(mut self, bias: Vec<f32>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// The same with multisets of keys.
    pub fn with_multiset(mut self) -> Self {
        self.multiset = true;
        self
    }

    /// The entries of `group` as intervals of keys below `keys`, with their biases, in stored order.
    pub(crate) fn intervals(&self, group: usize, keys: usize) -> impl Iterator<Item = Interval> {
        let of = self.entries.slots(group, keys);
        of.filter_map(move |slot| {
            let range = self.entries.interval(slot, keys)?;
            let bias = match &self.bias {
                Some(bias) => bias.get(slot).copied().unwrap_or(0.0),
                None => 0.0,
            };
            Some(Interval { start: range.start, end: range.end, bias })
        })
    }
}

/// Keys `start..end` with one bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub start: usize,
    pub end: usize,
    pub bias: f32,
}

impl Interval {
    /// By start, end and bias.
    pub fn order(&self, other: &Interval) -> Ordering {
        let keys = (self.start, self.end).cmp(&(other.start, other.end));
        keys.then(self.bias.total_cmp(&other.bias))
    }
}

/// The keys of each group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Entries {
    /// Blocks of a grid: an entry `j` is the keys `origin + j * bk .. origin + (j + 1) * bk`.
    Blocks {
        /// Keys of a block, at least 1.
        bk: u32,
        /// Where the grid starts.
        origin: u32,
        /// Entries of group `g` are `col[row_ptr[g] .. row_ptr[g + 1]]`: `[groups + 1]`.
        row_ptr: Vec<u32>,
        /// Blocks `[nnz]`.
        col: Vec<u32>,
    },
    /// The same with one bit for each block of the grid.
    Bits {
        /// Keys of a block, at least 1.
        bk: u32,
        /// Where the grid starts.
        origin: u32,
        /// `[groups, ceil(blocks / 32)]` with `blocks = ceil((built_keys - origin) / bk)`: block `j`
        /// is bit `j % 32`, counted from the lowest, of word `j / 32`.
        words: Vec<u32>,
    },
    /// Intervals of any length.
    Ranges {
        /// Entries of group `g` are `ranges[row_ptr[g] .. row_ptr[g + 1]]`: `[groups + 1]`.
        row_ptr: Vec<u32>,
        /// First key and number of keys `[nnz, 2]`.
        ranges: Vec<[u32; 2]>,
    },
    /// Single keys.
    Tokens {
        /// Entries of group `g` are `k_idx[row_ptr[g] .. row_ptr[g + 1]]`: `[groups + 1]`.
        row_ptr: Vec<u32>,
        /// Keys `[nnz]`.
        k_idx: Vec<u32>,
    },
}

impl Entries {
    /// Number of entries; of bits, the number of those that are set.
    pub fn nnz(&self) -> usize {
        match self {
            Entries::Blocks { col, .. } => col.len(),
            Entries::Bits { words, .. } => words.iter().map(|w| w.count_ones() as usize).sum(),
            Entries::Ranges { ranges, .. } => ranges.len(),
            Entries::Tokens { k_idx, .. } => k_idx.len(),
        }
    }

    /// Offsets of the groups; none for bits.
    pub fn row_ptr(&self) -> Option<&[u32]> {
        match self {
            Entries::Blocks { row_ptr, .. }
            | Entries::Ranges { row_ptr, .. }
            | Entries::Tokens { row_ptr, .. } => Some(row_ptr),
            Entries::Bits { .. } => None,
        }
    }

    /// What [`Entries::interval`] takes, for every entry of `group`: places in the data, or for bits
    /// the number of the block.
    pub(crate) fn slots(&self, group: usize, keys: usize) -> impl Iterator<Item = usize> {
        let (range, words) = match self {
            Entries::Bits { bk, origin, words } => {
                let per_group = blocks(keys, *bk, *origin).div_ceil(32);
                let start = group.saturating_mul(per_group);
                let words = words.get(start..start.saturating_add(per_group)).unwrap_or_default();
                (0..0, words)
            }
            _ => {
                let len = self.nnz();
                (self.row_ptr().map_or(0..0, |row_ptr| slice_of(row_ptr, group, len)), &[][..])
            }
        };
        range.chain(set_bits(words))
    }

    /// The keys of an entry, cut at `keys`; `None` where nothing is left.
    fn interval(&self, slot: usize, keys: usize) -> Option<Range<usize>> {
        let whole = self.whole(slot)?;
        let end = whole.end.min(keys);
        (whole.start < end).then_some(whole.start..end)
    }

    /// The keys of an entry, some of them perhaps beyond the end.
    pub(crate) fn whole(&self, slot: usize) -> Option<Range<usize>> {
        let (start, len) = match self {
            Entries::Blocks { bk, origin, col, .. } => {
                (block_start(*origin, *bk, *col.get(slot)? as usize)?, *bk as usize)
            }
            Entries::Bits { bk, origin, .. } => (block_start(*origin, *bk, slot)?, *bk as usize),
            Entries::Ranges { ranges, .. } => {
                let [start, len] = *ranges.get(slot)?;
                (start as usize, len as usize)
            }
            Entries::Tokens { k_idx, .. } => (*k_idx.get(slot)? as usize, 1),
        };
        Some(start..start.saturating_add(len))
    }
}

/// Blocks of a grid over `keys` keys.
pub(crate) fn blocks(keys: usize, bk: u32, origin: u32) -> usize {
    keys.saturating_sub(origin as usize).div_ceil((bk as usize).max(1))
}

pub(crate) fn block_start(origin: u32, bk: u32, block: usize) -> Option<usize> {
    block.checked_mul(bk as usize)?.checked_add(origin as usize)
}

/// Numbers of the bits that are set, in rising order.
pub(crate) fn set_bits(words: &[u32]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(at, &word)| {
        let rest = std::iter::successors(Some(word), |&rest| Some(rest & rest.wrapping_sub(1)));
        rest.take_while(|&rest| rest != 0)
            .map(move |rest| at.saturating_mul(32) + rest.trailing_zeros() as usize)
    })
}
