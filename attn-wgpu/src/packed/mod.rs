//! Matrix products with weights that stay quantised on the device, in the block formats of GGUF files.
//!
//! ```text
//! out = activation(a W^T + bias) + residual       out[m, n] = sum_k a[m, k] W[n, k] ..
//! ```
//!
//! [`Packed`] is `W` `[N, K]`: what a row holds makes one output, as files have it. Weights are unpacked in
//! registers, never to memory, so a product of few rows reads less than a third (4 bits) or about half (8 bits) of what
//! weights in f16 take. [`gather_rows`] reads rows by number, for embeddings.
//!
//! **Layouts.** `a` is `[.., M, K]`, with up to two batch dimensions in front, and is packed first, by a
//! copy on the device, where its rows are no whole, aligned groups of four elements. Results are tensors
//! as of [`matmul`](crate::matmul).
//!
//! **Order of sums.** Sums are f32. An element depends on its row of `a` and its row of `W` alone, not on
//! other rows or batch entries, and two runs give the same bits. Products of at most
//! [`FEW_ROWS`](crate::matmul::FEW_ROWS) rows a batch entry apply the scales of a block to the sums of its
//! values, larger ones to the values, so that their results differ by roundings.
//!
//! **Limits.** Weights, operands and results above the largest binding, and work above the cap of a
//! dispatch, are split over the batch, rows and columns.

mod blocks;
#[cfg(feature = "bench")]
pub(crate) mod catalogue;
mod gather;
mod product;
mod variant;
mod weight;

pub use self::blocks::BlockType;
pub use self::gather::gather_rows;
pub use self::weight::{Packed, device_bytes};

use self::blocks::STEP;
use self::product::Product;
use self::variant::Variant;
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::matmul::Epilogue;
use crate::matmul::operands::fold;
use crate::ops;
use crate::rows;
use crate::tensor::{DType, Tensor};
use crate::vec4::{four, is_vec4, packed, vec4};

/// `activation(a W^T + bias) + residual` as a new tensor `[.., M, N]`, `a` `[.., M, K]` and `weight`
/// `[N, K]`, of the type that the epilogue names, or that of `a`.
///
/// # Errors
/// [`attn_core::Error`] for shapes, types or devices that do not fit, and for an epilogue that
/// accumulates; [`Error::Limit`](crate::Error::Limit) for rows that no binding holds; errors of the
/// device.
pub fn matmul(a: &Tensor, weight: &Packed, epilogue: &Epilogue<'_>) -> Result<Tensor> {
    if epilogue.accumulate {
        let (expected, got) = ("false, as a new tensor holds nothing", true);
        return Err(attn_core::Error::config("accumulate", expected, got).into());
    }
    let shape = shape_of(a, weight)?;
    rows::check_float("a", a.dtype())?;
    let dtype = epilogue.dtype.unwrap_or(a.dtype());
    rows::check_float("dtype", dtype)?;
    let out = Tensor::uninit(a.gpu(), &shape, dtype)?;
    matmul_into(a, weight, epilogue, &out)?;
    Ok(out)
}

/// [`matmul`] into a caller's tensor, whose last dimension must be contiguous, and which may be a view:
/// columns of a wider matrix, say. A tensor of halves whose rows are not whole, aligned groups of four
/// elements must be contiguous as a whole.
///
/// # Errors
/// As [`matmul`]; [`Error::Kernel`](crate::Error::Kernel) if `out` overlaps an operand.
pub fn matmul_into(
    a: &Tensor,
    weight: &Packed,
    epilogue: &Epilogue<'_>,
    out: &Tensor,
) -> Result<()> {
    matmul_as(a, weight, epilogue, out, a.gpu().capabilities())
}

