//! The paper's equations on the host, in f64.
//!
//! Per batch entry and head, with N tokens, centroids `mu` `[C, D]` and windows of w tokens:
//!
//! ```text
//! 1  k = q                                    shared queries and keys
//! 2  x^ = (x - mean x) / sqrt(var x + 1e-6)    of q and of k, over D
//! 3  s_q[n,c] = q^_n . mu_c                    and s_k from k^
//! 4  Q_c, K_c = the w tokens of largest s_q[.,c], s_k[.,c]; of equal ones the first
//! 5  y[c,i]  = sum_{j in K_c} softmax_j(scale q^_i . k^_j) v_j    i in Q_c; causal: j <= i
//! 6  out_i   = sum_c y[c,i] / (n_i + epsilon)  n_i = number of centroids with i in Q_c; 0 if none
//! ```

mod backward;
mod centroids;
mod stream;

use attn_core::plan::{Combine, Entries, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::{AttentionShape, Error, Result, dense};
use ndarray::{Array1, Array3, Array4, ArrayView1, ArrayView2, ArrayView4, s};

pub use backward::{Grads, backward, commitment_loss};
pub(crate) use centroids::{COUNT_EPSILON, DEAD};
pub use centroids::{Centroids, Uninitialised, update};
pub use stream::State;

use crate::Config;

/// Added to the variance in step 2.
pub(crate) const VARIANCE_EPSILON: f64 = 1e-6;

/// Queries, keys and values; sinks are not of this method.
pub type Inputs<'a> = dense::Inputs<'a>;

/// Which tokens each centroid takes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Routes {
    /// Queries of each centroid, rising, by plane (batch entry and head) and centroid.
    pub queries: Vec<Vec<Vec<usize>>>,
    /// Keys of each centroid, as the queries.
    pub keys: Vec<Vec<Vec<usize>>>,
    /// Number of centroids that took a token as a query, `[batch, heads, tokens]`.
    pub counts: Array3<usize>,
    /// The centroid of largest score of each query, `[batch, heads, tokens]`; `None` for padding.
    pub assigned_q: Array3<Option<usize>>,
    /// Of each key.
    pub assigned_k: Array3<Option<usize>>,
}

impl Routes {
    /// The routes as a plan: a group for each centroid, and the mean over the groups of a query.
    ///
    /// # Errors
    /// [`Error`] for routes that were changed to what is none.
    pub fn plan(&self, causal: bool) -> Result<SparsePlan> {
        let (batch, heads, tokens) = self.counts.dim();
        let flat = |lists: &[Vec<Vec<usize>>]| {
            let (mut ends, mut all) = (vec![0], Vec::new());
            for list in lists.iter().flatten() {
                all.extend(list.iter().map(|&token| token as u32));
                ends.push(all.len() as u32);
            }
            (ends, all)
        };
        let groups = |sum: &mut u32, plane: &Vec<Vec<usize>>| {
            *sum += plane.len() as u32;
            Some(*sum)
        };
        let plane_ptr = [0].into_iter().chain(self.queries.iter().scan(0, groups)).collect();
        let (q_ptr, q_idx) = flat(&self.queries);
        let (row_ptr, k_idx) = flat(&self.keys);
        let rows = Rows::Lists { plane_ptr, q_ptr, q_idx };
        let part = Part::new(rows, Entries::Tokens { row_ptr, k_idx });
        let shape = PlanShape::new(batch, heads, heads, tokens, tokens);
        let plan = SparsePlan::new(shape, Share::PerHead, causal, vec![part]);
        plan.with_combine(Combine::Mean).canonicalise()
    }
}

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// `[batch, heads, tokens, dim]`; 0 for a token that no centroid took.
    pub out: Array4<f64>,
    /// Who attended to whom.
    pub routes: Routes,
}

/// Normalised tokens and what their derivative needs.
pub(crate) struct Normalised {
    /// `[batch, heads, tokens, dim]`.
    pub(crate) x: Array4<f64>,
    /// `1 / sqrt(var + 1e-6)`, `[batch, heads, tokens]`.
    pub(crate) inverse: Array3<f64>,
}

