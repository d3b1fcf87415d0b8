//! Explicit bits, one for each pair of a query and a key.

use std::sync::Arc;

use crate::{Error, Result};

/// One bit for each pair of `queries` queries and `keys` keys, set where the pair is allowed.
///
/// Rows lie one after another, each of `ceil(keys / 32)` words: key `t` is bit `t % 32` (counted
/// from the lowest) of word `t / 32`. Bits beyond `keys` are 0. A clone shares the words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BitMask {
    queries: usize,
    keys: usize,
    words: Arc<Vec<u32>>,
}

impl BitMask {
    /// The pairs for which `allows(query, key)` is true, asked once each.
    pub fn from_fn(
        queries: usize,
        keys: usize,
        mut allows: impl FnMut(usize, usize) -> bool,
    ) -> Self {
        // Without keys there are no words, however many queries there are.
        let rows = if keys == 0 { 0 } else { queries };
        let mut words = Vec::new();
        for query in 0..rows {
            for first in (0..keys).step_by(32) {
                let bits = first..keys.min(first.saturating_add(32));
                let bit = |key| u32::from(allows(query, key)) << (key - first);
                words.push(bits.map(bit).fold(0, |word, bit| word | bit));
            }
        }
        BitMask { queries, keys, words: Arc::new(words) }
    }

    /// From words `[queries, ceil(keys / 32)]`. Bits beyond `keys` are cleared.
    ///
    /// # Errors
    /// [`Error::Data`] where there are more or fewer words.
    pub fn from_words(queries: usize, keys: usize, mut words: Vec<u32>) -> Result<Self> {
        let per_row = keys.div_ceil(32);
        if queries.checked_mul(per_row) != Some(words.len()) {
            let expected = format!("{queries} rows of {per_row} words");
            return Err(Error::data("words", expected, format!("{} words", words.len())));
        }
        if !keys.is_multiple_of(32) {
            let used = (1 << (keys % 32)) - 1;
            words.iter_mut().skip(per_row - 1).step_by(per_row).for_each(|word| *word &= used);
        }
        Ok(BitMask { queries, keys, words: Arc::new(words) })
    }

    /// Number of queries.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// Number of keys.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// All words, `[queries, words_per_row]`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Words of one row, `ceil(keys / 32)`.
    pub fn words_per_row(&self) -> usize {
        self.keys.div_ceil(32)
    }

    /// The words of one query; none where it is out of range.
    pub fn row(&self, query: usize) -> &[u32] {
        let per_row = self.words_per_row();
        let rest = query.checked_mul(per_row).and_then(|start| self.words.get(start..));
        rest.and_then(|rest| rest.get(..per_row)).unwrap_or_default()
    }

    /// Whether the pair is allowed. Out-of-range indices are not.
    pub fn get(&self, query: usize, key: usize) -> bool {
        self.row(query).get(key / 32).is_some_and(|word| word >> (key % 32) & 1 == 1)
    }

    /// Number of keys that `query` may see.
    pub fn count(&self, query: usize) -> usize {
        self.row(query).iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The first key that `query` may see and the one after the last; `(0, 0)` where there is none.
    pub fn bounds(&self, query: usize) -> (usize, usize) {
        let row = self.row(query);
        let (first, last) =
            (row.iter().position(|&word| word != 0), row.iter().rposition(|&word| word != 0));
        let start = first.map_or(0, |at| 32 * at + row[at].trailing_zeros() as usize);
        let end = last.map_or(0, |at| 32 * (at + 1) - row[at].leading_zeros() as usize);
        (start, end)
    }
}
