use ndarray::{ArrayView1, ArrayView2};

use super::Config;
use crate::{Lengths, ModifierArgs};

/// A key that takes part in the softmax of a query.
pub(crate) struct Member {
    pub key: usize,
    /// Its logit: scaled, capped and modified.
    pub logit: f64,
    /// The product capped: what the modifier was given.
    capped: f64,
    /// Derivative of the soft-cap by the scaled product.
    cap_slope: f64,
}

/// One query of one head.
pub(crate) struct Row<'a> {
    config: &'a Config,
    lengths: Lengths,
    query: usize,
    first_key: usize,
    /// Its place, with key 0.
    at: ModifierArgs,
}

impl<'a> Row<'a> {
    pub fn new(config: &'a Config, lengths: Lengths, [batch, head, query]: [usize; 3]) -> Self {
        let place = config.mask.place(lengths, query);
        let at = ModifierArgs { batch, head, position: place.position, key: 0 };
        Row { config, lengths, query, first_key: place.first_key, at }
    }

    /// The same at another position on the axis of the keys.
    pub fn at_position(mut self, position: i64) -> Self {
        self.at.position = position;
        self
    }

    /// The keys that the mask allows.
    pub fn keys(&self) -> impl Iterator<Item = usize> {
        self.config.mask.keys(self.lengths, self.query)
    }

    /// The logit of `key` after the modifier, or `None` where it counts as masked.
    pub fn modify(&self, score: f64, key: usize) -> Option<f64> {
        self.config.modify(score, &self.at(key))
    }

    /// Derivative of [`Row::modify`] by the score.
    pub fn modify_slope(&self, score: f64, key: usize) -> f64 {
        self.config.modify_slope(score, &self.at(key))
    }

    /// The members of the softmax of this query, by rising key.
    pub fn members(&self, q: ArrayView1<'_, f64>, k: ArrayView2<'_, f64>, into: &mut Vec<Member>) {
        into.clear();
        into.extend(self.keys().filter_map(|key| self.member(q, k, key)));
    }

    /// What `key` is in the softmax, or `None` where it counts as masked. The mask is not asked.
    pub fn member(
        &self,
        q: ArrayView1<'_, f64>,
        k: ArrayView2<'_, f64>,
        key: usize,
    ) -> Option<Member> {
        let product = self.config.scale_for(q.len()) * q.dot(&k.row(key));
        let (capped, cap_slope) = match self.config.soft_cap {
            None => (product, 1.0),
            // 1 - tanh^2, without cancellation.
            Some(cap) => (cap * (product / cap).tanh(), (product / cap).cosh().recip().powi(2)),
        };
        Some(Member { key, logit: self.modify(capped, key)?, capped, cap_slope })
    }

    /// Derivative of a member's logit by the scaled product.
    pub fn slope(&self, member: &Member) -> f64 {
        member.cap_slope * self.modify_slope(member.capped, member.key)
    }

    fn at(&self, key: usize) -> ModifierArgs {
        ModifierArgs { key: key.saturating_sub(self.first_key), ..self.at }
    }
}
