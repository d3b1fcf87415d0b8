//! How queries and keys are counted, and what a query sees.

/// How many queries and keys an attention call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Number of queries, M.
    pub queries: usize,
    /// Number of keys, N.
    pub keys: usize,
}

impl Lengths {
    /// `queries` queries over `keys` keys.
    pub fn new(queries: usize, keys: usize) -> Self {
        Lengths { queries, keys }
    }

    /// Position of `query` on the axis of the keys, `query + keys - queries`: the last query is
    /// aligned with the last key. Negative where there are more queries than keys.
    pub fn position(self, query: usize) -> i64 {
        reach(query) + reach(self.keys) - reach(self.queries)
    }
}

/// Where a query stands, for functions of positions ([`crate::Modifier`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// Position of the query on the axis of the keys, relative to its own document.
    pub position: i64,
    /// First key of that document: key `t` has the index `t - first_key` in it.
    pub first_key: usize,
}

/// The keys one query sees, `[0, sink)` and `[start, end)`, with `sink <= start <= end <= keys`.
///
/// Every mask of this crate has this form, except explicit bits, whose rows it only encloses
/// ([`crate::Mask::is_exact_in_rows`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowKeys {
    /// Keys `0..sink` are allowed.
    pub sink: usize,
    /// Keys `start..end` are allowed.
    pub start: usize,
    /// See `start`.
    pub end: usize,
}

impl RowKeys {
    /// Number of keys in both intervals.
    pub fn count(self) -> usize {
        self.sink + (self.end - self.start)
    }

    /// Whether `key` is in one of them.
    pub fn contains(self, key: usize) -> bool {
        key < self.sink || (self.start <= key && key < self.end)
    }

    /// The keys in rising order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.sink).chain(self.start..self.end)
    }

    /// Clips `[0, sink)` and `[start, end)` to `keys` keys and makes them disjoint.
    pub(crate) fn new(keys: usize, sink: i64, start: i64, end: i64) -> Self {
        let clip = |x: i64| x.clamp(0, reach(keys)) as usize;
        let sink = clip(sink);
        let start = clip(start).max(sink);
        RowKeys { sink, start, end: clip(end).max(start) }
    }
}

/// A distance or count as i64, cut where sums of two of them and a position cannot overflow.
pub(crate) fn reach(x: usize) -> i64 {
    (x as u64).min(1 << 61) as i64
}
