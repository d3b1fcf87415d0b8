//! What a policy sees of a layer.

use std::cell::OnceCell;

use attn_core::Mask;
use attn_wgpu::attention::{Attention, Inputs, Want};
use attn_wgpu::cache::KvCache;
use attn_wgpu::rope::RopeTable;
use attn_wgpu::{DType, Gpu, Tensor};

use super::{KeyForm, Phase};
use crate::Result;
use crate::device::LayerKind;
use crate::layer::Step;

/// Attention of one layer, about to be computed: M new tokens, whose keys and values are the last of
/// the N in the cache.
#[derive(Debug)]
pub struct Layer<'a> {
    pub(crate) index: usize,
    pub(crate) q: Tensor,
    pub(crate) cache: &'a KvCache,
    pub(crate) step: &'a Step<'a>,
    pub(crate) kind: &'a LayerKind,
    /// What several readers of one layer share.
    pub(crate) found: Found,
}

/// Computed when it is first asked for.
#[derive(Debug, Default)]
pub(crate) struct Found {
    rotated_q: OnceCell<Tensor>,
    rotated_keys: OnceCell<Tensor>,
    lse: OnceCell<Tensor>,
}

impl Layer<'_> {
    /// Number of the layer, the first of which is 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Which part of the text the new tokens belong to.
    pub fn phase(&self) -> Phase {
        self.step.phase
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.q.gpu()
    }

    /// Queries of the new tokens, `[1, heads, M, head_dim]`, f32, not rotated; normed, where the model
    /// norms queries.
    pub fn q(&self) -> &Tensor {
        &self.q
    }

    /// Keys and values of all tokens, the new ones included.
    pub fn cache(&self) -> &KvCache {
        self.cache
    }

    /// Keys of all tokens as they are cached, `[1, heads_kv, N, head_dim]`.
    ///
    /// # Errors
    /// None in practice.
    pub fn keys(&self) -> Result<Tensor> {
        Ok(self.cache.keys()?)
    }

    /// Values of all tokens, `[1, heads_kv, N, head_dim]`.
    ///
    /// # Errors
    /// None in practice.
    pub fn values(&self) -> Result<Tensor> {
        Ok(self.cache.values()?)
    }

    /// The form in which keys are cached.
    pub fn key_form(&self) -> KeyForm {
        self.step.form
    }

    /// Position of each of the N keys. The mask does not depend on them: it follows the order of tokens.
    pub fn positions(&self) -> &[u32] {
        self.step.all_positions
    }

    /// Position of each of the M queries: the last of [`Layer::positions`].
    pub fn query_positions(&self) -> &[u32] {
        let all = self.step.all_positions;
        &all[all.len() - self.step.tokens..]
    }

    /// The model's rotation. It has the positions of all tokens; others must be reserved.
    pub fn rope(&self) -> &RopeTable {
        &self.kind.rope
    }

    /// Keys that the model lets queries see.
    pub fn mask(&self) -> &Mask {
        &self.attention().config().mask
    }

    /// Factor of `q.k`.
    pub fn scale(&self) -> f64 {
        self.step.config.scale
    }

    /// Soft-cap of the logits, `c tanh(s / c)`, before the mask.
    pub fn soft_cap(&self) -> Option<f64> {
        self.step.config.attention_soft_cap
    }

    /// The model's attention: [`Layer::mask`], [`Layer::scale`] and [`Layer::soft_cap`].
    pub fn attention(&self) -> &Attention {
        &self.kind.attention
    }

    /// `x` `[1, any, tokens, head_dim]`, not rotated, rotated by `positions`, one a token; in the type of
    /// the cache, as attention takes queries and keys of one type.
    ///
    /// # Errors
    /// [`attn_core::Error`] for another number of positions, or positions of a million and more; those
    /// of the device.
    pub fn rotate(&self, x: &Tensor, positions: &[u32]) -> Result<Tensor> {
        if let Some(&last) = positions.iter().max() {
            self.rope().reserve(last as usize + 1)?;
        }
        let positions = Tensor::from_slice(self.gpu(), positions, &[positions.len()])?;
        self.rotate_by(x, &positions)
    }

    /// Queries rotated by their positions, in the type of the cache.
    ///
    /// # Errors
    /// Those of the device.
    pub fn rotated_q(&self) -> Result<Tensor> {
        once(&self.found.rotated_q, || self.rotate_by(&self.q, &self.step.positions))
    }

    /// Keys of all tokens rotated by their positions, `[1, heads_kv, N, head_dim]`: those of the cache, or
    /// a copy where it holds raw ones.
    ///
    /// # Errors
    /// Those of the device.
    pub fn rotated_keys(&self) -> Result<Tensor> {
        match self.key_form() {
            KeyForm::Rotated => self.keys(),
            KeyForm::Raw => once(&self.found.rotated_keys, || {
                self.rotate_by(&self.keys()?, &self.step.key_positions()?)
            }),
        }
    }

    /// A tensor for the result, `[1, heads, M, head_dim]`, not written yet, in the type of the cache and
    /// in the order in which the layer reads it.
    ///
    /// # Errors
    /// Those of allocation.
    pub fn output(&self) -> Result<Tensor> {
        let (heads, dim) = (self.step.config.heads, self.step.config.head_dim);
        let shape = [1, self.step.tokens, heads, dim];
        Ok(Tensor::uninit(self.gpu(), &shape, self.cache.dtype())?.permute(&[0, 2, 1, 3])?)
    }

    /// The model's own attention of the new tokens.
    ///
    /// # Errors
    /// Those of the device.
    pub fn dense(&self) -> Result<Tensor> {
        let (q, keys, values) = (self.rotated_q()?, self.rotated_keys()?, self.values()?);
        let (out, shape) = (self.output()?, self.q.shape());
        let lse = Tensor::uninit(self.gpu(), &shape[..3], DType::F32)?;
        self.attention().forward_into(Inputs::new(&q, &keys, &values), &out, Some(&lse))?;
        let _ = self.found.lse.set(lse);
        Ok(out)
    }

    /// Log-sum-exp of the rows of the model's own attention, `[1, heads, M]`.
    pub(crate) fn lse(&self) -> Result<Tensor> {
        once(&self.found.lse, || {
            let (q, keys, values) = (self.rotated_q()?, self.rotated_keys()?, self.values()?);
            Ok(self.attention().forward(Inputs::new(&q, &keys, &values))?.lse)
        })
    }

    /// Key of the largest logit of each row of the model's own attention, `[1, heads, M]`. The pass also
    /// gives the log-sum-exp, if nobody had it yet.
    pub(crate) fn argmax(&self) -> Result<Option<Tensor>> {
        let (q, keys, values) = (self.rotated_q()?, self.rotated_keys()?, self.values()?);
        let want = Want::nothing().with_row_max();
        let output = self.attention().forward_with(Inputs::new(&q, &keys, &values), want)?;
        let _ = self.found.lse.set(output.lse);
        Ok(output.argmax)
    }

    /// A policy is somebody else's code: its result is checked before it is used.
    pub(crate) fn check(&self, out: &Tensor) -> Result<()> {
        let (arg, expected) = ("attend", self.q.shape());
        if out.shape() != expected {
            return Err(attn_core::Error::shape(arg, format!("{expected:?}"), out.shape()).into());
        }
        if !matches!(out.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            let (expected, got) = ("f32, f16 or bf16".into(), out.dtype().name().into());
            return Err(attn_core::Error::Dtype { arg, expected, got }.into());
        }
        if !out.gpu().is_same(self.gpu()) {
            let (expected, got) = ("a tensor of the model's Gpu", "another's");
            return Err(attn_core::Error::config(arg, expected, got).into());
        }
        Ok(())
    }

    fn rotate_by(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let rotated = Tensor::uninit(self.gpu(), x.shape(), self.cache.dtype())?;
        self.rope().apply_into(x, positions, &rotated)?;
        Ok(rotated)
    }
}

/// The value, computed if it is not there; handles are cheap.
fn once(cell: &OnceCell<Tensor>, compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    if let Some(value) = cell.get() {
        return Ok(value.clone());
    }
    let value = compute()?;
    Ok(cell.get_or_init(|| value).clone())
}