/// Step 2.
pub(crate) fn normalise(x: ArrayView4<'_, f64>) -> Normalised {
    let (batch, heads, tokens, dim) = x.dim();
    let mut out = x.to_owned();
    let mut inverse = Array3::zeros((batch, heads, tokens));
    for (mut row, inverse) in out.rows_mut().into_iter().zip(inverse.iter_mut()) {
        let mean = row.sum() / dim as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / dim as f64;
        *inverse = 1.0 / (variance + VARIANCE_EPSILON).sqrt();
        row.mapv_inplace(|x| (x - mean) * *inverse);
    }
    Normalised { x: out, inverse }
}

/// Checks a call; there are as many heads of keys as of queries.
pub(crate) fn check(
    inputs: Inputs<'_>,
    centroids: &Centroids,
    config: &Config,
) -> Result<AttentionShape> {
    config.validate()?;
    let shape = inputs.check()?;
    if inputs.sinks.is_some() {
        return Err(Error::config("sinks", "none", "some"));
    }
    if shape.heads_kv != shape.heads {
        let expected = format!("{} heads: repeat those that queries share", shape.heads);
        return Err(Error::shape("k", expected, inputs.k.shape()));
    }
    if shape.queries != shape.keys {
        let expected = format!("{} tokens, as q", shape.queries);
        return Err(Error::shape("k", expected, inputs.k.shape()));
    }
    let expected = [shape.heads, config.clusters, shape.dim_qk];
    if centroids.means.shape() != expected {
        return Err(Error::shape("centroids", format!("{expected:?}"), centroids.means.shape()));
    }
    Ok(shape)
}

/// Steps 3 and 4, with padding (`valid` `[batch, tokens]` false) never taken.
///
/// # Errors
/// As [`forward`].
pub fn route(
    inputs: Inputs<'_>,
    valid: Option<ArrayView2<'_, bool>>,
    centroids: &Centroids,
    config: &Config,
) -> Result<Routes> {
    let shape = check(inputs, centroids, config)?;
    let (batch, tokens) = (shape.batch, shape.queries);
    if let Some(valid) = valid
        && valid.dim() != (batch, tokens)
    {
        return Err(Error::shape("valid", format!("[{batch}, {tokens}]"), valid.shape()));
    }
    let q = normalise(inputs.q).x;
    let k = if config.shared_qk { q.clone() } else { normalise(inputs.k).x };
    let sides = [&q, &k].map(|x| {
        let mut members = Vec::new();
        let mut assigned = Array3::from_elem((batch, shape.heads, tokens), None);
        for plane in 0..batch * shape.heads {
            let (entry, head) = (plane / shape.heads, plane % shape.heads);
            let means = centroids.means.slice(s![head, .., ..]);
            let mut scores = x.slice(s![entry, head, .., ..]).dot(&means.t());
            let is_padding = |token: usize| valid.is_some_and(|valid| !valid[[entry, token]]);
            for token in (0..tokens).filter(|&token| is_padding(token)) {
                scores.row_mut(token).fill(f64::NEG_INFINITY);
            }
            let of = |cluster| best(scores.column(cluster), config.window, &is_padding);
            members.push((0..config.clusters).map(of).collect::<Vec<_>>());
            for token in (0..tokens).filter(|&token| !is_padding(token)) {
                assigned[[entry, head, token]] = Some(nearest(scores.row(token)));
            }
        }
        (members, assigned)
    });
    let [(queries, assigned_q), (keys, assigned_k)] = sides;
    let mut counts = Array3::zeros((batch, shape.heads, tokens));
    for (plane, clusters) in queries.iter().enumerate() {
        for &token in clusters.iter().flatten() {
            counts[[plane / shape.heads, plane % shape.heads, token]] += 1;
        }
    }
    Ok(Routes { queries, keys, counts, assigned_q, assigned_k })
}

