//! Softmax over the last dimension, and its logarithm.
//!
//! Sums are in f32 whatever the storage. Elements of at most -2.9e38 count as -inf.

use crate::elementwise::check_cap;
use crate::error::Result;
use crate::kernel::{Call, KernelSource};
use crate::rows::{self, Extents, Place, Sharing, row_kernel};
use crate::tensor::{DType, Tensor};

pub(crate) const SOFTMAX: KernelSource = row_kernel!("softmax");
pub(crate) const LOG_SOFTMAX: KernelSource = row_kernel!("log_softmax");

/// Loops over a row.
pub(crate) const PASSES: usize = 2;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    extents: Extents,
    x: Place,
    out: Place,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LogParams {
    extents: Extents,
    x: Place,
    out: Place,
    targets: Place,
    cap: f32,
}

/// `exp(x) / sum exp(x)` over each row of `x` `[.., width]`, of up to four dimensions, in its type.
/// A row of nothing but -inf gives zeros.
///
/// # Errors
/// [`attn_core::Error`] for types of integers or more dimensions.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    rows::check("x", x, x.gpu())?;
    rows::write(x.gpu(), x.shape(), x.dtype(), |out| run(x, out))
}

/// [`softmax`] into a caller's tensor, whose type counts. It must not overlap `x`.
///
/// # Errors
/// As [`softmax`], and [`attn_core::Error`] for a target of another shape.
pub fn softmax_into(x: &Tensor, out: &Tensor) -> Result<()> {
    rows::check("x", x, x.gpu())?;
    rows::check("out", out, x.gpu())?;
    rows::check_form("out", out, x.shape(), out.dtype())?;
    rows::write_into(out, |out| run(x, out))
}

/// `ln sum exp(x)` over each row of `x` `[.., width]`, of up to four dimensions; f32. A row of
/// nothing but -inf, or of no element, gives -inf.
///
/// # Errors
/// [`attn_core::Error`] for types of integers or more dimensions.
pub fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    rows::check("x", x, x.gpu())?;
    let outer = &x.shape()[..x.shape().len() - 1];
    if x.is_empty() {
        return Tensor::full(x.gpu(), outer, f32::NEG_INFINITY);
    }
    let out = Tensor::uninit(x.gpu(), outer, DType::F32)?;
    run_log(x, None, None, &out)?;
    Ok(out)
}

/// Log-probability of one element of each row: `x[target] - ln sum exp(x)`, with
/// `x = cap tanh(logits / cap)` where there is a `soft_cap`. `logits` is `[rows, width]`, `targets`
/// u32 `[rows]`, the result f32 `[rows]`; -inf where the element is, NaN where there is no such
/// element.
///
/// The negative mean over a text is the logarithm of its perplexity. Rows are independent, so a
/// text may come in chunks.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, or a cap that is not positive.
pub fn log_softmax_gather(
    logits: &Tensor,
    targets: &Tensor,
    soft_cap: Option<f32>,
) -> Result<Tensor> {
    let gpu = logits.gpu();
    rows::check("logits", logits, gpu)?;
    let &[count, width] = logits.shape() else {
        return Err(attn_core::Error::shape("logits", "[rows, width]", logits.shape()).into());
    };
    rows::check_device("targets", targets, gpu)?;
    rows::check_form("targets", targets, &[count], DType::U32)?;
    if let Some(cap) = soft_cap {
        check_cap(cap)?;
    }
    if count * width == 0 {
        return Tensor::full(gpu, &[count], f32::NAN);
    }
    let out = Tensor::uninit(gpu, &[count], DType::F32)?;
    run_log(logits, Some(&targets.contiguous()?), soft_cap, &out)?;
    Ok(out)
}

fn run(x: &Tensor, out: &Tensor) -> Result<()> {
    let width = x.shape().last().copied().unwrap_or(1);
    let gpu = x.gpu();
    let sharing = Sharing::new(width, PASSES, gpu.capabilities());
    sharing.check("softmax", width, PASSES, gpu)?;
    let x = rows::source(x)?;
    let constants = rows::storage(sharing.constants(), x.dtype(), Some(out.dtype()));
    let kernel = gpu.kernel(&SOFTMAX, constants)?;
    rows::windows(&[&x, out], 0..3, &mut |windows| {
        let ((x, x_place), (out, out_place)) = (rows::bind(windows[0]), rows::bind(windows[1]));
        let params = Params { extents: Extents::of(windows[0], width), x: x_place, out: out_place };
        let groups = sharing.groups(params.extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 8.0 * windows[0].len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &[x, out], params, groups, work })
    })
}

/// Writes one number a row; `out` and `targets` are contiguous.
fn run_log(
    x: &Tensor,
    targets: Option<&Tensor>,
    soft_cap: Option<f32>,
    out: &Tensor,
) -> Result<()> {
    let width = x.shape().last().copied().unwrap_or(1);
    let gpu = x.gpu();
    let sharing = Sharing::new(width, PASSES, gpu.capabilities());
    sharing.check("log_softmax", width, PASSES, gpu)?;
    let x = rows::source(x)?;
    let constants = rows::storage(sharing.constants(), x.dtype(), None)
        .flag("TARGET", targets.is_some())
        .flag("SOFT_CAP", soft_cap.is_some());
    let kernel = gpu.kernel(&LOG_SOFTMAX, constants)?;
    let numbers = |tensor: &Tensor| {
        let mut shape = x.shape().to_vec();
        shape[3] = 1;
        tensor.reshape(&shape)
    };
    let mut tensors = vec![x.clone(), numbers(out)?];
    if let Some(targets) = targets {
        tensors.push(numbers(targets)?);
    }
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    rows::windows(&tensors, 0..3, &mut |windows| {
        let (x, x_place) = rows::bind(windows[0]);
        let words = |window: &Tensor| {
            let (binding, start) = window.binding();
            (binding, rows::place(window, start, 1))
        };
        let (out, out_place) = words(windows[1]);
        let mut bindings = vec![x, out];
        let mut targets_place = [0; 4];
        if let Some(targets) = windows.get(2) {
            let (binding, place) = words(targets);
            targets_place = place;
            bindings.push(binding);
        }
        let params = LogParams {
            extents: Extents::of(windows[0], width),
            x: x_place,
            out: out_place,
            targets: targets_place,
            cap: soft_cap.unwrap_or(1.0),
        };
        let groups = sharing.groups(params.extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 6.0 * windows[0].len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })
    })
}
