//! Rows added into a table by number: the derivative of gathering.

use super::check_ids;
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::kernel::{Binding, Call, Constants, KernelSource};
use crate::ops;
use crate::rows;
use crate::select::{Sorted, counting_sort, each_constants, scan_u32};
use crate::target::refuse_repeats;
use crate::tensor::{DType, Tensor};
use crate::vec4::{four, is_vec4, packed};

const SNIPPETS: &[(&str, &str)] = &[
    ("halves", include_str!("../../kernels/halves.wgsl")),
    ("source", include_str!("../../kernels/source.wgsl")),
    ("linear", include_str!("../../kernels/linear.wgsl")),
    ("each", include_str!("../../kernels/select_each.wgsl")),
    ("row_of", include_str!("../../kernels/select_row_of.wgsl")),
    ("scatter_sum", include_str!("../../kernels/scatter_sum.wgsl")),
];

pub(crate) const COUNTS: KernelSource = KernelSource {
    name: "scatter_counts",
    text: include_str!("../../kernels/scatter_counts.wgsl"),
    imports: SNIPPETS,
};
pub(crate) const PIECES: KernelSource = KernelSource {
    name: "scatter_pieces",
    text: include_str!("../../kernels/scatter_pieces.wgsl"),
    imports: SNIPPETS,
};
pub(crate) const ROWS: KernelSource = KernelSource {
    name: "scatter_rows",
    text: include_str!("../../kernels/scatter_rows.wgsl"),
    imports: SNIPPETS,
};

/// Places that are summed at once; longer lists are cut, so that a number that comes very often does
/// not leave all work to one invocation.
pub(crate) const PIECE: usize = 128;

/// Which rows of a table a list of numbers names, ready for sums. Made once and used for every table
/// that is addressed by the same numbers.
#[derive(Debug, Clone)]
pub struct RowLists {
    rows: usize,
    count: usize,
    sorted: Sorted,
    /// Pieces before each row, where there may be any.
    pieces: Option<Tensor>,
}

/// What is added into the rows of a table.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ScatterRows<'a> {
    /// `[count, width]`, f32 or a half type. `count` divides the number of ids; with `n` ids each row
    /// belongs to `n / count` neighbouring ones.
    pub rows: &'a Tensor,
    /// Factor of each id's row, f32 `[n]` (or of the shape of the ids). Rows of weight 0 are not read.
    /// Default: all 1.
    pub weights: Option<&'a Tensor>,
    /// Of the sums. Default: 1.
    pub factor: f32,
    /// Whether the sums are added to what the target holds. Default: they replace it.
    pub accumulate: bool,
}

impl<'a> ScatterRows<'a> {
    /// The plain sums of `rows`.
    pub fn new(rows: &'a Tensor) -> Self {
        ScatterRows { rows, weights: None, factor: 1.0, accumulate: false }
    }

    /// With a factor for each id.
    pub fn with_weights(self, weights: &'a Tensor) -> Self {
        ScatterRows { weights: Some(weights), ..self }
    }

    /// With a factor of the sums.
    pub fn with_factor(self, factor: f32) -> Self {
        ScatterRows { factor, ..self }
    }

    /// Added to what the target holds.
    pub fn accumulating(self) -> Self {
        ScatterRows { accumulate: true, ..self }
    }
}

/// A table `[table_rows, width]` f32 of sums: row `r` is the sum of `rows[i]` over all `i` with
/// `ids[i] = r`, 0 where there is none. `ids` is u32 of up to three dimensions, `rows` `[n, width]` with
/// one row for each id. This is the derivative of [`gather_rows`](super::gather_rows).
///
/// Ids that the table does not have are left out. Sums are in f32 in the order of the ids, without
/// atomics: equal from run to run, bit for bit.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types; [`crate::Error::Limit`] for a table or rows above the
/// largest binding, or so many ids that a loop would be too long for the device.
pub fn scatter_add_rows(ids: &Tensor, rows: &Tensor, table_rows: usize) -> Result<Tensor> {
    RowLists::new(ids, table_rows)?.sum(ScatterRows::new(rows))
}

