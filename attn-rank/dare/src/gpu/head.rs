//! The classifier on a device.
//!
//! ```text
//! dare_columns       mean and variance of each feature
//! dare_norm          normalised features
//! matmul, dare_prelu layers
//! dare_loss          probabilities and losses
//! ```

mod backward;
mod parameters;

use attn_core::Error;
use attn_wgpu::matmul::{Epilogue, matmul_with};
use attn_wgpu::{Call, DType, Gpu, Result, Tensor};

pub use self::backward::{HeadCotangents, HeadGrads, HeadTargets, LinearGrads};
pub use self::parameters::{LinearTensors, Parameters, Statistics};

use super::batch::check_ids;
use super::kernels::{
    COLUMNS, LOSS, NORM, PRELU, Run, bindings, column_constants, column_lanes, flagged,
};
use super::tables::check_device;
use super::train::check_form;

/// Added to variances.
const EPS: f32 = 1e-5;

/// What a head is given.
#[derive(Debug, Clone, Copy)]
pub struct HeadInputs<'a> {
    /// Features f32 `[B, in]`.
    pub x: &'a Tensor,
    /// The parameters.
    pub parameters: &'a Parameters,
    /// Classes, u32 or i32 `[B]`: 0 for a click, anything else for none. Without them there is no loss.
    pub label: Option<&'a Tensor>,
    /// Running statistics, for inference. Default: those of the batch, for training.
    pub statistics: Option<&'a Statistics>,
}

impl<'a> HeadInputs<'a> {
    /// Features and parameters, normalised by the batch's own statistics.
    pub fn new(x: &'a Tensor, parameters: &'a Parameters) -> Self {
        HeadInputs { x, parameters, label: None, statistics: None }
    }

    /// The same with classes, u32 or i32 `[B]`.
    pub fn with_label(self, label: &'a Tensor) -> Self {
        HeadInputs { label: Some(label), ..self }
    }

    /// The same with running statistics.
    pub fn with_statistics(self, statistics: &'a Statistics) -> Self {
        HeadInputs { statistics: Some(statistics), ..self }
    }
}

/// What [`Head::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HeadOutput {
    /// Probabilities of a click and of none, with the floor of 1e-8 added, f32 `[B, 2]`.
    pub prob: Tensor,
    /// `-mean log prob[label]`, f32 `[1]`, where there are labels; 0 for no request.
    pub loss: Option<Tensor>,
    /// Means and variances by which features were normalised.
    pub statistics: Statistics,
}

/// What [`Head::backward`] needs of a call.
#[derive(Debug, Clone)]
pub struct HeadSaved {
    parameters: Parameters,
    label: Option<Tensor>,
    /// f32 `[B, in]`.
    hat: Tensor,
    /// Inputs of the layers, f32 `[B, width]`.
    inputs: Vec<Tensor>,
    /// Their outputs.
    outputs: Vec<Tensor>,
    variance: Tensor,
    fixed: bool,
}

impl HeadSaved {
    /// The same with parameters and labels at another place: a caller's allocator may have moved them. Their
    /// elements must be those of the forward pass.
    pub fn with_inputs(self, parameters: &Parameters, label: Option<&Tensor>) -> HeadSaved {
        HeadSaved { parameters: parameters.clone(), label: label.cloned(), ..self }
    }
}

/// Batch normalisation, linear layers with PReLU between them, and a softmax over two classes; see
/// [`crate::reference::Head`]. It has no parameters of its own.
#[derive(Debug, Clone)]
pub struct Head {
    gpu: Gpu,
}

impl Head {
    /// On a device.
    pub fn new(gpu: &Gpu) -> Head {
        Head { gpu: gpu.clone() }
    }

