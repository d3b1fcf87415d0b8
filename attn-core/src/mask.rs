//! Which query-key pairs are allowed.

use crate::{Error, Result};

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

/// Which keys a query may see.
///
/// The rule of each variant is written with `pos`, the position of the query on the axis of the
/// keys ([`Lengths::position`]: bottom-right alignment), and `t`, the key. [`Mask::allows`] is the
/// one definition; [`Mask::row`] and every kernel are tested against it.
///
/// A query without any allowed key is legal: its output is 0 and its log-sum-exp is -inf.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Mask {
    /// Every key.
    #[default]
    Full,
    /// `t <= pos`.
    Causal,
    /// `pos - left <= t <= pos + right`. A model's "sliding window of W tokens" is
    /// `left = W - 1, right = 0`.
    Window {
        /// Keys before the query's own position that it sees.
        left: usize,
        /// Keys after the query's own position that it sees.
        right: usize,
    },
    /// `|pos - t| <= window`, or `0 <= pos < global`, or `t < global`: the first `global` tokens
    /// see everything and are seen by everything.
    GlobalWindow {
        /// Reach to both sides.
        window: usize,
        /// Number of global tokens.
        global: usize,
    },
    /// `t <= pos` or `t < prefix`: a prefix that is seen as a whole, then causal.
    PrefixLm {
        /// Length of the prefix.
        prefix: usize,
    },
    /// Several sequences packed after another (variable-length form): a query sees keys of its own
    /// document only, by the rule `inner` with positions and lengths counted inside the document.
    Documents {
        /// Offsets of the documents in the queries: first 0, never falling, last M.
        cu_q: Vec<usize>,
        /// Offsets of the documents in the keys: as many, first 0, never falling, last N.
        cu_k: Vec<usize>,
        /// The rule inside a document; any mask that has no offsets of its own.
        inner: Box<Mask>,
    },
    /// Causal inside a document, and the first document that is not empty (the question) is seen by
    /// all: offsets on the axis of the keys.
    ShareQuestion {
        /// Offsets of the documents: first 0, never falling, last N.
        cu: Vec<usize>,
    },
    /// Causal inside a document, and the last document that is not empty (the test example) sees
    /// all documents before it (the demonstrations).
    CausalBlockwise {
        /// Offsets of the documents: first 0, never falling, last N.
        cu: Vec<usize>,
    },
    /// Inside a document, all keys up to the end of the query's block:
    /// `t < (pos / block + 1) * block`, where blocks are counted from key 0.
    BlockCausalDocuments {
        /// Offsets of the documents: first 0, never falling, last N.
        cu: Vec<usize>,
        /// Tokens in a block, at least 1.
        block: usize,
    },
}

/// The keys one query sees, `[0, sink)` and `[start, end)`, with `sink <= start <= end <= keys`.
///
/// Every mask of this crate has this form, so kernels need no other.
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
    /// Number of allowed keys.
    pub fn count(self) -> usize {
        self.sink + (self.end - self.start)
    }

    /// Whether `key` is among them.
    pub fn contains(self, key: usize) -> bool {
        key < self.sink || (self.start <= key && key < self.end)
    }

    /// The keys in rising order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.sink).chain(self.start..self.end)
    }

    /// Clips `[0, sink)` and `[start, end)` to `keys` keys and makes them disjoint.
    fn new(keys: usize, sink: i64, start: i64, end: i64) -> Self {
        let clip = |x: i64| x.clamp(0, reach(keys)) as usize;
        let sink = clip(sink);
        let start = clip(start).max(sink);
        RowKeys { sink, start, end: clip(end).max(start) }
    }
}

impl Mask {
    /// Packed documents of equal queries and keys (`cu` offsets) with rule `inner` inside each.
    pub fn documents(cu: &[usize], inner: Mask) -> Mask {
        Mask::Documents { cu_q: cu.to_vec(), cu_k: cu.to_vec(), inner: Box::new(inner) }
    }

