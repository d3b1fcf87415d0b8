//! Scores of documents and the contrastive loss.

use attn_core::{Error, Result};
use ndarray::{Array1, Array2, Array4, ArrayView1, ArrayView2, ArrayView4, s};

use crate::{Config, Segments};

/// What [`doc_scores`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Scores {
    /// Mean mass of every document `[batch, documents]`; 0 behind a prompt's last one.
    pub scores: Array2<f64>,
    /// Mass of every document by head and signal token `[batch, heads, signal, documents]`; 0 for heads that
    /// were not chosen.
    pub mass: Array4<f64>,
}

/// Derivatives of a loss by the inputs of [`doc_scores`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ScoreGrads {
    /// By the queries of the signal tokens `[batch, heads, signal, dim]`.
    pub dq: Array4<f64>,
    /// By the keys `[batch, heads_kv, tokens, dim]`; 0 outside of documents.
    pub dk: Array4<f64>,
    /// By the logits `[batch, heads, signal, tokens]`.
    pub dz: Array4<f64>,
}

/// The contrastive loss and its derivative.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Loss {
    /// Mean over the batch.
    pub loss: f64,
    /// Derivative by the scores `[batch, documents]`.
    pub d_scores: Array2<f64>,
}

/// Rows of the signal tokens of `q` `[batch, heads, tokens, dim]`: `[batch, heads, signal, dim]`.
///
/// # Errors
/// As [`Segments::signal_rows`], and [`Error::Shape`] where `q` does not fit the segments.
pub fn signal_queries(
    q: ArrayView4<'_, f64>,
    segments: &Segments,
    config: &Config,
) -> Result<Array4<f64>> {
    let (batch, heads, tokens, dim) = q.dim();
    if (batch, tokens) != (segments.batch(), segments.tokens()) {
        return Err(Error::shape("q", super::expected_of(segments), q.shape()));
    }
    let rows = segments.signal_rows(config.signal_rows)?;
    let at = |(b, h, i, d)| q[[b, h, rows[[b, i]], d]];
    Ok(Array4::from_shape_fn((batch, heads, config.signal_rows, dim), at))
}

/// How much of the attention of the signal tokens each document gets. Queries of the signal tokens
/// `[batch, heads, signal, dim]`, of any number; keys `[batch, heads_kv, tokens, dim]`.
///
/// # Errors
/// [`Error`] for parameters, shapes or segments that do not fit.
pub fn doc_scores(
    q: ArrayView4<'_, f64>,
    k: ArrayView4<'_, f64>,
    segments: &Segments,
    config: &Config,
) -> Result<Scores> {
    let (batch, heads, signal, _) = q.dim();
    let chosen = check(q, k, segments, config)?;
    let documents = segments.most_documents();
    let mut mass = Array4::zeros((batch, heads, signal, documents));
    let mut scores = Array2::zeros((batch, documents));
    for b in 0..batch {
        for &h in &chosen {
            for i in 0..signal {
                let p = probabilities([b, h, i], q, k, segments, config);
                for (number, document) in segments.documents(b).iter().enumerate() {
                    let sum: f64 = document.range().map(|j| p[j]).sum();
                    mass[[b, h, i, number]] = sum;
                    scores[[b, number]] += sum / (chosen.len() * signal) as f64;
                }
            }
        }
    }
    Ok(Scores { scores, mass })
}

/// The derivatives of [`doc_scores`] from those by the scores `[batch, documents]`.
///
/// # Errors
/// As [`doc_scores`], and [`Error::Shape`] for a cotangent of another shape.
pub fn doc_scores_backward(
    q: ArrayView4<'_, f64>,
    k: ArrayView4<'_, f64>,
    segments: &Segments,
    config: &Config,
    d_scores: ArrayView2<'_, f64>,
) -> Result<ScoreGrads> {
    let mass = doc_scores(q, k, segments, config)?.mass;
    let (batch, heads, signal, dim) = q.dim();
    let expected = [batch, segments.most_documents()];
    if d_scores.shape() != expected {
        return Err(Error::shape("d_scores", format!("{expected:?}"), d_scores.shape()));
    }
    let chosen = check(q, k, segments, config)?;
    let group = heads / k.dim().1.max(1);
    let scale = config.scale_for(dim);
    let (mut dq, mut dk) = (Array4::zeros(q.dim()), Array4::zeros(k.dim()));
    let mut dz = Array4::zeros((batch, heads, signal, segments.tokens()));
    for b in 0..batch {
        for &h in &chosen {
            for i in 0..signal {
                let p = probabilities([b, h, i], q, k, segments, config);
                let g = d_scores.row(b);
                let mean = g.dot(&mass.slice(s![b, h, i, ..]));
                for (number, document) in segments.documents(b).iter().enumerate() {
                    for j in document.range() {
                        let d = p[j] * (g[number] - mean) / (chosen.len() * signal) as f64;
                        dz[[b, h, i, j]] = d;
                        let key = k.slice(s![b, h / group, j, ..]);
                        let query = q.slice(s![b, h, i, ..]);
                        dq.slice_mut(s![b, h, i, ..]).scaled_add(scale * d, &key);
                        dk.slice_mut(s![b, h / group, j, ..]).scaled_add(scale * d, &query);
                    }
                }
            }
        }
    }
    Ok(ScoreGrads { dq, dk, dz })
}

