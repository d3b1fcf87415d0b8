//! Operations that every other one needs: fill, strided copy, and elementwise functions.

use std::sync::Arc;

pub use crate::elementwise::{
    add, add_into, convert, convert_into, gated, gated_into, scale, scale_into, soft_cap,
    soft_cap_into,
};
pub use crate::target::{check_target, write_rows};

use crate::capabilities::{Capabilities, DeviceKind};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Call, Constants, KernelSource};
use crate::pool::Storage;
use crate::tensor::{DType, Tensor};

/// Snippets that any kernel may import.
pub const SNIPPETS: &[(&str, &str)] = &[
    ("linear", include_str!("../kernels/linear.wgsl")),
    ("activation", include_str!("../kernels/activation.wgsl")),
    ("copy_places", include_str!("../kernels/copy_places.wgsl")),
    ("keys", include_str!("../kernels/keys.wgsl")),
    ("each", include_str!("../kernels/each.wgsl")),
];

const FILL: KernelSource =
    KernelSource { name: "fill", text: include_str!("../kernels/fill.wgsl"), imports: SNIPPETS };
const COPY: KernelSource =
    KernelSource { name: "copy", text: include_str!("../kernels/copy.wgsl"), imports: SNIPPETS };

const COPY_HALF: KernelSource = KernelSource {
    name: "copy_half",
    text: include_str!("../kernels/copy_half.wgsl"),
    imports: SNIPPETS,
};

const COPY_CHUNKS: KernelSource = KernelSource {
    name: "copy_chunks",
    text: include_str!("../kernels/copy_chunks.wgsl"),
    imports: SNIPPETS,
};

/// Words that one invocation handles.
const ITEMS: u32 = 8;

/// Workgroup size of kernels whose invocations are independent.
pub(crate) fn workgroup(capabilities: &Capabilities) -> u32 {
    let wanted = if capabilities.kind == DeviceKind::Cpu { 16 } else { 64 };
    wanted.min(capabilities.max_workgroup_threads)
}

fn constants(gpu: &Gpu) -> (Constants, u64) {
    let workgroup = workgroup(gpu.capabilities());
    let constants = Constants::new().int("WORKGROUP", workgroup).int("ITEMS", ITEMS);
    (constants, u64::from(workgroup * ITEMS))
}

/// Fills a contiguous tensor of 4-byte elements with the 4 bytes of `value`.
pub(crate) fn fill(tensor: &Tensor, value: &[u8]) -> Result<()> {
    let word = match value.try_into() {
        Ok(bytes) if tensor.dtype().bytes() == 4 => u32::from_ne_bytes(bytes),
        _ => return Err(word_type("tensor", tensor.dtype())),
    };
    let gpu = tensor.gpu();
    let (constants, per_group) = constants(gpu);
    let kernel = gpu.kernel(&FILL, constants)?;
    let flat = tensor.reshape(&[tensor.len()])?;
    // Parts begin where bindings may begin, so that no part writes in front of itself.
    let align = gpu.capabilities().offset_alignment as usize;
    let words = gpu.capabilities().max_binding_bytes.min(1 << 32) as usize / 4;
    let most = (words / align).max(1) * align;
    for start in (0..flat.len()).step_by(most) {
        let part = flat.narrow(0, start, most.min(flat.len() - start))?;
        let (binding, skip) = part.binding();
        if skip > 0 {
            fill_unaligned(&part, word)?;
            continue;
        }
        let params = [word, part.len() as u32];
        let groups = (part.len() as u64).div_ceil(per_group);
        let params = bytemuck::cast_slice(&params);
        kernel.dispatch(gpu, &Call { bindings: &[binding], params, groups, work: 0.0 })?;
    }
    Ok(())
}

