//! Linear recurrences.

use super::{
    bound, check_numbers, check_rows, constants, group_of, numbers, run, scan_kernel, single,
};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Constants, KernelSource};
use crate::ops;
use crate::rows::{self, Place};
use crate::tensor::{DType, Tensor};
use crate::vec4::is_vec4;

pub(crate) const RECURRENCE: KernelSource = scan_kernel!("scan_recurrence");
pub(crate) const TOTALS: KernelSource = scan_kernel!("scan_recurrence_totals");

/// From which end a recurrence runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `h_t = a_t h_(t-1) + x_t`.
    Forward,
    /// `h_t = a_t h_(t+1) + x_t`.
    Reversed,
}

/// What a recurrence runs on.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Recurrence<'a> {
    /// `[batch, heads_x, tokens, width]`, f32 or a half type; `heads_x` divides the number of heads.
    pub x: &'a Tensor,
    /// Coefficients f32 `[batch, heads, tokens]`. Default: all 1. Above 1 in magnitude they make rounding
    /// grow.
    pub a: Option<&'a Tensor>,
    /// What is before the first token (behind the last one, reversed), f32 `[batch, heads, width]`.
    /// Default: 0.
    pub first: Option<&'a Tensor>,
    /// From which end.
    pub direction: Direction,
    /// Number of heads. Default: those of the coefficients, or of `x`.
    pub heads: usize,
}

impl<'a> Recurrence<'a> {
    /// Cumulative sums of `x`, from the first token on.
    pub fn new(x: &'a Tensor) -> Self {
        let heads = x.shape().get(1).copied().unwrap_or(1);
        Recurrence { x, a: None, first: None, direction: Direction::Forward, heads }
    }

    /// With coefficients f32 `[batch, heads, tokens]`.
    pub fn with_coefficients(self, a: &'a Tensor) -> Self {
        Recurrence { a: Some(a), heads: a.shape().get(1).copied().unwrap_or(1), ..self }
    }

    /// From `first` f32 `[batch, heads, width]` on.
    pub fn with_first(self, first: Option<&'a Tensor>) -> Self {
        Recurrence { first, ..self }
    }

    /// From the last token to the first.
    pub fn reversed(self) -> Self {
        Recurrence { direction: Direction::Reversed, ..self }
    }

    /// Of so many heads, neighbours of which share heads of `x`.
    pub fn with_heads(self, heads: usize) -> Self {
        Recurrence { heads, ..self }
    }
}

/// What [`recurrence`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Scanned {
    /// f32 `[batch, heads, tokens, width]`.
    pub h: Tensor,
    /// The last one of the walk, f32 `[batch, heads, width]`: `first`, or 0, where there is no token.
    pub last: Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    planes: u32,
    heads: u32,
    tokens: u32,
    chunks: u32,
    tile: u32,
    tiles: u32,
    group: u32,
    lanes: u32,
    x: Place,
    a: Place,
    base: Place,
    h: Place,
    last: Place,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct TotalsParams {
    first: Place,
    planes: u32,
    heads: u32,
    chunks: u32,
    tiles: u32,
    lanes: u32,
}

/// The compile-time form of a dispatch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    pub(crate) dtype: DType,
    pub(crate) totals: bool,
    pub(crate) coefficients: bool,
    pub(crate) reversed: bool,
    pub(crate) base: bool,
}

impl Form {
    pub(crate) fn constants(self, constants: Constants) -> Constants {
        rows::storage(constants, self.dtype, None)
            .flag("TOTALS", self.totals)
            .flag("COEFFICIENTS", self.coefficients)
            .flag("REVERSED", self.reversed)
            .flag("BASE", self.base && !self.totals)
    }
}

/// The linear recurrence over the tokens of each batch entry and head.
///
/// Its vector-Jacobian product is a recurrence in the other direction: with the cotangents `d_h`,
/// `dx_t = d_h_t + a_(t+1) dx_(t+1)`.
///
/// # Errors
/// [`attn_core::Error`] for shapes or types that do not fit; errors of the device.
pub fn recurrence(call: Recurrence<'_>) -> Result<Scanned> {
    let [batch, heads, tokens, width] = call.check()?;
    let padded = width.next_multiple_of(4);
    let h = Tensor::uninit(call.x.gpu(), &[batch, heads, tokens, padded], DType::F32)?;
    let last = call.record(&h)?;
    Ok(Scanned { h: h.narrow(3, 0, width)?, last })
}

/// [`recurrence`] into a caller's f32 `[batch, heads, tokens, width]`; returns the last one. `h` must not
/// overlap the inputs.
///
/// # Errors
/// As [`recurrence`], and [`attn_core::Error`] for a target of another shape or type.
pub fn recurrence_into(call: Recurrence<'_>, h: &Tensor) -> Result<Tensor> {
    check_numbers("h", h, &call.check()?, call.x.gpu())?;
    if is_vec4(h) {
        return call.record(h);
    }
    let scanned = recurrence(call)?;
    ops::copy(&scanned.h, h)?;
    Ok(scanned.last)
}

