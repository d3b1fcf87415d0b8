//! Rows of a table by number, and sums into them.

pub(crate) mod scatter;

pub use self::scatter::{RowLists, ScatterRows, scatter_add_rows};

use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Call, KernelSource};
use crate::rows::{self, row_kernel};
use crate::tensor::{DType, Tensor};

pub(crate) const GATHER_ROWS: KernelSource = row_kernel!("gather_rows");

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    count: u32,
    chunks: u32,
    first_row: u32,
    window_rows: u32,
    table_rows: u32,
    table_start: u32,
    table_stride: u32,
    out_start: u32,
    out_stride: u32,
    ids_start: u32,
    scale: f32,
    nan: u32,
}

/// `scale * table[ids]`: rows of `table` `[rows, width]` (f32, f16 or bf16) by the numbers `ids`
/// (u32, of any shape of up to three dimensions), as a tensor `[.., width]` of type `dtype`.
///
/// Numbers are on the device, so nothing refuses one that the table does not have: its row of the
/// result is NaN. Who has the numbers on the host checks them there.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types.
pub fn gather_rows(table: &Tensor, ids: &Tensor, scale: f32, dtype: DType) -> Result<Tensor> {
    let gpu = table.gpu();
    check(table, ids)?;
    rows::check_float("dtype", dtype)?;
    let mut shape = ids.shape().to_vec();
    shape.push(table.shape()[1]);
    rows::write(gpu, &shape, dtype, |out| run(table, ids, scale, out))
}

/// [`gather_rows`] into a caller's tensor, whose type counts. It must not overlap `table`.
///
/// # Errors
/// As [`gather_rows`], and [`attn_core::Error`] for a target of another shape.
pub fn gather_rows_into(table: &Tensor, ids: &Tensor, scale: f32, out: &Tensor) -> Result<()> {
    check(table, ids)?;
    let mut shape = ids.shape().to_vec();
    shape.push(table.shape()[1]);
    rows::check("out", out, table.gpu())?;
    rows::check_form("out", out, &shape, out.dtype())?;
    rows::write_into(out, |out| {
        if out.is_contiguous() {
            return run(table, ids, scale, out);
        }
        // Rows of the output are numbered as the ids are, at one distance.
        let gathered = Tensor::uninit(out.gpu(), out.shape(), out.dtype())?;
        run(table, ids, scale, &gathered)?;
        crate::ops::convert_into(&gathered, out)
    })
}

fn check(table: &Tensor, ids: &Tensor) -> Result<()> {
    let gpu = table.gpu();
    rows::check("table", table, gpu)?;
    if table.shape().len() != 2 {
        return Err(attn_core::Error::shape("table", "[rows, width]", table.shape()).into());
    }
    check_ids(ids, gpu)
}

fn check_ids(ids: &Tensor, gpu: &Gpu) -> Result<()> {
    rows::check_device("ids", ids, gpu)?;
    rows::check_form("ids", ids, ids.shape(), DType::U32)?;
    if ids.shape().len() > 3 {
        let expected = "at most three dimensions";
        return Err(attn_core::Error::shape("ids", expected, ids.shape()).into());
    }
    Ok(())
}

/// Writes a contiguous `out`, whose last dimension may be filled up to a multiple of four.
fn run(table: &Tensor, ids: &Tensor, scale: f32, out: &Tensor) -> Result<()> {
    let (count, chunks) = (ids.len(), out.shape()[3] / 4);
    let out = out.reshape(&[1, 1, count, 4 * chunks])?;
    let ids = ids.contiguous()?.reshape(&[1, 1, count, 1])?;
    if table.is_empty() {
        // No number is in the table: the same kernel finds that for a table of one row.
        let none = Tensor::uninit(table.gpu(), &[1, out.shape()[3]], table.dtype())?;
        return rows::windows(&[&out, &ids], 2..3, &mut |windows| {
            part(&rows::source(&none)?, 0, 0, windows, scale)
        });
    }
    let table = rows::source(table)?;
    let first =
        |window: &Tensor| (window.buffer().1 - table.buffer().1) / table.strides()[2].max(1);
    rows::windows(&[&table], 2..3, &mut |tables| {
        rows::windows(&[&out, &ids], 2..3, &mut |windows| {
            part(tables[0], first(tables[0]), table.shape()[2], windows, scale)
        })
    })
}

/// Handles the ids of one window of the output that lie in one window of the table.
fn part(
    window: &Tensor,
    first_row: usize,
    table_rows: usize,
    windows: &[&Tensor],
    scale: f32,
) -> Result<()> {
    let gpu = window.gpu();
    let &[out, ids] = windows else { return Ok(()) };
    let (constants, per_group) = rows::elementwise(gpu.capabilities());
    let constants = rows::storage(constants, window.dtype(), Some(out.dtype()));
    let kernel = gpu.kernel(&GATHER_ROWS, constants)?;
    let (table, table_place) = rows::bind(window);
    let (ids_binding, ids_start) = ids.binding();
    let (out_binding, out_place) = rows::bind(out);
    let params = Params {
        count: out.shape()[2] as u32,
        chunks: (out.shape()[3] / 4) as u32,
        first_row: first_row as u32,
        window_rows: window.shape()[2].min(table_rows) as u32,
        table_rows: table_rows as u32,
        table_start: table_place[0],
        table_stride: table_place[3],
        out_start: out_place[0],
        out_stride: out_place[3],
        ids_start: ids_start as u32,
        scale,
        nan: f32::NAN.to_bits(),
    };
    let groups = (out.len() as u64 / 4).div_ceil(per_group);
    let (bindings, params) = ([table, ids_binding, out_binding], bytemuck::bytes_of(&params));
    kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work: out.len() as f64 })
}
