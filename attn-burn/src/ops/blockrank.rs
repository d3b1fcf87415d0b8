//! Ranking of documents by attention in blocks.

use std::sync::Arc;

use attn_blockrank::{
    self as blockrank, Config, Cotangents, DeviceSegments, Inputs, Positives, SavedScores,
    ScoreTargets, Targets,
};
use attn_core::Error as CoreError;
use attn_wgpu::{DType, Gpu, Result, Tensor};

use super::{OnGpu, attention_outputs};
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// Attention over instruction, documents and query, scores of documents and the loss that makes them scores,
/// see [`attn_blockrank`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BlockRank {
    config: Arc<Config>,
    made: Arc<OnGpu<blockrank::BlockRank>>,
}

/// Segments of the prompts of a batch, for [`BlockRank`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Segments(Arc<Source>);

#[derive(Debug)]
struct Source {
    host: blockrank::Segments,
    made: OnGpu<DeviceSegments>,
}

impl From<blockrank::Segments> for Segments {
    /// Uploaded when they are first used on a device.
    fn from(host: blockrank::Segments) -> Self {
        Segments(Arc::new(Source { host, made: OnGpu::default() }))
    }
}

impl Segments {
    /// The segments.
    pub fn host(&self) -> &blockrank::Segments {
        &self.0.host
    }

    fn on(&self, gpu: &Gpu) -> Result<DeviceSegments> {
        self.0.made.get(gpu, || DeviceSegments::new(gpu, &self.0.host))
    }

    /// Batch and tokens.
    fn extents(&self) -> [usize; 2] {
        [self.host().batch(), self.host().tokens()]
    }

    /// Batch and documents of the prompt that has most.
    fn scores(&self) -> [usize; 2] {
        [self.host().batch(), self.host().most_documents()]
    }
}

impl BlockRank {
    /// The mechanism by `config`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self> {
        config.validate()?;
        Ok(BlockRank { config: Arc::new(config), made: Arc::default() })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The output `[batch, heads, tokens, dim_v]` of attention over the mask of the segments, for queries
    /// `[batch, heads, tokens, dim_qk]`, keys `[batch, heads_kv, tokens, dim_qk]` and values
    /// `[batch, heads_kv, tokens, dim_v]`.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply()`].
    pub fn forward(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
        segments: &Segments,
    ) -> Result<burn::tensor::Tensor<4>> {
        let op = InBlocks { method: self.clone(), segments: segments.clone() };
        apply(op, apply::Inputs::new().float(q).float(k).float(v))?.float()
    }

    /// How much of the attention of the signal tokens each document gets, `[batch, documents]`, f32, 0 behind
    /// the last document of a prompt that has fewer than others: queries of the signal tokens
    /// `[batch, heads, signal, dim]` on all keys `[batch, heads_kv, tokens, dim]`.
    ///
    /// # Errors
    /// As [`BlockRank::forward`].
    pub fn scores(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        segments: &Segments,
    ) -> Result<burn::tensor::Tensor<2>> {
        let op = Scores { method: self.clone(), segments: segments.clone() };
        apply(op, apply::Inputs::new().float(q).float(k))?.float()
    }

    /// The contrastive loss `[1]` of scores, without [`Config::lambda`]: the mean over prompts of
    /// `ln sum_all exp(s / tau) - ln sum_positive exp(s / tau)`. `positives` names the documents of each
    /// prompt that answer, at least one.
    ///
    /// # Errors
    /// As [`BlockRank::forward`], and [`attn_core::Error::Data`] for a prompt without a positive document, or
    /// one that there is not.
    pub fn loss(
        &self,
        scores: burn::tensor::Tensor<2>,
        positives: &[Vec<usize>],
        segments: &Segments,
    ) -> Result<burn::tensor::Tensor<1>> {
        let gpu = crate::gpu(&scores.device())?;
        let positives = Positives::new(&gpu, segments.host(), positives)?;
        apply(Loss { method: self.clone(), positives }, apply::Inputs::new().float(scores))?.float()
    }

