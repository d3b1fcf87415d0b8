//! The largest elements of rows.

use super::select_kernel;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Binding, Call, Constants, Kernel, KernelSource};
use crate::ops;
use crate::rows::{self, Extents, Place, Sharing};
use crate::tensor::{DType, Tensor};

pub(crate) const TOP: KernelSource = select_kernel!("select_top");
pub(crate) const COVER: KernelSource = select_kernel!("select_cover");

/// Loops over a row: 16 rounds of the search, 6 attempts to list what is left, a list that is read in
/// every round, and the loops behind the search.
pub(crate) const PASSES: usize = 16 + 6 + 16 + 6;

/// Counts of elements are exact in f32 up to here.
const MAX_WIDTH: usize = 1 << 24;

/// How many elements of each row to choose.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// As many of every row.
    Same(usize),
    /// As many as a tensor on the device says, u32 of the outer extents of the scores.
    Each(&'a Tensor),
}

/// Elements that were chosen.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Chosen {
    /// Their numbers in each row, rising; u32 `[.., capacity]`, `u32::MAX` behind the last one.
    pub indices: Tensor,
    /// How many, u32 `[..]`.
    pub counts: Tensor,
}

/// Elements that were chosen, as bits.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ChosenBits {
    /// Element `j` of a row is bit `j % 32`, counted from the lowest, of word `j / 32`; u32
    /// `[.., ceil(n / 32)]`.
    pub bits: Tensor,
    /// How many, u32 `[..]`.
    pub counts: Tensor,
}

