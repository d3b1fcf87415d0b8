//! A layer of TransNormerLLM on a device: gated linear attention, then the gated linear unit.
//!
//! The equations are those of [`crate::reference::layer`]. Everything is f32.

mod backward;
mod weights;

use attn_core::Error;
use attn_wgpu::linear_attention::{self as linear, Inputs};
use attn_wgpu::matmul::{Epilogue, matmul, matmul_with};
use attn_wgpu::norm::simple_rms_norm;
use attn_wgpu::{Activation, DType, Gpu, Result, Tensor, ops};

pub use backward::{Grads, Saved};
pub use weights::Weights;

use super::{Lightning, Lrpe, State};
use crate::{Config, reference};

/// What [`Layer::forward`] computes.
#[derive(Debug)]
#[non_exhaustive]
pub struct Output {
    /// The layer's output `[batch, tokens, d_model]`.
    pub out: Tensor,
    /// What attention alone gave `[batch, heads, tokens, dim]`.
    pub attention: Tensor,
    /// Between the two halves `[batch, tokens, d_model]`.
    pub after_attention: Tensor,
    /// Behind the last token.
    pub state: State,
}

/// A layer with its weights.
#[derive(Clone)]
pub struct Layer {
    lightning: Lightning,
    weights: Weights,
    lrpe: Option<Lrpe>,
    hidden: usize,
}

/// Attention and what it was made of; rows are `[batch, tokens, ..]`.
#[derive(Clone)]
struct Mixer {
    n: Tensor,
    /// Before the activation: queries and keys.
    qk: Tensor,
    /// Behind it, by heads, before the position embedding.
    active: [Tensor; 2],
    /// Values and gate.
    vu: Tensor,
    /// The heads' outputs side by side, and normalised.
    merged: Tensor,
    normed: Tensor,
    /// The state behind the last token, and what the derivative of attention needs.
    kv: Tensor,
    saved: Option<linear::Saved>,
    first: usize,
}

/// Behind attention.
#[derive(Clone)]
struct Unit {
    after: Tensor,
    n: Tensor,
    /// The two factors of the gated linear unit, and their product.
    v: Tensor,
    u: Tensor,
    product: Tensor,
}

impl Layer {
    /// With the weights of the reference, which are rounded to f32.
    ///
    /// # Errors
    /// As [`Lightning::new`]; [`Error::Shape`] for weights that do not fit together or to the number of
    /// heads.
    pub fn new(gpu: &Gpu, config: Config, weights: &reference::layer::Weights) -> Result<Self> {
        let hidden = weights.check(config.heads)?;
        let lightning = Lightning::new(gpu, config)?;
        let lrpe = weights.theta.as_ref().map(|theta| Lrpe::new(gpu, theta.view())).transpose()?;
        Ok(Layer { lightning, weights: Weights::upload(gpu, weights)?, lrpe, hidden })
    }

    /// With the weights of a safetensors file: see [`reference::layer::Weights::load`].
    ///
    /// # Errors
    /// As [`Layer::new`], and [`Error::File`] where the file cannot be read.
    pub fn load(
        gpu: &Gpu,
        config: Config,
        path: impl AsRef<std::path::Path>,
        prefix: &str,
    ) -> Result<Self> {
        Layer::new(gpu, config, &reference::layer::Weights::load(path, prefix)?)
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        self.lightning.config()
    }

