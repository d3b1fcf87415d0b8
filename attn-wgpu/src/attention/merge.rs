//! Exact merge of partial results over disjoint sets of keys.

use super::Output;
use super::call::{bind, check_output, vec4, wrong_type};
use super::forward::SNIPPETS;
use super::params::storage;
use crate::error::Result;
use crate::kernel::{Call, Constants, KernelSource};
use crate::ops;
use crate::tensor::{DType, Tensor};
use crate::vec4::is_vec4;

const MERGE: KernelSource = KernelSource {
    name: "attention_merge",
    text: include_str!("../../kernels/attention_merge.wgsl"),
    imports: SNIPPETS,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    parts: u32,
    rows: u32,
    dim_v: u32,
    heads: u32,
    queries: u32,
    out: [u32; 4],
    lse_start: u32,
    first_head: u32,
}

/// Merges results of attention over disjoint sets of keys into that over all of them: with
/// `l = ln sum_p exp(lse_p)`, `out = sum_p exp(lse_p - l) out_p` and `lse = l`.
///
/// Each part is an output `[batch, heads, queries, dim_v]` and its lse `[batch, heads, queries]`
/// (f32). A part whose lse is -inf (or at most -1e29) is empty and changes nothing, not even a bit;
/// where all parts are empty, so is the result. Sinks must be in one part only.
///
/// # Errors
/// [`attn_core::Error`] where there is no part, or shapes or types differ.
pub fn merge(parts: &[(&Tensor, &Tensor)]) -> Result<Output> {
    let Some(&(first, _)) = parts.first() else {
        return Err(attn_core::Error::config("parts", "at least one", 0).into());
    };
    let &[batch, heads, queries, dim_v] = first.shape() else {
        let expected = "[batch, heads, queries, dim_v]";
        return Err(attn_core::Error::shape("out", expected, first.shape()).into());
    };
    if !matches!(first.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(wrong_type("out", "f32, f16 or bf16", first));
    }
    let gpu = first.gpu();
    for &(out, lse) in parts {
        for (arg, tensor) in [("out", out), ("lse", lse)] {
            if !tensor.gpu().is_same(gpu) {
                let (expected, got) = (gpu.adapter().name.as_str(), "a tensor of another Gpu");
                return Err(attn_core::Error::config(arg, expected, got).into());
            }
        }
        check_output("out", out, first.shape(), first.dtype())?;
        check_output("lse", lse, &[batch, heads, queries], DType::F32)?;
    }
    let rows = batch * heads * queries;
    let width = dim_v.next_multiple_of(4);
    let out = Tensor::uninit(gpu, &[batch, heads, queries, width], first.dtype())?;
    let lse = Tensor::uninit(gpu, &[batch, heads, queries], DType::F32)?;
    if rows * dim_v > 0 {
        let stacked = Tensor::uninit(gpu, &[parts.len(), rows, width], first.dtype())?;
        let stacked_lse = Tensor::uninit(gpu, &[parts.len(), rows], DType::F32)?;
        for (number, (out, lse)) in parts.iter().enumerate() {
            let target = stacked.narrow(0, number, 1)?.reshape(&[batch, heads, queries, width])?;
            ops::copy(&vec4(out, false)?, &target)?;
            ops::copy(lse, &stacked_lse.narrow(0, number, 1)?.reshape(lse.shape())?)?;
        }
        run(&stacked, &stacked_lse, &out, &lse, None)?;
    }
    let out = out.narrow(3, 0, dim_v)?.contiguous()?;
    Ok(Output { out, lse, row_max: None, argmax: None, column_sums: None })
}

/// [`merge`] into a caller's tensors, by a copy on the device.
///
/// # Errors
/// As [`merge`], and [`attn_core::Error`] for targets of another shape or type.
pub fn merge_into(parts: &[(&Tensor, &Tensor)], out: &Tensor, lse: &Tensor) -> Result<()> {
    let merged = merge(parts)?;
    ops::copy(&merged.out, out)?;
    ops::copy(&merged.lse, lse)
}

/// Merges `[parts, rows, dim_v]` of f32 or of the output's type into a window of the output that
/// can be addressed in vec4s. Sinks come with the number of the window's first head.
pub(super) fn run(
    parts: &Tensor,
    parts_lse: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    sinks: Option<(&Tensor, usize)>,
) -> Result<()> {
    debug_assert!(is_vec4(out));
    let gpu = out.gpu();
    let workgroup = ops::workgroup(gpu.capabilities());
    let constants = storage(Constants::new().int("WORKGROUP", workgroup), out.dtype())
        .flag("PARTS_F32", parts.dtype() == DType::F32)
        .flag("SINKS", sinks.is_some());
    let kernel = gpu.kernel(&MERGE, constants)?;
    let target = bind(out, 0);
    let (lse, lse_start) = lse.binding();
    let &[count, rows, dim_v] = parts.shape() else { return Ok(()) };
    let (sinks, first_head) = match sinks {
        Some((sinks, first_head)) => {
            let (binding, start) = sinks.binding();
            (binding, start + first_head)
        }
        None => (Tensor::uninit(gpu, &[4], DType::F32)?.binding().0, 0),
    };
    let params = Params {
        parts: count as u32,
        rows: rows as u32,
        dim_v: (dim_v / 4) as u32,
        heads: out.shape()[1] as u32,
        queries: out.shape()[2] as u32,
        out: target.place,
        lse_start: lse_start as u32,
        first_head: first_head as u32,
    };
    kernel.dispatch(
        gpu,
        &Call {
            bindings: &[parts.binding().0, parts_lse.binding().0, target.binding, lse, sinks],
            params: bytemuck::bytes_of(&params),
            groups: ((rows * dim_v / 4) as u64).div_ceil(u64::from(workgroup)),
            work: (2 * count * rows * dim_v) as f64,
        },
    )
}
