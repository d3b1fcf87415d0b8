//! Softmax attention over prefixes.

use super::state::SoftmaxState;
use super::{
    bound, check_numbers, check_rows, constants, group_of, numbers, run, scan_kernel, single,
};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Constants, KernelSource};
use crate::rows::{self, Place};
use crate::tensor::{DType, Tensor};

pub(crate) const SOFTMAX: KernelSource = scan_kernel!("scan_softmax");
pub(crate) const TOTALS: KernelSource = scan_kernel!("scan_softmax_totals");

/// What [`softmax_scan`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SoftmaxScan {
    /// Attention over the tokens up to each one `[batch, heads, tokens, width]`; 0 where none counts.
    pub out: Tensor,
    /// Natural log-sum-exp of their scores, f32 `[batch, heads, tokens]`; -inf where none counts.
    pub lse: Tensor,
    /// The element of all tokens, `first` included.
    pub last: SoftmaxState,
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
    nothing: u32,
    scores: Place,
    v: Place,
    base: Place,
    out: Place,
    lse: Place,
    last: Place,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct TotalsParams {
    planes: u32,
    heads: u32,
    chunks: u32,
    tiles: u32,
    first: Place,
    target: Place,
}

/// The compile-time form of a dispatch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    pub(crate) v: DType,
    /// `None` for totals.
    pub(crate) out: Option<DType>,
    pub(crate) base: bool,
}

impl Form {
    pub(crate) fn constants(self, constants: Constants) -> Constants {
        rows::storage(constants, self.v, self.out)
            .flag("TOTALS", self.out.is_none())
            .flag("BASE", self.base && self.out.is_some())
    }
}

/// Softmax attention with the scores f32 `[batch, heads, tokens]`, over the tokens up to each one and those of
/// `first`: `out_t = sum_(i <= t) exp(s_i - lse_t) v_i`. `v` is `[batch, heads_v, tokens, width]`, f32 or a
/// half type; the result has the type `dtype`. A token whose score is at most -1e30 does not count, and its
/// value is not read. The width may be 0, for the log-sum-exps alone.
///
/// # Errors
/// [`attn_core::Error`] for shapes or types that do not fit; errors of the device.
pub fn softmax_scan(
    scores: &Tensor,
    v: &Tensor,
    first: Option<&SoftmaxState>,
    dtype: DType,
) -> Result<SoftmaxScan> {
    rows::check_float("dtype", dtype)?;
    let [batch, heads, tokens, width] = check(scores, v, first)?;
    let lse = Tensor::uninit(v.gpu(), &[batch, heads, tokens], DType::F32)?;
    let mut last = None;
    let mut record = |out: &Tensor| -> Result<()> {
        last = Some(scan(scores, v, first, out, &lse)?);
        Ok(())
    };
    let shape = [batch, heads, tokens, width];
    let out = if width == 0 {
        let out = Tensor::uninit(v.gpu(), &shape, dtype)?;
        record(&out)?;
        out
    } else {
        rows::write(v.gpu(), &shape, dtype, record)?
    };
    let last = match last {
        Some(last) => last,
        None => untouched(first, v.gpu(), [batch, heads, width])?,
    };
    Ok(SoftmaxScan { out, lse, last })
}

/// [`softmax_scan`] into a caller's tensors, `out` in its own type. They must not overlap the inputs.
///
/// # Errors
/// As [`softmax_scan`], and [`attn_core::Error`] for targets of other shapes or types.
pub fn softmax_scan_into(
    scores: &Tensor,
    v: &Tensor,
    first: Option<&SoftmaxState>,
    out: &Tensor,
    lse: &Tensor,
) -> Result<SoftmaxState> {
    let [batch, heads, tokens, width] = check(scores, v, first)?;
    rows::check("out", out, v.gpu())?;
    rows::check_form("out", out, &[batch, heads, tokens, width], out.dtype())?;
    check_numbers("lse", lse, &[batch, heads, tokens], v.gpu())?;
    if width == 0 {
        return scan(scores, v, first, out, lse);
    }
    let mut last = None;
    rows::write_into(out, |out| {
        last = Some(scan(scores, v, first, out, lse)?);
        Ok(())
    })?;
    match last {
        Some(last) => Ok(last),
        None => softmax_fold(scores, v, first),
    }
}