    fn on(&self, gpu: &Gpu) -> Result<blockrank::BlockRank> {
        self.made.get(gpu, || blockrank::BlockRank::new(gpu, (*self.config).clone()))
    }
}

/// Inputs are queries, keys and values.
#[derive(Debug)]
struct InBlocks {
    method: BlockRank,
    segments: Segments,
}

fn tensors(inputs: &[Tensor]) -> Inputs<'_> {
    Inputs::new(&inputs[0], &inputs[1], &inputs[2])
}

impl Operation for InBlocks {
    type Saved = ();

    fn name(&self) -> &'static str {
        "attention in blocks"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (shape, outputs) = attention_outputs(&inputs[0], &inputs[1], &inputs[2])?;
        let extents = self.segments.extents();
        if [shape.batch, shape.queries] != extents || shape.keys != shape.queries {
            let got = [shape.batch, shape.queries, shape.keys];
            let expected = format!("{extents:?} (batch, tokens) as the segments");
            return Err(CoreError::shape("q, k, v", expected, &got).into());
        }
        Ok(outputs.into())
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<()> {
        let (out, lse) = (&outputs[0], Some(&outputs[1]));
        let segments = self.segments.on(gpu)?;
        self.method.on(gpu)?.forward_into(tensors(inputs), &segments, out, lse)
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, ()>) -> Result<()> {
        let (method, segments) = (self.method.on(gpu)?, self.segments.on(gpu)?);
        let [out, lse] = [&pass.outputs[0], &pass.outputs[1]];
        let saved = method.saved(tensors(pass.inputs), &segments, out, lse)?;
        let cotangents = Cotangents { out: &pass.cotangents[0], lse: None };
        let [dq, dk, dv] = [0, 1, 2].map(|input| pass.gradient(input));
        let targets = Targets { dq, dk, dv, ..Targets::default() };
        method.backward_into(&saved, cotangents, targets)
    }
}

/// Inputs are queries of signal tokens, and keys.
#[derive(Debug)]
struct Scores {
    method: BlockRank,
    segments: Segments,
}

impl Operation for Scores {
    type Saved = SavedScores;

    fn name(&self) -> &'static str {
        "scores of documents"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (q, k) = (&inputs[0], &inputs[1]);
        let (shape, _) = attention_outputs(q, k, k)?;
        let extents = self.segments.extents();
        if [shape.batch, shape.keys] != extents {
            let expected = format!("{extents:?} (batch, tokens) as the segments");
            return Err(CoreError::shape("k", expected, &k.shape).into());
        }
        self.method.config.heads_of(shape.heads)?;
        Ok(vec![Spec::new(self.segments.scores(), DType::F32)])
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<SavedScores> {
        let segments = self.segments.on(gpu)?;
        self.method.on(gpu)?.doc_scores_into(&inputs[0], &inputs[1], &segments, &outputs[0])
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, SavedScores>) -> Result<()> {
        let saved = pass.saved.clone().with_inputs(&pass.inputs[0], &pass.inputs[1])?;
        let targets = ScoreTargets { dq: pass.gradient(0), dk: pass.gradient(1) };
        self.method.on(gpu)?.doc_scores_backward_into(&saved, &pass.cotangents[0], targets)
    }
}

/// The input are scores.
#[derive(Debug)]
struct Loss {
    method: BlockRank,
    positives: Positives,
}

impl Operation for Loss {
    type Saved = ();

    fn name(&self) -> &'static str {
        "contrastive loss"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (scores, expected) = (&inputs[0], self.positives.shape());
        if scores.shape != expected {
            let expected = format!("{expected:?}");
            return Err(CoreError::shape("scores", expected, &scores.shape).into());
        }
        Ok(vec![Spec::new([1], DType::F32)])
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<()> {
        self.method.on(gpu)?.loss_into(&inputs[0], &self.positives, &outputs[0])
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, ()>) -> Result<()> {
        let Some(target) = pass.gradient(0) else { return Ok(()) };
        let (scores, d_loss) = (&pass.inputs[0], Some(&pass.cotangents[0]));
        self.method.on(gpu)?.loss_backward_into(scores, &self.positives, d_loss, target)
    }
}
