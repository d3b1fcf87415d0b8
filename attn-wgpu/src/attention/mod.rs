//! Fused dense attention: forward, decode with split keys, merge of partial results, backward.

pub(crate) mod backward;
pub(crate) mod call;
#[cfg(feature = "bench")]
pub mod catalogue;
mod columns;
mod decode;
pub(crate) mod forward;
pub(crate) mod gradients;
pub(crate) mod jobs;
pub(crate) mod mask_table;
mod merge;
mod modifier;
pub(crate) mod params;
mod targets;
mod transposed;
pub(crate) mod variant;
mod warm_up;
mod weights;

use std::sync::{Arc, Mutex};

use attn_core::dense::Config;
use attn_core::{Lengths, ModifierParam};

pub use self::merge::{merge, merge_into};
pub use self::variant::{MAX_DIM, Variant};
pub use self::warm_up::Heads;

use self::mask_table::Side;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops;
use crate::tensor::{DType, Tensor};
use crate::vec4::is_vec4;

/// Dense attention on a device: `out = softmax(scale q k^T ..) v`, as [`attn_core::dense`] defines
/// it with mask, soft-cap, modifier and sinks, without storing the scores;
/// [`Attention::weights`] stores the probabilities where they are wanted.
///
/// Inputs are f32, f16 or bf16, all of one type; outputs and gradients have that type, statistics
/// are f32, and so is all arithmetic.
///
/// Memory beyond inputs and outputs is constant, except where an input has to be packed first (its
/// last dimension is not contiguous, or a row does not begin at a multiple of four elements), and
/// for masks that are not windows (20 bytes a query, or their bits). Up to eight queries, keys are
/// split over workgroups, and partial results of at most 16 parts are kept until they are merged.
#[derive(Debug, Clone)]
pub struct Attention {
    gpu: Gpu,
    config: Config,
    /// Values of the modifier's parameters.
    modifier: Vec<u32>,
    /// Tables that kernels read, of the last calls.
    tables: Arc<Mutex<Vec<Table>>>,
}

/// What kernels read besides the tensors: the modifier's parameters and the mask.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    lengths: Lengths,
    tile: usize,
    side: Side,
    pub(crate) words: Tensor,
    left: i32,
    right: i32,
}

/// Queries, keys and values: all f32, all f16 or all bf16.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, queries, dim_qk]`.
    pub q: &'a Tensor,
    /// Keys `[batch, heads_kv, keys, dim_qk]`; `heads_kv` divides `heads`.
    pub k: &'a Tensor,
    /// Values `[batch, heads_kv, keys, dim_v]`.
    pub v: &'a Tensor,
    /// One more logit per query head in the softmax's denominator, `[heads]`, f32.
    pub sinks: Option<&'a Tensor>,
}

impl<'a> Inputs<'a> {
    /// Inputs without sinks.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Inputs { q, k, v, sinks: None }
    }

    /// The same with sinks.
    pub fn with_sinks(self, sinks: &'a Tensor) -> Self {
        Inputs { sinks: Some(sinks), ..self }
    }
}

/// Optional results of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Want {
    /// Largest logit of each row and its key.
    pub row_max: bool,
    /// Sums of the probabilities over the queries.
    pub column_sums: bool,
}

impl Want {
    /// Nothing but output and lse.
    pub fn nothing() -> Self {
        Want::default()
    }

    /// Also [`Output::row_max`] and [`Output::argmax`].
    pub fn with_row_max(self) -> Self {
        Want { row_max: true, ..self }
    }

    /// Also [`Output::column_sums`].
    pub fn with_column_sums(self) -> Self {
        Want { column_sums: true, ..self }
    }
}

/// What attention computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// `[batch, heads, queries, dim_v]`; 0 for a query that sees no key.
    pub out: Tensor,
    /// Natural logarithm of the sum of exponentials of the logits, sinks included, `[batch, heads,
    /// queries]`, f32; -inf for an empty sum.
    pub lse: Tensor,
    /// Largest logit of each row, sinks not included, `[batch, heads, queries]`, f32; -inf for a
    /// query that sees no key.
    pub row_max: Option<Tensor>,
    /// Key of the largest logit, the lowest where several are equal, `[batch, heads, queries]`, u32;
    /// `u32::MAX` for a query that sees no key.
    pub argmax: Option<Tensor>,
    /// Sum over the queries of the probabilities of each key, `[batch, heads, keys]`, f32.
    pub column_sums: Option<Tensor>,
}

