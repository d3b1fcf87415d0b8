//! Choosing elements of rows: the largest, the `k` largest, or one at random.
//!
//! Elements are compared by value, -0 equal to 0, NaN below everything; of equals the first comes
//! first. Results stay on the device, so that a step of generation needs no read.

use crate::error::Result;
use crate::kernel::{Call, Constants, KernelSource};
use crate::ops;
use crate::rows::{self, Extents, Place, Sharing, row_kernel};
use crate::tensor::{DType, Tensor};

pub(crate) const ARGMAX: KernelSource = row_kernel!("argmax");
pub(crate) const TOP_K: KernelSource = row_kernel!("top_k");
pub(crate) const TOP_K_RANK: KernelSource = row_kernel!("top_k_rank");
pub(crate) const SAMPLE: KernelSource = row_kernel!("sample");

/// Loops over a row: of a search, and of everything around the searches.
const SEARCH: usize = 16;
pub(crate) const ARGMAX_PASSES: usize = 1;
pub(crate) const TOP_K_PASSES: usize = SEARCH + 10;
pub(crate) const SAMPLE_PASSES: usize = 2 * SEARCH + 10;

/// Counts of elements are exact in f32 up to here.
const MAX_WIDTH: usize = 1 << 24;

/// How [`sample`] chooses. The steps are carried out in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest, as [`argmax`].
    pub temperature: f32,
    /// Keep this many of the largest; `None`: all.
    pub top_k: Option<usize>,
    /// Keep the fewest of the most probable whose probabilities, among those kept so far, add up to
    /// at least this; at least one. 1 keeps all.
    pub top_p: f32,
    /// Keep those that are at least this many times as probable as the most probable. 0 keeps all.
    pub min_p: f32,
}

impl Default for Sampling {
    /// The distribution as it is.
    fn default() -> Sampling {
        Sampling { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0 }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] naming the value.
    pub fn validate(&self) -> Result<()> {
        let refuse = |arg, expected, got: f32| -> Result<()> {
            Err(attn_core::Error::config(arg, expected, got).into())
        };
        if self.temperature != 0.0 && !(1e-6..=1e6).contains(&self.temperature) {
            return refuse("temperature", "0, or 1e-6 to 1e6", self.temperature);
        }
        if self.top_k == Some(0) {
            return refuse("top_k", "at least 1", 0.0);
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return refuse("top_p", "0 to 1", self.top_p);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", "0 to 1", self.min_p);
        }
        Ok(())
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RowParams {
    extents: Extents,
    x: Place,
    /// Where the result starts, or how many are chosen.
    number: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SampleParams {
    extents: Extents,
    x: Place,
    uniform_start: u32,
    out_start: u32,
    slope: f32,
    top_k: u32,
    top_p: f32,
    min_power: f32,
}

/// Number of the largest element of each row of `logits` `[rows, width]`; u32 `[rows]`. A row of
/// nothing but NaN gives 0.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types.
pub fn argmax(logits: &Tensor) -> Result<Tensor> {
    let (rows, width) = check(logits)?;
    let gpu = logits.gpu();
    let out = Tensor::uninit(gpu, &[rows], DType::U32)?;
    if rows == 0 {
        return Ok(out);
    }
    let sharing = Sharing::new(width, ARGMAX_PASSES, gpu.capabilities());
    sharing.check("argmax", width, ARGMAX_PASSES, gpu)?;
    let x = rows::source(logits)?;
    let kernel = gpu.kernel(&ARGMAX, rows::storage(sharing.constants(), x.dtype(), None))?;
    rows::windows(&[&x, &out.reshape(&[1, 1, rows, 1])?], 0..3, &mut |windows| {
        let ((x, place), (out, start)) = (rows::bind(windows[0]), windows[1].binding());
        let params =
            RowParams { extents: Extents::of(windows[0], width), x: place, number: start as u32 };
        let groups = sharing.groups(params.extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 2.0 * windows[0].len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &[x, out], params, groups, work })
    })?;
    Ok(out)
}

/// The `k` largest elements of each row of `logits` `[rows, width]`, the largest first: values, f32,
/// and numbers, u32, both `[rows, k]`. Made for `k` up to some thousands: the time to sort them
/// grows with the square.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, or more elements than there are.
pub fn top_k(logits: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (rows, width) = check(logits)?;
    let gpu = logits.gpu();
    let most = width.min(gpu.capabilities().max_loop_steps);
    if k > most {
        return Err(attn_core::Error::config("k", format!("at most {most}"), k).into());
    }
    let values = Tensor::uninit(gpu, &[rows, k], DType::F32)?;
    let elements = Tensor::uninit(gpu, &[rows, k], DType::U32)?;
    if rows * k == 0 {
        return Ok((values, elements));
    }
    let sharing = Sharing::new(width, TOP_K_PASSES, gpu.capabilities());
    sharing.check("top_k", width, TOP_K_PASSES, gpu)?;
    let x = rows::source(logits)?;
    let kernel = gpu.kernel(&TOP_K, rows::storage(sharing.constants(), x.dtype(), None))?;
    let four = |tensor: &Tensor| tensor.reshape(&[1, 1, rows, k]);
    let (values_4, elements_4) = (four(&values)?, four(&elements)?);
    rows::windows(&[&x, &values_4, &elements_4], 0..3, &mut |windows| {
        let (x, place) = rows::bind(windows[0]);
        let extents = Extents::of(windows[0], width);
        let found = || Tensor::uninit(gpu, &[extents.rows as usize, k], DType::U32);
        let (found_keys, found_elements) = (found()?, found()?);
        let bindings = [x, found_keys.binding().0, found_elements.binding().0];
        let params = RowParams { extents, x: place, number: k as u32 };
        let groups = sharing.groups(extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 100.0 * windows[0].len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })?;
        rank([&found_keys, &found_elements], [windows[1], windows[2]], k)
    })?;
    Ok((values, elements))
}

/// Sorts what was found in each row.
fn rank(found: [&Tensor; 2], sorted: [&Tensor; 2], k: usize) -> Result<()> {
    let gpu = found[0].gpu();
    let workgroup = ops::workgroup(gpu.capabilities());
    let kernel = gpu.kernel(&TOP_K_RANK, Constants::new().int("WORKGROUP", workgroup))?;
    let count = found[0].len();
    // Windows of rows of the results begin where their rows do, not where bindings may.
    let target = |tensor: &Tensor| -> Result<Tensor> {
        if tensor.binding().1 == 0 {
            Ok(tensor.clone())
        } else {
            Tensor::uninit(gpu, tensor.shape(), tensor.dtype())
        }
    };
    let targets = [target(sorted[0])?, target(sorted[1])?];
    let [keys, elements] = found.map(|tensor| tensor.binding().0);
    let bindings = [keys, elements, targets[0].binding().0, targets[1].binding().0];
    let params = [(count / k) as u32, k as u32];
    let groups = (count as u64).div_ceil(u64::from(workgroup));
    let (params, work) = (bytemuck::cast_slice(&params), 4.0 * (count * k) as f64);
    kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })?;
    for (target, sorted) in targets.iter().zip(sorted) {
        if sorted.binding().1 > 0 {
            ops::copy(target, sorted)?;
        }
    }
    Ok(())
}

