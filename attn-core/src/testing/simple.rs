//! The yardstick of the error budget: attention in f32 as one would write it down first.

use super::HostInputs;
use crate::dense::logits::Row as Logits;
use crate::{AttentionShape, Result, dense};

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
    /// By the sinks `[heads]`, where there were any.
    pub d_sinks: Option<Vec<f32>>,
}

/// Attention with every operation in f32 and every sum from left to right, except modifiers: their
/// functions on the host are asked in f64, and the answers rounded. Masked keys and values are not
/// read.
///
/// # Errors
/// As [`dense::forward`].
pub fn simple_f32(inputs: &HostInputs, config: &dense::Config) -> Result<SimpleOutput> {
    check(inputs, config)?;
    let shape = &inputs.shape;
    let mut out = vec![0.0; shape.out().iter().product()];
    let mut lse = vec![f32::NEG_INFINITY; shape.lse().iter().product()];
    for row in rows(inputs, config) {
        let (members, row_lse) = row.softmax(row.allowed(), row.sink);
        lse[row.index] = row_lse;
        let out = &mut out[row.index * shape.dim_v..][..shape.dim_v];
        for member in members {
            add(out, member.p, row.value(member.key));
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
    config.check_derivative()?;
    let shape = &inputs.shape;
    let scale = config.scale_for(shape.dim_qk) as f32;
    expect("d_out", d_out.len(), &shape.out())?;
    if let Some(d_lse) = d_lse {
        expect("d_lse", d_lse.len(), &shape.lse())?;
    }
    let mut grads = SimpleGrads {
        dq: vec![0.0; inputs.q.len()],
        dk: vec![0.0; inputs.k.len()],
        dv: vec![0.0; inputs.v.len()],
        d_sinks: inputs.sinks.as_ref().map(|sinks| vec![0.0; sinks.len()]),
    };
    let dim = shape.dim_qk;
    for row in rows(inputs, config) {
        let (members, lse) = row.softmax(row.allowed(), row.sink);
        let d_out = &d_out[row.index * shape.dim_v..][..shape.dim_v];
        let dp: Vec<f32> = members.iter().map(|member| dot(d_out, row.value(member.key))).collect();
        let delta: f32 = members.iter().zip(&dp).map(|(member, dp)| member.p * dp).sum();
        let d_lse = d_lse.map_or(0.0, |d_lse| d_lse[row.index]);
        for (member, dp) in members.iter().zip(dp) {
            let &Member { key, p, .. } = member;
            let ds = scale * p * (dp - delta + d_lse) * row.slope(member);
            add(&mut grads.dq[row.index * dim..][..dim], ds, row.key(key));
            add(&mut grads.dk[(row.first_key + key) * dim..][..dim], ds, row.query());
            add(&mut grads.dv[(row.first_key + key) * shape.dim_v..][..shape.dim_v], p, d_out);
        }
        if let (Some(d_sinks), Some(sink)) = (&mut grads.d_sinks, row.sink)
            && sink != f32::NEG_INFINITY
        {
            d_sinks[row.head] += (sink - lse).exp() * (d_lse - delta);
        }
    }
    Ok(grads)
}

/// One query of one head.
pub(super) struct Row<'a> {
    pub inputs: &'a HostInputs,
    pub config: &'a dense::Config,
    /// Number of the row in `[batch, heads, queries]`.
    pub index: usize,
    /// Its head in `[heads]`.
    pub head: usize,
    /// Number of its key 0 in `[batch, heads_kv, keys]`.
    pub first_key: usize,
    pub sink: Option<f32>,
    pub logits: Logits<'a>,
}

/// A key that takes part in the softmax of a row.
pub(super) struct Member {
    pub key: usize,
    /// Its probability.
    pub p: f32,
    /// The scaled product, and what the soft-cap makes of it.
    scaled: f32,
    capped: f32,
}

impl Row<'_> {
    pub fn query(&self) -> &[f32] {
        let dim = self.inputs.shape.dim_qk;
        &self.inputs.q[self.index * dim..][..dim]
    }

    pub fn key(&self, t: usize) -> &[f32] {
        let dim = self.inputs.shape.dim_qk;
        &self.inputs.k[(self.first_key + t) * dim..][..dim]
    }

    pub fn value(&self, t: usize) -> &[f32] {
        let dim = self.inputs.shape.dim_v;
        &self.inputs.v[(self.first_key + t) * dim..][..dim]
    }

    /// The keys that the mask allows, without bias.
    fn allowed(&self) -> impl Iterator<Item = (usize, f32)> {
        self.logits.keys().map(|key| (key, 0.0))
    }

    /// Those of `keys`, with their biases, that have a part in the softmax, and the log-sum-exp.
    pub fn softmax(
        &self,
        keys: impl Iterator<Item = (usize, f32)>,
        sink: Option<f32>,
    ) -> (Vec<Member>, f32) {
        let scale = self.config.scale_for(self.inputs.shape.dim_qk) as f32;
        let cap = self.config.soft_cap.map(|cap| cap as f32);
        let member = |(key, bias)| {
            let scaled = scale * dot(self.query(), self.key(key));
            let capped = cap.map_or(scaled, |cap| cap * (scaled / cap).tanh());
            let logit = self.logits.modify(f64::from(capped), key)? as f32 + bias;
            Some(Member { key, p: logit, scaled, capped })
        };
        let mut members: Vec<Member> = keys.filter_map(member).collect();
        let lowest = sink.unwrap_or(f32::NEG_INFINITY);
        if members.is_empty() {
            return (members, lowest);
        }
        let max = members.iter().map(|member| member.p).fold(lowest, f32::max);
        members.iter_mut().for_each(|member| member.p = (member.p - max).exp());
        let of_sink = sink.map_or(0.0, |sink| (sink - max).exp());
        let sum = of_sink + members.iter().map(|member| member.p).sum::<f32>();
        members.iter_mut().for_each(|member| member.p /= sum);
        (members, max + sum.ln())
    }

    /// Derivative of a member's logit by the scaled product.
    pub fn slope(&self, member: &Member) -> f32 {
        let modifier = self.logits.modify_slope(f64::from(member.capped), member.key) as f32;
        modifier
            * self.config.soft_cap.map_or(1.0, |cap| {
                let tanh = (member.scaled / cap as f32).tanh();
                1.0 - tanh * tanh
            })
    }
}

