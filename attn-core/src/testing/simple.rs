//! The yardstick of the error budget: attention in f32 as one would write it down first.

use crate::{AttentionShape, Result, RowKeys, dense};

use super::HostInputs;

/// Result of [`simple_f32`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SimpleOutput {
    /// Output `[batch, heads, queries, dim_v]`.
    pub out: Vec<f32>,
    /// Log-sum-exp `[batch, heads, queries]`.
    pub lse: Vec<f32>,
}

/// Result of [`simple_f32_backward`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SimpleGrads {
    /// By the queries `[batch, heads, queries, dim_qk]`.
    pub dq: Vec<f32>,
    /// By the keys `[batch, heads_kv, keys, dim_qk]`.
    pub dk: Vec<f32>,
    /// By the values `[batch, heads_kv, keys, dim_v]`.
    pub dv: Vec<f32>,
}

/// Attention with every operation in f32 and every sum from left to right. Masked keys and values
/// are not read.
///
/// # Errors
/// As [`dense::forward`].
pub fn simple_f32(inputs: &HostInputs, config: &dense::Config) -> Result<SimpleOutput> {
    check(inputs, config)?;
    let shape = &inputs.shape;
    let mut out = vec![0.0; shape.out().iter().product()];
    let mut lse = vec![f32::NEG_INFINITY; shape.lse().iter().product()];
    for row in rows(shape, config) {
        let (p, row_lse) = probabilities(inputs, config, &row);
        lse[row.index] = row_lse;
        let out = &mut out[row.index * shape.dim_v..][..shape.dim_v];
        for (t, p) in row.keys.iter().zip(p) {
            add(out, p, row.value(inputs, t));
        }
    }
    Ok(SimpleOutput { out, lse })
}

/// Vector-Jacobian product of [`simple_f32`], likewise in f32: from the cotangents `d_out`
/// `[batch, heads, queries, dim_v]` and, optionally, `d_lse` `[batch, heads, queries]`.
///
/// # Errors
/// As [`dense::backward`].
pub fn simple_f32_backward(
    inputs: &HostInputs,
    config: &dense::Config,
    d_out: &[f32],
    d_lse: Option<&[f32]>,
) -> Result<SimpleGrads> {
    check(inputs, config)?;
    let shape = &inputs.shape;
    let scale = config.scale_for(shape.dim_qk) as f32;
    expect("d_out", d_out.len(), &shape.out())?;
    if let Some(d_lse) = d_lse {
        expect("d_lse", d_lse.len(), &shape.lse())?;
    }
    let mut dq = vec![0.0; inputs.q.len()];
    let mut dk = vec![0.0; inputs.k.len()];
    let mut dv = vec![0.0; inputs.v.len()];
    for row in rows(shape, config) {
        let (p, _) = probabilities(inputs, config, &row);
        let d_out = &d_out[row.index * shape.dim_v..][..shape.dim_v];
        let dp: Vec<f32> = row.keys.iter().map(|t| dot(d_out, row.value(inputs, t))).collect();
        let delta = dot(&p, &dp);
        let d_lse = d_lse.map_or(0.0, |d_lse| d_lse[row.index]);
        let dim = shape.dim_qk;
        for ((t, p), dp) in row.keys.iter().zip(p).zip(dp) {
            let ds = scale * p * (dp - delta + d_lse);
            add(&mut dq[row.index * dim..][..dim], ds, row.key(inputs, t));
            add(&mut dk[(row.first_key + t) * dim..][..dim], ds, row.query(inputs));
            add(&mut dv[(row.first_key + t) * shape.dim_v..][..shape.dim_v], p, d_out);
        }
    }
    Ok(SimpleGrads { dq, dk, dv })
}

/// One query of one head.
struct Row {
    /// Number of the row in `[batch, heads, queries]`.
    index: usize,
    /// Number of its key 0 in `[batch, heads_kv, keys]`.
    first_key: usize,
    keys: RowKeys,
}

impl Row {
    fn query<'a>(&self, inputs: &'a HostInputs) -> &'a [f32] {
        &inputs.q[self.index * inputs.shape.dim_qk..][..inputs.shape.dim_qk]
    }

    fn key<'a>(&self, inputs: &'a HostInputs, t: usize) -> &'a [f32] {
        &inputs.k[(self.first_key + t) * inputs.shape.dim_qk..][..inputs.shape.dim_qk]
    }

    fn value<'a>(&self, inputs: &'a HostInputs, t: usize) -> &'a [f32] {
        &inputs.v[(self.first_key + t) * inputs.shape.dim_v..][..inputs.shape.dim_v]
    }
}

fn rows(shape: &AttentionShape, config: &dense::Config) -> impl Iterator<Item = Row> {
    (0..shape.lse().iter().product()).map(|index: usize| {
        let (head, query) = (index / shape.queries, index % shape.queries);
        let (b, h) = (head / shape.heads, head % shape.heads);
        let head_kv = b * shape.heads_kv + h / shape.group();
        let keys = config.mask.row(shape.lengths(), query);
        Row { index, first_key: head_kv * shape.keys, keys }
    })
}

/// Probabilities of the keys that `row` sees, in the order of the keys, and their log-sum-exp.
fn probabilities(inputs: &HostInputs, config: &dense::Config, row: &Row) -> (Vec<f32>, f32) {
    let scale = config.scale_for(inputs.shape.dim_qk) as f32;
    let query = row.query(inputs);
    let mut p: Vec<f32> = row.keys.iter().map(|t| scale * dot(query, row.key(inputs, t))).collect();
    if p.is_empty() {
        return (p, f32::NEG_INFINITY);
    }
    let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    p.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f32 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    (p, max + sum.ln())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sum: &mut [f32], factor: f32, term: &[f32]) {
    sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += factor * term);
}

fn check(inputs: &HostInputs, config: &dense::Config) -> Result<()> {
    let shape = &inputs.shape;
    AttentionShape::from_shapes(&shape.q(), &shape.k(), &shape.v())?;
    expect("q", inputs.q.len(), &shape.q())?;
    expect("k", inputs.k.len(), &shape.k())?;
    expect("v", inputs.v.len(), &shape.v())?;
    config.validate()?;
    config.mask.validate(shape.lengths())
}

fn expect(arg: &'static str, len: usize, shape: &[usize]) -> Result<()> {
    if len == shape.iter().product::<usize>() {
        Ok(())
    } else {
        Err(crate::Error::shape(arg, format!("{shape:?}"), &[len]))
    }
}
