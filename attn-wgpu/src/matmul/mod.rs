//! Matrix products with what usually comes behind them, in one pass.
//!
//! ```text
//! out = activation(a b + bias) + residual         out[m, n] = sum_k a[m, k] b[k, n] ..
//! ```
//!
//! **Layouts.** `a` is `[.., M, K]`, `b` is `[.., K, N]`, with up to two batch dimensions in front; those
//! of extent 1, or missing ones, are repeated. Transposes are strides: weights that are stored as
//! `[N, K]` are `weights.permute(&[1, 0])`, and run as fast as others. Rows of whole, aligned groups of
//! four elements are read where they are; anything else is packed first, by a copy on the device, so
//! weights that are used again and again should have such rows.
//!
//! **Types.** `a` and `b` are f32, f16 or bf16 each; sums are f32; the result has the type of `a`, or the
//! one that [`Epilogue::with_dtype`] names.
//!
//! **Order of sums.** An element depends on its row of `a` and its column of `b` alone, not on other rows
//! or batch entries, and two runs give the same bits. On a GPU, products of at most [`FEW_ROWS`] rows a
//! batch entry may sum in another order than larger ones. Where entries share `b`, they are computed together,
//! as if they were rows, without a change of any bit.
//!
//! **Limits.** Operands above the largest binding, and work above the cap of a dispatch, are split over
//! the batch, rows and columns, and where only that helps over the depth; then sums are kept in f32
//! from part to part. A depth beyond [`Capabilities::max_loop_steps`](crate::Capabilities::max_loop_steps)
//! is split in the same way.

#[cfg(feature = "bench")]
pub(crate) mod catalogue;
pub(crate) mod operands;
mod product;
pub(crate) mod variant;

pub use variant::{FEW_ROWS, Problem, Variant};

use self::operands::{Operand, fold, target};
use self::product::Product;
use crate::activation::Activation;
use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::{DType, Tensor};
use crate::vec4::{four, is_vec4, packed, vec4};

/// What happens to `a b` before it is stored: `activation(a b + bias) + residual`.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Epilogue<'a> {
    /// `[N]`, f32 or a half type.
    pub bias: Option<&'a Tensor>,
    /// Applied to each element. Default: none.
    pub activation: Activation,
    /// Added behind the activation: like the result in shape and type.
    pub residual: Option<&'a Tensor>,
    /// Whether what `out` holds is added as well. See [`Epilogue::accumulating`].
    pub accumulate: bool,
    /// Type of the result; that of `a` by default.
    pub dtype: Option<DType>,
}

impl<'a> Epilogue<'a> {
    /// Nothing.
    pub fn new() -> Self {
        Epilogue::default()
    }

    /// Adds `bias` `[N]` to every row.
    pub fn with_bias(self, bias: &'a Tensor) -> Self {
        Epilogue { bias: Some(bias), ..self }
    }

    /// Applies `activation` to each element.
    pub fn with_activation(self, activation: Activation) -> Self {
        Epilogue { activation, ..self }
    }

    /// Adds `residual` to the result. It must not overlap `out`; see [`Epilogue::accumulating`].
    pub fn with_residual(self, residual: &'a Tensor) -> Self {
        Epilogue { residual: Some(residual), ..self }
    }

    /// Adds the result to what `out` holds, in place: `out += activation(a b + bias)`, which is what a
    /// residual stream needs. Only for [`matmul_into`].
    pub fn accumulating(self) -> Self {
        Epilogue { accumulate: true, ..self }
    }

    /// Stores the result as `dtype`: f32, f16 or bf16.
    pub fn with_dtype(self, dtype: DType) -> Self {
        Epilogue { dtype: Some(dtype), ..self }
    }
}

/// `a b` as a new tensor of the type of `a`.
///
/// # Errors
/// [`attn_core::Error`] for shapes, types or devices that do not fit; errors of the device.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    matmul_with(a, b, &Epilogue::new())
}

