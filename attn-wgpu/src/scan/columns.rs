//! Sums over tokens.

use super::{bound, check_numbers, check_rows, constants, group_of, numbers, run, scan_kernel};
use crate::error::Result;
use crate::kernel::{Constants, KernelSource};
use crate::ops::{self, check_target, write_rows};
use crate::rows::{self, Place};
use crate::tensor::{DType, Tensor};

pub(crate) const COLUMNS: KernelSource = scan_kernel!("scan_columns");

/// `factor sum_t w_t (x_t + shift)`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Columns<'a> {
    /// `[batch, heads_x, tokens, width]`, f32 or a half type; `heads_x` divides the number of heads.
    pub x: &'a Tensor,
    /// f32 `[batch, heads, tokens]`. Rows of weight 0 are not read. Default: all 1.
    pub weights: Option<&'a Tensor>,
    /// Of the result. Default: 1.
    pub factor: f32,
    /// Added to every element. Default: 0.
    pub shift: f32,
}

impl<'a> Columns<'a> {
    /// The plain sums.
    pub fn new(x: &'a Tensor) -> Self {
        Columns { x, weights: None, factor: 1.0, shift: 0.0 }
    }

    /// With weights f32 `[batch, heads, tokens]`.
    pub fn with_weights(self, weights: &'a Tensor) -> Self {
        Columns { weights: Some(weights), ..self }
    }

    /// With a factor of the result.
    pub fn with_factor(self, factor: f32) -> Self {
        Columns { factor, ..self }
    }

    /// With something added to every element.
    pub fn with_shift(self, shift: f32) -> Self {
        Columns { shift, ..self }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    x: Place,
    weights: Place,
    out: Place,
    planes: u32,
    heads: u32,
    tokens: u32,
    chunks: u32,
    tile: u32,
    tiles: u32,
    group: u32,
    factor: f32,
    shift: f32,
}

/// Weighted sums over the tokens of each batch entry and head, f32 `[batch, heads, width]`: tile by tile,
/// then over the tiles.
///
/// # Errors
/// [`attn_core::Error`] for shapes or types that do not fit; errors of the device.
pub fn column_sums(call: Columns<'_>) -> Result<Tensor> {
    let [batch, heads, width] = check(&call)?;
    let padded = [batch, heads, width.next_multiple_of(4)];
    let out = Tensor::uninit(call.x.gpu(), &padded, DType::F32)?;
    sums_into(call, &out)?;
    out.narrow(2, 0, width)
}

/// [`column_sums`] into a caller's tensor, which may have another type: directly where [`write_rows`] writes
/// directly.
///
/// # Errors
/// As [`column_sums`], and [`attn_core::Error`] for a target of another shape.
pub fn column_sums_into(call: Columns<'_>, out: &Tensor) -> Result<()> {
    let shape = check(&call)?;
    check_target("out", out, call.x.gpu(), &shape)?;
    let mut read = vec![call.x];
    read.extend(call.weights);
    write_rows(out, &read, |out| sums_into(call, out))?;
    Ok(())
}

/// The shape of the result.
fn check(call: &Columns<'_>) -> Result<[usize; 3]> {
    let gpu = call.x.gpu();
    let [batch, heads_x, tokens, width] = check_rows("x", call.x, gpu)?;
    let heads = call.weights.and_then(|w| w.shape().get(1).copied()).unwrap_or(heads_x);
    group_of("x", heads_x, heads, call.x.shape())?;
    if let Some(weights) = call.weights {
        check_numbers("weights", weights, &[batch, heads, tokens], gpu)?;
    }
    Ok([batch, heads, width])
}

/// Into f32 `[batch, heads, padded width]`, contiguous from the beginning of a binding on.
fn sums_into(call: Columns<'_>, out: &Tensor) -> Result<()> {
    let gpu = call.x.gpu();
    let (x_shape, heads) = (call.x.shape(), out.shape()[1]);
    let (batch, tokens) = (x_shape[0], x_shape[2]);
    let group = heads / x_shape[1].max(1);
    if tokens == 0 || out.is_empty() {
        return ops::fill(out, &[0; 4]);
    }
    let x = rows::source(call.x)?;
    let tile = super::tile(tokens);
    let (tiles, padded) = (tokens.div_ceil(tile), x.shape()[3]);
    let by_tile = [batch, heads, tiles, padded];
    let sums = match tiles {
        1 => out.reshape(&by_tile)?,
        _ => Tensor::uninit(gpu, &by_tile, DType::F32)?,
    };
    let weights = call.weights.map(numbers);
    let mut tensors = vec![&sums, &x];
    tensors.extend(&weights);
    rows::windows(&tensors, super::splittable(group), &mut |windows| {
        let [sums, x, weights @ ..] = windows else { return Ok(()) };
        let (x_binding, x_place) = bound(x, 4);
        let (out_binding, out_place) = bound(sums, 4);
        let mut bindings = vec![x_binding, out_binding];
        let mut weights_place = [0; 4];
        if let [weights] = weights {
            let (binding, place) = bound(weights, 1);
            bindings.push(binding);
            weights_place = place;
        }
        let (batch, heads) = (sums.shape()[0], sums.shape()[1]);
        let params = Params {
            planes: (batch * heads) as u32,
            heads: heads as u32,
            tokens: tokens as u32,
            chunks: (padded / 4) as u32,
            tile: tile as u32,
            tiles: tiles as u32,
            group: group as u32,
            // Once, where the tiles are summed.
            factor: if tiles == 1 { call.factor } else { 1.0 },
            shift: call.shift,
            x: x_place,
            weights: weights_place,
            out: out_place,
        };
        let constants =
            self::flags(call.weights.is_some(), x.dtype(), constants(gpu.capabilities()));
        let rows = [batch * heads, tiles, padded / 4];
        run(gpu, (&COLUMNS, constants), &bindings, bytemuck::bytes_of(&params), rows, tile)
    })?;
    if tiles > 1 {
        return sums_into(Columns::new(&sums).with_factor(call.factor), out);
    }
    Ok(())
}

pub(crate) fn flags(weights: bool, dtype: DType, constants: Constants) -> Constants {
    rows::storage(constants, dtype, None).flag("WEIGHTS", weights)
}