/// The element of all tokens alone, which are combined on their own before they meet `first`.
///
/// # Errors
/// As [`softmax_scan`].
pub fn softmax_fold(
    scores: &Tensor,
    v: &Tensor,
    first: Option<&SoftmaxState>,
) -> Result<SoftmaxState> {
    let [batch, heads, tokens, width] = check(scores, v, first)?;
    if batch * heads * tokens == 0 {
        return untouched(first, v.gpu(), [batch, heads, width]);
    }
    let last = SoftmaxState::uninit(v.gpu(), batch, heads, width)?;
    windows(scores, v, first, &last, None, &mut |walk, first, last| {
        let totals = walk.totals()?;
        merge(walk.gpu, &totals, first, last, true)
    })?;
    Ok(last)
}

fn untouched(first: Option<&SoftmaxState>, gpu: &Gpu, shape: [usize; 3]) -> Result<SoftmaxState> {
    let [batch, heads, width] = shape;
    match first {
        Some(first) => Ok(first.clone()),
        None => SoftmaxState::empty(gpu, batch, heads, width),
    }
}

fn check(scores: &Tensor, v: &Tensor, first: Option<&SoftmaxState>) -> Result<[usize; 4]> {
    let gpu = v.gpu();
    let [batch, heads_v, tokens, width] = check_rows("v", v, gpu)?;
    let heads = scores.shape().get(1).copied().unwrap_or(heads_v);
    check_numbers("scores", scores, &[batch, heads, tokens], gpu)?;
    group_of("v", heads_v, heads, v.shape())?;
    if let Some(first) = first {
        first.check("first", [batch, heads, width], gpu)?;
    }
    Ok([batch, heads, tokens, width])
}

/// Writes outputs of whole groups of four elements.
fn scan(
    scores: &Tensor,
    v: &Tensor,
    first: Option<&SoftmaxState>,
    out: &Tensor,
    lse: &Tensor,
) -> Result<SoftmaxState> {
    let [batch, heads, tokens, width] = check(scores, v, first)?;
    if batch * heads * tokens == 0 {
        return untouched(first, v.gpu(), [batch, heads, width]);
    }
    let state = SoftmaxState::uninit(v.gpu(), batch, heads, width)?;
    windows(scores, v, first, &state, Some([out, lse]), &mut |walk, first, last| {
        let (tokens, width) = (walk.v.shape()[2], walk.v.shape()[3]);
        let tiles = tokens.div_ceil(super::tile(tokens));
        if tiles == 1 {
            return walk.tiles(first, last);
        }
        let totals = walk.totals()?;
        let &[batch, heads, ..] = totals.shape() else { return Ok(()) };
        let prefixes = Tensor::uninit(walk.gpu, &[batch, heads, tiles, width + 4], DType::F32)?;
        merge(walk.gpu, &totals, first, &prefixes, false)?;
        walk.tiles(Some(&prefixes), last)
    })?;
    Ok(state)
}

/// A call whose tensors kernels can address.
struct Walk<'a> {
    scores: &'a Tensor,
    v: &'a Tensor,
    /// Outputs and log-sum-exps.
    outputs: Option<[&'a Tensor; 2]>,
    group: usize,
    gpu: &'a Gpu,
}

/// What runs one part of a call: the part, what is before it, and where its element goes.
type Part<'a> = dyn FnMut(&Walk<'_>, Option<&Tensor>, &Tensor) -> Result<()> + 'a;

/// Calls `run` with parts of a call that fit into bindings, what is before them and where their element goes.
fn windows(
    scores: &Tensor,
    v: &Tensor,
    first: Option<&SoftmaxState>,
    last: &SoftmaxState,
    outputs: Option<[&Tensor; 2]>,
    run: &mut Part<'_>,
) -> Result<()> {
    let gpu = v.gpu();
    // A tensor without elements cannot be bound, and is not read.
    let v = if v.shape()[3] == 0 { v.clone() } else { rows::source(v)? };
    let group = scores.shape()[1] / v.shape()[1];
    let (scores, last) = (numbers(scores), single(last.elements()));
    let first = first.map(|first| single(first.elements()));
    let outputs = outputs.map(|[out, lse]| [out.clone(), numbers(lse)]);
    let mut tensors = vec![&scores, &v, &last];
    tensors.extend(outputs.iter().flatten());
    tensors.extend(&first);
    rows::windows(&tensors, super::splittable(group), &mut |windows| {
        let [scores, v, last, rest @ ..] = windows else { return Ok(()) };
        let (outputs, first) = match (&outputs, rest) {
            (Some(_), [out, lse, first @ ..]) => (Some([*out, *lse]), first),
            (_, first) => (None, first),
        };
        let walk = Walk { scores, v, outputs, group, gpu };
        run(&walk, first.first().copied(), last)
    })
}

