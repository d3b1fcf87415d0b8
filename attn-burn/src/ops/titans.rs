//! Titans' memory: a small network that learns while it reads.

use std::sync::Arc;

use attn_core::Error as CoreError;
use attn_titans::{self as titans, Activation, Config, Cotangents, Inputs, Saved, State};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use burn::tensor::activation::{gelu, silu};

use super::OnGpu;
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// The memory of Titans, see [`attn_titans`]: weights of a small network, of which every token is a step of
/// gradient descent. Cheap to clone.
///
/// A state is one tensor `[batch, heads, 2 * weights]` in f32, where `weights` are those of all layers of one
/// memory: the weights of every layer, row by row `[in, out]`, then their momentum in the same order. A call
/// begins a chunk of its own, at whatever token the last one ended.
#[derive(Debug, Clone)]
pub struct Titans {
    config: Arc<Config>,
    made: Arc<OnGpu<titans::Titans>>,
}

/// Queries, keys, values and gates of tokens.
#[derive(Debug, Clone)]
pub struct MemoryInputs {
    /// Queries `[batch, heads, tokens, dim_qk]`.
    pub q: burn::tensor::Tensor<4>,
    /// Keys `[batch, heads, tokens, dim_qk]`, of about norm 1.
    pub k: burn::tensor::Tensor<4>,
    /// Values `[batch, heads, tokens, dim_v]`.
    pub v: burn::tensor::Tensor<4>,
    /// Steps `[batch, heads, tokens]`.
    pub theta: burn::tensor::Tensor<3>,
    /// Momentum `[batch, heads, tokens]`, between 0 and 1.
    pub eta: burn::tensor::Tensor<3>,
    /// What is forgotten `[batch, heads, tokens]`, between 0 and 1.
    pub alpha: burn::tensor::Tensor<3>,
}

/// What was read, and the state from which later tokens go on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Remembered {
    /// `[batch, heads, tokens, dim_v]`.
    pub y: burn::tensor::Tensor<4>,
    /// Behind the last token, `[batch, heads, 2 * weights]`.
    pub state: burn::tensor::Tensor<3>,
}

impl Titans {
    /// The memory with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self> {
        config.validate()?;
        Ok(Titans { config: Arc::new(config), made: Arc::default() })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state before the first token, from the learned weights `[heads, in, out]` of every layer: the same
    /// for each of `batch` sequences, at rest.
    ///
    /// # Errors
    /// As [`Titans::state`].
    pub fn first_state(
        &self,
        learned: &[burn::tensor::Tensor<3>],
        batch: usize,
    ) -> Result<burn::tensor::Tensor<3>> {
        if let (0, Some(layer)) = (batch, learned.first()) {
            // Burn expands to no extent of 0.
            self.first_state(learned, 1)?;
            return Ok(burn::tensor::Tensor::zeros(state_shape(&self.config, 0), &layer.device()));
        }
        let repeat = |w: &burn::tensor::Tensor<3>| {
            let [heads, rows, columns] = w.dims();
            w.clone().unsqueeze::<4>().expand([batch, heads, rows, columns])
        };
        self.state(&learned.iter().map(repeat).collect::<Vec<_>>(), &[])
    }

    /// A state of weights and momentum by layer, `[batch, heads, in, out]`; without momentum, at rest.
    ///
    /// # Errors
    /// [`attn_core::Error`] for another number of layers and other extents.
    pub fn state(
        &self,
        w: &[burn::tensor::Tensor<4>],
        s: &[burn::tensor::Tensor<4>],
    ) -> Result<burn::tensor::Tensor<3>> {
        let batch = w.first().map_or(0, |layer| layer.dims()[0]);
        self.check("w", w, batch)?;
        if s.is_empty() {
            let rest: Vec<_> = w.iter().map(burn::tensor::Tensor::zeros_like).collect();
            return Ok(packed(w, &rest));
        }
        self.check("s", s, batch)?;
        Ok(packed(w, s))
    }

    /// Weights and momentum of a state, by layer `[batch, heads, in, out]`.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] for a state of another memory.
    pub fn layers(
        &self,
        state: &burn::tensor::Tensor<3>,
    ) -> Result<[Vec<burn::tensor::Tensor<4>>; 2]> {
        let [batch, heads, width] = state.dims();
        if [heads, width] != [self.config.heads, 2 * weights(&self.config)] {
            let expected = state_shape(&self.config, batch);
            let expected = format!("{expected:?}");
            return Err(CoreError::shape("state", expected, &[batch, heads, width]).into());
        }
        Ok([0, 1].map(|part| {
            let place = |[start, rows, columns]: [usize; 3]| {
                let layer = state.clone().narrow(2, start, rows * columns);
                layer.reshape([batch, heads, rows, columns])
            };
            places(&self.config, part).into_iter().map(place).collect()
        }))
    }