/// What the backward pass needs of the forward pass. Holds handles, not copies.
#[derive(Debug, Clone)]
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Option<Tensor>,
    pub(crate) out: Tensor,
    pub(crate) lse: Tensor,
}

impl Saved {
    /// From the inputs of a forward pass and its results.
    pub fn new(inputs: Inputs<'_>, out: &Tensor, lse: &Tensor) -> Self {
        Saved {
            q: inputs.q.clone(),
            k: inputs.k.clone(),
            v: inputs.v.clone(),
            sinks: inputs.sinks.cloned(),
            out: out.clone(),
            lse: lse.clone(),
        }
    }

    pub(crate) fn inputs(&self) -> Inputs<'_> {
        Inputs { q: &self.q, k: &self.k, v: &self.v, sinks: self.sinks.as_ref() }
    }
}

/// Cotangents of the results.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// Of the output, `[batch, heads, queries, dim_v]`, of the inputs' type.
    pub out: &'a Tensor,
    /// Of the log-sum-exp, `[batch, heads, queries]`, f32; none means 0.
    pub lse: Option<&'a Tensor>,
}

/// Gradients, of the inputs' type; those that a call returns are views whose last dimension is
/// contiguous.
#[derive(Debug, Clone)]
pub struct Grads {
    /// By the queries, `[batch, heads, queries, dim_qk]`.
    pub dq: Tensor,
    /// By the keys, `[batch, heads_kv, keys, dim_qk]`.
    pub dk: Tensor,
    /// By the values, `[batch, heads_kv, keys, dim_v]`.
    pub dv: Tensor,
    /// By the sinks, `[heads]`, f32, where there are any.
    pub d_sinks: Option<Tensor>,
}

/// Where [`Attention::backward_into`] writes gradients, of the shapes and types of [`Grads`]; what has no
/// target is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Targets<'a> {
    /// By the queries.
    pub dq: Option<&'a Tensor>,
    /// By the keys.
    pub dk: Option<&'a Tensor>,
    /// By the values.
    pub dv: Option<&'a Tensor>,
    /// By the sinks, where there are any.
    pub d_sinks: Option<&'a Tensor>,
}

impl Attention {
    /// Attention by `config` on `gpu`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if the configuration is not usable, [`crate::Error::Kernel`]
    /// pointing into a modifier's body that does not compile. What depends on lengths is checked by
    /// each call.
    pub fn new(gpu: &Gpu, config: Config) -> Result<Attention> {
        config.validate()?;
        let mut words = Vec::new();
        if let Some(own) = &config.modifier {
            let sizes = own.params().iter().map(|(_, param)| match param {
                ModifierParam::Table(values) => values.len(),
                ModifierParam::Scalar(_) => 1,
            });
            if sizes.sum::<usize>() > 1 << 24 {
                let expected = "parameters of at most 2^24 numbers";
                return Err(attn_core::Error::config("modifier", expected, own.name()).into());
            }
            modifier::validate(own)?;
            words = modifier::words(own);
        }
        Ok(Attention { gpu: gpu.clone(), config, modifier: words, tables: Arc::default() })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Records attention into fresh tensors.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types and masks that do not fit; [`crate::Error::Limit`]
    /// where one row tile, or all keys of one head, exceed a binding;
    /// [`crate::Error::OutOfMemory`].
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output> {
        self.forward_with(inputs, Want::nothing())
    }

    /// [`Attention::forward`] with optional results.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward_with(&self, inputs: Inputs<'_>, want: Want) -> Result<Output> {
        let shape = self.check(inputs)?;
        let [batch, heads, queries] = shape.lse();
        let kinds = if want.row_max { 3 } else { 1 };
        let stats = Tensor::uninit(&self.gpu, &[kinds, batch, heads, queries], DType::F32)?;
        let out = Tensor::uninit(&self.gpu, &shape.out(), inputs.q.dtype())?;
        self.run(inputs, shape, &out, &stats)?;
        let kind = |i: usize| stats.narrow(0, i, 1)?.reshape(&shape.lse());
        let lse = kind(0)?;
        let column_sums =
            if want.column_sums { Some(self.column_sums(inputs, &lse)?) } else { None };
        let (row_max, argmax) = match want.row_max {
            true => (Some(kind(1)?), Some(kind(2)?.reinterpret(DType::U32))),
            false => (None, None),
        };
        Ok(Output { out, lse, row_max, argmax, column_sums })
    }