/// `activation(a b + bias) + residual` as a new tensor.
///
/// # Errors
/// As [`matmul`]; [`attn_core::Error::Config`] for an epilogue that accumulates.
pub fn matmul_with(a: &Tensor, b: &Tensor, epilogue: &Epilogue<'_>) -> Result<Tensor> {
    if epilogue.accumulate {
        let (expected, got) = ("false, as a new tensor holds nothing", true);
        return Err(attn_core::Error::config("accumulate", expected, got).into());
    }
    let shape = Shape::of(a, b)?;
    let out = Tensor::uninit(a.gpu(), &shape.out, epilogue.dtype.unwrap_or(a.dtype()))?;
    matmul_into(a, b, epilogue, &out)?;
    Ok(out)
}

/// `activation(a b + bias) + residual` into a caller's tensor, whose last dimension must be
/// contiguous. A tensor of halves whose rows are not whole, aligned groups of four elements must be
/// contiguous as a whole.
///
/// # Errors
/// As [`matmul`]; [`Error::Kernel`] if `out` overlaps an operand.
pub fn matmul_into(a: &Tensor, b: &Tensor, epilogue: &Epilogue<'_>, out: &Tensor) -> Result<()> {
    run(a, b, epilogue, out, a.gpu().capabilities())
}

/// [`matmul_into`] by the variant of a device with other capabilities, for tests of variants that this
/// device does not get. It must be able to run them.
///
/// # Errors
/// As [`matmul_into`].
#[doc(hidden)]
pub fn matmul_as(
    a: &Tensor,
    b: &Tensor,
    epilogue: &Epilogue<'_>,
    out: &Tensor,
    capabilities: &Capabilities,
) -> Result<()> {
    run(a, b, epilogue, out, capabilities)
}

/// Extents of a product.
struct Shape {
    batch: [usize; 2],
    rows: usize,
    columns: usize,
    depth: usize,
    out: Vec<usize>,
}

impl Shape {
    fn of(a: &Tensor, b: &Tensor) -> Result<Shape> {
        for (arg, tensor) in [("a", a), ("b", b)] {
            if !(2..=4).contains(&tensor.shape().len()) {
                let expected = "two dimensions, and up to two batch dimensions in front";
                return Err(attn_core::Error::shape(arg, expected, tensor.shape()).into());
            }
        }
        let (wide_a, wide_b) = (four(a), four(b));
        let (&[a0, a1, rows, depth], &[b0, b1, b_depth, columns]) =
            (wide_a.shape(), wide_b.shape())
        else {
            return Err(attn_core::Error::shape("a", "a matrix", a.shape()).into());
        };
        if b_depth != depth {
            let expected = format!("[.., {depth}, N], as `a` is {:?}", a.shape());
            return Err(attn_core::Error::shape("b", expected, b.shape()).into());
        }
        let mut batch = [0; 2];
        for (extent, (from_a, from_b)) in batch.iter_mut().zip([(a0, b0), (a1, b1)]) {
            *extent = match (from_a, from_b) {
                (1, other) | (other, 1) => other,
                (one, other) if one == other => one,
                _ => {
                    let expected = format!("batch dimensions as `a` {:?}, or 1", a.shape());
                    return Err(attn_core::Error::shape("b", expected, b.shape()).into());
                }
            };
        }
        let rank = a.shape().len().max(b.shape().len());
        let out = [batch[0], batch[1], rows, columns][4 - rank..].to_vec();
        Ok(Shape { batch, rows, columns, depth, out })
    }
}

fn run(
    a: &Tensor,
    b: &Tensor,
    epilogue: &Epilogue<'_>,
    out: &Tensor,
    capabilities: &Capabilities,
) -> Result<()> {
    let shape = Shape::of(a, b)?;
    check(a, b, epilogue, out, &shape)?;
    if out.is_empty() {
        return Ok(());
    }
    let whole = four(out);
    if is_vec4(&whole) || out.dtype() == DType::F32 {
        return record(a, b, epilogue, &whole, &shape, capabilities);
    }
    let padded = if epilogue.accumulate { packed(&whole)? } else { target(&whole, out.dtype())? };
    record(a, b, epilogue, &padded, &shape, capabilities)?;
    ops::copy(&padded.narrow(3, 0, shape.columns)?, &whole)
}