    /// `M(W; q)` `[batch, heads, tokens, dim_v]` by the weights of `state`, for any number of queries
    /// `[batch, heads, tokens, dim_qk]`: nothing is stored. Composed of burn's operations.
    ///
    /// # Errors
    /// As [`Titans::layers`], and [`attn_core::Error::Config`] for an activation that burn does not have.
    pub fn read(
        &self,
        q: burn::tensor::Tensor<4>,
        state: &burn::tensor::Tensor<3>,
    ) -> Result<burn::tensor::Tensor<4>> {
        let [batch, _, tokens, _] = q.dims();
        let [batch_of_state, heads, _] = state.dims();
        let expected = [batch_of_state, heads, tokens, self.config.dim_qk];
        if q.dims() != expected {
            return Err(CoreError::shape("q", format!("{expected:?}"), &q.dims()).into());
        }
        let [w, _] = self.layers(state)?;
        if batch * tokens == 0 {
            let shape = [batch, heads, tokens, self.config.dim_v];
            return Ok(burn::tensor::Tensor::zeros(shape, &q.device()));
        }
        let mut x = q;
        for (i, w) in w.into_iter().enumerate() {
            if i > 0 {
                x = match self.config.activation {
                    Activation::Silu => silu(x),
                    Activation::Gelu => gelu(x),
                    other => {
                        let got = format!("{other:?}");
                        return Err(CoreError::config("activation", "silu or gelu", got).into());
                    }
                };
            }
            x = x.matmul(w);
        }
        Ok(x)
    }

    /// What is read `[batch, heads, tokens, dim_v]`, each token's after it has been stored, from `state` on.
    /// Gradients reach all inputs and the state, also through the memory's own gradients.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply()`].
    pub fn forward(
        &self,
        inputs: MemoryInputs,
        state: burn::tensor::Tensor<3>,
    ) -> Result<burn::tensor::Tensor<4>> {
        self.run(false, inputs, state)?.float()
    }

    /// The same with the state behind the last token. Both are differentiable. f32.
    ///
    /// # Errors
    /// As [`Titans::forward`].
    pub fn forward_with_state(
        &self,
        inputs: MemoryInputs,
        state: burn::tensor::Tensor<3>,
    ) -> Result<Remembered> {
        let mut outputs = self.run(true, inputs, state)?;
        Ok(Remembered { y: outputs.float()?, state: outputs.float()? })
    }

    fn run(
        &self,
        differentiable_state: bool,
        inputs: MemoryInputs,
        state: burn::tensor::Tensor<3>,
    ) -> Result<apply::Outputs> {
        let MemoryInputs { q, k, v, theta, eta, alpha } = inputs;
        let rows = apply::Inputs::new().float(q).float(k).float(v);
        let inputs = rows.float(theta).float(eta).float(alpha).float(state);
        apply(Stored { memory: self.clone(), differentiable_state }, inputs)
    }

    fn check(
        &self,
        arg: &'static str,
        layers: &[burn::tensor::Tensor<4>],
        batch: usize,
    ) -> Result<()> {
        let wanted = self.config.layers();
        if layers.len() != wanted.len() {
            let expected = format!("{} layers", wanted.len());
            return Err(CoreError::config(arg, expected, layers.len()).into());
        }
        for (layer, [rows, columns]) in layers.iter().zip(wanted) {
            let expected = [batch, self.config.heads, rows, columns];
            if layer.dims() != expected {
                let expected = format!("{expected:?}");
                return Err(CoreError::shape(arg, expected, &layer.dims()).into());
            }
        }
        Ok(())
    }

    fn on(&self, gpu: &Gpu) -> Result<titans::Titans> {
        self.made.get(gpu, || titans::Titans::new(gpu, (*self.config).clone()))
    }
}

fn packed(w: &[burn::tensor::Tensor<4>], s: &[burn::tensor::Tensor<4>]) -> burn::tensor::Tensor<3> {
    let flat = |layer: &burn::tensor::Tensor<4>| {
        let [batch, heads, rows, columns] = layer.dims();
        layer.clone().reshape([batch, heads, rows * columns])
    };
    burn::tensor::Tensor::cat(w.iter().chain(s).map(flat).collect(), 2)
}

/// Weights of one memory.
fn weights(config: &Config) -> usize {
    config.layers().iter().map(|[rows, columns]| rows * columns).sum()
}

fn state_shape(config: &Config, batch: usize) -> [usize; 3] {
    [batch, config.heads, 2 * weights(config)]
}

