//! Derivatives of the classifier on a device.

use attn_core::Error;
use attn_wgpu::matmul::{Epilogue, matmul, matmul_into};
use attn_wgpu::{DType, Result, Tensor, ops};

use super::super::kernels::{LOSS, NORM, Run};
use super::super::tables::check_device;
use super::super::train::check_form;
use super::{EPS, Head, HeadSaved, placed, share};

/// Derivatives of a loss by what [`Head::forward`] returned; at least one.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadCotangents<'a> {
    /// By the probabilities, f32 `[B, 2]`.
    pub prob: Option<&'a Tensor>,
    /// By the mean loss, f32 `[1]`: 1 where it is the loss itself.
    pub loss: Option<&'a Tensor>,
}

impl<'a> HeadCotangents<'a> {
    /// Of a function of the probabilities.
    pub fn of_prob(prob: &'a Tensor) -> Self {
        HeadCotangents { prob: Some(prob), loss: None }
    }

    /// Of a function of the loss.
    pub fn of_loss(loss: &'a Tensor) -> Self {
        HeadCotangents { prob: None, loss: Some(loss) }
    }
}

/// Derivatives by a layer.
#[derive(Debug, Clone)]
pub struct LinearGrads {
    /// f32 `[out, in]`.
    pub weight: Tensor,
    /// f32 `[out]`.
    pub bias: Tensor,
}

/// Derivatives of a loss by features and parameters, of their shapes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HeadGrads {
    /// By the features f32 `[B, in]`.
    pub x: Tensor,
    /// By the normalisation's gain f32 `[in]`.
    pub gain: Tensor,
    /// By its bias f32 `[in]`.
    pub bias: Tensor,
    /// By the layers.
    pub layers: Vec<LinearGrads>,
    /// By the slopes f32 `[1]` each.
    pub slopes: Vec<Tensor>,
}

/// Where [`Head::backward_into`] writes, f32 of the shapes of [`HeadGrads`]; what has no target is not kept.
/// Lists are as long as those of the parameters, or empty.
#[derive(Debug, Clone, Default)]
pub struct HeadTargets<'a> {
    /// By the features.
    pub x: Option<&'a Tensor>,
    /// By the normalisation's gain.
    pub gain: Option<&'a Tensor>,
    /// By its bias.
    pub bias: Option<&'a Tensor>,
    /// By each layer's weight and bias.
    pub layers: Vec<[Option<&'a Tensor>; 2]>,
    /// By the slopes.
    pub slopes: Vec<Option<&'a Tensor>>,
}

impl<'a> HeadTargets<'a> {
    /// All of a set of gradients.
    pub fn new(grads: &'a HeadGrads) -> Self {
        HeadTargets {
            x: Some(&grads.x),
            gain: Some(&grads.gain),
            bias: Some(&grads.bias),
            layers: grads.layers.iter().map(|l| [Some(&l.weight), Some(&l.bias)]).collect(),
            slopes: grads.slopes.iter().map(Some).collect(),
        }
    }
}

impl Head {
    /// The vector-Jacobian product of [`Head::forward`]; see [`crate::reference::Head::backward`].
    ///
    /// # Errors
    /// [`Error`] for cotangents of other shapes or types, none at all, or one of a loss without labels;
    /// errors of the device.
    pub fn backward(&self, saved: &HeadSaved, cotangents: HeadCotangents<'_>) -> Result<HeadGrads> {
        let new = |like: &Tensor| Tensor::uninit(&self.gpu, like.shape(), DType::F32);
        let own = &saved.parameters;
        let layer = |like: &super::LinearTensors| {
            Ok::<_, attn_wgpu::Error>(LinearGrads {
                weight: new(&like.weight)?,
                bias: new(&like.bias)?,
            })
        };
        let grads = HeadGrads {
            x: new(&saved.hat)?,
            gain: new(&own.gain)?,
            bias: new(&own.bias)?,
            layers: own.layers.iter().map(layer).collect::<Result<_>>()?,
            slopes: own.slopes.iter().map(new).collect::<Result<_>>()?,
        };
        self.backward_into(saved, cotangents, &HeadTargets::new(&grads))?;
        Ok(grads)
    }

