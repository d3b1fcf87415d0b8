//! Layers on a memory, on a device: alone, or as context, gate or layer beside attention.
//!
//! The equations are those of [`crate::reference::layer`], in f32, for inference: the products of
//! `attn_wgpu` around [`Titans`].
//!
//! ```text
//! project.rs     what the memory is given: projections, titans_conv, norms, titans_gate
//! attention.rs   attention over persistent tokens, what is kept of those before, and the call's
//! context.rs     memory as context, segment by segment
//! state.rs       what is kept from call to call
//! ```

mod attention;
mod context;
mod parts;
mod project;
mod state;

use attn_core::{Error, Mask};
use attn_wgpu::attention::Attention;
use attn_wgpu::norm::{RmsNorm, rms_norm};
use attn_wgpu::{Activation, DType, Gpu, Result, Tensor, ops};
use ndarray::ArrayView3;

use self::attention::{Attend, Pairs, masked};
use self::parts::{gate, linear, merge, upload};
use self::project::Project;
use self::state::Segment;
pub use self::state::State;
use super::Titans;
use super::walk::whole;
use crate::{Combination, LayerConfig, reference};

/// What [`Layer::forward`] computes, of the tokens' type.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// The layer's output `[batch, tokens, d_model]`.
    pub out: Tensor,
    /// What the memory answered `[batch, tokens, d_model]`; as context, to the segment's tokens before
    /// attention.
    pub memory: Tensor,
    /// What attention alone gave `[batch, tokens, d_model]`, where there is attention.
    pub attention: Option<Tensor>,
    /// Behind the last token.
    pub state: State,
}

/// The same in f32, without a state.
struct Rows {
    out: Tensor,
    memory: Tensor,
    attention: Option<Tensor>,
}

/// What comes behind the memory's heads: `(RMSNorm(y) gain * silu(x Wgate^T)) Wout^T`.
#[derive(Debug, Clone)]
struct Readout {
    gate: Tensor,
    out: Tensor,
    gain: Tensor,
}

/// Attention beside a memory.
#[derive(Debug, Clone)]
struct Beside {
    attend: Attend,
    /// Keys and values of persistent tokens, of one batch entry; none where the memory is a layer, whose
    /// answers to persistent tokens are tokens among others.
    persistent: Pairs,
    /// Over tokens, and over the memory's answers to a segment.
    tokens: Attention,
    answers: Attention,
}

/// A layer with its weights on a device, for inference.
///
/// All combinations but [`Combination::LiteralContext`] are causal, and streams of theirs give what one call
/// gives, up to rounding: a call may have any number of tokens.
#[derive(Debug, Clone)]
pub struct Layer {
    titans: Titans,
    config: LayerConfig,
    d_model: usize,
    persistent: usize,
    project: Project,
    readout: Option<Readout>,
    norms: Option<[Tensor; 2]>,
    beside: Option<Beside>,
    /// Of one sequence before its first token: persistent tokens went through it.
    first: State,
}

impl Layer {
    /// With the weights of the reference, which are rounded to f32.
    ///
    /// # Errors
    /// As [`Titans::new`]; [`Error::Config`] for weights that are not of the combination, and
    /// [`Error::Shape`] for those that do not fit together; errors of the device.
    pub fn new(
        gpu: &Gpu,
        config: LayerConfig,
        weights: &reference::layer::Weights,
    ) -> Result<Self> {
        weights.check(&config)?;
        let titans = Titans::new(gpu, config.memory.clone())?;
        let project = Project::new(gpu, weights, &config)?;
        let readout = weights.readout.as_ref().map(|readout| -> Result<Readout> {
            let (gate, out) = (upload(gpu, &readout.gate)?, upload(gpu, &readout.out)?);
            Ok(Readout { gate, out, gain: upload(gpu, &readout.gain)? })
        });
        let norms = weights
            .norms
            .as_ref()
            .map(|[y, m]| -> Result<_> { Ok([upload(gpu, y)?, upload(gpu, m)?]) });
        let (count, d_model) = weights.persistent.dim();
        let persistent = upload(gpu, &weights.persistent)?.split(0, &[1, count])?;
        let beside = weights.attention.as_ref().map(|attention| {
            let attend = Attend::new(gpu, attention, config.memory.heads)?;
            beside(gpu, attend, &persistent, &config)
        });
        let beside = beside.transpose()?;
        let first = empty(gpu, weights, &config, &project, beside.as_ref())?;
        let (readout, norms) = (readout.transpose()?, norms.transpose()?);
        let mut layer = Layer {
            titans,
            config,
            d_model,
            persistent: count,
            project,
            readout,
            norms,
            beside,
            first,
        };
        layer.first = layer.behind_persistent(&persistent)?;
        Ok(layer)
    }