impl RowLists {
    /// Sorts `ids`, u32 of up to three dimensions, by the row that they name in a table of `rows` rows.
    ///
    /// # Errors
    /// [`attn_core::Error`] for other shapes or types; errors of the device.
    pub fn new(ids: &Tensor, rows: usize) -> Result<RowLists> {
        let gpu = ids.gpu();
        check_ids(ids, gpu)?;
        let count = ids.len();
        let sorted = counting_sort(&ids.contiguous()?.reshape(&[count])?, rows)?;
        let pieces = if count > PIECE && rows > 0 {
            let counts = Tensor::uninit(gpu, &[rows], DType::U32)?;
            let (constants, per_group) = constants(gpu.capabilities(), crate::rows::ITEMS);
            let kernel = gpu.kernel(&COUNTS, constants)?;
            kernel.dispatch(
                gpu,
                &Call {
                    bindings: &[sorted.offsets.binding().0, counts.binding().0],
                    params: bytemuck::bytes_of(&(rows as u32)),
                    groups: (rows as u64).div_ceil(per_group),
                    work: 4.0 * rows as f64,
                },
            )?;
            Some(scan_u32(&counts)?)
        } else {
            None
        };
        Ok(RowLists { rows, count, sorted, pieces })
    }

    /// Rows of the table.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Sums as a new table f32 `[rows, width]`; see [`scatter_add_rows`].
    ///
    /// # Errors
    /// As [`scatter_add_rows`], and [`attn_core::Error::Config`] for a call that accumulates.
    pub fn sum(&self, call: ScatterRows<'_>) -> Result<Tensor> {
        if call.accumulate {
            let (expected, got) = ("false, as a new tensor holds nothing", true);
            return Err(attn_core::Error::config("accumulate", expected, got).into());
        }
        let width = self.check(&call)?;
        rows::write(call.rows.gpu(), &[self.rows, width], DType::F32, |out| self.run(&call, out))
    }

    /// [`RowLists::sum`] into a caller's f32 `[rows, width]`, with any distance of rows. It must not overlap
    /// `rows` or the weights.
    ///
    /// # Errors
    /// As [`scatter_add_rows`], and [`attn_core::Error`] for a target of another shape or type.
    pub fn sum_into(&self, call: ScatterRows<'_>, out: &Tensor) -> Result<()> {
        let width = self.check(&call)?;
        rows::check_device("out", out, call.rows.gpu())?;
        rows::check_form("out", out, &[self.rows, width], DType::F32)?;
        refuse_repeats("out", out)?;
        if out.is_empty() {
            return Ok(());
        }
        let whole = four(out);
        if is_vec4(&whole) {
            return self.run(&call, &whole);
        }
        let padded = packed(&whole)?;
        self.run(&call, &padded)?;
        ops::copy(&padded.narrow(3, 0, width)?, &whole)
    }

    /// The width of rows.
    fn check(&self, call: &ScatterRows<'_>) -> Result<usize> {
        let gpu = self.sorted.order.gpu();
        rows::check("rows", call.rows, gpu)?;
        let misfit = || {
            let expected = format!("[a divisor of {} ids, width]", self.count);
            attn_core::Error::shape("rows", expected, call.rows.shape())
        };
        let &[rows, width] = call.rows.shape() else { return Err(misfit().into()) };
        let divides = if rows == 0 { self.count == 0 } else { self.count.is_multiple_of(rows) };
        if !divides {
            return Err(misfit().into());
        }
        if let Some(weights) = call.weights {
            rows::check_device("weights", weights, gpu)?;
            rows::check_form("weights", weights, weights.shape(), DType::F32)?;
            if weights.len() != self.count {
                let expected = format!("{} elements", self.count);
                return Err(attn_core::Error::shape("weights", expected, weights.shape()).into());
            }
        }
        Ok(width)
    }