/// The contrastive loss of scores `[batch, documents]` with the positive documents of every prompt.
///
/// # Errors
/// [`Error`] for shapes that do not fit, for a prompt without positive document, and for one that there is not.
pub fn loss(
    scores: ArrayView2<'_, f64>,
    positives: &[Vec<usize>],
    segments: &Segments,
    config: &Config,
) -> Result<Loss> {
    config.validate()?;
    let expected = [segments.batch(), segments.most_documents()];
    if scores.shape() != expected {
        return Err(Error::shape("scores", format!("{expected:?}"), scores.shape()));
    }
    check_positives(positives, segments)?;
    let batch = segments.batch();
    let mut result = Loss { loss: 0.0, d_scores: Array2::zeros(scores.dim()) };
    for (b, positives) in positives.iter().enumerate() {
        let logits: Array1<f64> = scores
            .row(b)
            .iter()
            .take(segments.documents(b).len())
            .map(|a| a / config.tau)
            .collect();
        let is_positive = |k: &usize| positives.contains(k);
        let all = log_sum_exp(logits.view(), |_| true);
        let own = log_sum_exp(logits.view(), |k| is_positive(&k));
        result.loss += (all - own) / batch as f64;
        for (k, logit) in logits.iter().enumerate() {
            let of_own = if is_positive(&k) { (logit - own).exp() } else { 0.0 };
            result.d_scores[[b, k]] = ((logit - all).exp() - of_own) / (config.tau * batch as f64);
        }
    }
    Ok(result)
}

/// Numbers of documents, best score first, ties by number.
pub fn rank(scores: ArrayView1<'_, f64>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order
}

/// Probabilities of all tokens, 0 outside of documents.
fn probabilities(
    [b, h, i]: [usize; 3],
    q: ArrayView4<'_, f64>,
    k: ArrayView4<'_, f64>,
    segments: &Segments,
    config: &Config,
) -> Array1<f64> {
    let group = q.dim().1 / k.dim().1.max(1);
    let scale = config.scale_for(q.dim().3);
    let logit = |j: usize| scale * q.slice(s![b, h, i, ..]).dot(&k.slice(s![b, h / group, j, ..]));
    let tokens = || segments.documents(b).iter().flat_map(|document| document.range());
    let logits: Vec<(usize, f64)> = tokens().map(|j| (j, logit(j))).collect();
    let top = logits.iter().map(|(_, z)| *z).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|(_, z)| (z - top).exp()).sum();
    let mut p = Array1::zeros(segments.tokens());
    for (j, z) in logits {
        p[j] = (z - top).exp() / sum;
    }
    p
}

fn log_sum_exp(x: ArrayView1<'_, f64>, counts: impl Fn(usize) -> bool) -> f64 {
    let own = || x.iter().enumerate().filter(|(k, _)| counts(*k)).map(|(_, x)| *x);
    let top = own().fold(f64::NEG_INFINITY, f64::max);
    top + own().map(|x| (x - top).exp()).sum::<f64>().ln()
}

fn check(
    q: ArrayView4<'_, f64>,
    k: ArrayView4<'_, f64>,
    segments: &Segments,
    config: &Config,
) -> Result<Vec<usize>> {
    config.validate()?;
    check_shapes(q.shape(), k.shape(), segments)?;
    config.heads_of(q.dim().1)
}

/// Whether queries of signal tokens and keys fit each other and the segments.
pub(crate) fn check_shapes(q: &[usize], k: &[usize], segments: &Segments) -> Result<()> {
    let (batch, tokens) = (segments.batch(), segments.tokens());
    let &[k_batch, heads_kv, k_tokens, dim] = k else {
        return Err(Error::shape("k", "[batch, heads_kv, tokens, dim]", k));
    };
    if (k_batch, k_tokens) != (batch, tokens) {
        return Err(Error::shape("k", super::expected_of(segments), k));
    }
    let fits = matches!(*q, [b, heads, signal, d] if b == batch && d == dim && signal > 0
        && heads > 0 && heads_kv > 0 && heads.is_multiple_of(heads_kv));
    if fits {
        return Ok(());
    }
    let expected = format!("[{batch}, a multiple of {heads_kv}, at least 1, {dim}]");
    Err(Error::shape("q", expected, q))
}

/// Whether every prompt has a positive document, and all of them are there.
pub(crate) fn check_positives(positives: &[Vec<usize>], segments: &Segments) -> Result<()> {
    if positives.len() != segments.batch() {
        let expected = format!("lists of {} prompts", segments.batch());
        return Err(Error::data("positives", expected, positives.len()));
    }
    for (prompt, own) in positives.iter().enumerate() {
        let documents = segments.documents(prompt).len();
        if own.is_empty() {
            let got = format!("none for prompt {prompt}");
            return Err(Error::data("positives", "at least one for each prompt", got));
        }
        if let Some(far) = own.iter().find(|&&number| number >= documents) {
            return Err(Error::data("positives", format!("numbers below {documents}"), far));
        }
    }
    Ok(())
}