/// Which number [`cover_rows`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cover {
    /// The largest number of elements whose sum is at most `gamma`.
    AtMost,
    /// The least number of elements whose sum is at least `gamma`.
    AtLeast,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct TopParams {
    extents: Extents,
    x: Place,
    out: Place,
    counts: Place,
    wanted: Place,
    capacity: u32,
    most: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CoverParams {
    extents: Extents,
    x: Place,
    counts: Place,
    wanted: f32,
}

/// The largest elements of each row of `scores` f32 `[.., n]`, of up to four dimensions: `wanted` of
/// them, at most `capacity` and at most `n`. Of equal elements the first come first, -0 equals 0, and
/// NaN is below everything.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, or a capacity above `n`; [`crate::Error::Limit`] for
/// rows that need longer loops than the device does.
pub fn top_k_rows(scores: &Tensor, wanted: Wanted<'_>, capacity: usize) -> Result<Chosen> {
    let (outer, width) = check(scores)?;
    if capacity > width {
        let expected = format!("at most {width}, the elements of a row");
        return Err(attn_core::Error::config("capacity", expected, capacity).into());
    }
    let (indices, counts) = top(scores, &outer, wanted, capacity, false)?;
    Ok(Chosen { indices, counts })
}

/// [`top_k_rows`] as bits, of any number of elements.
///
/// # Errors
/// As [`top_k_rows`].
pub fn top_k_bits(scores: &Tensor, wanted: Wanted<'_>) -> Result<ChosenBits> {
    let (outer, width) = check(scores)?;
    let (bits, counts) = top(scores, &outer, wanted, width.div_ceil(32), true)?;
    Ok(ChosenBits { bits, counts })
}

/// Constants of the kernel that chooses.
pub(crate) fn top_constants(sharing: &Sharing, each: bool, bits: bool) -> Constants {
    sharing.constants().flag("EACH", each).flag("AS_BITS", bits)
}

fn top(
    scores: &Tensor,
    outer: &[usize],
    wanted: Wanted<'_>,
    capacity: usize,
    bits: bool,
) -> Result<(Tensor, Tensor)> {
    let gpu = scores.gpu();
    let width = scores.shape().last().copied().unwrap_or(1);
    let each = match wanted {
        Wanted::Each(tensor) => {
            rows::check_device("wanted", tensor, gpu)?;
            rows::check_form("wanted", tensor, outer, DType::U32)?;
            Some(tensor)
        }
        Wanted::Same(_) => None,
    };
    let mut shape = outer.to_vec();
    shape.push(capacity);
    let out = Tensor::uninit(gpu, &shape, DType::U32)?;
    let counts = Tensor::uninit(gpu, outer, DType::U32)?;
    if scores.is_empty() || out.is_empty() {
        if !counts.is_empty() {
            ops::fill(&counts, &[0; 4])?;
        }
        return Ok((out, counts));
    }
    let most = match wanted {
        Wanted::Same(count) => count.min(width),
        Wanted::Each(_) => width,
    };
    let most = if bits { most } else { most.min(capacity) };
    let sharing = Sharing::new(width, PASSES, gpu.capabilities());
    sharing.check("top_k_rows", width, PASSES, gpu)?;
    let kernel = gpu.kernel(&TOP, top_constants(&sharing, each.is_some(), bits))?;
    let x = rows::source(scores)?;
    let mut tensors = vec![x.clone(), in_rows(&out, &x, capacity)?, in_rows(&counts, &x, 1)?];
    if let Some(each) = each {
        tensors.push(in_rows(&each.contiguous()?, &x, 1)?);
    }
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    rows::windows(&tensors, 0..3, &mut |windows| {
        let (x, x_place) = rows::bind(windows[0]);
        let (out, out_place) = words(windows[1]);
        let (counts, counts_place) = words(windows[2]);
        let mut bindings = vec![x, out, counts];
        let mut wanted_place = [0; 4];
        if let Some(window) = windows.get(3) {
            let (binding, place) = words(window);
            wanted_place = place;
            bindings.push(binding);
        }
        let params = TopParams {
            extents: Extents::of(windows[0], width),
            x: x_place,
            out: out_place,
            counts: counts_place,
            wanted: wanted_place,
            capacity: capacity as u32,
            most: most as u32,
        };
        run(gpu, &kernel, &sharing, &bindings, params.extents, bytemuck::bytes_of(&params))
    })?;
    Ok((out, counts))
}

/// How many of the largest elements of each row of `scores` f32 `[.., n]` weigh `gamma`, in the sense
/// of `cover`; u32 `[..]`. Where all elements together do not suffice, that is `n`. Scores should not
/// be negative: those, and NaN, count as 0.
///
/// Sums are in f32, in a fixed order.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types or a `gamma` that is not finite;
/// [`crate::Error::Limit`] for rows that need longer loops than the device does.
pub fn cover_rows(scores: &Tensor, gamma: f32, cover: Cover) -> Result<Tensor> {
    let (outer, width) = check(scores)?;
    if !gamma.is_finite() {
        return Err(attn_core::Error::config("gamma", "finite", gamma).into());
    }
    let gpu = scores.gpu();
    let counts = Tensor::uninit(gpu, &outer, DType::U32)?;
    if scores.is_empty() {
        if !counts.is_empty() {
            ops::fill(&counts, &[0; 4])?;
        }
        return Ok(counts);
    }
    let sharing = Sharing::new(width, PASSES, gpu.capabilities());
    sharing.check("cover_rows", width, PASSES, gpu)?;
    let kernel = gpu.kernel(&COVER, cover_constants(&sharing, cover))?;
    let x = rows::source(scores)?;
    rows::windows(&[&x, &in_rows(&counts, &x, 1)?], 0..3, &mut |windows| {
        let (x, x_place) = rows::bind(windows[0]);
        let (counts, counts_place) = words(windows[1]);
        let extents = Extents::of(windows[0], width);
        let params = CoverParams { extents, x: x_place, counts: counts_place, wanted: gamma };
        run(gpu, &kernel, &sharing, &[x, counts], extents, bytemuck::bytes_of(&params))
    })?;
    Ok(counts)
}

/// Constants of the kernel that counts.
pub(crate) fn cover_constants(sharing: &Sharing, cover: Cover) -> Constants {
    sharing.constants().flag("MASS", true).flag("EXCEED", cover == Cover::AtMost)
}

fn run(
    gpu: &Gpu,
    kernel: &Kernel,
    sharing: &Sharing,
    bindings: &[Binding],
    extents: Extents,
    params: &[u8],
) -> Result<()> {
    let groups = sharing.groups(extents.rows);
    let work = 60.0 * f64::from(extents.rows) * f64::from(extents.width);
    kernel.dispatch(gpu, &Call { bindings, params, groups, work })
}

/// A contiguous tensor in the rows of `x`, which has four dimensions.
fn in_rows(tensor: &Tensor, x: &Tensor, width: usize) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    shape[3] = width;
    tensor.reshape(&shape)
}

/// Binding and place of a window of words.
fn words(window: &Tensor) -> (Binding, Place) {
    let (binding, start) = window.binding();
    (binding, rows::place(window, start, 1))
}

/// Outer extents and width.
fn check(scores: &Tensor) -> Result<(Vec<usize>, usize)> {
    rows::check("scores", scores, scores.gpu())?;
    rows::check_form("scores", scores, scores.shape(), DType::F32)?;
    match scores.shape().split_last() {
        Some((&width, outer)) if width <= MAX_WIDTH => Ok((outer.to_vec(), width)),
        _ => {
            let expected = format!("[.., n] with n up to {MAX_WIDTH}");
            Err(attn_core::Error::shape("scores", expected, scores.shape()).into())
        }
    }
}