/// [`matmul_into`] by the variant of a device with other capabilities, for tests of variants that this
/// device does not get. It must be able to run them.
///
/// # Errors
/// As [`matmul_into`].
#[doc(hidden)]
pub fn matmul_as(
    a: &Tensor,
    weight: &Packed,
    epilogue: &Epilogue<'_>,
    out: &Tensor,
    capabilities: &Capabilities,
) -> Result<()> {
    let shape = shape_of(a, weight)?;
    check(a, weight, epilogue, out, &shape)?;
    if out.is_empty() {
        return Ok(());
    }
    let whole = four(out);
    if is_vec4(&whole) || out.dtype() == DType::F32 {
        return record(a, weight, epilogue, whole, capabilities);
    }
    // Halves share words, so rows that are no whole chunks are written to a padded tensor first.
    let columns = weight.rows();
    let padded = if epilogue.accumulate {
        packed(&whole)?
    } else {
        let mut shape = whole.shape().to_vec();
        shape[3] = columns.next_multiple_of(4);
        Tensor::uninit(out.gpu(), &shape, out.dtype())?
    };
    record(a, weight, epilogue, padded.clone(), capabilities)?;
    ops::copy(&padded.narrow(3, 0, columns)?, &whole)
}

/// `out` has four dimensions, and rows of whole chunks if it is of halves.
fn record(
    a: &Tensor,
    weight: &Packed,
    epilogue: &Epilogue<'_>,
    out: Tensor,
    capabilities: &Capabilities,
) -> Result<()> {
    let (mut a, mut out) = (vec4(&four(a))?, out);
    let mut residual = epilogue.residual.map(|tensor| vec4(&four(tensor))).transpose()?;
    let bias = epilogue.bias.map(|bias| vec4(&four(bias))).transpose()?;
    let entry_rows = out.shape()[2];
    // Batch entries share the weights: they are rows of one product, if strides admit that.
    let added = residual.as_ref().map(fold);
    if let (Some(all_a), Some(all_out)) = (fold(&a), fold(&out))
        && added.as_ref().is_none_or(Option::is_some)
    {
        (a, out, residual) = (all_a, all_out, added.flatten());
    }
    let variant = Variant::of(entry_rows, out.shape()[2], capabilities);
    let what = format!("a product with rows of {} packed values", weight.width());
    capabilities.check_steps(what, variant.loop_steps(weight.width() / STEP))?;
    let (activation, accumulate) = (epilogue.activation, epilogue.accumulate);
    Product { a, weight, bias, residual, out, activation, accumulate, variant }.record()
}

/// The shape of a result.
fn shape_of(a: &Tensor, weight: &Packed) -> Result<Vec<usize>> {
    let shape = a.shape();
    if !(2..=4).contains(&shape.len()) || shape.last() != Some(&weight.width()) {
        let width = weight.width();
        let expected = format!("[.., M, {width}], with up to two batch dimensions in front");
        return Err(attn_core::Error::shape("a", expected, shape).into());
    }
    let mut out = shape.to_vec();
    out.pop();
    out.push(weight.rows());
    Ok(out)
}

fn check(
    a: &Tensor,
    weight: &Packed,
    epilogue: &Epilogue<'_>,
    out: &Tensor,
    shape: &[usize],
) -> Result<()> {
    let Epilogue { bias, residual, dtype, .. } = *epilogue;
    let gpu = weight.gpu();
    let all = [("a", Some(a)), ("bias", bias), ("residual", residual), ("out", Some(out))];
    for (arg, tensor) in all.into_iter().filter_map(|(arg, tensor)| Some((arg, tensor?))) {
        rows::check_float(arg, tensor.dtype())?;
        rows::check_device(arg, tensor, gpu)?;
    }
    let dtype = dtype.unwrap_or(a.dtype());
    for (arg, tensor) in [("out", Some(out)), ("residual", residual)] {
        let Some(tensor) = tensor else { continue };
        rows::check_form(arg, tensor, shape, dtype)?;
    }
    let (extents, strides) = (out.shape(), out.strides());
    let repeats = extents.iter().zip(strides).any(|(&extent, &stride)| extent > 1 && stride == 0);
    if repeats || extents.last().zip(strides.last()).is_some_and(|(&n, &s)| n > 1 && s != 1) {
        let expected = "no repeated elements, and a contiguous last dimension";
        return Err(attn_core::Error::shape("out", expected, extents).into());
    }
    match bias {
        Some(bias) => rows::check_form("bias", bias, &[weight.rows()], bias.dtype()),
        None => Ok(()),
    }
}
