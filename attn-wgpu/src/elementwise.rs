//! Elementwise operations.

use crate::activation::Activation;
use crate::error::Result;
use crate::kernel::{Call, Constants, KernelSource};
use crate::ops;
use crate::rows::{self, Extents, Place, row_kernel};
use crate::target::refuse_repeats;
use crate::tensor::{DType, Tensor};
use crate::vec4::{four, is_vec4};

pub(crate) const MAP: KernelSource = row_kernel!("map");

/// The function of one or two elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Function {
    Convert,
    Add,
    Gate(Activation),
    SoftCap(f32),
    Scale(f32),
}

impl Function {
    pub(crate) fn constants(self, constants: Constants) -> Constants {
        let constants = constants
            .flag("BINARY", matches!(self, Function::Add | Function::Gate(_)))
            .flag("ADD", self == Function::Add)
            .flag("GATE", matches!(self, Function::Gate(_)))
            .flag("SOFT_CAP", matches!(self, Function::SoftCap(_)))
            .flag("SCALE", matches!(self, Function::Scale(_)));
        match self {
            Function::Gate(activation) => activation.constants(constants),
            _ => constants,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    extents: Extents,
    a: Place,
    b: Place,
    out: Place,
    number: f32,
}

/// `a + b`, of one shape and type.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, or more than four dimensions.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_pair(["a", "b"], a, b)?;
    new(Function::Add, &[a, b], a.dtype())
}

/// [`add`] into a caller's tensor, which may have another type. It must not overlap `a` or `b`.
///
/// # Errors
/// As [`add`], and [`attn_core::Error`] for a target of another shape.
pub fn add_into(a: &Tensor, b: &Tensor, out: &Tensor) -> Result<()> {
    check_pair(["a", "b"], a, b)?;
    into(Function::Add, &[a, b], out)
}

/// `activation(gate) * up`: the gated linear unit between the projections of a feed-forward layer.
/// Both may be halves of one tensor `[.., 2 F]`.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, or more than four dimensions.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    check_pair(["gate", "up"], gate, up)?;
    new(Function::Gate(activation), &[gate, up], gate.dtype())
}

/// [`gated`] into a caller's tensor, which may have another type. It must not overlap the others.
///
/// # Errors
/// As [`gated`], and [`attn_core::Error`] for a target of another shape.
pub fn gated_into(gate: &Tensor, up: &Tensor, activation: Activation, out: &Tensor) -> Result<()> {
    check_pair(["gate", "up"], gate, up)?;
    into(Function::Gate(activation), &[gate, up], out)
}

/// The tensor in another floating-point type, rounded to nearest, ties to even; the tensor itself
/// where it has that type. Beyond the range of f16 values become infinite.
///
/// # Errors
/// [`attn_core::Error`] for types of integers, or more than four dimensions.
pub fn convert(x: &Tensor, dtype: DType) -> Result<Tensor> {
    rows::check("x", x, x.gpu())?;
    rows::check_float("dtype", dtype)?;
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    new(Function::Convert, &[x], dtype)
}

/// [`convert`] into a caller's tensor, with any strides of rows. It must not overlap `x`.
///
/// # Errors
/// As [`convert`], and [`attn_core::Error`] for a target of another shape.
pub fn convert_into(x: &Tensor, out: &Tensor) -> Result<()> {
    rows::check("x", x, x.gpu())?;
    rows::check("out", out, x.gpu())?;
    let addressed = is_vec4(&four(x)) && is_vec4(&four(out));
    // Rows that kernels cannot address would be copied anyway, once or twice.
    let copied = out.dtype().bytes() == 4 || out.is_contiguous();
    if x.dtype() == out.dtype() && copied && !addressed {
        refuse_repeats("out", out)?;
        rows::check_form("out", out, x.shape(), x.dtype())?;
        return ops::copy(x, out);
    }
    into(Function::Convert, &[x], out)
}

/// `cap tanh(x / cap)`: keeps logits inside `-cap..cap`.
///
/// # Errors
/// [`attn_core::Error`] for a cap that is not positive, types of integers, or more than four
/// dimensions.
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    rows::check("x", x, x.gpu())?;
    check_cap(cap)?;
    new(Function::SoftCap(cap), &[x], x.dtype())
}