    /// Probabilities, and the loss where there are labels.
    ///
    /// # Errors
    /// [`Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn forward(&self, inputs: HeadInputs<'_>) -> Result<HeadOutput> {
        Ok(self.forward_saved(inputs)?.0)
    }

    /// [`Head::forward`], and what [`Head::backward`] needs of it.
    ///
    /// # Errors
    /// As [`Head::forward`].
    pub fn forward_saved(&self, inputs: HeadInputs<'_>) -> Result<(HeadOutput, HeadSaved)> {
        let gpu = &self.gpu;
        let HeadInputs { x, parameters, label, statistics } = inputs;
        let &[rows, width] = x.shape() else {
            return Err(Error::shape("x", "[B, in]", x.shape()).into());
        };
        check_form("x", x, &[rows, width])?;
        check_device("x", x, gpu)?;
        parameters.check(width, gpu)?;
        if let Some(label) = label {
            check_ids("label", label, &[rows], gpu)?;
        }
        let own = match statistics {
            Some(own) => {
                for (arg, tensor) in [("mean", &own.mean), ("variance", &own.variance)] {
                    check_form(arg, tensor, &[width])?;
                    check_device(arg, tensor, gpu)?;
                }
                Statistics { mean: placed(&own.mean)?, variance: placed(&own.variance)? }
            }
            None => self.statistics(x)?,
        };
        let parameters = &Parameters {
            gain: placed(&parameters.gain)?,
            bias: placed(&parameters.bias)?,
            slopes: parameters.slopes.iter().map(placed).collect::<Result<_>>()?,
            layers: parameters.layers.clone(),
        };
        let x = rowwise(x)?;
        let new = || Tensor::uninit(gpu, &[rows, width], DType::F32);
        let (hat, mut y) = (new()?, new()?);
        let (gain, bias) = (&parameters.gain, &parameters.bias);
        let run = Run {
            source: &NORM,
            flags: &[],
            tensors: &[&x, &own.mean, &own.variance, gain, bias, &hat, &y],
            count: rows * width,
            params: &[
                width as u32,
                x.binding().1 as u32,
                x.strides()[0] as u32,
                EPS.to_bits(),
                share(rows).to_bits(),
            ],
            steps: 1,
        };
        run.record(gpu)?;
        let (mut layers, mut outputs) = (Vec::new(), Vec::new());
        for (i, layer) in parameters.layers.iter().enumerate() {
            let weight = layer.weight.permute(&[1, 0])?;
            let out = matmul_with(&y, &weight, &Epilogue::new().with_bias(&layer.bias))?;
            layers.push(y);
            y = match parameters.slopes.get(i) {
                None => out.clone(),
                Some(slope) => self.prelu(&out, slope, None)?,
            };
            outputs.push(out);
        }
        let label = label.map(Tensor::contiguous).transpose()?;
        let (prob, loss) = self.classify(&y, label.as_ref())?;
        let output = HeadOutput { prob, loss, statistics: own.clone() };
        let saved = HeadSaved {
            parameters: parameters.clone(),
            label,
            hat,
            inputs: layers,
            outputs,
            variance: own.variance,
            fixed: statistics.is_some(),
        };
        Ok((output, saved))
    }

    /// Mean and biased variance of the columns of f32 `[B, in]`.
    ///
    /// # Errors
    /// [`Error`] for another shape or type; errors of the device.
    pub fn statistics(&self, x: &Tensor) -> Result<Statistics> {
        let &[rows, width] = x.shape() else {
            return Err(Error::shape("x", "[B, in]", x.shape()).into());
        };
        check_form("x", x, &[rows, width])?;
        let mean = self.columns(&[], x, None, share(rows))?;
        let variance = self.columns(&[("SQUARES", true)], x, Some(&mean), share(rows))?;
        Ok(Statistics { mean, variance })
    }

    /// Sums over the rows of `x`, f32 `[width]`; see dare_columns.wgsl.
    fn columns(
        &self,
        flags: &[(&'static str, bool)],
        x: &Tensor,
        other: Option<&Tensor>,
        factor: f32,
    ) -> Result<Tensor> {
        let gpu = &self.gpu;
        let x = rowwise(x)?;
        let &[rows, width] = x.shape() else {
            return Err(Error::shape("x", "[B, in]", x.shape()).into());
        };
        let out = Tensor::uninit(gpu, &[width], DType::F32)?;
        if rows == 0 {
            return Tensor::zeros(gpu, &[width], DType::F32);
        }
        let (columns, parts) = column_lanes(gpu.capabilities());
        let steps = rows.div_ceil(parts as usize) + parts as usize + 1;
        gpu.capabilities().check_steps(format!("`dare_columns` of {rows} rows"), steps)?;
        let mut tensors = vec![&x, &out];
        tensors.extend(other);
        let (y_start, y_stride) = other.map_or((0, 0), |y| (y.binding().1, y.strides()[0]));
        let params = [
            rows as u32,
            width as u32,
            x.binding().1 as u32,
            x.strides()[0] as u32,
            y_start as u32,
            y_stride as u32,
            factor.to_bits(),
        ];
        let kernel = gpu.kernel(&COLUMNS, flagged(column_constants(gpu.capabilities()), flags))?;
        let call = Call {
            bindings: &bindings(&tensors),
            params: bytemuck::cast_slice(&params),
            groups: (width as u64).div_ceil(u64::from(columns)),
            work: 4.0 * (rows * width) as f64,
        };
        kernel.dispatch(gpu, &call)?;
        Ok(out)
    }

    /// PReLU of contiguous tensors, or its derivative by `x`.
    fn prelu(&self, x: &Tensor, slope: &Tensor, dy: Option<&Tensor>) -> Result<Tensor> {
        let out = Tensor::uninit(&self.gpu, x.shape(), DType::F32)?;
        let mut tensors = vec![x, slope, &out];
        tensors.extend(dy);
        let run = Run {
            source: &PRELU,
            flags: &[("BACKWARD", dy.is_some())],
            tensors: &tensors,
            count: x.len(),
            params: &[],
            steps: 1,
        };
        run.record(&self.gpu)?;
        Ok(out)
    }

    /// Probabilities of logits, and the mean loss.
    fn classify(
        &self,
        logits: &Tensor,
        label: Option<&Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let rows = logits.shape()[0];
        let prob = Tensor::uninit(&self.gpu, &[rows, 2], DType::F32)?;
        let losses = Tensor::uninit(&self.gpu, &[rows, 1], DType::F32)?;
        let mut tensors = vec![logits, &prob];
        if let Some(label) = label {
            tensors.extend([label, &losses]);
        }
        let run = Run {
            source: &LOSS,
            flags: &[("LABEL", label.is_some())],
            tensors: &tensors,
            count: rows,
            params: &[
                logits.binding().1 as u32,
                logits.strides()[0] as u32,
                label.map_or(0, |label| label.binding().1 as u32),
                0,
                0,
                share(rows).to_bits(),
            ],
            steps: 1,
        };
        run.record(&self.gpu)?;
        let loss = match label {
            Some(_) => Some(self.columns(&[], &losses, None, share(rows))?),
            None => None,
        };
        Ok((prob, loss))
    }
}

/// 1 / rows.
fn share(rows: usize) -> f32 {
    1.0 / rows.max(1) as f32
}

/// A small tensor from the beginning of a binding on.
fn placed(x: &Tensor) -> Result<Tensor> {
    if x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x.clone());
    }
    let copied = Tensor::uninit(x.gpu(), x.shape(), x.dtype())?;
    attn_wgpu::ops::copy(x, &copied)?;
    Ok(copied)
}

/// A matrix whose rows are contiguous.
fn rowwise(x: &Tensor) -> Result<Tensor> {
    if x.strides().last() == Some(&1) || x.shape().last() == Some(&1) {
        return Ok(x.clone());
    }
    x.contiguous()
}