    /// `out` has four dimensions, and rows of whole chunks.
    fn run(&self, call: &ScatterRows<'_>, out: &Tensor) -> Result<()> {
        let gpu = out.gpu();
        if self.count == 0 && call.accumulate {
            return Ok(());
        }
        let chunks = out.shape()[3] / 4;
        // Without ids there is no row to read; the kernel binds the source nevertheless.
        let source = match call.rows.is_empty() {
            true => Tensor::zeros(gpu, &[1, 1, 1, 4], call.rows.dtype())?,
            false => rows::source(call.rows)?,
        };
        let share = self.count / call.rows.shape()[0].max(1);
        let weights = call.weights.map(Tensor::contiguous).transpose()?;
        let weights = weights.as_ref().map(|weights| weights.binding());
        let weights_start = weights.as_ref().map_or(0, |(_, start)| *start as u32);
        let (source_binding, place) = rows::bind(&source);
        let (capabilities, dtype) = (gpu.capabilities(), source.dtype());
        let lists = [&self.sorted.offsets, &self.sorted.order].map(|x| x.binding().0);
        let summed = match &self.pieces {
            None => None,
            Some(row_ptr) => {
                // Lists that are cut have more than one piece: at most twice as many as whole ones.
                let most = 2 * self.count / PIECE;
                let pieces = Tensor::uninit(gpu, &[most, 4 * chunks], DType::F32)?;
                let mut bindings = lists.to_vec();
                bindings.extend([row_ptr.binding().0, source_binding.clone(), pieces.binding().0]);
                bindings.extend(weights.as_ref().map(|(binding, _)| binding.clone()));
                let count = most * chunks;
                let params = [
                    count as u32,
                    self.rows as u32,
                    chunks as u32,
                    share.max(1) as u32,
                    place[0],
                    place[3],
                    weights_start,
                    row_ptr.binding().1 as u32,
                ];
                let flags = Flags { weights: weights.is_some(), ..Flags::default() };
                let steps = PIECE + u32::BITS as usize;
                dispatch(&PIECES, flags, dtype, &bindings, &params, (count, steps), gpu)?;
                Some((row_ptr, pieces))
            }
        };
        let mut bindings = lists.to_vec();
        let (out_binding, out_place) = rows::bind(out);
        bindings.extend([source_binding, out_binding]);
        bindings.extend(weights.as_ref().map(|(binding, _)| binding.clone()));
        if let Some((row_ptr, pieces)) = &summed {
            bindings.extend([row_ptr.binding().0, pieces.binding().0]);
        }
        let flags = Flags {
            weights: weights.is_some(),
            pieces: summed.is_some(),
            accumulate: call.accumulate,
        };
        let count = self.rows * chunks;
        let params = [
            count as u32,
            chunks as u32,
            share.max(1) as u32,
            place[0],
            place[3],
            out_place[0],
            out_place[3],
            weights_start,
            call.factor.to_bits(),
        ];
        let steps = PIECE.max(self.count.div_ceil(PIECE));
        capabilities.check_steps(format!("`{}` of {} ids", ROWS.name, self.count), steps + 1)?;
        dispatch(&ROWS, flags, dtype, &bindings, &params, (count, PIECE), gpu)
    }
}

/// Forms of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags {
    pub(crate) weights: bool,
    pub(crate) pieces: bool,
    pub(crate) accumulate: bool,
}

impl Flags {
    pub(crate) fn constants(self, capabilities: &Capabilities, dtype: DType) -> Constants {
        let (constants, _) = constants(capabilities, 1);
        rows::storage(constants, dtype, None)
            .flag("WEIGHTS", self.weights)
            .flag("PIECES", self.pieces)
            .flag("ACCUMULATE", self.accumulate)
    }
}

pub(crate) fn constants(capabilities: &Capabilities, items: u32) -> (Constants, u64) {
    let (constants, per_group) = each_constants(capabilities, items);
    (constants.int("PIECE", PIECE as u32), per_group)
}

fn dispatch(
    source: &KernelSource,
    flags: Flags,
    dtype: DType,
    bindings: &[Binding],
    params: &[u32],
    (count, steps): (usize, usize),
    gpu: &crate::Gpu,
) -> Result<()> {
    let kernel = gpu.kernel(source, flags.constants(gpu.capabilities(), dtype))?;
    let call = Call {
        bindings,
        params: bytemuck::cast_slice(params),
        groups: (count as u64).div_ceil(u64::from(ops::workgroup(gpu.capabilities()))),
        work: 8.0 * (count * steps) as f64,
    };
    kernel.dispatch(gpu, &call)
}
