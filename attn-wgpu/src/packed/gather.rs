//! Rows of a packed table by number.

use super::blocks::{BlockType, GROUP};
use super::product::bind_groups;
use super::variant::{block_constants, scale_chunk};
use super::weight::Packed;
use crate::error::Result;
use crate::kernel::{Call, Constants, KernelSource};
use crate::rows;
use crate::tensor::{DType, Tensor};

pub(super) const GATHER: KernelSource = KernelSource {
    name: "packed_gather",
    text: include_str!("../../kernels/packed_gather.wgsl"),
    imports: &[
        ("linear", include_str!("../../kernels/linear.wgsl")),
        ("halves", include_str!("../../kernels/halves.wgsl")),
        ("target", include_str!("../../kernels/target.wgsl")),
        ("packed_block", include_str!("../../kernels/packed_block.wgsl")),
    ],
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    count: u32,
    chunks: u32,
    first_row: u32,
    window_rows: u32,
    table_rows: u32,
    codes: [u32; 2],
    scales: [u32; 2],
    out_start: u32,
    out_stride: u32,
    ids_start: u32,
    scale: f32,
    nan: u32,
}

/// `scale * table[ids]`: rows of `table` `[rows, width]` by the numbers `ids` (u32, of any shape of up to
/// three dimensions), as a tensor `[.., width]` of type `dtype`.
///
/// As with [`embedding::gather_rows`](crate::embedding::gather_rows), the row of a number that the table
/// does not have is NaN.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types.
pub fn gather_rows(table: &Packed, ids: &Tensor, scale: f32, dtype: DType) -> Result<Tensor> {
    let gpu = table.gpu();
    rows::check_device("ids", ids, gpu)?;
    rows::check_form("ids", ids, ids.shape(), DType::U32)?;
    if ids.shape().len() > 3 {
        let expected = "at most three dimensions";
        return Err(attn_core::Error::shape("ids", expected, ids.shape()).into());
    }
    rows::check_float("dtype", dtype)?;
    let mut shape = ids.shape().to_vec();
    shape.push(table.width());
    rows::write(gpu, &shape, dtype, |out| {
        let count = ids.len();
        let out = out.reshape(&[1, 1, count, table.width()])?;
        let ids = ids.contiguous()?.reshape(&[1, 1, count, 1])?;
        let tables = table.windows()?;
        if tables.is_empty() {
            // No number is in the table: the same kernel finds that for a table of one row.
            let none = Packed::uninit(gpu, table.kind(), 1, table.width())?;
            return rows::windows(&[&out, &ids], 2..3, &mut |windows| {
                part(&none, 0..1, 0, windows, scale)
            });
        }
        tables.into_iter().try_for_each(|groups| {
            rows::windows(&[&out, &ids], 2..3, &mut |windows| {
                part(table, groups.clone(), table.rows(), windows, scale)
            })
        })
    })
}

/// Handles the ids of one window of the output that lie in one window of the table.
fn part(
    table: &Packed,
    groups: std::ops::Range<usize>,
    table_rows: usize,
    windows: &[&Tensor],
    scale: f32,
) -> Result<()> {
    let gpu = table.gpu();
    let &[out, ids] = windows else { return Ok(()) };
    let (constants, per_group) = rows::elementwise(gpu.capabilities());
    let kernel = gpu.kernel(&GATHER, constants_of(table.kind(), constants, out.dtype()))?;
    let (codes, codes_place) = bind_groups(&table.codes, &groups, 4)?;
    let (scales, scales_place) = bind_groups(&table.scales, &groups, scale_chunk(table.kind()))?;
    let (ids_binding, ids_start) = ids.binding();
    let (out_binding, out_place) = rows::bind(out);
    let first_row = groups.start * GROUP;
    let params = Params {
        count: out.shape()[2] as u32,
        chunks: (out.shape()[3] / 4) as u32,
        first_row: first_row as u32,
        window_rows: table_rows.min(groups.end * GROUP).saturating_sub(first_row) as u32,
        table_rows: table_rows as u32,
        codes: codes_place,
        scales: scales_place,
        out_start: out_place[0],
        out_stride: out_place[3],
        ids_start: ids_start as u32,
        scale,
        nan: f32::NAN.to_bits(),
    };
    let groups = (out.len() as u64 / 4).div_ceil(per_group);
    let bindings = [codes, scales, ids_binding, out_binding];
    let params = bytemuck::bytes_of(&params);
    kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work: out.len() as f64 })
}

pub(super) fn constants_of(kind: BlockType, constants: Constants, out: DType) -> Constants {
    rows::storage(block_constants(kind, constants), DType::F32, Some(out))
}