    /// Whether `query` may see `key`. Out-of-range indices are never allowed.
    ///
    /// Offsets must have passed [`Mask::validate`]; otherwise the answer has no meaning, but the
    /// call still returns.
    pub fn allows(&self, lengths: Lengths, query: usize, key: usize) -> bool {
        if query >= lengths.queries || key >= lengths.keys {
            return false;
        }
        let pos = lengths.position(query);
        let t = key as i64;
        match self {
            Mask::Full => true,
            Mask::Causal => t <= pos,
            Mask::Window { left, right } => pos - reach(*left) <= t && t <= pos + reach(*right),
            Mask::GlobalWindow { window, global } => {
                (pos - t).abs() <= reach(*window)
                    || (0..reach(*global)).contains(&pos)
                    || t < reach(*global)
            }
            Mask::PrefixLm { prefix } => t <= pos || t < reach(*prefix),
            Mask::Documents { cu_q, cu_k, inner } => {
                let (Some(d), Some(e)) = (document(cu_q, query as i64), document(cu_k, t)) else {
                    return false;
                };
                d == e
                    && inner.allows(document_lengths(cu_q, cu_k, d), query - cu_q[d], key - cu_k[d])
            }
            Mask::ShareQuestion { cu } => {
                let (Some(d), Some(e)) = (document(cu, pos), document(cu, t)) else {
                    return false;
                };
                (d == e && t <= pos) || (e == first_document(cu) && d != e)
            }
            Mask::CausalBlockwise { cu } => {
                let (Some(d), Some(e)) = (document(cu, pos), document(cu, t)) else {
                    return false;
                };
                let last = last_document(cu);
                (d == e && t <= pos) || (d == last && e != last)
            }
            Mask::BlockCausalDocuments { cu, block } => {
                let (Some(d), Some(e)) = (document(cu, pos), document(cu, t)) else {
                    return false;
                };
                let block = reach(*block).max(1);
                d == e && t < (pos / block + 1) * block
            }
        }
    }

    /// The keys that `query` sees, as intervals: the same set as [`Mask::allows`].
    pub fn row(&self, lengths: Lengths, query: usize) -> RowKeys {
        if query >= lengths.queries {
            return RowKeys::default();
        }
        let pos = lengths.position(query);
        let n = reach(lengths.keys);
        let keys = |sink, start, end| RowKeys::new(lengths.keys, sink, start, end);
        let in_document =
            |cu: &[usize]| document(cu, pos).map(|d| (d, reach(cu[d]), reach(cu[d + 1])));
        match self {
            Mask::Full => keys(0, 0, n),
            Mask::Causal => keys(0, 0, pos + 1),
            Mask::Window { left, right } => keys(0, pos - reach(*left), pos + reach(*right) + 1),
            Mask::GlobalWindow { window, global } => {
                if (0..reach(*global)).contains(&pos) {
                    keys(0, 0, n)
                } else {
                    keys(reach(*global), pos - reach(*window), pos + reach(*window) + 1)
                }
            }
            Mask::PrefixLm { prefix } => keys(0, 0, (pos + 1).max(reach(*prefix))),
            Mask::Documents { cu_q, cu_k, inner } => {
                let Some(d) = document(cu_q, query as i64).filter(|&d| d + 1 < cu_k.len()) else {
                    return RowKeys::default();
                };
                let local = inner.row(document_lengths(cu_q, cu_k, d), query - cu_q[d]);
                // Inner masks have no sink (validate sees to it): [0, sink) of a document would not
                // be a prefix of the packed keys.
                let offset = cu_k[d];
                let shift = |t: usize| reach(offset.saturating_add(t));
                keys(0, shift(local.start), shift(local.end))
            }
            Mask::ShareQuestion { cu } => match in_document(cu) {
                None => RowKeys::default(),
                Some((d, start, _)) => {
                    let first = first_document(cu);
                    let question =
                        if d == first { 0 } else { cu.get(first + 1).map_or(0, |&e| reach(e)) };
                    keys(question, start, pos + 1)
                }
            },
            Mask::CausalBlockwise { cu } => match in_document(cu) {
                None => RowKeys::default(),
                Some((d, start, _)) => {
                    keys(0, if d == last_document(cu) { 0 } else { start }, pos + 1)
                }
            },
            Mask::BlockCausalDocuments { cu, block } => match in_document(cu) {
                None => RowKeys::default(),
                Some((_, start, end)) => {
                    let block = reach(*block).max(1);
                    keys(0, start, end.min((pos / block + 1) * block))
                }
            },
        }
    }

    /// Number of allowed pairs for one head: the area that FLOP counts are made from.
    pub fn pairs(&self, lengths: Lengths) -> u64 {
        (0..lengths.queries).map(|i| self.row(lengths, i).count() as u64).sum()
    }

    /// `(left, right)` where this mask is a window around the query's position: full, causal and
    /// window masks. `None` for all others.
    pub fn as_window(&self) -> Option<(usize, usize)> {
        match self {
            Mask::Full => Some((usize::MAX, usize::MAX)),
            Mask::Causal => Some((usize::MAX, 0)),
            Mask::Window { left, right } => Some((*left, *right)),
            _ => None,
        }
    }