    /// With the weights of a safetensors file: see [`reference::layer::Weights::load`].
    ///
    /// # Errors
    /// As [`Layer::new`], and [`Error::File`] where the file cannot be read.
    pub fn load(
        gpu: &Gpu,
        config: LayerConfig,
        path: impl AsRef<std::path::Path>,
        prefix: &str,
    ) -> Result<Self> {
        Layer::new(gpu, config, &reference::layer::Weights::load(path, prefix)?)
    }

    /// The parameters.
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.titans.gpu
    }

    /// Before the first token of `batch` sequences.
    ///
    /// # Errors
    /// Those of allocations.
    pub fn start(&self, batch: usize) -> Result<State> {
        self.first.repeated(batch)
    }

    /// The layer on tokens `x` `[batch, tokens, d_model]` in f32, f16 or bf16, from the start of their
    /// sequences or behind `state`, which stays as it is.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit, and where the literal form of
    /// memory as context goes on within a segment; errors of the device. A tensor of `tokens` rows of all
    /// projections must fit a binding: longer sequences go in parts.
    pub fn forward(&self, x: &Tensor, state: Option<&State>) -> Result<Output> {
        let [batch, tokens] = self.check(x)?;
        let mut next = match state {
            None => self.start(batch)?,
            Some(state) => {
                state.check(self, batch)?;
                state.clone()
            }
        };
        let rows = if batch * tokens == 0 {
            let zeros = Tensor::zeros(self.gpu(), x.shape(), DType::F32)?;
            let attention = self.beside.as_ref().map(|_| zeros.clone());
            Rows { out: zeros.clone(), memory: zeros, attention }
        } else {
            self.rows(&whole(x)?, &mut next)?
        };
        next.position += tokens;
        let like = |rows: &Tensor| ops::convert(rows, x.dtype());
        Ok(Output {
            out: like(&rows.out)?,
            memory: like(&rows.memory)?,
            attention: rows.attention.as_ref().map(like).transpose()?,
            state: next,
        })
    }

    /// The output of the next tokens `[batch, new, d_model]`, one or more. Where the call fails the state is
    /// as before.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn decode(&self, state: &mut State, x: &Tensor) -> Result<Tensor> {
        let output = self.forward(x, Some(state))?;
        *state = output.state;
        Ok(output.out)
    }

    fn check(&self, x: &Tensor) -> Result<[usize; 2]> {
        if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            let (expected, got) = ("f32, f16 or bf16".into(), x.dtype().name().into());
            return Err(Error::Dtype { arg: "x", expected, got }.into());
        }
        if !x.gpu().is_same(self.gpu()) {
            let (expected, got) = (self.gpu().adapter().name.as_str(), "a tensor of another Gpu");
            return Err(Error::config("x", expected, got).into());
        }
        match *x.shape() {
            [batch, tokens, d_model] if d_model == self.d_model => Ok([batch, tokens]),
            _ => {
                let expected = format!("[batch, tokens, {}]", self.d_model);
                Err(Error::shape("x", expected, x.shape()).into())
            }
        }
    }

    fn rows(&self, x: &Tensor, state: &mut State) -> Result<Rows> {
        match self.config.combination {
            Combination::Alone => {
                let m = self.answer(x, state)?;
                Ok(Rows { out: m.clone(), memory: m, attention: None })
            }
            Combination::Gate { window } => self.as_gate(x, window, state),
            Combination::Layer { window } => self.as_layer(x, window, state),
            Combination::Context { segment } => self.context(x, segment, state),
            Combination::LiteralContext { segment } => {
                let inside = state.position % segment;
                if inside > 0 {
                    let expected =
                        "a state between two segments, which the literal form sees as a whole";
                    return Err(Error::data("state", expected, inside).into());
                }
                self.context(x, segment, state)
            }
        }
    }

    /// What the memory answers to rows that it stores, the heads side by side.
    fn store(&self, x: &Tensor, state: &mut State) -> Result<Tensor> {
        let given = self.project.all(x, &mut state.tail)?;
        let output = self.titans.forward(given.inputs(), &state.memory)?;
        state.memory = output.state;
        merge(&output.y)
    }

    /// The same with the readout behind it: LMM.
    fn answer(&self, x: &Tensor, state: &mut State) -> Result<Tensor> {
        let y = self.store(x, state)?;
        let Some(readout) = &self.readout else { return Ok(y) };
        let normed = rms_norm(&y, &readout.gain, &RmsNorm::new(self.rms_epsilon()))?;
        let gated = ops::gated(&linear(x, &readout.gate)?, &normed, Activation::Silu)?;
        linear(&gated, &readout.out)
    }

    fn as_gate(&self, x: &Tensor, window: usize, state: &mut State) -> Result<Rows> {
        let m = self.answer(x, state)?;
        let y = self.in_window(x, window, state)?;
        let out = match &self.norms {
            Some(norms) => gate(&y, &m, norms, self.rms_epsilon())?,
            None => y.clone(),
        };
        Ok(Rows { out, memory: m, attention: Some(y) })
    }

    fn as_layer(&self, x: &Tensor, window: usize, state: &mut State) -> Result<Rows> {
        let m = self.answer(x, state)?;
        let y = self.in_window(&m, window, state)?;
        Ok(Rows { out: y.clone(), memory: m, attention: Some(y) })
    }

    /// Attention of rows over persistent tokens, those of the window, and themselves.
    fn in_window(&self, rows: &Tensor, window: usize, state: &mut State) -> Result<Tensor> {
        let (Some(beside), Some(seen)) = (&self.beside, &mut state.seen) else {
            return Err(Error::config("state", "with keys of a window", "none").into());
        };
        let (q, own) = beside.attend.project(rows)?;
        let tokens = Pairs::concat(&[seen, &own])?;
        let keys = Pairs::concat(&[&beside.persistent, &tokens])?;
        *seen = tokens.last(window - 1)?;
        beside.attend.over(&beside.tokens, &q, &keys)
    }

    /// The first state behind the persistent tokens, where they are in front of every sequence.
    fn behind_persistent(&self, persistent: &Tensor) -> Result<State> {
        let mut state = self.first.clone();
        if self.persistent == 0 {
            return Ok(state);
        }
        match self.config.combination {
            Combination::Alone | Combination::Gate { .. } => {
                self.store(persistent, &mut state)?;
            }
            Combination::Layer { window } => {
                let m = self.answer(persistent, &mut state)?;
                if let Some(beside) = &self.beside {
                    state.seen = Some(beside.attend.pairs(&m)?.last(window - 1)?);
                }
            }
            Combination::Context { .. } | Combination::LiteralContext { .. } => {}
        }
        Ok(state)
    }

    /// Tokens since the start of the memory's chunk, behind `position` tokens.
    fn chunk_position(&self, position: usize) -> usize {
        let stored = match self.segment() {
            Some(segment) => position % segment,
            None => self.persistent + position,
        };
        stored % self.config.memory.chunk
    }

    fn segment(&self) -> Option<usize> {
        match self.config.combination {
            Combination::Context { segment } | Combination::LiteralContext { segment } => {
                Some(segment)
            }
            _ => None,
        }
    }

    /// Persistent tokens.
    fn persistent(&self) -> usize {
        self.persistent
    }

    fn rms_epsilon(&self) -> f32 {
        self.config.rms_epsilon as f32
    }
}

