//! Attention beside a memory, over keys and values that are kept from call to call.

use attn_core::dense::Config;
use attn_core::{Mask, ndarray};
use attn_wgpu::attention::{Attention, Inputs, merge};
use attn_wgpu::{DType, Gpu, Result, Tensor};
use ndarray::{Axis, concatenate};

use super::parts::{concat, heads, linear, owned, upload};
use crate::reference::layer::Attention as Weights;

/// Keys and values `[batch, heads, tokens, dim]`.
#[derive(Debug, Clone)]
pub(super) struct Pairs {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

impl Pairs {
    /// Those of all parts, in order.
    pub(super) fn concat(parts: &[&Pairs]) -> Result<Self> {
        let [k, v] = [|part: &Pairs| part.k.clone(), |part: &Pairs| part.v.clone()].map(|of| {
            let parts: Vec<Tensor> = parts.iter().map(|part| of(part)).collect();
            concat(&parts.iter().collect::<Vec<_>>(), 2)
        });
        Ok(Pairs { k: k?, v: v? })
    }

    pub(super) fn tokens(&self) -> usize {
        self.k.shape()[2]
    }

    /// The last tokens, at most `count`, in buffers of their own.
    pub(super) fn last(&self, count: usize) -> Result<Self> {
        let kept = self.tokens().min(count);
        let last = |x: &Tensor| owned(&x.narrow(2, self.tokens() - kept, kept)?);
        Ok(Pairs { k: last(&self.k)?, v: last(&self.v)? })
    }

    pub(super) fn narrow(&self, start: usize, tokens: usize) -> Result<Self> {
        Ok(Pairs { k: self.k.narrow(2, start, tokens)?, v: self.v.narrow(2, start, tokens)? })
    }
}

/// Attention with its projections.
#[derive(Debug, Clone)]
pub(super) struct Attend {
    heads: [usize; 2],
    /// Of queries, keys and values below each other `[3 heads dim, d_model]`.
    qkv: Tensor,
    /// `[d_model, heads dim]`.
    out: Tensor,
}

impl Attend {
    pub(super) fn new(gpu: &Gpu, weights: &Weights, heads: usize) -> Result<Self> {
        let views = [weights.q.view(), weights.k.view(), weights.v.view()];
        let misfit = |error| attn_core::Error::data("weights", "extents that fit together", error);
        let qkv = concatenate(Axis(0), &views).map_err(misfit)?;
        let heads = [heads, weights.q.nrows() / heads];
        Ok(Attend { heads, qkv: upload(gpu, &qkv)?, out: upload(gpu, &weights.o)? })
    }

    pub(super) fn heads(&self) -> [usize; 2] {
        self.heads
    }

    /// No key yet.
    pub(super) fn none(&self, batch: usize) -> Result<Pairs> {
        let [heads, dim] = self.heads;
        let none = || Tensor::zeros(self.qkv.gpu(), &[batch, heads, 0, dim], DType::F32);
        Ok(Pairs { k: none()?, v: none()? })
    }

    /// Queries, keys and values of rows `[batch, tokens, d_model]`.
    pub(super) fn project(&self, x: &Tensor) -> Result<(Tensor, Pairs)> {
        let inner = self.heads[0] * self.heads[1];
        let all = linear(x, &self.qkv)?;
        let [q, k, v] = [0, 1, 2].map(|i| heads(&all, i * inner, self.heads));
        Ok((q?, Pairs { k: k?, v: v? }))
    }

    /// Keys and values of rows alone.
    pub(super) fn pairs(&self, x: &Tensor) -> Result<Pairs> {
        let inner = self.heads[0] * self.heads[1];
        let both = linear(x, &self.qkv.narrow(0, inner, 2 * inner)?)?;
        let [k, v] = [0, 1].map(|i| heads(&both, i * inner, self.heads));
        Ok(Pairs { k: k?, v: v? })
    }

    /// Rows `[batch, tokens, d_model]` of the queries' attention over the pairs.
    pub(super) fn over(&self, attention: &Attention, q: &Tensor, pairs: &Pairs) -> Result<Tensor> {
        let [heads_, dim] = self.heads;
        let (batch, tokens) = (q.shape()[0], q.shape()[2]);
        let rows = Tensor::uninit(q.gpu(), &[batch, tokens, heads_ * dim], DType::F32)?;
        let inputs = Inputs::new(q, &pairs.k, &pairs.v);
        attention.forward_into(inputs, &heads(&rows, 0, self.heads)?, None)?;
        linear(&rows, &self.out)
    }

    /// The same over two sets of pairs, each with a mask of its own, in one softmax.
    pub(super) fn over_both(&self, q: &Tensor, sets: [(&Attention, &Pairs); 2]) -> Result<Tensor> {
        let [one, other] =
            sets.map(|(attention, pairs)| attention.forward(Inputs::new(q, &pairs.k, &pairs.v)));
        let (one, other) = (one?, other?);
        let merged = merge(&[(&one.out, &one.lse), (&other.out, &other.lse)])?;
        linear(&super::parts::merge(&merged.out)?, &self.out)
    }
}

/// Attention with this mask.
pub(super) fn masked(gpu: &Gpu, mask: Mask) -> Result<Attention> {
    Attention::new(gpu, Config::new().with_mask(mask))
}