/// Draws one element of each row of `logits` `[rows, width]`; u32 `[rows]`.
///
/// The probabilities are those of `softmax(logits / temperature)` over what `sampling` keeps. With
/// `u` the row's number of `uniform`, f32 `[rows]` in `[0, 1)`, the result is the first element, in
/// the row's order, at which the cumulative probability exceeds `u`; elements less probable than
/// 1e-38 times the most probable are never drawn. A row whose elements are all NaN or -inf gives
/// what [`argmax`] gives. Equal arguments give equal results, bit for bit.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, or settings outside their ranges.
pub fn sample(logits: &Tensor, sampling: &Sampling, uniform: &Tensor) -> Result<Tensor> {
    let (rows, width) = check(logits)?;
    let gpu = logits.gpu();
    sampling.validate()?;
    rows::check_device("uniform", uniform, gpu)?;
    rows::check_form("uniform", uniform, &[rows], DType::F32)?;
    if sampling.temperature == 0.0 {
        return argmax(logits);
    }
    let out = Tensor::uninit(gpu, &[rows], DType::U32)?;
    if rows == 0 {
        return Ok(out);
    }
    let sharing = Sharing::new(width, SAMPLE_PASSES, gpu.capabilities());
    sharing.check("sample", width, SAMPLE_PASSES, gpu)?;
    let x = rows::source(logits)?;
    let kernel = gpu.kernel(&SAMPLE, flags(sampling, width, sharing.constants(), x.dtype()))?;
    let numbers = |tensor: &Tensor| tensor.contiguous()?.reshape(&[1, 1, rows, 1]);
    rows::windows(&[&x, &numbers(uniform)?, &numbers(&out)?], 0..3, &mut |windows| {
        let (x, place) = rows::bind(windows[0]);
        let (uniform, uniform_start) = windows[1].binding();
        let (out, out_start) = windows[2].binding();
        let params = SampleParams {
            extents: Extents::of(windows[0], width),
            x: place,
            uniform_start: uniform_start as u32,
            out_start: out_start as u32,
            slope: (std::f64::consts::LOG2_E / f64::from(sampling.temperature)) as f32,
            top_k: sampling.top_k.unwrap_or(0).min(width) as u32,
            top_p: sampling.top_p,
            min_power: f64::from(sampling.min_p).log2().max(-1000.0) as f32,
        };
        let groups = sharing.groups(params.extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 300.0 * windows[0].len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &[x, uniform, out], params, groups, work })
    })?;
    Ok(out)
}

/// Constants of the kernel that does what `sampling` asks for and no more.
pub(crate) fn flags(
    sampling: &Sampling,
    width: usize,
    constants: Constants,
    dtype: DType,
) -> Constants {
    rows::storage(constants, dtype, None)
        .flag("TOP_K", sampling.top_k.is_some_and(|k| k < width))
        .flag("TOP_P", sampling.top_p < 1.0)
        .flag("MIN_P", sampling.min_p > 0.0)
}

fn check(logits: &Tensor) -> Result<(usize, usize)> {
    rows::check("logits", logits, logits.gpu())?;
    match logits.shape() {
        &[rows, width] if (1..=MAX_WIDTH).contains(&width) => Ok((rows, width)),
        shape => {
            let expected = format!("[rows, width of 1 to {MAX_WIDTH}]");
            Err(attn_core::Error::shape("logits", expected, shape).into())
        }
    }
}
