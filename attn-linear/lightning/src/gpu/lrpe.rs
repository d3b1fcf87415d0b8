//! Linearised relative position embedding.

use std::f64::consts::TAU;

use attn_core::Error;
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use ndarray::ArrayView2;

use super::kernels::{Each, LRPE, LRPE_BACKWARD, LRPE_THETA, SUM};

/// Tokens of a partial sum.
const RUN: usize = 64;

/// The angles of a position embedding on a device:
/// `[x cos(n theta), x sin(n theta)]` for the position n of each token.
///
/// Products of two such rows depend on the difference of their positions alone. An angle is kept as a
/// fraction of a turn in 64 bits, so that it is as exact at position 10^9 as at 1.
#[derive(Clone)]
pub struct Lrpe {
    /// `[heads, dim, 2]`: the upper and the lower word of the fraction.
    turns: Tensor,
}

impl Lrpe {
    /// With the angles `theta` `[heads, dim]`, in radians a position.
    ///
    /// # Errors
    /// [`attn_core::Error::Data`] for angles that are not finite; allocation errors.
    pub fn new(gpu: &Gpu, theta: ArrayView2<'_, f64>) -> Result<Self> {
        if let Some(angle) = theta.iter().find(|angle| !angle.is_finite()) {
            return Err(Error::data("theta", "finite numbers", angle).into());
        }
        let words: Vec<u32> = theta.iter().flat_map(|&angle| turn(angle)).collect();
        let (heads, dim) = theta.dim();
        Ok(Lrpe { turns: Tensor::from_slice(gpu, &words, &[heads, dim, 2])? })
    }

    /// `[batch, heads, tokens, 2 dim]` of `x` `[batch, heads, tokens, dim]` at the positions
    /// `first, first + 1, ..`, in the type of `x`.
    ///
    /// # Errors
    /// [`attn_core::Error`] for extents, types or devices that do not fit; errors of the device.
    pub fn forward(&self, x: &Tensor, first: usize) -> Result<Tensor> {
        let [batch, heads, tokens, dim] = self.extents("x", x, 1)?;
        let first = position(first, tokens)?;
        let source = rows(x)?;
        let y = Tensor::uninit(x.gpu(), &[batch, heads, tokens, 2 * dim], DType::F32)?;
        let mut params = vec![heads as u32, tokens as u32, dim as u32, first];
        params.extend(place(&source));
        let run = Each {
            source: &LRPE,
            flags: &[],
            tensors: &[&source, &self.turns, &y],
            count: source.len(),
            params: &params,
            steps: 0,
            work: 20,
        };
        run.record(x.gpu())?;
        ops::convert(&y, x.dtype())
    }

    /// Vector-Jacobian product: the derivatives by `x`, of its type, and by the angles `[heads, dim]`, f32,
    /// from the cotangent `d_y` `[batch, heads, tokens, 2 dim]`.
    ///
    /// ```text
    /// dx     = dy_c cos + dy_s sin
    /// dtheta = sum_n n x (dy_s cos - dy_c sin)
    /// ```
    ///
    /// # Errors
    /// As [`Lrpe::forward`].
    pub fn backward(&self, x: &Tensor, first: usize, d_y: &Tensor) -> Result<(Tensor, Tensor)> {
        let [batch, heads, tokens, dim] = self.extents("x", x, 1)?;
        let first = position(first, tokens)?;
        self.extents("d_y", d_y, 2)?;
        if d_y.shape()[..3] != x.shape()[..3] {
            let expected = format!("{:?}", [batch, heads, tokens, 2 * dim]);
            return Err(Error::shape("d_y", expected, d_y.shape()).into());
        }
        let gpu = x.gpu();
        let source = rows(x)?;
        let d_y = whole(&ops::convert(d_y, DType::F32)?)?;
        let dx = Tensor::uninit(gpu, &[batch, heads, tokens, dim], DType::F32)?;
        let run = Each {
            source: &LRPE_BACKWARD,
            flags: &[],
            tensors: &[&d_y, &self.turns, &dx],
            count: dx.len(),
            params: &[heads as u32, tokens as u32, dim as u32, first],
            steps: 0,
            work: 20,
        };
        run.record(gpu)?;
        let runs = tokens.div_ceil(RUN);
        let parts = Tensor::uninit(gpu, &[runs, heads, dim], DType::F32)?;
        let mut params = [batch, heads, tokens, dim].map(|n| n as u32).to_vec();
        params.extend([first, RUN as u32]);
        params.extend(place(&source));
        let run = Each {
            source: &LRPE_THETA,
            flags: &[],
            tensors: &[&source, &d_y, &self.turns, &parts],
            count: parts.len(),
            params: &params,
            steps: RUN * (batch + 1),
            work: 20 * (RUN * (batch + 1)).max(1),
        };
        run.record(gpu)?;
        let d_theta = Tensor::uninit(gpu, &[heads, dim], DType::F32)?;
        let run = Each {
            source: &SUM,
            flags: &[],
            tensors: &[&parts, &d_theta],
            count: heads * dim,
            params: &[runs as u32],
            steps: runs,
            work: 20 * (runs).max(1),
        };
        run.record(gpu)?;
        Ok((ops::convert(&dx, x.dtype())?, d_theta))
    }

    fn extents(&self, arg: &'static str, x: &Tensor, times: usize) -> Result<[usize; 4]> {
        let (heads, dim) = (self.turns.shape()[0], self.turns.shape()[1]);
        match *x.shape() {
            [batch, h, tokens, d] if h == heads && d == times * dim => Ok([batch, h, tokens, d]),
            _ => {
                let expected = format!("[batch, {heads}, tokens, {}]", times * dim);
                Err(Error::shape(arg, expected, x.shape()).into())
            }
        }
    }
}

/// The fraction of a turn in 64 bits, upper word first.
fn turn(angle: f64) -> [u32; 2] {
    // A quotient in f64 has 53 bits, whose unit grows with the angle; angles are below a turn or so.
    let fraction = (angle / TAU).rem_euclid(1.0) * 2_f64.powi(32);
    let upper = fraction.floor();
    let lower = ((fraction - upper) * 2_f64.powi(32)).floor();
    [upper as u32, lower as u32]
}

fn position(first: usize, tokens: usize) -> Result<u32> {
    let last = first.checked_add(tokens).and_then(|last| u32::try_from(last).ok());
    match last {
        Some(_) => Ok(first as u32),
        None => Err(Error::config("first", "positions below 2^32", first).into()),
    }
}

/// f32 with a contiguous last dimension.
fn rows(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    if x.strides()[3] == 1 || x.shape()[3] <= 1 { Ok(x) } else { x.contiguous() }
}

/// Contiguous, and at the beginning of its binding.
pub(super) fn whole(x: &Tensor) -> Result<Tensor> {
    if x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x.clone());
    }
    let copy = Tensor::uninit(x.gpu(), x.shape(), x.dtype())?;
    ops::copy(x, &copy)?;
    Ok(copy)
}

/// Start and strides in elements.
fn place(x: &Tensor) -> [u32; 4] {
    let strides = x.strides();
    [x.binding().1 as u32, strides[0] as u32, strides[1] as u32, strides[2] as u32]
}
