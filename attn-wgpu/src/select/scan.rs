//! Prefix sums.

use super::{Words, lanes, select_kernel};
use crate::error::Result;
use crate::kernel::{Call, Constants, KernelSource};
use crate::ops;
use crate::rows;
use crate::tensor::{DType, Tensor};

pub(crate) const SCAN: KernelSource = select_kernel!("select_scan");

/// Neighbours that one lane adds up.
const ITEMS: u32 = 32;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    count: u32,
    values_start: u32,
    out_start: u32,
    bases_start: u32,
}

/// What a dispatch of the kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Sums of tiles.
    Sums,
    /// Prefix sums of one tile.
    Tile,
    /// Prefix sums of many, whose sums are known.
    Tiles,
}

impl Way {
    #[cfg(feature = "bench")]
    pub(crate) const ALL: [Way; 3] = [Way::Sums, Way::Tile, Way::Tiles];

    pub(crate) fn constants(self, lanes: u32) -> Constants {
        Constants::new()
            .int("WORKGROUP", lanes)
            .int("ITEMS", ITEMS)
            .flag("TILE_SUMS", self == Way::Sums)
            .flag("BASES", self == Way::Tiles)
    }
}

/// Exclusive prefix sums of `values` u32 `[n]`, modulo 2^32: `out[i] = values[0] + .. + values[i - 1]`,
/// u32 `[n + 1]`, so that the last one is the sum of all.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, [`crate::Error::Limit`] for more than one binding
/// holds.
pub fn scan_u32(values: &Tensor) -> Result<Tensor> {
    let count = super::check_numbers("values", values, values.gpu())?;
    let out = Tensor::uninit(values.gpu(), &[count + 1], DType::U32)?;
    scan_u32_into(values, &out)?;
    Ok(out)
}

/// [`scan_u32`] into a caller's tensor. It must not overlap `values`; where both are views of one
/// buffer, they must also not share an alignment unit of bindings
/// ([`crate::Capabilities::offset_alignment`]).
///
/// # Errors
/// As [`scan_u32`], and [`attn_core::Error`] for a target of another shape or type.
pub fn scan_u32_into(values: &Tensor, out: &Tensor) -> Result<()> {
    let gpu = values.gpu();
    let count = super::check_numbers("values", values, gpu)?;
    rows::check_device("out", out, gpu)?;
    rows::check_form("out", out, &[count + 1], DType::U32)?;
    if count == 0 {
        return ops::copy(&Tensor::full(gpu, &[1], 0u32)?, out);
    }
    super::write_into(out, |out| scan(&values.contiguous()?, out))
}

/// Of contiguous tensors.
fn scan(values: &Tensor, out: &Tensor) -> Result<()> {
    let tiles = values.len().div_ceil((lanes(values.gpu().capabilities()) * ITEMS) as usize);
    if tiles == 1 {
        return run(Way::Tile, values, out, None);
    }
    let sums = Tensor::uninit(values.gpu(), &[tiles], DType::U32)?;
    run(Way::Sums, values, &sums, None)?;
    let bases = Tensor::uninit(values.gpu(), &[tiles + 1], DType::U32)?;
    scan(&sums, &bases)?;
    run(Way::Tiles, values, out, Some(&bases))
}

fn run(way: Way, values: &Tensor, out: &Tensor, bases: Option<&Tensor>) -> Result<()> {
    let gpu = values.gpu();
    let lanes = lanes(gpu.capabilities());
    let kernel = gpu.kernel(&SCAN, way.constants(lanes))?;
    let (values_words, out) = (Words::of(values), Words::of(out));
    let mut bindings = vec![values_words.binding, out.binding];
    let mut bases_start = 0;
    if let Some(bases) = bases.map(Words::of) {
        bindings.push(bases.binding);
        bases_start = bases.start;
    }
    let params = Params {
        count: values.len() as u32,
        values_start: values_words.start,
        out_start: out.start,
        bases_start,
    };
    let groups = (values.len() as u64).div_ceil(u64::from(lanes * ITEMS));
    let (params, work) = (bytemuck::bytes_of(&params), 2.0 * values.len() as f64);
    kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })
}