    /// Checks the parameters of the mask against the lengths of a call.
    ///
    /// # Errors
    /// [`Error::Data`] for offsets that do not start at 0, fall, or do not end at the length;
    /// [`Error::Config`] for a block of 0 tokens or an inner mask that cannot be one.
    pub fn validate(&self, lengths: Lengths) -> Result<()> {
        match self {
            Mask::Full
            | Mask::Causal
            | Mask::Window { .. }
            | Mask::GlobalWindow { .. }
            | Mask::PrefixLm { .. } => Ok(()),
            Mask::Documents { cu_q, cu_k, inner } => {
                check_offsets("cu_q", cu_q, lengths.queries)?;
                check_offsets("cu_k", cu_k, lengths.keys)?;
                if cu_q.len() != cu_k.len() {
                    return Err(Error::data(
                        "cu_k",
                        format!("{} offsets, as many as cu_q", cu_q.len()),
                        format!("{} offsets", cu_k.len()),
                    ));
                }
                match **inner {
                    Mask::Full | Mask::Causal | Mask::Window { .. } | Mask::PrefixLm { .. } => {
                        Ok(())
                    }
                    _ => Err(Error::config(
                        "inner",
                        "Full, Causal, Window or PrefixLm",
                        format!("{inner:?}"),
                    )),
                }
            }
            Mask::ShareQuestion { cu } | Mask::CausalBlockwise { cu } => {
                check_offsets("cu", cu, lengths.keys)
            }
            Mask::BlockCausalDocuments { cu, block } => {
                if *block == 0 {
                    return Err(Error::config("block", "at least 1", 0));
                }
                check_offsets("cu", cu, lengths.keys)
            }
        }
    }

    /// Short name for tables and reports, as `causal` or `window(1023,0)`.
    pub fn name(&self) -> String {
        match self {
            Mask::Full => "full".into(),
            Mask::Causal => "causal".into(),
            Mask::Window { left, right } => format!("window({left},{right})"),
            Mask::GlobalWindow { window, global } => format!("global-window({window},{global})"),
            Mask::PrefixLm { prefix } => format!("prefix-lm({prefix})"),
            Mask::Documents { cu_q, inner, .. } => {
                format!("{} in {} documents", inner.name(), cu_q.len().saturating_sub(1))
            }
            Mask::ShareQuestion { .. } => "share-question".into(),
            Mask::CausalBlockwise { .. } => "causal-blockwise".into(),
            Mask::BlockCausalDocuments { block, .. } => format!("block-causal-documents({block})"),
        }
    }
}

/// A distance or count as i64, cut where sums of two of them and a position cannot overflow.
fn reach(x: usize) -> i64 {
    (x as u64).min(1 << 61) as i64
}

/// Index of the document that holds `position`; empty documents hold nothing.
fn document(cu: &[usize], position: i64) -> Option<usize> {
    let position = usize::try_from(position).ok()?;
    let after = cu.partition_point(|&offset| offset <= position);
    (after > 0 && after < cu.len()).then(|| after - 1)
}

/// The first document that is not empty (0 if there is none).
fn first_document(cu: &[usize]) -> usize {
    document(cu, 0).unwrap_or(0)
}

/// The last document that is not empty (0 if there is none).
fn last_document(cu: &[usize]) -> usize {
    cu.last().and_then(|&end| document(cu, reach(end) - 1)).unwrap_or(0)
}

fn document_lengths(cu_q: &[usize], cu_k: &[usize], d: usize) -> Lengths {
    let len = |cu: &[usize]| match (cu.get(d), cu.get(d + 1)) {
        (Some(start), Some(end)) => end.saturating_sub(*start),
        _ => 0,
    };
    Lengths::new(len(cu_q), len(cu_k))
}

fn check_offsets(arg: &'static str, cu: &[usize], length: usize) -> Result<()> {
    let expected = || format!("offsets that start at 0, never fall, and end at {length}");
    match (cu.first(), cu.last()) {
        (Some(0), Some(&last)) if last == length => {}
        (Some(0), Some(last)) => {
            return Err(Error::data(arg, expected(), format!("last offset {last}")));
        }
        (Some(first), _) => {
            return Err(Error::data(arg, expected(), format!("first offset {first}")));
        }
        _ => return Err(Error::data(arg, expected(), "no offset")),
    }
    if let Some(at) = cu.windows(2).position(|pair| pair[0] > pair[1]) {
        return Err(Error::data(arg, expected(), format!("{} after {}", cu[at + 1], cu[at])));
    }
    Ok(())
}