/// The whole layer without training.
///
/// # Errors
/// [`Error::Config`] for parameters out of range or sinks, [`Error::Shape`] for tensors or centroids
/// that do not fit.
pub fn forward(
    inputs: Inputs<'_>,
    valid: Option<ArrayView2<'_, bool>>,
    centroids: &Centroids,
    config: &Config,
) -> Result<Output> {
    let routes = route(inputs, valid, centroids, config)?;
    let out = attend(inputs, &routes, config)?;
    Ok(Output { out, routes })
}

/// Steps 5 and 6, with routes that are given: causal where the configuration is, whatever they are.
///
/// # Errors
/// As [`forward`].
pub fn attend(inputs: Inputs<'_>, routes: &Routes, config: &Config) -> Result<Array4<f64>> {
    let shape = inputs.check()?;
    let q = normalise(inputs.q).x;
    let k = if config.shared_qk { q.clone() } else { normalise(inputs.k).x };
    let mut out = Array4::zeros(shape.out());
    for (plane, clusters) in routes.queries.iter().enumerate() {
        let (entry, head) = (plane / shape.heads, plane % shape.heads);
        let q = q.slice(s![entry, head, .., ..]);
        let k = k.slice(s![entry, head, .., ..]);
        let v = inputs.v.slice(s![entry, head, .., ..]);
        for (cluster, members) in clusters.iter().enumerate() {
            for &i in members {
                let keys = &routes.keys[plane][cluster];
                let weights = weights(q.row(i), k, keys, i, config);
                let mut row = out.slice_mut(s![entry, head, i, ..]);
                let total = routes.counts[[entry, head, i]] as f64 + config.epsilon;
                for (&j, weight) in keys.iter().zip(&weights) {
                    row.scaled_add(weight / total, &v.row(j));
                }
            }
        }
    }
    Ok(out)
}

/// Step 5 for one query: a softmax over the keys it may see, 0 for the others.
pub(crate) fn weights(
    q: ArrayView1<'_, f64>,
    k: ArrayView2<'_, f64>,
    keys: &[usize],
    query: usize,
    config: &Config,
) -> Array1<f64> {
    let logit = |&j: &usize| match config.causal && j > query {
        true => f64::NEG_INFINITY,
        false => config.scale * q.dot(&k.row(j)),
    };
    let logits: Array1<f64> = keys.iter().map(logit).collect();
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return Array1::zeros(keys.len());
    }
    let weights = logits.mapv(|logit| (logit - top).exp());
    let sum = weights.sum();
    weights / sum
}

/// Step 4 for one centroid: tokens of largest scores, rising.
fn best(
    scores: ArrayView1<'_, f64>,
    window: usize,
    is_padding: &dyn Fn(usize) -> bool,
) -> Vec<usize> {
    let mut tokens: Vec<usize> = (0..scores.len()).filter(|&token| !is_padding(token)).collect();
    tokens.sort_by(|&a, &b| rank(scores[b]).total_cmp(&rank(scores[a])));
    tokens.truncate(window);
    tokens.sort_unstable();
    tokens
}

fn nearest(scores: ArrayView1<'_, f64>) -> usize {
    let mut best = 0;
    for (cluster, &score) in scores.iter().enumerate() {
        if rank(score) > rank(scores[best]) {
            best = cluster;
        }
    }
    best
}

/// What is not a number is below everything.
fn rank(score: f64) -> f64 {
    if score.is_nan() { f64::NEG_INFINITY } else { score }
}

/// Tokens as rows, of one head: `[batch * tokens, dim]` of what is not padding, with their centroids.
pub(crate) fn rows_of(
    x: &Array4<f64>,
    assigned: &Array3<Option<usize>>,
    head: usize,
) -> Vec<(usize, Array1<f64>)> {
    let (batch, _, tokens, _) = x.dim();
    let pairs = (0..batch).flat_map(|entry| (0..tokens).map(move |token| (entry, token)));
    let row = |(entry, token): (usize, usize)| {
        let cluster = assigned[[entry, head, token]]?;
        Some((cluster, x.slice(s![entry, head, token, ..]).to_owned()))
    };
    pairs.filter_map(row).collect()
}
