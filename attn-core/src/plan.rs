//! Sparse plans: which keys each query attends to, in the one format that every selecting method
//! compiles to and every executor reads.
//!
//! # Meaning
//! A plan defines for every batch entry `b`, query head `h` and query `i` a finite set `S(b, h, i)` of
//! keys, each with a bias `beta` (0 unless its entry has one). With `s_it` the logits of [`crate::dense`]:
//!
//! ```text
//! lse_i = ln sum_{t in S} exp(s_it + beta_t)
//! o_i   = sum_{t in S} exp(s_it + beta_t - lse_i) v_t
//! ```
//!
//! and `o_i = 0`, `lse_i = -inf` where `S` is empty. A bias of at most -1e30 takes its key out of `S`.
//! [`SparsePlan::keys_of`] is the one definition of `S`; conversions, statistics and every kernel are
//! tested against it, and [`forward`] and [`backward`] compute the above in f64.
//!
//! Query `i` stands at `pos(i) = i + q_off` ([`PlanShape::position`]). `S` is the union of
//!
//! * the **near part** of [`Near`]: `t < sink` with `t <= pos - window`, and `pos - window < t <= pos`;
//! * the **explicit part**: keys of the entries with `sink <= t < built_keys`, and `t <= pos - window`
//!   where the plan is causal (`t <= pos` without a near part).
//!
//! The two are disjoint, so a selector may return keys that overlap the window or the sinks. Of both,
//! keys with `pos - t > max_dist` are dropped, and keys beyond the end do not exist: a short last block
//! is a short block.
//!
//! # Layout
//! A *plane* is a batch entry with a head of the plan: `batch * plan_heads` planes, batch outermost
//! ([`Share`]). A *group* is some queries of a plane ([`Rows`]) with the list of keys they share
//! ([`Entries`]); the groups of a plane lie one after another, plane by plane. Everything is a flat
//! vector of 32-bit words, in the order in which a device reads it. Several [`Part`]s serve plans that
//! mix kinds.
//!
//! # Queries in several groups
//! [`Combine`] says what happens to a query that is in several groups. Each group `g` is a softmax of
//! its own with result `o_g`, `lse_g`, and
//!
//! ```text
//! o   = sum_g exp(lambda_g) o_g / sum_g exp(lambda_g)
//! lse = ln sum_g exp(lambda_g)
//! ```
//!
//! A near part that is not empty is one more group, with `lambda = lse` for `Lse` and `Gate`, and
//! `lambda = 0` for `Mean`. A group counts for the queries that it lists, even if nothing in it is
//! visible to them: it then has `o_g = 0`, `lse_g = -inf`. A query whose groups are all empty has
//! output 0 and log-sum-exp -inf.
//!
//! # Sound and canonical
//! [`SparsePlan::check`] accepts every plan that has a meaning: entries in any order, overlapping,
//! partly out of sight. Executors want the canonical form, which [`SparsePlan::canonicalise`] makes and
//! [`SparsePlan::validate`] demands; `validate` accepts exactly the plans that `canonicalise` leaves as
//! they are.

mod build;
mod canonical;
mod convert;
mod entries;
mod keys;
mod reference;
mod rows;
mod stats;
mod validate;

pub use entries::{Entries, Part};
pub use keys::QueryGroup;
pub use reference::{Grads, backward, forward, forward_rows};
pub use rows::Rows;
pub use stats::{PlanStats, Tile};

use crate::AttentionShape;

/// Extents a plan was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct PlanShape {
    /// Independent sequences, B.
    pub batch: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key heads; divides `heads`.
    pub heads_kv: usize,
    /// Queries of a sequence, M.
    pub queries: usize,
    /// Keys of a sequence, N.
    pub keys: usize,
    /// Keys there were when the entries were selected, at most `keys`: entries end there. Smaller than
    /// `keys` only in a plan that is used again after keys came ([`SparsePlan::reuse`]).
    pub built_keys: usize,
    /// Position of query 0 on the axis of the keys: `keys - queries` unless set otherwise, and
    /// negative where there are more queries than keys.
    pub q_off: i64,
}

impl PlanShape {
    /// With the last query at the last key.
    pub fn new(batch: usize, heads: usize, heads_kv: usize, queries: usize, keys: usize) -> Self {
        let signed = |x: usize| i64::try_from(x).unwrap_or(i64::MAX);
        let q_off = signed(keys).saturating_sub(signed(queries));
        PlanShape { batch, heads, heads_kv, queries, keys, built_keys: keys, q_off }
    }

