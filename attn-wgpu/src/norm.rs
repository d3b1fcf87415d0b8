//! Normalisation over the last dimension: root mean square, and layer.
//!
//! Sums are in f32 whatever the storage. Elements may be as large as f32 goes.

pub(crate) mod simple;

pub use simple::{
    simple_rms_norm, simple_rms_norm_backward, simple_rms_norm_backward_into, simple_rms_norm_into,
};

use crate::error::Result;
use crate::kernel::{Call, KernelSource};
use crate::ops;
use crate::rows::{self, Extents, Place, Sharing, row_kernel};
use crate::tensor::{DType, Tensor};

pub(crate) const NORM: KernelSource = row_kernel!("norm");

/// Loops over a row, at most.
pub(crate) const PASSES: usize = 3;

/// Root mean square normalisation:
/// `out = x / sqrt(mean(x^2) + eps) * (weight_offset + weight)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weights: 0, or 1 for models that store their weights' distance from 1.
    pub weight_offset: f32,
    /// Type of the result; `None`: that of the input.
    pub dtype: Option<DType>,
}

impl RmsNorm {
    /// Without an offset, in the input's type.
    pub fn new(eps: f32) -> RmsNorm {
        RmsNorm { eps, weight_offset: 0.0, dtype: None }
    }

    /// With `weight_offset` added to the weights.
    pub fn with_weight_offset(mut self, weight_offset: f32) -> RmsNorm {
        self.weight_offset = weight_offset;
        self
    }

    /// With results of type `dtype`.
    pub fn with_dtype(mut self, dtype: DType) -> RmsNorm {
        self.dtype = Some(dtype);
        self
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    extents: Extents,
    x: Place,
    delta: Place,
    sum: Place,
    out: Place,
    weight_start: u32,
    bias_start: u32,
    eps: f32,
    weight_offset: f32,
}

/// What happens to a row besides the root mean square.
#[derive(Clone, Copy)]
enum Form<'a> {
    Rms,
    /// Delta, and where the sum goes.
    Add(&'a Tensor, &'a Tensor),
    /// Bias.
    Layer(&'a Tensor),
}

/// [`RmsNorm`] of the rows of `x` `[.., width]`, of up to four dimensions, with `weight` `[width]`.
/// Weights of other types than f32 are converted first.
///
/// # Errors
/// [`attn_core::Error`] for shapes or types that do not fit, or an `eps` that is not at least 0.
pub fn rms_norm(x: &Tensor, weight: &Tensor, config: &RmsNorm) -> Result<Tensor> {
    rows::check("x", x, x.gpu())?;
    let dtype = config.dtype.unwrap_or(x.dtype());
    rows::check_float("dtype", dtype)?;
    let weight = checked(x, weight, config.eps)?;
    rows::write(x.gpu(), x.shape(), dtype, |out| run(x, &weight, config, Form::Rms, out))
}

/// [`rms_norm`] into a caller's tensor, whose type counts. It must not overlap `x`.
///
/// # Errors
/// As [`rms_norm`], and [`attn_core::Error`] for a target of another shape.
pub fn rms_norm_into(x: &Tensor, weight: &Tensor, config: &RmsNorm, out: &Tensor) -> Result<()> {
    rows::check("x", x, x.gpu())?;
    rows::check("out", out, x.gpu())?;
    rows::check_form("out", out, x.shape(), out.dtype())?;
    let weight = checked(x, weight, config.eps)?;
    rows::write_into(out, |out| run(x, &weight, config, Form::Rms, out))
}

/// A residual connection and the norm behind it in one pass: `sum = x + delta`, in the type of `x`,
/// and `out = rms_norm(sum)`. A `delta` of another type is converted first.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_add(
    x: &Tensor,
    delta: &Tensor,
    weight: &Tensor,
    config: &RmsNorm,
) -> Result<(Tensor, Tensor)> {
    rows::check("x", x, x.gpu())?;
    rows::check("delta", delta, x.gpu())?;
    rows::check_form("delta", delta, x.shape(), delta.dtype())?;
    let dtype = config.dtype.unwrap_or(x.dtype());
    rows::check_float("dtype", dtype)?;
    let weight = checked(x, weight, config.eps)?;
    let delta = rows::source(&ops::convert(delta, x.dtype())?)?;
    let mut out = None;
    let sum = rows::write(x.gpu(), x.shape(), x.dtype(), |sum| {
        let form = Form::Add(&delta, sum);
        let write = |out: &Tensor| run(x, &weight, config, form, out);
        out = Some(rows::write(x.gpu(), x.shape(), dtype, write)?);
        Ok(())
    })?;
    let out = match out {
        Some(out) => out,
        // Nothing to write.
        None => Tensor::uninit(x.gpu(), x.shape(), dtype)?,
    };
    Ok((sum, out))
}

