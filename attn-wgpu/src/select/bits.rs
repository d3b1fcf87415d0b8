//! Sets of blocks as bits: block `j` of a row is bit `j % 32`, counted from the lowest, of word
//! `j / 32`, as in the bits of a plan.

use super::{Words, check_words, each, scan, select_kernel, write_into};
use crate::error::Result;
use crate::kernel::KernelSource;
use crate::ops;
use crate::rows::{self, Place};
use crate::tensor::{DType, Tensor};
use crate::vec4::four;

pub(crate) const BITS: KernelSource = select_kernel!("select_bits");
pub(crate) const BIT_COUNTS: KernelSource = select_kernel!("select_bit_counts");
pub(crate) const BIT_SET: KernelSource = select_kernel!("select_bit_set");
pub(crate) const BIT_COLUMNS: KernelSource = select_kernel!("select_bit_columns");

/// Rows of numbers, one after another.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Csr {
    /// Where each row begins in `col`, u32 `[rows + 1]`.
    pub row_ptr: Tensor,
    /// Numbers, rising in each row; u32 `[capacity]`, `u32::MAX` behind the last row.
    pub col: Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct BitParams {
    count: u32,
    width: u32,
    extent_1: u32,
    extent_2: u32,
    a: Place,
    b: Place,
    out_start: u32,
    first: i32,
}

/// The union of two sets, both u32 `[.., words]` of up to four dimensions; either may be repeated by
/// [`Tensor::expand`].
///
/// # Errors
/// [`attn_core::Error`] for other types or shapes that differ.
pub fn bits_or(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let out = Tensor::uninit(a.gpu(), a.shape(), DType::U32)?;
    bits_or_into(a, b, &out)?;
    Ok(out)
}

/// [`bits_or`] into a caller's tensor, for instance the words of a plan. It must not overlap an
/// operand.
///
/// # Errors
/// As [`bits_or`], and [`attn_core::Error`] for a target of another shape or type.
pub fn bits_or_into(a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    check_words("a", a, a.gpu())?;
    check_words("b", b, a.gpu())?;
    rows::check_form("b", b, a.shape(), DType::U32)?;
    combine(a, Some(("OR", b)), None, 0, out)
}

/// The union of a set of blocks with diagonals: block `j` of row `i` is in it if it is in `bits`, u32
/// `[.., rows, words]` of up to four dimensions, or if `i + first - j` is in `lines`, u32
/// `[.., words]`. `bits` may be repeated by [`Tensor::expand`].
///
/// # Errors
/// [`attn_core::Error`] for other types or shapes that do not fit.
pub fn bits_shift_or(bits: &Tensor, lines: &Tensor, first: i32) -> Result<Tensor> {
    let out = Tensor::uninit(bits.gpu(), bits.shape(), DType::U32)?;
    bits_shift_or_into(bits, lines, first, &out)?;
    Ok(out)
}

/// [`bits_shift_or`] into a caller's tensor, which must not overlap an operand.
///
/// # Errors
/// As [`bits_shift_or`], and [`attn_core::Error`] for a target of another shape or type.
pub fn bits_shift_or_into(bits: &Tensor, lines: &Tensor, first: i32, out: &Tensor) -> Result<()> {
    check_words("bits", bits, bits.gpu())?;
    check_words("lines", lines, bits.gpu())?;
    let Some(dim) = bits.shape().len().checked_sub(2) else {
        return Err(attn_core::Error::shape("bits", "[.., rows, words]", bits.shape()).into());
    };
    let mut shape = bits.shape().to_vec();
    shape.remove(dim);
    rows::check_form("lines", lines, &shape, DType::U32)?;
    // The same lines for every row.
    let mut strides = lines.strides().to_vec();
    strides.insert(dim, 0);
    let lines = lines.with_layout(bits.shape(), &strides);
    combine(bits, Some(("SHIFT", &lines)), None, first, out)
}

/// The set without the blocks `j > i + first` of every row `i`: u32 `[.., rows, words]` of up to four
/// dimensions.
///
/// # Errors
/// [`attn_core::Error`] for other types or shapes.
pub fn bits_causal(bits: &Tensor, first: i32) -> Result<Tensor> {
    let out = Tensor::uninit(bits.gpu(), bits.shape(), DType::U32)?;
    bits_causal_into(bits, first, &out)?;
    Ok(out)
}

/// [`bits_causal`] into a caller's tensor, which must not overlap `bits`.
///
/// # Errors
/// As [`bits_causal`], and [`attn_core::Error`] for a target of another shape or type.
pub fn bits_causal_into(bits: &Tensor, first: i32, out: &Tensor) -> Result<()> {
    check_words("bits", bits, bits.gpu())?;
    combine(bits, None, Some("CAUSAL"), first, out)
}

fn combine(
    a: &Tensor,
    other: Option<(&str, &Tensor)>,
    flag: Option<&str>,
    first: i32,
    out: &Tensor,
) -> Result<()> {
    let gpu = a.gpu();
    rows::check_device("out", out, gpu)?;
    rows::check_form("out", out, a.shape(), DType::U32)?;
    if out.is_empty() {
        return Ok(());
    }
    write_into(out, |out| combine_contiguous(a, other, flag, first, out))
}

