//! Root mean square normalisation without weights, and its derivative.

use super::PASSES;
use crate::error::Result;
use crate::kernel::{Call, KernelSource};
use crate::rows::{self, Extents, Place, Sharing};
use crate::tensor::Tensor;

pub(crate) const SIMPLE: KernelSource = KernelSource {
    name: "simple_norm",
    text: include_str!("../../kernels/simple_norm.wgsl"),
    imports: rows::SNIPPETS,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    extents: Extents,
    x: Place,
    dy: Place,
    out: Place,
    eps: f32,
}

/// `x / sqrt(mean(x^2) + eps)` of the rows of `x` `[.., width]`, of up to four dimensions, in the type of
/// `x`: SimpleRMSNorm of TransNormerLLM.
///
/// # Errors
/// [`attn_core::Error`] for shapes or types that do not fit, or an `eps` that is not at least 0.
pub fn simple_rms_norm(x: &Tensor, eps: f32) -> Result<Tensor> {
    check(x, eps)?;
    rows::write(x.gpu(), x.shape(), x.dtype(), |out| run(x, None, eps, out))
}

/// [`simple_rms_norm`] into a caller's tensor, whose type counts. It must not overlap `x`.
///
/// # Errors
/// As [`simple_rms_norm`], and [`attn_core::Error`] for a target of another shape.
pub fn simple_rms_norm_into(x: &Tensor, eps: f32, out: &Tensor) -> Result<()> {
    check(x, eps)?;
    rows::check("out", out, x.gpu())?;
    rows::check_form("out", out, x.shape(), out.dtype())?;
    rows::write_into(out, |out| run(x, None, eps, out))
}

/// Vector-Jacobian product of [`simple_rms_norm`] at `x`, from the cotangent `d_out` of its result:
/// `r (d_out - y mean(y d_out))`, with `r = 1 / sqrt(mean(x^2) + eps)` and `y = r x`.
///
/// # Errors
/// As [`simple_rms_norm`], and [`attn_core::Error`] for a `d_out` of another shape or type than `x`.
pub fn simple_rms_norm_backward(x: &Tensor, d_out: &Tensor, eps: f32) -> Result<Tensor> {
    check_backward(x, d_out, eps)?;
    rows::write(x.gpu(), x.shape(), x.dtype(), |out| run(x, Some(d_out), eps, out))
}

/// [`simple_rms_norm_backward`] into a caller's tensor, whose type counts. It must not overlap `x` or
/// `d_out`.
///
/// # Errors
/// As [`simple_rms_norm_backward`], and [`attn_core::Error`] for a target of another shape.
pub fn simple_rms_norm_backward_into(
    x: &Tensor,
    d_out: &Tensor,
    eps: f32,
    dx: &Tensor,
) -> Result<()> {
    check_backward(x, d_out, eps)?;
    rows::check("dx", dx, x.gpu())?;
    rows::check_form("dx", dx, x.shape(), dx.dtype())?;
    rows::write_into(dx, |out| run(x, Some(d_out), eps, out))
}

fn check_backward(x: &Tensor, d_out: &Tensor, eps: f32) -> Result<()> {
    check(x, eps)?;
    rows::check("d_out", d_out, x.gpu())?;
    rows::check_form("d_out", d_out, x.shape(), x.dtype())
}

fn check(x: &Tensor, eps: f32) -> Result<()> {
    rows::check("x", x, x.gpu())?;
    super::check_eps(eps)
}

fn run(x: &Tensor, d_out: Option<&Tensor>, eps: f32, out: &Tensor) -> Result<()> {
    let width = x.shape().last().copied().unwrap_or(1);
    let gpu = x.gpu();
    let sharing = Sharing::new(width, PASSES, gpu.capabilities());
    sharing.check("simple_norm", width, PASSES, gpu)?;
    let x = rows::source(x)?;
    let d_out = d_out.map(rows::source).transpose()?;
    let constants = rows::storage(sharing.constants(), x.dtype(), Some(out.dtype()));
    let kernel = gpu.kernel(&SIMPLE, constants.flag("BACKWARD", d_out.is_some()))?;
    let tensors: Vec<&Tensor> = [&x, out].into_iter().chain(&d_out).collect();
    rows::windows(&tensors, 0..3, &mut |windows| {
        let (bindings, places): (Vec<_>, Vec<Place>) =
            windows.iter().map(|window| rows::bind(window)).unzip();
        let params = Params {
            extents: Extents::of(windows[0], width),
            x: places[0],
            dy: places.get(2).copied().unwrap_or_default(),
            out: places[1],
            eps,
        };
        let groups = sharing.groups(params.extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 6.0 * windows[0].len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })
    })
}
