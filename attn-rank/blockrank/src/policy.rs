//! The block mask as the attention of a language model (feature `model`).

use std::ops::Range;

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_model::policy::{Layer, ModelShape};
use attn_model::{AttentionPolicy, Result};
use attn_wgpu::attention::Inputs;
use attn_wgpu::plan::DevicePlan;
use attn_wgpu::{Gpu, Tensor};

use crate::{BlockRank, Config, Segments};

/// Attention over the block mask of one prompt, with the scale and the soft-cap of the model. Tokens behind the
/// last segment belong to the query segment: decoding is a growing query segment.
///
/// A prompt may come in parts, cut anywhere. Positions are the caller's
/// ([`attn_model::Pass::with_positions`], [`Segments::positions`]). Keys are cached rotated.
#[derive(Debug, Clone)]
pub struct BlockRankPolicy {
    segments: Segments,
    running: Option<Running>,
    /// The plan of the tokens that the last pass ran, which all layers share.
    plan: Option<(Range<usize>, DevicePlan)>,
}

#[derive(Debug, Clone)]
struct Running {
    gpu: Gpu,
    method: BlockRank,
    heads: [usize; 2],
}

impl BlockRankPolicy {
    /// For a prompt of segments of these lengths: instruction, documents, query. The last one may be 0, if it is
    /// not known yet.
    ///
    /// # Errors
    /// As [`Segments::one`].
    pub fn new(lengths: &[usize]) -> attn_core::Result<BlockRankPolicy> {
        Ok(BlockRankPolicy { segments: Segments::one(lengths)?, running: None, plan: None })
    }

    /// The segments.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Whether all of these tokens see everything before them.
    fn is_dense(&self, tokens: &Range<usize>) -> bool {
        let all = self.segments.prompts().first().map_or(&[][..], Vec::as_slice);
        let (first, last) = (all.first().copied(), all.last().copied());
        let instruction = first.is_some_and(|first| tokens.end <= first.len);
        let query = last.is_some_and(|last| last.start <= tokens.start);
        instruction || query
    }
}

impl AttentionPolicy for BlockRankPolicy {
    /// # Errors
    /// [`attn_core::Error::Config`] for models with layers that see a window only: a window of token distances
    /// means nothing among documents that share their positions.
    fn begin(&mut self, shape: &ModelShape) -> Result<()> {
        let windows = shape.windows.iter().flatten();
        if let Some(window) = windows.min().filter(|window| **window < shape.context) {
            let expected = format!("none, or one of the whole context, {}", shape.context);
            return Err(attn_core::Error::config("window", expected, window).into());
        }
        let mut attention = Dense::new().with_mask(Mask::Causal).with_scale(shape.scale);
        if let Some(cap) = shape.soft_cap {
            attention = attention.with_soft_cap(cap);
        }
        let method = BlockRank::with_attention(&shape.gpu, Config::new(), attention)?;
        let heads = [shape.heads, shape.heads_kv];
        self.running = Some(Running { gpu: shape.gpu.clone(), method, heads });
        self.plan = None;
        Ok(())
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        let keys = layer.positions().len();
        let tokens = keys - layer.query_positions().len()..keys;
        if self.is_dense(&tokens) {
            return layer.dense();
        }
        let Some(Running { gpu, method, heads }) = &self.running else {
            let got = "one that no session has begun with";
            return Err(attn_core::Error::config("policy", "one of a session", got).into());
        };
        let plan = match &self.plan {
            Some((of, plan)) if *of == tokens => plan.clone(),
            _ => {
                let plan = self.segments.plan_part(0, tokens.clone(), heads[0], heads[1])?;
                let plan = DevicePlan::upload(gpu, &plan)?;
                self.plan = Some((tokens, plan.clone()));
                plan
            }
        };
        let (q, k, v) = (layer.rotated_q()?, layer.rotated_keys()?, layer.values()?);
        let out = layer.output()?;
        method.attention().forward_into(Inputs::new(&q, &k, &v), &plan, &out, None)?;
        Ok(out)
    }

    fn truncate(&mut self, _: usize) -> Result<()> {
        self.plan = None;
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}