    /// Position of `query` on the axis of the keys.
    pub fn position(&self, query: usize) -> i64 {
        self.q_off.saturating_add(i64::try_from(query).unwrap_or(i64::MAX))
    }

    /// Query heads that share one key head, at least 1.
    pub fn group(&self) -> usize {
        self.heads.checked_div(self.heads_kv).unwrap_or(1).max(1)
    }
}

impl From<&AttentionShape> for PlanShape {
    fn from(shape: &AttentionShape) -> Self {
        PlanShape::new(shape.batch, shape.heads, shape.heads_kv, shape.queries, shape.keys)
    }
}

/// Which query heads share one list of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Share {
    /// None: `heads` plan heads.
    #[default]
    PerHead,
    /// Those of one key head: `heads_kv` plan heads.
    PerKvHead,
    /// All: one plan head.
    AllHeads,
}

/// Keys that every query sees without an entry: sinks and a causal window. The default has neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Near {
    /// The first `sink` keys.
    pub sink: u32,
    /// The last `window` keys up to the query's own: `pos - window < t <= pos`.
    pub window: u32,
    /// Whether the window widens by `keys - built_keys` in a plan that is used again, so that keys
    /// which left the window, but which the selector never saw, are kept.
    pub grow: bool,
}

/// How the groups of one query become one result. See [the module](self).
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Combine {
    /// A query is in at most one group that has entries; it and the near part are one softmax.
    #[default]
    Single,
    /// `lambda_g = lse_g`: one softmax over all groups, where a key in two of them counts twice.
    Lse,
    /// `lambda_g = 0`: the mean of the groups.
    Mean,
    /// `lambda_g` is given: a softmax over groups of a softmax over keys. For each part its logits
    /// `[groups, queries of the group]`, group after group, or `None` where `lambda_g = lse_g`.
    /// A logit of at most -1e30 takes the group away from the query.
    Gate(Vec<Option<Vec<f32>>>),
}

/// Which keys each query attends to. See [the module](self).
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SparsePlan {
    /// Extents it was made for.
    pub shape: PlanShape,
    /// Whether `t <= pos` holds for every key, whatever the entries say.
    pub causal: bool,
    /// Which heads share a list.
    pub share: Share,
    /// Keys without entries; only in causal plans.
    pub near: Near,
    /// Largest distance `pos - t` of a key, if there is one: the `left` of [`crate::Mask::Window`].
    pub max_dist: Option<u32>,
    /// Explicit keys; usually one part, none in a plan of the near part alone.
    pub parts: Vec<Part>,
    /// What happens to queries in several groups.
    pub combine: Combine,
}

impl SparsePlan {
    /// A plan of these parts, without near part or largest distance, each query in one group.
    pub fn new(shape: PlanShape, share: Share, causal: bool, parts: Vec<Part>) -> Self {
        let (near, combine) = (Near::default(), Combine::Single);
        SparsePlan { shape, causal, share, near, max_dist: None, parts, combine }
    }

    /// The same with sinks and a window.
    pub fn with_near(mut self, near: Near) -> Self {
        self.near = near;
        self
    }

    /// The same without keys farther than `max_dist` before the query.
    pub fn with_max_dist(mut self, max_dist: u32) -> Self {
        self.max_dist = Some(max_dist);
        self
    }

    /// The same with another way to combine groups.
    pub fn with_combine(mut self, combine: Combine) -> Self {
        self.combine = combine;
        self
    }

    /// Lists of keys for each batch entry.
    pub fn plan_heads(&self) -> usize {
        match self.share {
            Share::PerHead => self.shape.heads,
            Share::PerKvHead => self.shape.heads_kv,
            Share::AllHeads => self.shape.heads.min(1),
        }
    }

    /// Number of planes.
    pub fn planes(&self) -> usize {
        self.shape.batch.saturating_mul(self.plan_heads())
    }

    /// The plane of a query head; `None` where `batch` or `head` is out of range.
    pub fn plane_of(&self, batch: usize, head: usize) -> Option<usize> {
        if batch >= self.shape.batch || head >= self.shape.heads {
            return None;
        }
        let plan_head = match self.share {
            Share::PerHead => head,
            Share::PerKvHead => head / self.shape.group(),
            Share::AllHeads => 0,
        };
        batch.checked_mul(self.plan_heads())?.checked_add(plan_head)
    }

    /// The window in force, widened where `near.grow` says so.
    pub fn window(&self) -> u64 {
        let came = self.shape.keys.saturating_sub(self.shape.built_keys) as u64;
        u64::from(self.near.window).saturating_add(if self.near.grow { came } else { 0 })
    }
}