    /// The weights on the device.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The layer on tokens `x` `[batch, tokens, d_model]`, f32, from the start of a sequence or behind
    /// `state`, which stays as it is.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn forward(&self, x: &Tensor, state: Option<&State>) -> Result<Output> {
        let mixer = self.mix(x, state, false)?;
        let unit = self.unit(x, &mixer)?;
        self.output(x, mixer, &unit)
    }

    /// The output of the next tokens `[batch, new, d_model]`, one or more. Where the call fails the state
    /// is as before.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn decode(&self, state: &mut State, x: &Tensor) -> Result<Tensor> {
        let output = self.forward(x, Some(state))?;
        *state = output.state;
        Ok(output.out)
    }

    fn output(&self, x: &Tensor, mixer: Mixer, unit: &Unit) -> Result<Output> {
        let epilogue = Epilogue::new().with_residual(&unit.after);
        let out = matmul_with(&unit.product, &transposed(&self.weights.w_o)?, &epilogue)?;
        let state = State::new(mixer.kv, mixer.first + x.shape()[1]);
        let attention = self.heads(&mixer.merged, 0)?;
        Ok(Output { out, attention, after_attention: unit.after.clone(), state })
    }

    /// Part `i` of `hid` columns as heads `[batch, heads, tokens, dim]`.
    fn heads(&self, x: &Tensor, i: usize) -> Result<Tensor> {
        let heads = self.config().heads;
        let part = x.narrow(2, i * self.hidden, self.hidden)?;
        part.split(2, &[heads, self.hidden / heads])?.permute(&[0, 2, 1, 3])
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        let d_model = self.weights.w_qkvu.shape()[1];
        if x.dtype() != DType::F32 {
            let (expected, got) = ("f32".into(), x.dtype().name().into());
            return Err(Error::Dtype { arg: "x", expected, got }.into());
        }
        match *x.shape() {
            [_, _, d] if d == d_model => Ok(()),
            _ => {
                let expected = format!("[batch, tokens, {d_model}]");
                Err(Error::shape("x", expected, x.shape()).into())
            }
        }
    }

    fn mix(&self, x: &Tensor, state: Option<&State>, save: bool) -> Result<Mixer> {
        self.check(x)?;
        let (gpu, epsilon) = (self.lightning.gpu(), self.epsilon());
        let [batch, tokens] = [x.shape()[0], x.shape()[1]];
        let n = simple_rms_norm(x, epsilon)?;
        let half = |i: usize| self.weights.w_qkvu.narrow(0, 2 * i * self.hidden, 2 * self.hidden);
        let qk = matmul(&n, &transposed(&half(0)?)?)?;
        let vu = matmul(&n, &transposed(&half(1)?)?)?;
        let ones = Tensor::full(gpu, &[1, 1, 2 * self.hidden], 1.0_f32)?.expand(qk.shape())?;
        let activated = ops::gated(&qk, &ones, Activation::Silu)?;
        let active = [self.heads(&activated, 0)?, self.heads(&activated, 1)?];
        let first = state.map_or(0, State::position);
        let placed = |x: &Tensor| match &self.lrpe {
            Some(lrpe) => lrpe.forward(x, first),
            None => Ok(x.clone()),
        };
        let (q, k, v) = (placed(&active[0])?, placed(&active[1])?, self.heads(&vu, 0)?);
        let inputs = Inputs { kv: state.map(State::kv), ..Inputs::new(&q, &k, &v) };
        let merged = Tensor::uninit(gpu, &[batch, tokens, self.hidden], DType::F32)?;
        let out = self.heads(&merged, 0)?;
        let (kv, saved) = if save {
            let (output, saved) = self.lightning.forward_saved(inputs)?;
            ops::copy(&output.out, &out)?;
            (output.kv, Some(saved))
        } else {
            let shape = [batch, self.config().heads, q.shape()[3], v.shape()[3]];
            let kv = Tensor::uninit(gpu, &shape, DType::F32)?;
            self.lightning.attention().forward_into(inputs, &out, &kv)?;
            (kv, None)
        };
        let normed = simple_rms_norm(&merged, epsilon)?;
        Ok(Mixer { n, qk, active, vu, merged, normed, kv, saved, first })
    }

    fn unit(&self, x: &Tensor, mixer: &Mixer) -> Result<Unit> {
        let u = mixer.vu.narrow(2, self.hidden, self.hidden)?;
        let gated = product(&u, &mixer.normed)?;
        let epilogue = Epilogue::new().with_residual(x);
        let after = matmul_with(&gated, &transposed(&self.weights.w_out)?, &epilogue)?;
        let n = simple_rms_norm(&after, self.epsilon())?;
        let v = matmul(&n, &transposed(&self.weights.w_v)?)?;
        let u = matmul(&n, &transposed(&self.weights.w_u)?)?;
        let product = product(&v, &u)?;
        Ok(Unit { after, n, v, u, product })
    }

    fn epsilon(&self) -> f32 {
        self.config().epsilon as f32
    }
}

/// The product of two tensors of one shape.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    ops::gated(a, b, Activation::None)
}

/// Weights `[out, in]` as a product reads them.
fn transposed(weights: &Tensor) -> Result<Tensor> {
    weights.permute(&[1, 0])
}
