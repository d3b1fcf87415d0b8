//! The mechanism on a device. The equations are those of [`crate::reference`].
//!
//! ```text
//! PlanAttention              attention over the mask, which is a plan of ranges ([`Segments::plan`])
//!
//! blockrank_stats            largest logit and sum of exponentials of pieces of documents, for every signal row
//! blockrank_total            the same over all documents
//! blockrank_mass             scores
//! ```
//!
//! and back:
//!
//! ```text
//! blockrank_total (PULL)     the mean of the cotangents under the masses of a row
//! blockrank_logit_grad       derivatives by the logits
//! blockrank_dk, blockrank_dq gradients of keys and queries
//! blockrank_loss             the contrastive loss, its mean and its derivative
//! ```
//!
//! Nothing is read back. The forward pass stores two numbers for each signal row and piece of 32 tokens, and no
//! probability; the backward pass holds the derivatives by the logits while it runs,
//! `[batch, heads * signal, tokens]`.

mod kernels;
mod loss;
mod scores;
mod tables;

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_wgpu::attention::{Cotangents, Inputs, Output};
use attn_wgpu::plan::{Grads, PlanAttention, Saved, Targets};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

#[cfg(feature = "bench")]
pub use self::kernels::kernels;
pub use self::loss::{Loss, Positives};
pub use self::scores::{SavedScores, ScoreGrads, ScoreTargets};
pub use self::tables::DeviceSegments;

use crate::{Config, Segments};

/// Attention in blocks, scores of documents and the contrastive loss, on a device.
#[derive(Debug, Clone)]
pub struct BlockRank {
    gpu: Gpu,
    config: Config,
    attention: PlanAttention,
}

impl BlockRank {
    /// The mechanism with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<BlockRank> {
        let mut dense = Dense::new().with_mask(Mask::Causal);
        if let Some(scale) = config.scale {
            dense = dense.with_scale(scale);
        }
        BlockRank::with_attention(gpu, Config { scale: None, ..config }, dense)
    }

    /// The mechanism with the scale, the soft-cap and the modifier of `attention`. Scores know of the
    /// scale alone.
    ///
    /// # Errors
    /// As [`BlockRank::new`], and [`attn_core::Error::Config`] for a mask that is not causal and for a scale in
    /// `config` besides.
    pub fn with_attention(gpu: &Gpu, config: Config, attention: Dense) -> Result<BlockRank> {
        config.validate()?;
        if let Some(scale) = config.scale {
            return Err(attn_core::Error::config("scale", "that of the attention", scale).into());
        }
        if attention.mask != Mask::Causal {
            let got = attention.mask.name();
            return Err(attn_core::Error::config("mask", "causal", got).into());
        }
        let config = Config { scale: attention.scale, ..config };
        config.validate()?;
        let attention = PlanAttention::new(gpu, attention)?;
        Ok(BlockRank { gpu: gpu.clone(), config, attention })
    }

    /// The parameters, with the scale of the attention.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What executes plans: for parts of prompts ([`Segments::plan_part`]).
    pub fn attention(&self) -> &PlanAttention {
        &self.attention
    }

    /// The segments with their tables on the device.
    ///
    /// # Errors
    /// Those of allocation.
    pub fn segments(&self, segments: &Segments) -> Result<DeviceSegments> {
        DeviceSegments::new(&self.gpu, segments)
    }

    /// Attention over the block mask. Inputs are all f32 or all of one half type, with as many tokens as the
    /// segments; padding gets output 0 and log-sum-exp -inf.
    ///
    /// # Errors
    /// As [`PlanAttention::forward`].
    pub fn forward(&self, inputs: Inputs<'_>, segments: &DeviceSegments) -> Result<Output> {
        self.attention.forward(inputs, &segments.plan_for(&inputs)?)
    }

    /// [`BlockRank::forward`] into a caller's tensors: `out` with any strides that do not overlap, `lse`, where
    /// wanted, contiguous.
    ///
    /// # Errors
    /// As [`PlanAttention::forward_into`].
    pub fn forward_into(
        &self,
        inputs: Inputs<'_>,
        segments: &DeviceSegments,
        out: &Tensor,
        lse: Option<&Tensor>,
    ) -> Result<()> {
        self.attention.forward_into(inputs, &segments.plan_for(&inputs)?, out, lse)
    }

    /// [`BlockRank::forward`], and what [`BlockRank::backward`] needs of it.
    ///
    /// # Errors
    /// As [`BlockRank::forward`].
    pub fn forward_saved(
        &self,
        inputs: Inputs<'_>,
        segments: &DeviceSegments,
    ) -> Result<(Output, Saved)> {
        self.attention.forward_saved(inputs, &segments.plan_for(&inputs)?)
    }

    /// What [`BlockRank::backward`] needs, of tensors that a caller's allocator may have moved since: inputs
    /// of a forward pass and its results.
    ///
    /// # Errors
    /// As [`Segments::plan`].
    pub fn saved(
        &self,
        inputs: Inputs<'_>,
        segments: &DeviceSegments,
        out: &Tensor,
        lse: &Tensor,
    ) -> Result<Saved> {
        Ok(Saved::new(inputs, &segments.plan_for(&inputs)?, out, lse))
    }

    /// The gradients of [`BlockRank::forward`]. Deterministic.
    ///
    /// # Errors
    /// As [`PlanAttention::backward`].
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        self.attention.backward(saved, cotangents)
    }

    /// [`BlockRank::backward`] into callers' tensors.
    ///
    /// # Errors
    /// As [`PlanAttention::backward_into`].
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<()> {
        self.attention.backward_into(saved, cotangents, targets)
    }

    /// Rows of the signal tokens of `q` `[batch, heads, tokens, dim]`, in f32: `[batch, heads, signal, dim]`.
    ///
    /// # Errors
    /// As [`Segments::signal_rows`], and [`attn_core::Error::Shape`] where `q` does not fit the segments.
    pub fn signal_queries(&self, q: &Tensor, segments: &DeviceSegments) -> Result<Tensor> {
        let host = segments.host();
        let &[batch, heads, tokens, dim] = q.shape() else {
            let expected = crate::reference::expected_of(host);
            return Err(attn_core::Error::shape("q", expected, q.shape()).into());
        };
        if (batch, tokens) != (host.batch(), host.tokens()) {
            let expected = crate::reference::expected_of(host);
            return Err(attn_core::Error::shape("q", expected, q.shape()).into());
        }
        let count = self.config.signal_rows;
        let rows = host.signal_rows(count)?;
        let out = Tensor::uninit(&self.gpu, &[batch, heads, count, dim], DType::F32)?;
        for (prompt, rows) in rows.outer_iter().enumerate() {
            let start = rows.iter().copied().min().unwrap_or(0);
            let own = q.narrow(0, prompt, 1)?.narrow(2, start, count)?;
            ops::convert_into(&own, &out.narrow(0, prompt, 1)?)?;
        }
        Ok(out)
    }
}