/// [`soft_cap`] into a caller's tensor, which may have another type. It must not overlap `x`.
///
/// # Errors
/// As [`soft_cap`], and [`attn_core::Error`] for a target of another shape.
pub fn soft_cap_into(x: &Tensor, cap: f32, out: &Tensor) -> Result<()> {
    rows::check("x", x, x.gpu())?;
    check_cap(cap)?;
    into(Function::SoftCap(cap), &[x], out)
}

/// `factor x`. The factor may be any number, also one that is not finite.
///
/// # Errors
/// [`attn_core::Error`] for types of integers, or more than four dimensions.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    rows::check("x", x, x.gpu())?;
    new(Function::Scale(factor), &[x], x.dtype())
}

/// [`scale`] into a caller's tensor, which may have another type. It must not overlap `x`.
///
/// # Errors
/// As [`scale`], and [`attn_core::Error`] for a target of another shape.
pub fn scale_into(x: &Tensor, factor: f32, out: &Tensor) -> Result<()> {
    rows::check("x", x, x.gpu())?;
    into(Function::Scale(factor), &[x], out)
}

pub(crate) fn check_cap(cap: f32) -> Result<()> {
    // Neither a tiny cap nor a large one may leave the range when values are divided by it.
    if (1e-10..=1e10).contains(&cap) {
        return Ok(());
    }
    Err(attn_core::Error::config("soft_cap", "1e-10 to 1e10", cap).into())
}

fn check_pair(args: [&'static str; 2], a: &Tensor, b: &Tensor) -> Result<()> {
    rows::check(args[0], a, a.gpu())?;
    rows::check(args[1], b, a.gpu())?;
    rows::check_form(args[1], b, a.shape(), a.dtype())
}

fn new(function: Function, sources: &[&Tensor], dtype: DType) -> Result<Tensor> {
    let (gpu, shape) = (sources[0].gpu(), sources[0].shape());
    let flat = sources.iter().all(|source| source.is_contiguous());
    let length: usize = shape.iter().product();
    if flat && length.is_multiple_of(4) && length > 0 {
        // Rows that touch each other are one.
        let flattened: Vec<Tensor> =
            sources.iter().map(|source| source.reshape(&[length])).collect::<Result<_>>()?;
        let sources: Vec<&Tensor> = flattened.iter().collect();
        let out = rows::write(gpu, &[length], dtype, |out| run(function, &sources, out))?;
        return out.reshape(shape);
    }
    rows::write(gpu, shape, dtype, |out| run(function, sources, out))
}

fn into(function: Function, sources: &[&Tensor], out: &Tensor) -> Result<()> {
    rows::check("out", out, sources[0].gpu())?;
    rows::check_form("out", out, sources[0].shape(), out.dtype())?;
    rows::write_into(out, |out| run(function, sources, out))
}

/// Writes a target whose last dimension may be longer than the sources', up to the next multiple of
/// four.
pub(crate) fn run(function: Function, sources: &[&Tensor], out: &Tensor) -> Result<()> {
    let sources: Vec<Tensor> =
        sources.iter().map(|source| rows::source(source)).collect::<Result<_>>()?;
    let gpu = out.gpu();
    let (constants, per_group) = rows::elementwise(gpu.capabilities());
    let constants =
        function.constants(rows::storage(constants, sources[0].dtype(), Some(out.dtype())));
    let kernel = gpu.kernel(&MAP, constants)?;
    let all: Vec<&Tensor> = sources.iter().chain([out]).collect();
    rows::windows(&all, 0..4, &mut |windows| {
        let (out, sources) = match windows {
            [sources @ .., out] => (out, sources),
            [] => return Ok(()),
        };
        let (out_binding, out_place) = rows::bind_target(out, sources);
        let (a, a_place) = rows::bind(sources[0]);
        let mut params = Params {
            extents: Extents::of(out, out.shape()[3] / 4),
            a: a_place,
            b: [0; 4],
            out: out_place,
            number: match function {
                Function::SoftCap(number) | Function::Scale(number) => number,
                _ => 0.0,
            },
        };
        let mut bindings = vec![a, out_binding];
        if let Some(b) = sources.get(1) {
            let (binding, place) = rows::bind(b);
            params.b = place;
            bindings.push(binding);
        }
        let groups = (out.len() as u64 / 4).div_ceil(per_group);
        let (params, work) = (bytemuck::bytes_of(&params), out.len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })
    })
}