fn combine_contiguous(
    a: &Tensor,
    other: Option<(&str, &Tensor)>,
    flag: Option<&str>,
    first: i32,
    out: &Tensor,
) -> Result<()> {
    let gpu = a.gpu();
    let flags: Vec<&str> = other.map(|(flag, _)| flag).into_iter().chain(flag).collect();
    let whole = |tensor: &Tensor| {
        let last = four(tensor);
        if last.strides()[3] == 1 || last.shape()[3] == 1 {
            Ok(last)
        } else {
            tensor.contiguous().map(|tensor| four(&tensor))
        }
    };
    let mut tensors = vec![four(out), whole(a)?];
    if let Some((_, other)) = other {
        tensors.push(whole(other)?);
    }
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    // The number of a row counts, so rows are not split.
    rows::windows(&tensors, 0..2, &mut |windows| {
        let place = |window: &Tensor| rows::place(window, window.binding().1, 1);
        let shape = windows[0].shape();
        let params = BitParams {
            count: windows[0].len() as u32,
            width: shape[3] as u32,
            extent_1: shape[1] as u32,
            extent_2: shape[2] as u32,
            a: place(windows[1]),
            b: windows.get(2).map_or([0; 4], |window| place(window)),
            out_start: windows[0].binding().1 as u32,
            first,
        };
        each(gpu, &BITS, &flags, windows, bytemuck::bytes_of(&params), windows[0].len())
    })
}

/// How many blocks each row of `bits` u32 `[.., words]` has; u32 `[..]`.
///
/// # Errors
/// [`attn_core::Error`] for other types; [`crate::Error::Limit`] for rows that need longer loops than
/// the device does.
pub fn popcount_rows(bits: &Tensor) -> Result<Tensor> {
    check_words("bits", bits, bits.gpu())?;
    let (outer, width) = split_last(bits);
    let out = Tensor::uninit(bits.gpu(), outer, DType::U32)?;
    if !out.is_empty() {
        count_bits(&bits.contiguous()?, width, &out)?;
    }
    Ok(out)
}

/// Of contiguous tensors: bits in groups of `width` words.
fn count_bits(bits: &Tensor, width: usize, out: &Tensor) -> Result<()> {
    let gpu = bits.gpu();
    let what = || format!("`popcount_rows` of rows of {width} words");
    gpu.capabilities().check_steps(what(), super::ITEMS as usize * (width + 1))?;
    let starts = [Words::of(bits).start, Words::of(out).start];
    let params = [out.len() as u32, width as u32, starts[0], starts[1]];
    each(gpu, &BIT_COUNTS, &[], &[bits, out], bytemuck::cast_slice(&params), out.len())
}

/// Rows of numbers below `n` as bits, u32 `[.., ceil(n / 32)]`: the first `counts` u32 `[..]` of each
/// row of `indices` u32 `[.., capacity]`, which must rise, as those of [`super::Chosen`] do.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types.
pub fn bits_from_indices(indices: &Tensor, counts: &Tensor, n: usize) -> Result<Tensor> {
    let gpu = indices.gpu();
    check_words("indices", indices, gpu)?;
    let (outer, capacity) = split_last(indices);
    rows::check_device("counts", counts, gpu)?;
    rows::check_form("counts", counts, outer, DType::U32)?;
    let width = n.div_ceil(32);
    let mut shape = outer.to_vec();
    shape.push(width);
    let out = Tensor::uninit(gpu, &shape, DType::U32)?;
    if capacity == 0 && !out.is_empty() {
        ops::fill(&out, &[0; 4])?;
    }
    if capacity == 0 || out.is_empty() {
        return Ok(out);
    }
    let (indices, counts) = (indices.contiguous()?, counts.contiguous()?);
    let starts = [Words::of(&indices).start, Words::of(&counts).start];
    let params = [out.len() as u32, width as u32, capacity as u32, starts[0], starts[1]];
    let params = bytemuck::cast_slice(&params);
    each(gpu, &BIT_SET, &[], &[&indices, &counts, &out], params, out.len())?;
    Ok(out)
}

/// The blocks of every row of `bits` u32 `[.., words]`, all outer extents as one number of rows. What
/// exceeds `capacity` is left out, from the last row on.
///
/// # Errors
/// [`attn_core::Error`] for other types.
pub fn bits_to_csr(bits: &Tensor, capacity: usize) -> Result<Csr> {
    check_words("bits", bits, bits.gpu())?;
    let gpu = bits.gpu();
    let (outer, width) = split_last(bits);
    let rows: usize = outer.iter().product();
    let col = Tensor::full(gpu, &[capacity], u32::MAX)?;
    if rows * width == 0 {
        return Ok(Csr { row_ptr: Tensor::zeros(gpu, &[rows + 1], DType::U32)?, col });
    }
    let bits = bits.contiguous()?;
    let counts = Tensor::uninit(gpu, &[rows * width], DType::U32)?;
    count_bits(&bits, 1, &counts)?;
    let places = scan::scan_u32(&counts)?;
    let row_ptr = Tensor::uninit(gpu, &[rows + 1], DType::U32)?;
    let params = [counts.len() as u32, width as u32, capacity as u32, Words::of(&bits).start];
    let tensors = [&bits, &places, &row_ptr, &col];
    each(gpu, &BIT_COLUMNS, &[], &tensors, bytemuck::cast_slice(&params), counts.len())?;
    Ok(Csr { row_ptr, col })
}

fn split_last(tensor: &Tensor) -> (&[usize], usize) {
    tensor.shape().split_last().map_or((&[], 1), |(&last, outer)| (outer, last))
}