    /// Records attention into a caller's tensors: `out` with any strides that do not overlap,
    /// `lse`, where wanted, contiguous.
    ///
    /// # Errors
    /// As [`Attention::forward`], and [`attn_core::Error::Shape`] for outputs of another shape, or
    /// of a half type and a layout whose rows share words of memory.
    pub fn forward_into(
        &self,
        inputs: Inputs<'_>,
        out: &Tensor,
        lse: Option<&Tensor>,
    ) -> Result<()> {
        let shape = self.check(inputs)?;
        call::check_output("out", out, &shape.out(), inputs.q.dtype())?;
        let [batch, heads, queries] = shape.lse();
        let kinds = [1, batch, heads, queries];
        let stats = match lse {
            Some(lse) => {
                call::check_output("lse", lse, &shape.lse(), DType::F32)?;
                lse.reshape(&kinds)?
            }
            None => Tensor::uninit(&self.gpu, &kinds, DType::F32)?,
        };
        self.run(inputs, shape, out, &stats)
    }

    /// [`Attention::forward`], and what [`Attention::backward`] needs of it.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward_saved(&self, inputs: Inputs<'_>) -> Result<(Output, Saved)> {
        let output = self.forward(inputs)?;
        let saved = Saved::new(inputs, &output.out, &output.lse);
        Ok((output, saved))
    }

    /// What runs for a call of these extents: `forward`, or `decode`, which splits the keys of few
    /// queries over workgroups, and the variant of that kernel. Calls that want
    /// [`Want::row_max`] always take `forward`.
    pub fn variant(&self, shape: &attn_core::AttentionShape) -> (&'static str, Variant) {
        let capabilities = self.gpu.capabilities();
        match decode::plan(shape, capabilities) {
            Some((variant, _)) => ("decode", variant),
            None => ("forward", Variant::forward(shape.dim_qk, shape.dim_v, capabilities)),
        }
    }

    fn run(
        &self,
        inputs: Inputs<'_>,
        shape: attn_core::AttentionShape,
        out: &Tensor,
        stats: &Tensor,
    ) -> Result<()> {
        if shape.batch * shape.heads * shape.queries == 0 {
            return Ok(());
        }
        if shape.keys == 0 {
            return self.run_without_keys(inputs, out, stats);
        }
        if !is_vec4(out) {
            let mut padded = out.shape().to_vec();
            padded[3] = padded[3].next_multiple_of(4);
            let padded = Tensor::uninit(&self.gpu, &padded, out.dtype())?;
            self.run(inputs, shape, &padded, stats)?;
            return ops::copy(&padded.narrow(3, 0, shape.dim_v)?, out);
        }
        let call = self.prepare(inputs, shape)?;
        match decode::plan(&shape, self.gpu.capabilities()) {
            Some(plan) if stats.shape()[0] == 1 => self.run_decode(&call, plan, out, stats),
            _ => self.run_forward(&call, out, stats),
        }
    }

    /// Output 0; lse and the other statistics of an empty sum, to which sinks are added.
    pub(crate) fn run_without_keys(
        &self,
        inputs: Inputs<'_>,
        out: &Tensor,
        stats: &Tensor,
    ) -> Result<()> {
        let zero = Tensor::zeros(&self.gpu, &[1; 4], out.dtype())?;
        ops::copy(&zero.expand(out.shape())?, out)?;
        ops::fill(stats, &f32::NEG_INFINITY.to_ne_bytes())?;
        if stats.shape()[0] == 3 {
            let argmax = stats.narrow(0, 2, 1)?.reinterpret(DType::U32);
            ops::fill(&argmax, &u32::MAX.to_ne_bytes())?;
        }
        let Some(sinks) = inputs.sinks else { return Ok(()) };
        let sinks = sinks.contiguous()?.reshape(&[1, 1, sinks.len(), 1])?;
        let lse = stats.narrow(0, 0, 1)?;
        ops::copy(&sinks.expand(lse.shape())?, &lse)
    }
}