pub(super) fn rows<'a>(
    inputs: &'a HostInputs,
    config: &'a dense::Config,
) -> impl Iterator<Item = Row<'a>> {
    let shape = &inputs.shape;
    (0..shape.lse().iter().product()).map(|index: usize| {
        let (head, query) = (index / shape.queries, index % shape.queries);
        let (b, h) = (head / shape.heads, head % shape.heads);
        Row {
            inputs,
            config,
            index,
            head: h,
            first_key: (b * shape.heads_kv + h / shape.group()) * shape.keys,
            sink: inputs.sinks.as_ref().map(|sinks| sinks[h]),
            logits: Logits::new(config, shape.lengths(), [b, h, query]),
        }
    })
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn add(sum: &mut [f32], factor: f32, term: &[f32]) {
    sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += factor * term);
}

pub(super) fn check(inputs: &HostInputs, config: &dense::Config) -> Result<()> {
    let shape = &inputs.shape;
    AttentionShape::from_shapes(&shape.q(), &shape.k(), &shape.v())?;
    expect("q", inputs.q.len(), &shape.q())?;
    expect("k", inputs.k.len(), &shape.k())?;
    expect("v", inputs.v.len(), &shape.v())?;
    if let Some(sinks) = &inputs.sinks {
        expect("sinks", sinks.len(), &[shape.heads])?;
    }
    config.check(shape.lengths())
}

pub(super) fn expect(arg: &'static str, len: usize, shape: &[usize]) -> Result<()> {
    if len == shape.iter().product::<usize>() {
        Ok(())
    } else {
        Err(crate::Error::shape(arg, format!("{shape:?}"), &[len]))
    }
}