    /// [`Head::backward`] into callers' tensors, which must not overlap each other or anything else.
    ///
    /// # Errors
    /// As [`Head::backward`], and [`Error`] for targets of other shapes or numbers.
    pub fn backward_into(
        &self,
        saved: &HeadSaved,
        cotangents: HeadCotangents<'_>,
        targets: &HeadTargets<'_>,
    ) -> Result<()> {
        self.check_targets(saved, targets)?;
        let mut dy = self.by_logits(saved, &cotangents)?;
        let own = &saved.parameters;
        let plain = &[];
        for i in (0..own.layers.len()).rev() {
            if let Some(slope) = own.slopes.get(i) {
                let out = &saved.outputs[i];
                if let Some(target) = targets.slopes.get(i).copied().flatten() {
                    let by_column = self.columns(&[("BELOW", true)], &dy, Some(out), 1.0)?;
                    let by_column = by_column.reshape(&[by_column.len(), 1])?;
                    put(&self.columns(plain, &by_column, None, 1.0)?, target)?;
                }
                dy = self.prelu(out, &placed(slope)?, Some(&dy))?;
            }
            let [weight, bias] = targets.layers.get(i).copied().unwrap_or_default();
            if let Some(target) = weight {
                let sums = dy.permute(&[1, 0])?;
                if dy.shape()[0] == 0 {
                    put(&Tensor::zeros(&self.gpu, target.shape(), DType::F32)?, target)?;
                } else {
                    matmul_into(&sums, &saved.inputs[i], &Epilogue::new(), target)?;
                }
            }
            if let Some(target) = bias {
                put(&self.columns(plain, &dy, None, 1.0)?, target)?;
            }
            dy = matmul(&dy, &own.layers[i].weight)?;
        }
        let sums = self.columns(plain, &dy, None, 1.0)?;
        let products = self.columns(&[("PRODUCTS", true)], &dy, Some(&saved.hat), 1.0)?;
        if let Some(target) = targets.gain {
            put(&products, target)?;
        }
        if let Some(target) = targets.bias {
            put(&sums, target)?;
        }
        let Some(target) = targets.x else { return Ok(()) };
        let (rows, width) = (saved.hat.shape()[0], saved.hat.shape()[1]);
        let gain = placed(&own.gain)?;
        let dx = Tensor::uninit(&self.gpu, &[rows, width], DType::F32)?;
        let run = Run {
            source: &NORM,
            flags: &[("BACKWARD", true), ("FIXED", saved.fixed)],
            tensors: &[&dy, &saved.hat, &saved.variance, &gain, &sums, &products, &dx],
            count: rows * width,
            params: &[width as u32, 0, 0, EPS.to_bits(), share(rows).to_bits()],
            steps: 1,
        };
        run.record(&self.gpu)?;
        put(&dx, target)
    }

    /// By the logits, f32 `[B, 2]`.
    fn by_logits(&self, saved: &HeadSaved, cotangents: &HeadCotangents<'_>) -> Result<Tensor> {
        let Some(logits) = saved.outputs.last() else {
            return Err(Error::config("layers", "at least one", 0).into());
        };
        let rows = logits.shape()[0];
        if cotangents.prob.is_none() && cotangents.loss.is_none() {
            return Err(Error::config("cotangents", "at least one", "none").into());
        }
        for (arg, given, shape) in [
            ("cotangents.prob", cotangents.prob, &[rows, 2][..]),
            ("cotangents.loss", cotangents.loss, &[1][..]),
        ] {
            if let Some(given) = given {
                check_form(arg, given, shape)?;
                check_device(arg, given, &self.gpu)?;
            }
        }
        if cotangents.loss.is_some() && saved.label.is_none() {
            let expected = "none, as there were no labels";
            return Err(Error::config("cotangents.loss", expected, "one").into());
        }
        let d_logits = Tensor::uninit(&self.gpu, &[rows, 2], DType::F32)?;
        let d_prob = cotangents.prob.map(Tensor::contiguous).transpose()?;
        let label = saved.label.as_ref().map(Tensor::contiguous).transpose()?;
        // What is missing is not read.
        let (label, by_prob) =
            (label.as_ref().unwrap_or(logits), d_prob.as_ref().unwrap_or(logits));
        let by_loss = cotangents.loss.unwrap_or(logits);
        let start = |tensor: &Tensor| tensor.binding().1 as u32;
        let run = Run {
            source: &LOSS,
            flags: &[
                ("BACKWARD", true),
                ("D_PROB", cotangents.prob.is_some()),
                ("D_LOSS", cotangents.loss.is_some()),
            ],
            tensors: &[logits, &d_logits, label, by_prob, by_loss],
            count: rows,
            params: &[
                start(logits),
                logits.strides()[0] as u32,
                start(label),
                start(by_prob),
                start(by_loss),
                share(rows).to_bits(),
            ],
            steps: 1,
        };
        run.record(&self.gpu)?;
        Ok(d_logits)
    }

    fn check_targets(&self, saved: &HeadSaved, targets: &HeadTargets<'_>) -> Result<()> {
        let own = &saved.parameters;
        let expect = |arg, target: Option<&Tensor>, like: &Tensor| match target {
            None => Ok(()),
            Some(target) => {
                check_form(arg, target, like.shape())?;
                check_device(arg, target, &self.gpu)
            }
        };
        expect("targets.x", targets.x, &saved.hat)?;
        expect("targets.gain", targets.gain, &own.gain)?;
        expect("targets.bias", targets.bias, &own.bias)?;
        let lengths = [
            ("targets.layers", targets.layers.len(), own.layers.len()),
            ("targets.slopes", targets.slopes.len(), own.slopes.len()),
        ];
        for (arg, got, wanted) in lengths {
            if got != 0 && got != wanted {
                return Err(Error::config(arg, format!("{wanted}, or none"), got).into());
            }
        }
        for ([weight, bias], like) in targets.layers.iter().zip(&own.layers) {
            expect("targets.layers", *weight, &like.weight)?;
            expect("targets.layers", *bias, &like.bias)?;
        }
        for (slope, like) in targets.slopes.iter().zip(&own.slopes) {
            expect("targets.slopes", *slope, like)?;
        }
        Ok(())
    }
}

/// Copies into a caller's tensor.
fn put(x: &Tensor, target: &Tensor) -> Result<()> {
    ops::convert_into(x, target)
}
