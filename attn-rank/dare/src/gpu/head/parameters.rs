//! Parameters and statistics on a device.

use attn_core::Error;
use attn_wgpu::{Gpu, Result, Tensor};
use ndarray::{ArrayView, Dimension, Ix1, Ix2};

use super::super::tables::check_device;
use super::super::train::check_form;
use crate::reference;

/// A layer `x W^T + b`, on a device.
#[derive(Debug, Clone)]
pub struct LinearTensors {
    /// f32 `[out, in]`.
    pub weight: Tensor,
    /// f32 `[out]`.
    pub bias: Tensor,
}

/// The parameters of a head on a device, as [`reference::Head`] has them. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Of the normalisation, f32 `[in]`.
    pub gain: Tensor,
    /// Of the normalisation, f32 `[in]`.
    pub bias: Tensor,
    /// At least one; the last has two outputs, of which the first is a click.
    pub layers: Vec<LinearTensors>,
    /// Of the PReLU behind each layer but the last, f32 `[1]` each.
    pub slopes: Vec<Tensor>,
}

/// Means and variances of features, f32 `[in]` each.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Means.
    pub mean: Tensor,
    /// Biased variances.
    pub variance: Tensor,
}

impl Statistics {
    /// Copies statistics from the host, rounded to f32.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn upload(gpu: &Gpu, own: &reference::Statistics) -> Result<Statistics> {
        Ok(Statistics { mean: up(gpu, own.mean.view())?, variance: up(gpu, own.variance.view())? })
    }

    /// Copies them to the host, as running statistics are kept there. Blocks until the device is done.
    ///
    /// # Errors
    /// Errors of the device; [`Error::Shape`] for others than vectors.
    pub fn read(&self) -> Result<reference::Statistics> {
        Ok(reference::Statistics {
            mean: host::<Ix1>("mean", &self.mean)?,
            variance: host::<Ix1>("variance", &self.variance)?,
        })
    }
}

impl Parameters {
    /// Copies parameters from the host, rounded to f32.
    ///
    /// # Errors
    /// As [`reference::Head::check`]; errors of the device.
    pub fn upload(gpu: &Gpu, head: &reference::Head) -> Result<Parameters> {
        head.check(head.gain.len())?;
        let layer = |own: &reference::Linear| {
            Ok::<_, attn_wgpu::Error>(LinearTensors {
                weight: up(gpu, own.weight.view())?,
                bias: up(gpu, own.bias.view())?,
            })
        };
        let slope = |&slope: &f64| Tensor::from_slice(gpu, &[slope as f32], &[1]);
        Ok(Parameters {
            gain: up(gpu, head.gain.view())?,
            bias: up(gpu, head.bias.view())?,
            layers: head.layers.iter().map(layer).collect::<Result<_>>()?,
            slopes: head.slopes.iter().map(slope).collect::<Result<_>>()?,
        })
    }

    /// Copies parameters to the host. Blocks until the device is done.
    ///
    /// # Errors
    /// Errors of the device; [`Error::Shape`] for tensors of other ranks.
    pub fn read(&self) -> Result<reference::Head> {
        let layer = |own: &LinearTensors| {
            Ok::<_, attn_wgpu::Error>(reference::Linear {
                weight: host::<Ix2>("weight", &own.weight)?,
                bias: host::<Ix1>("bias", &own.bias)?,
            })
        };
        let slope = |own: &Tensor| {
            let own = host::<Ix1>("slopes", own)?;
            Ok::<_, attn_wgpu::Error>(own.first().copied().unwrap_or(0.0))
        };
        Ok(reference::Head {
            gain: host::<Ix1>("gain", &self.gain)?,
            bias: host::<Ix1>("bias", &self.bias)?,
            layers: self.layers.iter().map(layer).collect::<Result<_>>()?,
            slopes: self.slopes.iter().map(slope).collect::<Result<_>>()?,
        })
    }

    /// Checks that everything fits together, and takes features of this width.
    pub(super) fn check(&self, width: usize, gpu: &Gpu) -> Result<()> {
        let expect = |arg, tensor: &Tensor, shape: &[usize]| {
            check_form(arg, tensor, shape)?;
            check_device(arg, tensor, gpu)
        };
        expect("gain", &self.gain, &[width])?;
        expect("bias", &self.bias, &[width])?;
        if self.layers.is_empty() || self.slopes.len() + 1 != self.layers.len() {
            let expected = "one fewer than layers, of which there is one at least";
            return Err(Error::config("slopes", expected, self.slopes.len()).into());
        }
        let mut inputs = width;
        for (i, own) in self.layers.iter().enumerate() {
            let rows = own.weight.shape().first().copied().unwrap_or(0);
            let outputs = if i + 1 == self.layers.len() { 2 } else { rows };
            expect("weight", &own.weight, &[outputs, inputs])?;
            expect("bias", &own.bias, &[outputs])?;
            inputs = outputs;
        }
        for slope in &self.slopes {
            expect("slopes", slope, &[1])?;
        }
        Ok(())
    }
}

fn up<D: Dimension>(gpu: &Gpu, array: ArrayView<'_, f64, D>) -> Result<Tensor> {
    Tensor::from_array(gpu, &array.mapv(|x| x as f32).view().into_dyn())
}

fn host<D: Dimension>(arg: &'static str, tensor: &Tensor) -> Result<ndarray::Array<f64, D>> {
    let array = tensor.to_array::<f32>()?.mapv(f64::from);
    let misfit = |_| Error::shape(arg, "the rank of its kind", tensor.shape());
    Ok(array.into_dimensionality().map_err(misfit)?)
}
