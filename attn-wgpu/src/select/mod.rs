//! Choosing what attends to what: the kernels of which methods that select keys are made.
//!
//! Everything stays on the device: sizes that are only known there are written as counts beside
//! tensors whose capacity the host knows. Results are equal bit for bit from run to run.

mod bits;
#[cfg(feature = "bench")]
pub(crate) mod catalogue;
mod choose;
mod pool;
mod probe;
mod scan;
mod scores;
mod sort;

pub use bits::{
    Csr, bits_causal, bits_causal_into, bits_from_indices, bits_or, bits_or_into, bits_shift_or,
    bits_shift_or_into, bits_to_csr, popcount_rows,
};
pub use choose::{Chosen, ChosenBits, Cover, Wanted, cover_rows, top_k_bits, top_k_rows};
pub use pool::{Pool, PoolKind, Short, pool};
pub use probe::{Probe, probe};
pub use scan::{scan_u32, scan_u32_into};
pub use scores::{BlockScores, block_scores};
pub use sort::{Lists, Sorted, Transposed, counting_sort, gather_lists, transpose_csr};

use crate::capabilities::{Capabilities, DeviceKind};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Binding, Call, Constants, KernelSource};
use crate::ops;
use crate::rows;
use crate::tensor::{DType, Tensor};

pub(crate) const SNIPPETS: &[(&str, &str)] = &[
    ("arguments", include_str!("../../kernels/attention_arguments.wgsl")),
    ("halves", include_str!("../../kernels/halves.wgsl")),
    ("source", include_str!("../../kernels/source.wgsl")),
    ("keys", include_str!("../../kernels/keys.wgsl")),
    ("row_place", include_str!("../../kernels/row_place.wgsl")),
    ("row_item", include_str!("../../kernels/row_item.wgsl")),
    ("row_reduce", include_str!("../../kernels/row_reduce.wgsl")),
    ("row_mass", include_str!("../../kernels/row_mass.wgsl")),
    ("row_keys", include_str!("../../kernels/row_keys.wgsl")),
    ("linear", include_str!("../../kernels/linear.wgsl")),
    ("before", include_str!("../../kernels/select_before.wgsl")),
    ("each", include_str!("../../kernels/select_each.wgsl")),
    ("search", include_str!("../../kernels/select_search.wgsl")),
    ("row_of", include_str!("../../kernels/select_row_of.wgsl")),
];

/// A kernel of the folder `kernels` that selects.
macro_rules! select_kernel {
    ($name:literal) => {
        $crate::kernel::KernelSource {
            name: $name,
            text: include_str!(concat!("../../kernels/", $name, ".wgsl")),
            imports: $crate::select::SNIPPETS,
        }
    };
}
pub(crate) use select_kernel;

/// Lanes of kernels whose lanes exchange what they counted, a power of two.
pub(crate) fn lanes(capabilities: &Capabilities) -> u32 {
    let wanted = if capabilities.kind == DeviceKind::Cpu { 8 } else { 256 };
    1 << wanted.min(capabilities.max_workgroup_threads).max(1).ilog2()
}

/// A contiguous tensor of words as kernels address it.
struct Words {
    binding: Binding,
    /// Of the first word, behind the start of the binding.
    start: u32,
}

impl Words {
    fn of(tensor: &Tensor) -> Words {
        let (binding, start) = tensor.binding();
        Words { binding, start: start as u32 }
    }
}

/// Checks that a tensor is a vector of u32, and gives its length.
fn check_numbers(arg: &'static str, tensor: &Tensor, gpu: &Gpu) -> Result<usize> {
    rows::check_device(arg, tensor, gpu)?;
    let &[count] = tensor.shape() else {
        return Err(attn_core::Error::shape(arg, "[n]", tensor.shape()).into());
    };
    rows::check_form(arg, tensor, &[count], DType::U32)?;
    Ok(count)
}

/// Fills a caller's tensor by `write`, which gets a contiguous one: directly where it is so.
fn write_into(out: &Tensor, write: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
    if out.is_contiguous() {
        return write(out);
    }
    let target = Tensor::uninit(out.gpu(), out.shape(), out.dtype())?;
    write(&target)?;
    ops::copy(&target, out)
}

/// Checks that a tensor is of u32 and has one to four dimensions.
fn check_words(arg: &'static str, tensor: &Tensor, gpu: &Gpu) -> Result<()> {
    rows::check_device(arg, tensor, gpu)?;
    rows::check_form(arg, tensor, tensor.shape(), DType::U32)?;
    if (1..=4).contains(&tensor.shape().len()) {
        return Ok(());
    }
    let expected = "one to four dimensions";
    Err(attn_core::Error::shape(arg, expected, tensor.shape()).into())
}

/// Checks offsets of rows, `[rows + 1]`, and gives the number of rows.
fn check_row_ptr(row_ptr: &Tensor, gpu: &Gpu) -> Result<usize> {
    match check_numbers("row_ptr", row_ptr, gpu)? {
        0 => Err(attn_core::Error::shape("row_ptr", "[rows + 1]", &[0]).into()),
        count => Ok(count - 1),
    }
}

/// Indices that one invocation handles.
const ITEMS: u32 = 8;

/// Constants of kernels whose invocations are independent, and the indices of a workgroup.
pub(crate) fn each_constants(capabilities: &Capabilities, items: u32) -> (Constants, u64) {
    let workgroup = ops::workgroup(capabilities);
    let constants = Constants::new().int("WORKGROUP", workgroup).int("ITEMS", items);
    (constants, u64::from(workgroup * items))
}

/// Runs a kernel for each index below `count`.
fn each(
    gpu: &Gpu,
    source: &KernelSource,
    flags: &[&str],
    tensors: &[&Tensor],
    params: &[u8],
    count: usize,
) -> Result<()> {
    run_each(gpu, (source, ITEMS, flags), tensors, params, count, 8.0)
}

/// As [`each`], where an index takes `steps` steps of a loop, and an invocation has one index.
fn each_long(
    gpu: &Gpu,
    source: &KernelSource,
    flags: &[&str],
    tensors: &[&Tensor],
    params: &[u8],
    (count, steps): (usize, usize),
) -> Result<()> {
    gpu.capabilities().check_steps(format!("`{}`", source.name), steps + 1)?;
    run_each(gpu, (source, 1, flags), tensors, params, count, 8.0 * steps as f64)
}

fn run_each(
    gpu: &Gpu,
    (source, items, flags): (&KernelSource, u32, &[&str]),
    tensors: &[&Tensor],
    params: &[u8],
    count: usize,
    work: f64,
) -> Result<()> {
    let (constants, per_group) = each_constants(gpu.capabilities(), items);
    let constants = flags.iter().fold(constants, |constants, flag| constants.flag(flag, true));
    let kernel = gpu.kernel(source, constants)?;
    let bindings: Vec<Binding> = tensors.iter().map(|tensor| tensor.binding().0).collect();
    let groups = (count as u64).div_ceil(per_group);
    kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work: work * count as f64 })
}