/// `out` has four dimensions, and rows of whole chunks if it is of halves.
fn record(
    a: &Tensor,
    b: &Tensor,
    epilogue: &Epilogue<'_>,
    out: &Tensor,
    shape: &Shape,
    capabilities: &Capabilities,
) -> Result<()> {
    let few = shape.rows <= FEW_ROWS;
    let mut a = Operand::new(&four(a), !few)?;
    let mut b = Operand::new(&four(b).permute(&[0, 1, 3, 2])?, true)?;
    let mut residual = epilogue.residual.map(|tensor| vec4(&four(tensor))).transpose()?;
    let mut out = out.clone();
    let mut all_rows = shape.rows;
    let shared = b.tensor.shape()[..2] == [1, 1];
    if let Some(together) = shared.then(|| together(&a, residual.as_ref(), &out)).flatten() {
        (a.tensor, residual, out) = together;
        all_rows = out.shape()[2];
    } else {
        (a, b) = (a.expand(shape.batch)?, b.expand(shape.batch)?);
    }
    let bias = epilogue.bias.map(|bias| vec4(&four(bias))).transpose()?;
    let problem = Problem { rows: shape.rows, all_rows, b_rows: b.across };
    let product = Product {
        a,
        b,
        bias,
        residual,
        out,
        columns: shape.columns,
        depth: shape.depth,
        activation: epilogue.activation,
        accumulate: epilogue.accumulate,
        variant: Variant::of(&problem, capabilities),
    };
    product.record()
}

/// Batch entries that share `b`, as rows of one product: `a`, residual and result.
fn together(
    a: &Operand,
    residual: Option<&Tensor>,
    out: &Tensor,
) -> Option<(Tensor, Option<Tensor>, Tensor)> {
    if a.across || a.tensor.shape()[..2] != out.shape()[..2] {
        return None;
    }
    let residual = match residual {
        Some(residual) => Some(fold(residual)?),
        None => None,
    };
    Some((fold(&a.tensor)?, residual, fold(out)?))
}

fn check(
    a: &Tensor,
    b: &Tensor,
    epilogue: &Epilogue<'_>,
    out: &Tensor,
    shape: &Shape,
) -> Result<()> {
    let Epilogue { bias, residual, dtype, .. } = *epilogue;
    let operands = [("a", Some(a)), ("b", Some(b)), ("bias", bias), ("residual", residual)];
    let all = operands.into_iter().chain([("out", Some(out))]);
    for (arg, tensor) in all.filter_map(|(arg, tensor)| Some((arg, tensor?))) {
        if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return Err(wrong_type(arg, "f32, f16 or bf16", tensor));
        }
        if !tensor.gpu().is_same(a.gpu()) {
            let (expected, got) = (a.gpu().adapter().name.as_str(), "a tensor of another Gpu");
            return Err(attn_core::Error::config(arg, expected, got).into());
        }
    }
    let dtype = dtype.unwrap_or(a.dtype());
    for (arg, tensor) in [("out", Some(out)), ("residual", residual)] {
        let Some(tensor) = tensor else { continue };
        if tensor.dtype() != dtype {
            return Err(wrong_type(arg, dtype.name(), tensor));
        }
        if tensor.shape() != shape.out {
            let expected = format!("{:?}", shape.out);
            return Err(attn_core::Error::shape(arg, expected, tensor.shape()).into());
        }
    }
    let (extents, strides) = (out.shape(), out.strides());
    let repeats = extents.iter().zip(strides).any(|(&extent, &stride)| extent > 1 && stride == 0);
    if repeats || extents.last().zip(strides.last()).is_some_and(|(&n, &s)| n > 1 && s != 1) {
        let expected = "no repeated elements, and a contiguous last dimension";
        return Err(attn_core::Error::shape("out", expected, extents).into());
    }
    match bias {
        Some(bias) if bias.shape() != [shape.columns] => {
            let expected = format!("[{}]", shape.columns);
            Err(attn_core::Error::shape("bias", expected, bias.shape()).into())
        }
        _ => Ok(()),
    }
}

fn wrong_type(arg: &'static str, expected: &str, tensor: &Tensor) -> Error {
    let (expected, got) = (expected.into(), tensor.dtype().name().into());
    attn_core::Error::Dtype { arg, expected, got }.into()
}