impl Walk<'_> {
    /// Elements of the tiles, each on its own.
    fn totals(&self) -> Result<Tensor> {
        let &[batch, heads, tokens, _] = self.scores.shape() else {
            return Ok(self.scores.clone());
        };
        let tiles = tokens.div_ceil(super::tile(tokens));
        let shape = [batch, heads, tiles, self.v.shape()[3] + 4];
        let totals = Tensor::uninit(self.gpu, &shape, DType::F32)?;
        self.dispatch(None, &totals, None)?;
        Ok(totals)
    }

    /// The outputs, from what is before each tile on.
    fn tiles(&self, base: Option<&Tensor>, last: &Tensor) -> Result<()> {
        self.dispatch(self.outputs, last, base)
    }

    fn dispatch(
        &self,
        outputs: Option<[&Tensor; 2]>,
        last: &Tensor,
        base: Option<&Tensor>,
    ) -> Result<()> {
        let &[batch, heads, tokens, _] = self.scores.shape() else { return Ok(()) };
        let tile = super::tile(tokens);
        let (tiles, chunks) = (tokens.div_ceil(tile), self.v.shape()[3] / 4);
        let mut params = Params {
            planes: (batch * heads) as u32,
            heads: heads as u32,
            tokens: tokens as u32,
            chunks: chunks as u32,
            tile: tile as u32,
            tiles: tiles as u32,
            group: self.group as u32,
            nothing: f32::NEG_INFINITY.to_bits(),
            ..bytemuck::Zeroable::zeroed()
        };
        let mut bindings = Vec::new();
        let mut bind = |tensor: &Tensor, unit| {
            let (binding, place) = bound(tensor, unit);
            bindings.push(binding);
            place
        };
        params.scores = bind(self.scores, 1);
        params.v = bind(self.v, 4);
        params.last = bind(last, 4);
        if let Some([out, lse]) = outputs {
            params.out = bind(out, 4);
            params.lse = bind(lse, 1);
        }
        if let Some(base) = base {
            params.base = bind(base, 4);
        }
        let out = outputs.map(|[out, _]| out.dtype());
        let form = Form { v: self.v.dtype(), out, base: base.is_some() };
        let kernel = (&SOFTMAX, form.constants(constants(self.gpu.capabilities())));
        let rows = [batch * heads, tiles, chunks + 1];
        run(self.gpu, kernel, &bindings, bytemuck::bytes_of(&params), rows, tile)
    }
}

pub(crate) fn totals_constants(first: bool, last: bool, constants: Constants) -> Constants {
    constants.flag("FIRST", first).flag("LAST", last)
}

/// Prefixes before the tiles, or the element of all of them alone.
pub(super) fn merge(
    gpu: &Gpu,
    totals: &Tensor,
    first: Option<&Tensor>,
    target: &Tensor,
    last: bool,
) -> Result<()> {
    let &[batch, heads, tiles, lanes] = totals.shape() else { return Ok(()) };
    let (target_binding, target_place) = bound(target, 4);
    let mut bindings = vec![totals.binding().0, target_binding];
    let mut first_place = [0; 4];
    if let Some(first) = first {
        let (binding, place) = bound(first, 4);
        bindings.push(binding);
        first_place = place;
    }
    let params = TotalsParams {
        planes: (batch * heads) as u32,
        heads: heads as u32,
        chunks: (lanes / 4 - 1) as u32,
        tiles: tiles as u32,
        first: first_place,
        target: target_place,
    };
    let constants = totals_constants(first.is_some(), last, constants(gpu.capabilities()));
    let rows = [batch * heads, lanes / 4, 1];
    run(gpu, (&TOTALS, constants), &bindings, bytemuck::bytes_of(&params), rows, tiles)
}
