//! The contrastive loss.

use attn_core::Error;
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

use super::BlockRank;
use super::kernels::{Each, LOSS};
use crate::Segments;
use crate::reference::check_positives;

/// The positive documents of the prompts of a batch, on a device.
#[derive(Debug, Clone)]
pub struct Positives {
    /// 0 behind a prompt's last document, 1 a document, 3 a positive one, u32 `[batch, documents]`.
    kinds: Tensor,
}

/// The contrastive loss and its derivative.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Loss {
    /// Mean over the batch, f32 `[1]`.
    pub loss: Tensor,
    /// Derivative by the scores, f32 `[batch, documents]`.
    pub d_scores: Tensor,
}

impl Positives {
    /// Of these documents of every prompt.
    ///
    /// # Errors
    /// [`Error::Data`] for a prompt without a positive document, or one that there is not; those of
    /// allocation.
    pub fn new(gpu: &Gpu, segments: &Segments, positives: &[Vec<usize>]) -> Result<Positives> {
        check_positives(positives, segments)?;
        let documents = segments.most_documents();
        let mut kinds = vec![0u32; segments.batch() * documents];
        for (prompt, own) in positives.iter().enumerate() {
            let row = &mut kinds[prompt * documents..][..documents];
            row[..segments.documents(prompt).len()].fill(1);
            own.iter().for_each(|&number| row[number] = 3);
        }
        let kinds = Tensor::from_slice(gpu, &kinds, &[segments.batch(), documents])?;
        Ok(Positives { kinds })
    }

    /// Batch and documents: the shape of the scores.
    pub fn shape(&self) -> &[usize] {
        self.kinds.shape()
    }
}

impl BlockRank {
    /// The contrastive loss of scores `[batch, documents]`, f32 or a half type, and its derivative.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn loss(&self, scores: &Tensor, positives: &Positives) -> Result<Loss> {
        let loss = Tensor::uninit(&self.gpu, &[1], DType::F32)?;
        self.loss_into(scores, positives, &loss)?;
        let d_scores = Tensor::uninit(&self.gpu, positives.shape(), DType::F32)?;
        self.loss_backward_into(scores, positives, None, &d_scores)?;
        Ok(Loss { loss, d_scores })
    }

    /// The loss in a caller's tensor `[1]`, in its own type.
    ///
    /// # Errors
    /// As [`BlockRank::loss`], and [`attn_core::Error`] for a target of another shape or of integers.
    pub fn loss_into(&self, scores: &Tensor, positives: &Positives, loss: &Tensor) -> Result<()> {
        ops::check_target("loss", loss, &self.gpu, &[1])?;
        let scores = self.check_scores(scores, positives)?;
        let &[batch, documents] = positives.shape() else { return Ok(()) };
        if batch == 0 {
            return ops::convert_into(&Tensor::zeros(&self.gpu, &[1], DType::F32)?, loss);
        }
        let each = Tensor::uninit(&self.gpu, &[batch], DType::F32)?;
        self.run(&[], &[&scores, &positives.kinds, &each], [batch, documents], positives, 0)?;
        let mean = Tensor::uninit(&self.gpu, &[1], DType::F32)?;
        self.run(&["MEAN"], &[&each, &mean], [1, batch], positives, 0)?;
        ops::convert_into(&mean, loss)
    }

    /// The derivative of the loss by the scores, times a cotangent `[1]` (1 where there is none), in a caller's
    /// tensor `[batch, documents]`, in its own type.
    ///
    /// # Errors
    /// As [`BlockRank::loss`], and [`attn_core::Error`] for a cotangent or a target of another shape or of
    /// integers.
    pub fn loss_backward_into(
        &self,
        scores: &Tensor,
        positives: &Positives,
        d_loss: Option<&Tensor>,
        d_scores: &Tensor,
    ) -> Result<()> {
        ops::check_target("d_scores", d_scores, &self.gpu, positives.shape())?;
        let scores = self.check_scores(scores, positives)?;
        let d_loss = match d_loss {
            Some(d_loss) => {
                self.check_float("d_loss", d_loss)?;
                if d_loss.shape() != [1] {
                    return Err(Error::shape("d_loss", "[1]", d_loss.shape()).into());
                }
                ops::convert(d_loss, DType::F32)?
            }
            None => Tensor::full(&self.gpu, &[1], 1.0f32)?,
        };
        let &[batch, documents] = positives.shape() else { return Ok(()) };
        if batch == 0 {
            return Ok(());
        }
        let own = Tensor::uninit(&self.gpu, &[batch, documents], DType::F32)?;
        let d_start = d_loss.binding().1 as u32;
        let tensors = [&scores, &positives.kinds, &d_loss, &own];
        self.run(&["BACKWARD"], &tensors, [batch, documents], positives, d_start)?;
        ops::convert_into(&own, d_scores)
    }

    /// Runs a variant of the kernel, in `count` invocations of `steps` steps; scores are bound first.
    fn run(
        &self,
        flags: &[&str],
        tensors: &[&Tensor],
        [count, steps]: [usize; 2],
        positives: &Positives,
        d_start: u32,
    ) -> Result<()> {
        let start = tensors.first().map_or(0, |scores| scores.binding().1 as u32);
        let sharpness = (1.0 / self.config.tau) as f32;
        let [batch, documents] = [0, 1].map(|dim| positives.shape()[dim] as u32);
        Each {
            source: &LOSS,
            flags,
            tensors,
            count,
            params: &[documents, batch, sharpness.to_bits(), start, documents, d_start],
            steps,
            work: 32 * steps,
        }
        .record(&self.gpu)
    }

    /// The scores in f32, contiguous.
    fn check_scores(&self, scores: &Tensor, positives: &Positives) -> Result<Tensor> {
        self.check_float("scores", scores)?;
        if scores.shape() != positives.shape() {
            let expected = format!("{:?}", positives.shape());
            return Err(Error::shape("scores", expected, scores.shape()).into());
        }
        ops::convert(scores, DType::F32)?.contiguous()
    }
}