/// [`rms_norm_add`] into callers' tensors. None of the four may overlap another one.
///
/// # Errors
/// As [`rms_norm_add`], and [`attn_core::Error`] for targets of another shape, or a `sum` of
/// another type than `x`.
pub fn rms_norm_add_into(
    x: &Tensor,
    delta: &Tensor,
    weight: &Tensor,
    config: &RmsNorm,
    sum: &Tensor,
    out: &Tensor,
) -> Result<()> {
    rows::check("x", x, x.gpu())?;
    for (arg, tensor) in [("delta", delta), ("sum", sum), ("out", out)] {
        rows::check(arg, tensor, x.gpu())?;
        rows::check_form(arg, tensor, x.shape(), tensor.dtype())?;
    }
    rows::check_form("sum", sum, x.shape(), x.dtype())?;
    let weight = checked(x, weight, config.eps)?;
    let delta = rows::source(&ops::convert(delta, x.dtype())?)?;
    rows::write_into(sum, |sum| {
        rows::write_into(out, |out| run(x, &weight, config, Form::Add(&delta, sum), out))
    })
}

/// Layer normalisation of the rows of `x` `[.., width]`, of up to four dimensions:
/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, with `weight` and `bias` `[width]`;
/// weights of other types than f32 are converted first.
///
/// # Errors
/// As [`rms_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    rows::check("x", x, x.gpu())?;
    let (weight, bias) = (checked(x, weight, eps)?, checked_as("bias", x, bias)?);
    let (config, form) = (RmsNorm::new(eps), Form::Layer(&bias));
    rows::write(x.gpu(), x.shape(), x.dtype(), |out| run(x, &weight, &config, form, out))
}

/// [`layer_norm`] into a caller's tensor, whose type counts. It must not overlap `x`.
///
/// # Errors
/// As [`layer_norm`], and [`attn_core::Error`] for a target of another shape.
pub fn layer_norm_into(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    out: &Tensor,
) -> Result<()> {
    rows::check("x", x, x.gpu())?;
    rows::check("out", out, x.gpu())?;
    rows::check_form("out", out, x.shape(), out.dtype())?;
    let (weight, bias) = (checked(x, weight, eps)?, checked_as("bias", x, bias)?);
    let (config, form) = (RmsNorm::new(eps), Form::Layer(&bias));
    rows::write_into(out, |out| run(x, &weight, &config, form, out))
}

fn checked(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    check_eps(eps)?;
    checked_as("weight", x, weight)
}

fn check_eps(eps: f32) -> Result<()> {
    if (0.0..=1e30).contains(&eps) {
        return Ok(());
    }
    Err(attn_core::Error::config("eps", "at least 0", eps).into())
}

fn checked_as(arg: &'static str, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    rows::check(arg, weight, x.gpu())?;
    rows::weights(arg, weight, x.shape().last().copied().unwrap_or(1))
}

fn run(x: &Tensor, weight: &Tensor, config: &RmsNorm, form: Form<'_>, out: &Tensor) -> Result<()> {
    let width = x.shape().last().copied().unwrap_or(1);
    let gpu = x.gpu();
    let sharing = Sharing::new(width, PASSES, gpu.capabilities());
    sharing.check("norm", width, PASSES, gpu)?;
    let x = rows::source(x)?;
    let constants = rows::storage(sharing.constants(), x.dtype(), Some(out.dtype()))
        .flag("ADD", matches!(form, Form::Add(..)))
        .flag("LAYER", matches!(form, Form::Layer(_)));
    let kernel = gpu.kernel(&NORM, constants)?;
    let mut tensors = vec![&x, out];
    if let Form::Add(delta, sum) = form {
        tensors.extend([delta, sum]);
    }
    rows::windows(&tensors, 0..3, &mut |windows| {
        let (x_binding, x_place) = rows::bind(windows[0]);
        let (weight_binding, weight_start) = weight.binding();
        let (out_binding, out_place) = rows::bind(windows[1]);
        let mut params = Params {
            extents: Extents::of(windows[0], width),
            x: x_place,
            delta: [0; 4],
            sum: [0; 4],
            out: out_place,
            weight_start: (weight_start / 4) as u32,
            bias_start: 0,
            eps: config.eps,
            weight_offset: config.weight_offset,
        };
        let mut bindings = vec![x_binding, weight_binding, out_binding];
        if let &[_, _, delta, sum] = windows {
            let ((delta, delta_place), (sum, sum_place)) = (rows::bind(delta), rows::bind(sum));
            (params.delta, params.sum) = (delta_place, sum_place);
            bindings.extend([delta, sum]);
        }
        if let Form::Layer(bias) = form {
            let (binding, start) = bias.binding();
            params.bias_start = (start / 4) as u32;
            bindings.push(binding);
        }
        let groups = sharing.groups(params.extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 4.0 * windows[0].len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })
    })
}