fn beside(gpu: &Gpu, attend: Attend, persistent: &Tensor, config: &LayerConfig) -> Result<Beside> {
    let count = persistent.shape()[1];
    let (tokens, answers) = match config.combination {
        Combination::Gate { window } => {
            (Mask::SinkWindow { left: window - 1, sinks: count }, Mask::Causal)
        }
        Combination::Layer { window } => {
            (Mask::Window { left: window - 1, right: 0 }, Mask::Causal)
        }
        Combination::LiteralContext { .. } => (Mask::Causal, Mask::Full),
        _ => (Mask::Causal, Mask::Causal),
    };
    let persistent = match config.combination {
        Combination::Layer { .. } => attend.none(1)?,
        _ if count == 0 => attend.none(1)?,
        _ => attend.pairs(persistent)?,
    };
    Ok(Beside { attend, persistent, tokens: masked(gpu, tokens)?, answers: masked(gpu, answers)? })
}

/// The state of one sequence, before any token.
fn empty(
    gpu: &Gpu,
    weights: &reference::layer::Weights,
    config: &LayerConfig,
    project: &Project,
    beside: Option<&Beside>,
) -> Result<State> {
    let learned: Vec<ArrayView3<'_, f64>> = weights.memory.iter().map(|w| w.view()).collect();
    let memory = super::State::upload(gpu, &reference::State::new(&learned, 1, &config.memory)?)?;
    let [queries, all] = project.tails(1);
    let none = || beside.map(|beside| beside.attend.none(1)).transpose();
    let segment = match (config.combination.clone(), none()?) {
        (Combination::Context { .. } | Combination::LiteralContext { .. }, Some(answers)) => {
            let before = memory.w.clone();
            Some(Segment { tail: Tensor::zeros(gpu, &queries, DType::F32)?, answers, before })
        }
        _ => None,
    };
    let tail = Tensor::zeros(gpu, &all, DType::F32)?;
    Ok(State { memory, tail, seen: none()?, segment, position: 0 })
}
