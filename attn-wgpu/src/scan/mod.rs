//! Scans over the tokens of `[batch, heads, tokens, dim]`, and the sums around them.
//!
//! * [`recurrence`]: linear recurrences `h_t = a_t h_(t-1) + x_t` from either end; without coefficients
//!   they are cumulative sums.
//! * [`softmax_scan`]: softmax attention over every prefix, by the scan of `(m, u, w)`; [`softmax_fold`] is
//!   its last element alone.
//! * [`row_dot`] and [`column_sums`]: products of rows with rows, and sums of weighted rows.
//!
//! A scan reduces tiles of tokens, scans the totals of the tiles, and applies them to the tiles once more: no
//! workgroup waits for another. A tile is of about the square root of the number of tokens ([`tile`]), so that
//! neither the walk through a tile nor that over the tiles is long. It follows from the number of tokens alone:
//! batch entries and heads are equal bit for bit alone and among others. Sums are in f32 whatever the storage,
//! tile by tile: rounding grows with the square root of the tile and of the number of tiles.
//!
//! Heads of `x` or `v` may be fewer than those of the result, and are shared by neighbours then.

#[cfg(feature = "bench")]
pub(crate) mod catalogue;
mod columns;
mod dots;
mod recurrence;
mod softmax;
mod state;

pub use columns::{Columns, column_sums, column_sums_into};
pub use dots::{RowDot, row_dot, row_dot_into};
pub use recurrence::{Direction, Recurrence, Scanned, recurrence, recurrence_into};
pub use softmax::{SoftmaxScan, softmax_fold, softmax_scan, softmax_scan_into};
pub use state::SoftmaxState;

use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Binding, Call, Constants, KernelSource};
use crate::ops;
use crate::rows::{self, Place};
use crate::tensor::{DType, Tensor};
use crate::vec4::four;

pub(crate) const SNIPPETS: &[(&str, &str)] = &[
    ("halves", include_str!("../../kernels/halves.wgsl")),
    ("source", include_str!("../../kernels/source.wgsl")),
    ("target", include_str!("../../kernels/target.wgsl")),
    ("linear", include_str!("../../kernels/linear.wgsl")),
    ("scan_item", include_str!("../../kernels/scan_item.wgsl")),
    ("scan_place", include_str!("../../kernels/scan_place.wgsl")),
    ("scan_weight", include_str!("../../kernels/scan_weight.wgsl")),
];

/// A kernel of the folder `kernels` that scans.
macro_rules! scan_kernel {
    ($name:literal) => {
        $crate::kernel::KernelSource {
            name: $name,
            text: include_str!(concat!("../../kernels/", $name, ".wgsl")),
            imports: $crate::scan::SNIPPETS,
        }
    };
}
pub(crate) use scan_kernel;

/// Tokens of a tile, of so many in all: a power of two around the square root, 32 to 1024.
pub fn tile(tokens: usize) -> usize {
    1 << tokens.isqrt().clamp(32, 1024).ilog2()
}

/// Constants of kernels whose invocations are independent.
pub(crate) fn constants(capabilities: &Capabilities) -> Constants {
    Constants::new().int("WORKGROUP", ops::workgroup(capabilities))
}

/// Records a kernel of `lanes` invocations a row. A row does `steps` steps of a loop.
fn run(
    gpu: &Gpu,
    (source, constants): (&KernelSource, Constants),
    bindings: &[Binding],
    params: &[u8],
    rows: [usize; 3],
    steps: usize,
) -> Result<()> {
    gpu.capabilities().check_steps(format!("`{}`", source.name), steps + 1)?;
    let invocations =
        rows.iter().try_fold(1u32, |count, &extent| count.checked_mul(u32::try_from(extent).ok()?));
    let Some(invocations) = invocations else {
        return Err(attn_core::Error::shape("x", "fewer than 2^32 lanes of tiles", &rows).into());
    };
    let groups = u64::from(invocations).div_ceil(u64::from(ops::workgroup(gpu.capabilities())));
    let work = 16.0 * steps as f64 * f64::from(invocations);
    gpu.kernel(source, constants)?.dispatch(gpu, &Call { bindings, params, groups, work })
}

/// What kernels of this module read and write: a tensor of rank 4, in vec4s or, `[.., 1]`, in words.
fn bound(window: &Tensor, unit: usize) -> (Binding, Place) {
    let (binding, start) = window.binding();
    (binding, rows::place(window, start, unit))
}

/// `[batch, heads, tokens]` as `[batch, heads, tokens, 1]`.
fn numbers(tensor: &Tensor) -> Tensor {
    let (mut shape, mut strides) = (tensor.shape().to_vec(), tensor.strides().to_vec());
    shape.push(1);
    strides.push(1);
    four(&tensor.with_layout(&shape, &strides))
}

/// `[batch, heads, width]` as `[batch, heads, 1, width]`.
fn single(tensor: &Tensor) -> Tensor {
    let (mut shape, mut strides) = (tensor.shape().to_vec(), tensor.strides().to_vec());
    shape.insert(2, 1);
    strides.insert(2, 0);
    four(&tensor.with_layout(&shape, &strides))
}

/// Element `index` of each row of a tensor, as a view with one dimension less.
///
/// # Errors
/// [`attn_core::Error::Config`] where there is no such element.
pub fn column(x: &Tensor, index: usize) -> Result<Tensor> {
    let dim = x.shape().len().saturating_sub(1);
    let column = x.narrow(dim, index, 1)?;
    Ok(column.with_layout(&x.shape()[..dim], &x.strides()[..dim]))
}

/// Checks a tensor of floats with four dimensions `[batch, heads, tokens, width]`.
fn check_rows(arg: &'static str, x: &Tensor, gpu: &Gpu) -> Result<[usize; 4]> {
    rows::check(arg, x, gpu)?;
    x.shape().try_into().map_err(|_| {
        attn_core::Error::shape(arg, "[batch, heads, tokens, width]", x.shape()).into()
    })
}

/// Checks numbers f32 of this shape.
fn check_numbers(arg: &'static str, x: &Tensor, shape: &[usize], gpu: &Gpu) -> Result<()> {
    rows::check_device(arg, x, gpu)?;
    rows::check_form(arg, x, shape, DType::F32)
}

/// How many of `heads` heads share one of `shared`.
fn group_of(arg: &'static str, shared: usize, heads: usize, shape: &[usize]) -> Result<usize> {
    match heads.checked_div(shared) {
        Some(group) if group * shared == heads && group > 0 => Ok(group),
        None if heads == 0 => Ok(1),
        _ => {
            let expected = format!("a number of heads that divides {heads}");
            Err(attn_core::Error::shape(arg, expected, shape).into())
        }
    }
}

/// Dimensions along which a call may be split where bindings are too small for it: heads only where none
/// is shared.
fn splittable(group: usize) -> std::ops::Range<usize> {
    0..if group == 1 { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn tiles_are_of_the_square_root() {
        for (tokens, want) in [
            (0, 32),
            (1, 32),
            (1024, 32),
            (4095, 32),
            (4096, 64),
            (70_000, 256),
            (10_000_000, 1024),
        ] {
            assert_eq!(super::tile(tokens), want, "{tokens}");
        }
    }
}
