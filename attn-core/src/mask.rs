//! Which query-key pairs are allowed.

use crate::offsets::{check_offsets, document, document_lengths, first_document, last_document};
use crate::rows::reach;
use crate::{BitMask, Error, Lengths, Place, Result, RowKeys};

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
    /// `t <= pos`, and `t >= pos - left` or `t < sinks`: a causal window, and the first `sinks` tokens,
    /// which every later token keeps seeing (the pattern of StreamingLLM). These are tokens, not the
    /// sink logits of [`crate::dense::Inputs`]. [`Mask::Causal`] where `left` reaches all keys,
    /// `Window { left, right: 0 }` where `sinks` is 0.
    SinkWindow {
        /// Keys before the query's own position that it sees.
        left: usize,
        /// Number of sink tokens.
        sinks: usize,
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
    /// Explicit bits, shared by all batch entries and heads.
    Bits(BitMask),
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
            Mask::SinkWindow { left, sinks } => {
                t <= pos && (t >= pos - reach(*left) || t < reach(*sinks))
            }
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
            Mask::Bits(bits) => bits.get(query, key),
        }
    }

    /// The keys that `query` sees, as intervals: the same set as [`Mask::allows`], except for
    /// [`Mask::Bits`], where it is the smallest interval `start..end` (with `sink` 0) that holds
    /// them, and `0..0` if there are none. [`Mask::keys`] is exact for all masks.
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
            Mask::SinkWindow { left, sinks } => {
                keys(reach(*sinks).min(pos + 1), pos - reach(*left), pos + 1)
            }
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
            Mask::Bits(bits) => {
                let (start, end) = bits.bounds(query);
                keys(0, reach(start), reach(end))
            }
        }
    }

    /// The keys that `query` sees, in rising order: the same set as [`Mask::allows`].
    pub fn keys(&self, lengths: Lengths, query: usize) -> impl Iterator<Item = usize> {
        let bits = match self {
            Mask::Bits(bits) => Some(bits),
            _ => None,
        };
        let row = self.row(lengths, query);
        row.iter().filter(move |&key| bits.is_none_or(|bits| bits.get(query, key)))
    }

    /// Whether [`Mask::row`] is the set of allowed keys, and not only an interval that holds them:
    /// false for [`Mask::Bits`] alone.
    pub fn is_exact_in_rows(&self) -> bool {
        !matches!(self, Mask::Bits(_))
    }

    /// Where `query` stands in its own document. Only [`Mask::Documents`] counts positions inside
    /// documents; under every other mask the whole axis of the keys is one.
    pub fn place(&self, lengths: Lengths, query: usize) -> Place {
        if let Mask::Documents { cu_q, cu_k, .. } = self
            && let Some(d) = document(cu_q, query as i64)
        {
            let position = document_lengths(cu_q, cu_k, d).position(query - cu_q[d]);
            return Place { position, first_key: cu_k.get(d).copied().unwrap_or(0) };
        }
        Place { position: lengths.position(query), first_key: 0 }
    }

    /// Number of allowed pairs for one head: the area that FLOP counts are made from.
    pub fn pairs(&self, lengths: Lengths) -> u64 {
        let count = |query| match self {
            Mask::Bits(bits) => bits.count(query),
            _ => self.row(lengths, query).count(),
        };
        (0..lengths.queries).map(|query| count(query) as u64).sum()
    }

    /// Whether the rule of this mask shows no query a key after its own position; `None` for explicit
    /// bits, which have no rule. Inside documents positions are those of the document.
    pub fn states_causal(&self) -> Option<bool> {
        match self {
            Mask::Causal
            | Mask::SinkWindow { .. }
            | Mask::ShareQuestion { .. }
            | Mask::CausalBlockwise { .. } => Some(true),
            Mask::Window { right, .. } => Some(*right == 0),
            Mask::Documents { inner, .. } => inner.states_causal(),
            Mask::Full
            | Mask::GlobalWindow { .. }
            | Mask::PrefixLm { .. }
            | Mask::BlockCausalDocuments { .. } => Some(false),
            Mask::Bits(_) => None,
        }
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
    /// [`Error::Data`] for offsets that do not start at 0, fall, or do not end at the length, and
    /// for bits of other lengths; [`Error::Config`] for a block of 0 tokens or an inner mask that cannot be one.
    pub fn validate(&self, lengths: Lengths) -> Result<()> {
        match self {
            Mask::Full
            | Mask::Causal
            | Mask::Window { .. }
            | Mask::SinkWindow { .. }
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
                        inner.name(),
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
            Mask::Bits(bits) => {
                let Lengths { queries, keys } = lengths;
                if (bits.queries(), bits.keys()) == (queries, keys) {
                    return Ok(());
                }
                let got = format!("bits for {} queries and {} keys", bits.queries(), bits.keys());
                Err(Error::data("mask", format!("bits for {queries} queries and {keys} keys"), got))
            }
        }
    }

    /// Short name for tables and reports, as `causal` or `window(1023,0)`.
    pub fn name(&self) -> String {
        match self {
            Mask::Full => "full".into(),
            Mask::Causal => "causal".into(),
            Mask::Window { left, right } => format!("window({left},{right})"),
            Mask::SinkWindow { left, sinks } => format!("sink-window({left},{sinks})"),
            Mask::GlobalWindow { window, global } => format!("global-window({window},{global})"),
            Mask::PrefixLm { prefix } => format!("prefix-lm({prefix})"),
            Mask::Documents { cu_q, inner, .. } => {
                format!("{} in {} documents", inner.name(), cu_q.len().saturating_sub(1))
            }
            Mask::ShareQuestion { .. } => "share-question".into(),
            Mask::CausalBlockwise { .. } => "causal-blockwise".into(),
            Mask::BlockCausalDocuments { block, .. } => format!("block-causal-documents({block})"),
            Mask::Bits(_) => "bits".into(),
        }
    }
}
