//! Token by token: what each centroid holds.

use attn_core::{Error, Result};
use ndarray::{Array4, s};

use super::{Centroids, Inputs, check, normalise, weights};
use crate::Config;

/// Tokens that the centroids hold, at most `window` each, with their keys and values.
///
/// A token's output is that of the last row of [`super::forward`] on the tokens up to it. It differs from
/// the token's row in a longer text: there, later tokens may push earlier ones out.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Tokens so far.
    tokens: usize,
    /// By plane and centroid: the queries, and the keys, that it holds, rising.
    lists: Vec<Vec<[Vec<Held>; 2]>>,
    /// All normalised keys and values so far, `[batch, heads, tokens, dim]`.
    seen: Option<[Array4<f64>; 2]>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    token: usize,
    score: f64,
}

impl State {
    /// Before the first token of `batch` sequences.
    pub fn new(batch: usize, centroids: &Centroids) -> Self {
        let (heads, clusters) = centroids.counts.dim();
        State {
            tokens: 0,
            lists: vec![vec![Default::default(); clusters]; batch * heads],
            seen: None,
        }
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// The output of some new tokens, `[batch, heads, new, dim]`, one after the other.
    ///
    /// # Errors
    /// As [`super::forward`], and where attention is not causal.
    pub fn decode(
        &mut self,
        inputs: Inputs<'_>,
        centroids: &Centroids,
        config: &Config,
    ) -> Result<Array4<f64>> {
        let shape = check(inputs, centroids, config)?;
        if !config.causal {
            return Err(Error::config("causal", "true", "false"));
        }
        if self.lists.len() != shape.batch * shape.heads {
            let expected = format!("{} planes of heads, as before", self.lists.len());
            return Err(Error::shape("q", expected, inputs.q.shape()));
        }
        let q = normalise(inputs.q).x;
        let k = if config.shared_qk { q.clone() } else { normalise(inputs.k).x };
        self.seen = Some(match self.seen.take() {
            None => [k, inputs.v.to_owned()],
            Some([keys, values]) => [(keys, k.view()), (values, inputs.v)].map(|(mut all, new)| {
                // The extents were checked, so that nothing is left out.
                let _ = all.append(ndarray::Axis(2), new);
                all
            }),
        });
        let Some([keys, values]) = &self.seen else { return Ok(Array4::zeros(shape.out())) };
        let mut out = Array4::zeros(shape.out());
        for (plane, lists) in self.lists.iter_mut().enumerate() {
            let (entry, head) = (plane / shape.heads, plane % shape.heads);
            let means = centroids.means.slice(s![head, .., ..]);
            let q = q.slice(s![entry, head, .., ..]);
            let (k, v) =
                (keys.slice(s![entry, head, .., ..]), values.slice(s![entry, head, .., ..]));
            for new in 0..shape.queries {
                let token = self.tokens + new;
                let mut held = Vec::new();
                for ([queries, keys], mean) in lists.iter_mut().zip(means.rows()) {
                    let scores = [q.row(new).dot(&mean), k.row(token).dot(&mean)];
                    let [as_query, as_key] = scores.map(|score| Held { token, score });
                    enter(keys, as_key, config.window);
                    if enter(queries, as_query, config.window) {
                        held.push(keys.iter().map(|held| held.token).collect::<Vec<_>>());
                    }
                }
                let total = held.len() as f64 + config.epsilon;
                let mut row = out.slice_mut(s![entry, head, new, ..]);
                for list in &held {
                    let weights = weights(q.row(new), k, list, token, config);
                    for (&j, weight) in list.iter().zip(&weights) {
                        row.scaled_add(weight / total, &v.row(j));
                    }
                }
            }
        }
        self.tokens += shape.queries;
        Ok(out)
    }
}

/// Puts a token into a list if there is room, or if it is nearer than the farthest, of which the last
/// leaves.
fn enter(list: &mut Vec<Held>, new: Held, window: usize) -> bool {
    if list.len() < window {
        list.push(new);
        return true;
    }
    let mut last: Option<usize> = None;
    for (at, held) in list.iter().enumerate() {
        if last.is_none_or(|last| held.score <= list[last].score) {
            last = Some(at);
        }
    }
    match last {
        Some(last) if new.score > list[last].score => {
            list.remove(last);
            list.push(new);
            true
        }
        _ => false,
    }
}