impl Recurrence<'_> {
    fn check(&self) -> Result<[usize; 4]> {
        let gpu = self.x.gpu();
        let [batch, heads_x, tokens, width] = check_rows("x", self.x, gpu)?;
        group_of("x", heads_x, self.heads, self.x.shape())?;
        if let Some(a) = self.a {
            check_numbers("a", a, &[batch, self.heads, tokens], gpu)?;
        }
        if let Some(first) = self.first {
            check_numbers("first", first, &[batch, self.heads, width], gpu)?;
        }
        Ok([batch, self.heads, tokens, width])
    }

    /// Writes a target of whole groups of four elements; returns the last one.
    fn record(&self, h: &Tensor) -> Result<Tensor> {
        let (gpu, width) = (self.x.gpu(), self.x.shape()[3]);
        let &[batch, heads, tokens, padded] = h.shape() else { return Ok(h.clone()) };
        if batch * heads * tokens * width == 0 {
            return match self.first {
                Some(first) => Ok(first.clone()),
                None => Tensor::zeros(gpu, &[batch, heads, width], DType::F32),
            };
        }
        let last = Tensor::uninit(gpu, &[batch, heads, padded], DType::F32)?;
        let x = rows::source(self.x)?;
        let a = self.a.map(|a| a.contiguous().map(|a| numbers(&a))).transpose()?;
        let first = self.first.map(|first| rows::source(&single(first))).transpose()?;
        let (whole_last, group) = (single(&last), heads / self.x.shape()[1]);
        let mut tensors = vec![&x, h, &whole_last];
        tensors.extend(&a);
        tensors.extend(&first);
        let reversed = self.direction == Direction::Reversed;
        rows::windows(&tensors, super::splittable(group), &mut |windows| {
            let [x, h, last, rest @ ..] = windows else { return Ok(()) };
            let (a, first) = rest.split_at(usize::from(self.a.is_some()));
            let a = a.first().copied();
            Walk { x, h, last, a, group, reversed, gpu }.run(first.first().copied())
        })?;
        last.narrow(2, 0, width)
    }
}

/// A call whose tensors kernels can address.
struct Walk<'a> {
    x: &'a Tensor,
    h: &'a Tensor,
    last: &'a Tensor,
    a: Option<&'a Tensor>,
    group: usize,
    reversed: bool,
    gpu: &'a Gpu,
}

impl Walk<'_> {
    fn run(&self, first: Option<&Tensor>) -> Result<()> {
        let &[batch, heads, tokens, width] = self.h.shape() else { return Ok(()) };
        let tiles = tokens.div_ceil(super::tile(tokens));
        if tiles == 1 {
            return self.tiles(self.h, first, false);
        }
        let lanes = width / 4 + usize::from(self.a.is_some());
        let totals = Tensor::uninit(self.gpu, &[batch, heads, tiles, 4 * lanes], DType::F32)?;
        self.tiles(&totals, None, true)?;
        let prefixes = Tensor::uninit(self.gpu, &[batch, heads, tiles, width], DType::F32)?;
        self.totals(&totals, &prefixes, first)?;
        self.tiles(self.h, Some(&prefixes), false)
    }

    /// The tiles, from `base` on or to their totals.
    fn tiles(&self, h: &Tensor, base: Option<&Tensor>, totals: bool) -> Result<()> {
        let &[batch, heads, tokens, width] = self.h.shape() else { return Ok(()) };
        let tile = super::tile(tokens);
        let tiles = tokens.div_ceil(tile);
        let lanes = width / 4 + usize::from(totals && self.a.is_some());
        let mut params = Params {
            planes: (batch * heads) as u32,
            heads: heads as u32,
            tokens: tokens as u32,
            chunks: (width / 4) as u32,
            tile: tile as u32,
            tiles: tiles as u32,
            group: self.group as u32,
            lanes: lanes as u32,
            ..bytemuck::Zeroable::zeroed()
        };
        let mut bindings = Vec::new();
        let mut bind = |tensor: &Tensor, unit| {
            let (binding, place) = bound(tensor, unit);
            bindings.push(binding);
            place
        };
        params.x = bind(self.x, 4);
        params.h = bind(h, 4);
        if !totals {
            params.last = bind(self.last, 4);
        }
        if let Some(a) = self.a {
            params.a = bind(a, 1);
        }
        if let Some(base) = base {
            params.base = bind(base, 4);
        }
        let form = Form {
            dtype: self.x.dtype(),
            totals,
            coefficients: self.a.is_some(),
            reversed: self.reversed,
            base: base.is_some(),
        };
        let kernel = (&RECURRENCE, form.constants(constants(self.gpu.capabilities())));
        let rows = [batch * heads, tiles, lanes];
        run(self.gpu, kernel, &bindings, bytemuck::bytes_of(&params), rows, tile)
    }

    fn totals(&self, totals: &Tensor, prefixes: &Tensor, first: Option<&Tensor>) -> Result<()> {
        let &[batch, heads, tiles, width] = prefixes.shape() else { return Ok(()) };
        let mut bindings = vec![totals.binding().0, prefixes.binding().0];
        let mut first_place = [0; 4];
        if let Some(first) = first {
            let (binding, place) = bound(first, 4);
            bindings.push(binding);
            first_place = place;
        }
        let params = TotalsParams {
            planes: (batch * heads) as u32,
            heads: heads as u32,
            chunks: (width / 4) as u32,
            tiles: tiles as u32,
            lanes: (totals.shape()[3] / 4) as u32,
            first: first_place,
        };
        let constants =
            totals_constants(self.a.is_some(), first.is_some(), constants(self.gpu.capabilities()));
        let rows = [batch * heads, width / 4, 1];
        run(self.gpu, (&TOTALS, constants), &bindings, bytemuck::bytes_of(&params), rows, tiles)
    }
}

pub(crate) fn totals_constants(coefficients: bool, first: bool, constants: Constants) -> Constants {
    constants.flag("COEFFICIENTS", coefficients).flag("FIRST", first)
}
