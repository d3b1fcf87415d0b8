//! The paper's equations in f64 on the host, written to be read.
//!
//! **Attention.** With `s(i)` the segment of token `i` of M, and `scale` that of [`Config`]:
//!
//! ```text
//! A(i)  = { j : s(j) = s(i), j <= i }                 every segment sees itself, causally
//!       + { j : s(j) = 0 }          0 < s(i) < M-1    documents see the instruction
//!       + { j : s(j) < M-1 }        s(i) = M-1        the query segment sees everything
//! lse_i = ln sum_{j in A(i)} exp(scale q_i.k_j)
//! o_i   = sum_{j in A(i)} exp(scale q_i.k_j - lse_i) v_j
//! ```
//!
//! **Scores.** For head h, signal token i and document token j, of the softmax over document tokens alone:
//!
//! ```text
//! z_hij = scale q_hi.k_hj       p_hij = exp(z_hij) / sum_{t in documents} exp(z_hit)
//! m_hik = sum_{j in document k} p_hij              a_k = mean_{h,i} m_hik
//! ```
//!
//! The paper's formula sums over i; its code takes the mean, as here, which is a matter of the temperature.
//!
//! **Loss**, with positives P and `l = a / tau`: `logsumexp_all(l) - logsumexp_P(l)`, the mean over the batch.
//!
//! **Backward** of the scores from `g = dL/da`:
//!
//! ```text
//! dz_hij = p_hij (g_k(j) - sum_k g_k m_hik) / (heads signal tokens)
//! dq_hi  = scale sum_j dz_hij k_hj                 dk_j = scale sum_{h of its group, i} dz_hij q_hi
//! ```

mod scores;

use attn_core::{BitMask, Error, Mask, Result, dense};
use ndarray::{Array3, Array4, s};

pub use attn_core::dense::{Cotangents, Inputs};
pub use scores::{
    Loss, ScoreGrads, Scores, doc_scores, doc_scores_backward, loss, rank, signal_queries,
};
pub(crate) use scores::{check_positives, check_shapes};

use crate::{Config, Segments};

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// `[batch, heads, tokens, dim_v]`; 0 for padding.
    pub out: Array4<f64>,
    /// Log-sum-exp of the logits `[batch, heads, tokens]`; -inf for padding.
    pub lse: Array3<f64>,
}

/// Derivatives of a loss by the inputs of [`forward`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, tokens, dim]`.
    pub dq: Array4<f64>,
    /// By the keys `[batch, heads_kv, tokens, dim]`.
    pub dk: Array4<f64>,
    /// By the values `[batch, heads_kv, tokens, dim_v]`.
    pub dv: Array4<f64>,
}

/// Attention over the block mask. Queries `[batch, heads, tokens, dim]`, keys and values with as many tokens.
///
/// # Errors
/// [`Error`] for parameters, shapes or segments that do not fit.
pub fn forward(inputs: Inputs<'_>, segments: &Segments, config: &Config) -> Result<Output> {
    let shape = check(inputs, segments, config)?;
    let [batch, heads, tokens, dim] = shape.out();
    let mut out = Array4::zeros((batch, heads, tokens, dim));
    let mut lse = Array3::zeros((batch, heads, tokens));
    for prompt in 0..batch {
        let own = dense::forward(of(inputs, prompt), &masked(segments, prompt, config))?;
        out.slice_mut(s![prompt..prompt + 1, .., .., ..]).assign(&own.out);
        lse.slice_mut(s![prompt..prompt + 1, .., ..]).assign(&own.lse);
    }
    Ok(Output { out, lse })
}

/// The derivatives of [`forward`]. Keys of the instruction collect from all segments, those of a document from
/// its own and the query segment.
///
/// # Errors
/// As [`forward`], and [`Error::Shape`] for cotangents of another shape.
pub fn backward(
    inputs: Inputs<'_>,
    segments: &Segments,
    config: &Config,
    cotangents: Cotangents<'_>,
) -> Result<Grads> {
    let shape = check(inputs, segments, config)?;
    if cotangents.out.shape() != shape.out() {
        let expected = format!("{:?}", shape.out());
        return Err(Error::shape("cotangents.out", expected, cotangents.out.shape()));
    }
    let zeros = |shape: &[usize]| Array4::zeros([shape[0], shape[1], shape[2], shape[3]]);
    let (mut dq, mut dk) = (zeros(inputs.q.shape()), zeros(inputs.k.shape()));
    let mut dv = zeros(inputs.v.shape());
    for prompt in 0..shape.batch {
        let own = Cotangents {
            out: cotangents.out.slice_move(s![prompt..prompt + 1, .., .., ..]),
            lse: cotangents.lse.map(|lse| lse.slice_move(s![prompt..prompt + 1, .., ..])),
        };
        let (inputs, config) = (of(inputs, prompt), masked(segments, prompt, config));
        let grads = dense::backward(inputs, &config, &dense::forward(inputs, &config)?, own)?;
        for (all, own) in [(&mut dq, grads.dq), (&mut dk, grads.dk), (&mut dv, grads.dv)] {
            all.slice_mut(s![prompt..prompt + 1, .., .., ..]).assign(&own);
        }
    }
    Ok(Grads { dq, dk, dv })
}

/// The mask of one prompt, as the rule states it.
fn masked(segments: &Segments, prompt: usize, config: &Config) -> dense::Config {
    let tokens = segments.tokens();
    let bits = BitMask::from_fn(tokens, tokens, |query, key| segments.allows(prompt, query, key));
    let dense = dense::Config::new().with_mask(Mask::Bits(bits));
    match config.scale {
        Some(scale) => dense.with_scale(scale),
        None => dense,
    }
}

fn of(inputs: Inputs<'_>, prompt: usize) -> Inputs<'_> {
    let Inputs { q, k, v, sinks } = inputs;
    let [q, k, v] = [q, k, v].map(|x| x.slice_move(s![prompt..prompt + 1, .., .., ..]));
    Inputs { q, k, v, sinks }
}

fn check(
    inputs: Inputs<'_>,
    segments: &Segments,
    config: &Config,
) -> Result<attn_core::AttentionShape> {
    config.validate()?;
    let shape = inputs.check()?;
    for (arg, tokens) in [("q", shape.queries), ("k", shape.keys)] {
        if (shape.batch, tokens) != (segments.batch(), segments.tokens()) {
            let got = if arg == "q" { inputs.q.shape() } else { inputs.k.shape() };
            return Err(Error::shape(arg, expected_of(segments), got));
        }
    }
    Ok(shape)
}

pub(crate) fn expected_of(segments: &Segments) -> String {
    let (batch, tokens) = (segments.batch(), segments.tokens());
    format!("[{batch}, heads, {tokens}, dim], as the segments")
}