/// A view that does not begin at an aligned offset is filled by a copy of one word (stride 0).
fn fill_unaligned(part: &Tensor, word: u32) -> Result<()> {
    let source = Tensor::from_slice(part.gpu(), &[word], &[1])?.expand(part.shape())?;
    copy(&source.reinterpret(part.dtype()), part)
}

/// Fills a buffer with NaN.
pub(crate) fn poison(gpu: &Gpu, storage: &Arc<Storage>) -> Result<()> {
    let words = (storage.buffer.size() / 4) as usize;
    let all = Tensor::contiguous_on(gpu, Arc::clone(storage), 0, &[words], DType::F32);
    // NaN in every type of float: f32, and both halves as f16 and bf16.
    fill(&all, &0x7fff_7fffu32.to_ne_bytes())
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CopyParams {
    extents: [u32; 4],
    source_extent_3: u32,
    source_offset: u32,
    source_strides: [u32; 4],
    step: [u32; 4],
    target_offset: u32,
    target_strides: [u32; 4],
}

/// Copies `source` into `target`, element by element, with any strides. The target's last dimension
/// may be longer than the source's: the rest becomes zero.
///
/// Elements of 2 bytes share words of memory, so a target of half type must be contiguous, begin at
/// an even element, and have an even number of elements or be the only tensor in its last word.
///
/// # Errors
/// [`attn_core::Error::Shape`] if the shapes do not fit or have more than four extents above 1,
/// [`attn_core::Error::Dtype`] for different types.
pub fn copy(source: &Tensor, target: &Tensor) -> Result<()> {
    if source.dtype() != target.dtype() {
        let (expected, got) = (source.dtype().name().into(), target.dtype().name().into());
        return Err(attn_core::Error::Dtype { arg: "target", expected, got }.into());
    }
    if target.dtype().bytes() == 2
        && !(target.is_contiguous() && target.buffer().1.is_multiple_of(2))
    {
        let expected = "a contiguous tensor from an even element on, as halves share words";
        return Err(attn_core::Error::shape("target", expected, target.shape()).into());
    }
    let misfit =
        || attn_core::Error::shape("target", format!("{:?}", source.shape()), target.shape());
    let rank = source.shape().len();
    let fits = rank == target.shape().len()
        && (0..rank).all(|d| {
            let (have, want) = (source.shape()[d], target.shape()[d]);
            have == want || (d + 1 == rank && have < want)
        });
    if !fits {
        return Err(misfit().into());
    }
    if target.is_empty() {
        return Ok(());
    }
    let mut dims: Vec<usize> =
        (0..rank.saturating_sub(1)).filter(|&d| source.shape()[d] != 1).collect();
    if dims.len() > 3 {
        let expected = "at most three extents above 1 before the last";
        return Err(attn_core::Error::shape("source", expected, source.shape()).into());
    }
    dims.extend(rank.checked_sub(1));
    let limit = source.gpu().capabilities().max_binding_bytes.min(1 << 32);
    copy_part(source, target, &dims, limit)
}

/// Halves the widest dimension until both windows fit into a binding.
fn copy_part(source: &Tensor, target: &Tensor, dims: &[usize], limit: u64) -> Result<()> {
    let (source_binding, source_offset) = source.binding();
    let (target_binding, target_offset) = target.binding();
    if source_binding.bytes.max(target_binding.bytes) > limit {
        let width =
            |d: &usize| (target.shape()[*d] - 1) * target.strides()[*d].max(source.strides()[*d]);
        let splittable = dims.iter().copied().filter(|&d| {
            // Parts of a target of halves must begin at whole words.
            let whole = target.dtype().bytes() == 4 || target.strides()[d].is_multiple_of(2);
            source.shape()[d] == target.shape()[d] && whole
        });
        if let Some(d) = splittable.filter(|&d| target.shape()[d] > 1).max_by_key(width) {
            let (extent, half) = (target.shape()[d], target.shape()[d] / 2);
            for (start, len) in [(0, half), (half, extent - half)] {
                copy_part(
                    &source.narrow(d, start, len)?,
                    &target.narrow(d, start, len)?,
                    dims,
                    limit,
                )?;
            }
            return Ok(());
        }
    }
    // Dimensions in front are filled up with extents of 1.
    let pick = |values: &[usize], missing: usize| {
        let mut four = [missing as u32; 4];
        for (slot, &d) in (4 - dims.len()..).zip(dims) {
            four[slot] = values[d] as u32;
        }
        four
    };
    let gpu = target.gpu();
    let way = Way::of(target, target_offset);
    let mut extents = pick(target.shape(), 1);
    if way == Way::Chunks {
        extents[3] /= 4;
    }
    let (constants, per_group) = constants(gpu);
    let params = CopyParams {
        extents,
        source_extent_3: dims.last().map_or(1, |&d| source.shape()[d] as u32),
        source_offset: source_offset as u32,
        source_strides: pick(source.strides(), 0),
        step: digits(way.neighbours() as u32 * workgroup(gpu.capabilities()), extents),
        target_offset: (target_offset / way.elements()) as u32,
        target_strides: pick(target.strides(), 0),
    };
    let half = target.dtype().bytes() == 2;
    let (source, constants) = match way {
        Way::Words => (&COPY, constants),
        Way::Halves => (&COPY_HALF, constants),
        Way::Chunks => (&COPY_CHUNKS, chunks_of(constants, half)),
    };
    let bytes = if way == Way::Words { size_of::<CopyParams>() } else { CONTIGUOUS_PARAMS };
    let kernel = gpu.kernel(source, constants)?;
    kernel.dispatch(
        gpu,
        &Call {
            bindings: &[source_binding, target_binding],
            params: &bytemuck::bytes_of(&params)[..bytes],
            groups: (target.len().div_ceil(way.elements()) as u64).div_ceil(per_group),
            work: 0.0,
        },
    )
}

/// The kernel that fits a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Elements of 4 bytes, anywhere.
    Words,
    /// Two elements of 2 bytes at a time, into a contiguous target.
    Halves,
    /// Four elements at a time, into a contiguous target whose rows are whole chunks: some four times
    /// as fast.
    Chunks,
}