/// Where each layer begins in a state, with its extents: weights are part 0, their momentum part 1.
fn places(config: &Config, part: usize) -> Vec<[usize; 3]> {
    let mut start = part * weights(config);
    let place = |[rows, columns]: [usize; 2]| {
        let place = [start, rows, columns];
        start += rows * columns;
        place
    };
    config.layers().into_iter().map(place).collect()
}

/// Weights or momentum within a state, by layer `[batch, heads, in, out]`.
fn part(state: &Tensor, config: &Config, part: usize) -> Result<Vec<Tensor>> {
    let place = |[start, rows, columns]: [usize; 3]| {
        state.narrow(2, start, rows * columns)?.split(2, &[rows, columns])
    };
    places(config, part).into_iter().map(place).collect()
}

/// Writes weights and momentum into a state.
fn pack(w: &[Tensor], s: &[Tensor], config: &Config, state: &Tensor) -> Result<()> {
    for (i, layers) in [w, s].into_iter().enumerate() {
        for (layer, target) in layers.iter().zip(part(state, config, i)?) {
            ops::copy(layer, &target)?;
        }
    }
    Ok(())
}

/// Inputs are queries, keys, values, the three gates and a state.
#[derive(Debug)]
struct Stored {
    memory: Titans,
    /// Whether the last state has a cotangent.
    differentiable_state: bool,
}

const STATE: usize = 6;

fn tensors(inputs: &[Tensor]) -> Inputs<'_> {
    let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]];
    Inputs { q, k, v, theta: &inputs[3], eta: &inputs[4], alpha: &inputs[5] }
}

impl Operation for Stored {
    type Saved = Saved;

    fn name(&self) -> &'static str {
        "titans"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let config = self.memory.config();
        let q = &inputs[0].shape;
        let &[batch, _, tokens, _] = q.as_slice() else {
            return Err(CoreError::shape("q", "[batch, heads, tokens, dim_qk]", q).into());
        };
        let rows = |dim| vec![batch, config.heads, tokens, dim];
        let gates = || vec![batch, config.heads, tokens];
        let wanted = [
            ("q", rows(config.dim_qk)),
            ("k", rows(config.dim_qk)),
            ("v", rows(config.dim_v)),
            ("theta", gates()),
            ("eta", gates()),
            ("alpha", gates()),
        ];
        for ((arg, shape), given) in wanted.into_iter().zip(inputs) {
            if given.shape != shape {
                return Err(CoreError::shape(arg, format!("{shape:?}"), &given.shape).into());
            }
            if !given.is_float() {
                let (expected, got) = ("f32, f16 or bf16".into(), given.dtype.name().into());
                return Err(CoreError::Dtype { arg, expected, got }.into());
            }
        }
        let state = Spec::new(state_shape(config, batch), DType::F32);
        if inputs[STATE] != state {
            let expected = format!("{:?} of f32", state.shape);
            return Err(CoreError::shape("state", expected, &inputs[STATE].shape).into());
        }
        Ok(vec![Spec::new(rows(config.dim_v), inputs[0].dtype), state])
    }

    fn differentiable(&self) -> usize {
        if self.differentiable_state { 2 } else { 1 }
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Saved> {
        let config = self.memory.config();
        let [w, s] = [part(&inputs[STATE], config, 0)?, part(&inputs[STATE], config, 1)?];
        let state = State::from_parts(&w, &s, config)?;
        let (output, saved) = self.memory.on(gpu)?.forward_saved(tensors(inputs), &state)?;
        ops::copy(&output.y, &outputs[0])?;
        pack(&output.state.w(config)?, &output.state.s(config)?, config, &outputs[1])?;
        Ok(saved)
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Saved>) -> Result<()> {
        let config = self.memory.config();
        let saved = pass.saved.with_inputs(tensors(pass.inputs))?;
        let cotangents = Cotangents::new(&pass.cotangents[0]);
        let titans = self.memory.on(gpu)?;
        let grads = match pass.cotangents.get(1) {
            Some(state) => {
                let [w, s] = [part(state, config, 0)?, part(state, config, 1)?];
                titans.backward(&saved, cotangents.with_state(&w, &s))?
            }
            None => titans.backward(&saved, cotangents)?,
        };
        let [rows, gates] =
            [[&grads.dq, &grads.dk, &grads.dv], [&grads.d_theta, &grads.d_eta, &grads.d_alpha]];
        for (input, own) in rows.into_iter().chain(gates).enumerate() {
            if let Some(target) = pass.gradient(input) {
                ops::copy(own, target)?;
            }
        }
        match pass.gradient(STATE) {
            Some(target) => pack(&grads.d_w, &grads.d_s, config, target),
            None => Ok(()),
        }
    }
}