impl Way {
    fn of(target: &Tensor, offset: usize) -> Way {
        let whole = target.shape().last().is_some_and(|extent| extent.is_multiple_of(4));
        if whole && offset.is_multiple_of(4) && target.is_contiguous() {
            Way::Chunks
        } else if target.dtype().bytes() == 2 {
            Way::Halves
        } else {
            Way::Words
        }
    }

    /// Elements of the target in what an invocation writes at once.
    fn elements(self) -> usize {
        match self {
            Way::Words => 1,
            Way::Halves => 2,
            Way::Chunks => 4,
        }
    }

    /// Steps of the last digit of a place from one write to the next.
    fn neighbours(self) -> usize {
        if self == Way::Halves { 2 } else { 1 }
    }
}

/// Chunks of words or of halves.
pub(crate) fn chunks_of(constants: Constants, half: bool) -> Constants {
    constants.alias("Chunk", if half { "vec2<u32>" } else { "vec4<u32>" }).flag("HALF", half)
}

/// Bytes of [`CopyParams`] without the strides of the target.
const CONTIGUOUS_PARAMS: usize = 15 * 4;

/// A number in digits that count to `extents`, the last one first; what is left is in the first digit.
fn digits(number: u32, extents: [u32; 4]) -> [u32; 4] {
    let mut digits = [number; 4];
    for d in (1..4).rev() {
        digits[d - 1] = digits[d] / extents[d];
        digits[d] %= extents[d];
    }
    digits
}

fn word_type(arg: &'static str, dtype: DType) -> crate::Error {
    let (expected, got) = ("a type of 4 bytes".into(), dtype.name().into());
    attn_core::Error::Dtype { arg, expected, got }.into()
}
