//! The attention on a device. The equations, and their names, are those of [`crate::reference`].
//!
//! ```text
//! flow_sigmoid                   a, b: f32, with a copy for each query head
//! flow_marks                     which tokens count, and how many
//! column_sums or recurrence      K, Q: of all tokens, or up to each one
//! row_dot                        I, O
//! flow_numbers                   1 / I, 1 / O, or t / I, t / O
//! column_sums or recurrence      K^, Q^
//! row_dot                        I^, O^
//! flow_numbers                   alloc, logits of the competition
//! log_sum_exp or softmax_scan    their log-sum-exp: of all tokens, or up to each one
//! flow_numbers, flow_scale       comp, and values times it
//! matmul or LinearAttention      a M, with M = b^T (comp v) of all tokens, or up to each one
//! flow_scale                     alloc / I
//! ```
//!
//! Nothing is read back, and everything between the inputs and the output is f32. The sums of matrices are
//! never held for each token.

mod kernels;
mod parts;
mod state;
mod sums;
mod train;

use attn_core::{AttentionShape, Error};
use attn_wgpu::linear_attention::LinearAttention;
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

#[cfg(feature = "bench")]
pub use self::kernels::kernels;
pub use self::state::State;
pub use self::train::{Cotangents, Grads, Saved, Targets};

use crate::Config;

/// Queries, keys, values, and which of their tokens are padding, on a device.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, queries, dim_qk]`, f32 or a half type; the output has their type.
    pub q: &'a Tensor,
    /// Keys `[batch, heads_kv, keys, dim_qk]`, f32 or a half type; `heads_kv` divides `heads`.
    pub k: &'a Tensor,
    /// Values `[batch, heads_kv, keys, dim_v]`, f32 or a half type.
    pub v: &'a Tensor,
    /// Which queries count, u32 `[batch, queries]`: 1, and 0 for padding. Default: all.
    pub valid_q: Option<&'a Tensor>,
    /// Which keys count, u32 `[batch, keys]`. Default: all. In the causal form they must be the tokens of
    /// `valid_q`, which is not checked, as contents are on the device.
    pub valid_k: Option<&'a Tensor>,
    /// What the tokens before these left, in the causal form. Default: nothing.
    pub state: Option<&'a State>,
}

impl<'a> Inputs<'a> {
    /// Tensors without padding.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Inputs { q, k, v, valid_q: None, valid_k: None, state: None }
    }

    /// Self-attention in which only some tokens count, u32 `[batch, tokens]`.
    pub fn with_valid(self, valid: &'a Tensor) -> Self {
        Inputs { valid_q: Some(valid), valid_k: Some(valid), ..self }
    }

    /// The same behind the tokens of `state`, in the causal form.
    pub fn with_state(self, state: &'a State) -> Self {
        Inputs { state: Some(state), ..self }
    }
}

/// The flows of all heads, f32; 0 for padding.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Flows {
    /// What enters each sink, I `[batch, heads, queries]`. Of padding it says nothing.
    pub incoming: Tensor,
    /// What leaves each source, O `[batch, heads, keys]`. Of padding it says nothing.
    pub outgoing: Tensor,
    /// What enters each sink when every source gives 1, I^ `[batch, heads, queries]`.
    pub conserved_sink: Tensor,
    /// What leaves each source when every sink takes 1, O^ `[batch, heads, keys]`, before the clamp.
    pub conserved_source: Tensor,
    /// Factors of the outputs `[batch, heads, queries]`.
    pub allocation: Tensor,
    /// Factors of the values `[batch, heads, keys]`.
    pub competition: Tensor,
}

/// What [`Flowformer::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// `[batch, heads, queries, dim_v]`, of the type of `q`; 0 for padding.
    pub out: Tensor,
    /// How much flowed; `None` where there is no query or no key.
    pub flows: Option<Flows>,
    /// The sum M over all sources, f32 `[batch, heads, dim_qk, dim_v]`; 0, or that of the state, where there is
    /// no query or no key.
    pub memory: Tensor,
    /// What a stream keeps after the last token, in the causal form.
    pub state: Option<State>,
}

/// Flow-Attention.
#[derive(Clone)]
pub struct Flowformer {
    gpu: Gpu,
    config: Config,
    /// Plain causal linear attention of one head; planes are its batch.
    linear: LinearAttention,
}

impl std::fmt::Debug for Flowformer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flowformer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Flowformer {
    /// The attention with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`]; allocation errors.
    pub fn new(gpu: &Gpu, config: Config) -> Result<Flowformer> {
        config.validate()?;
        let linear = LinearAttention::new(gpu, &[0.0])?;
        Ok(Flowformer { gpu: gpu.clone(), config, linear })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The extents of a call; its result has those of [`AttentionShape::out`].
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit.
    pub fn shape(&self, inputs: &Inputs<'_>) -> Result<AttentionShape> {
        self.check(*inputs)
    }

    /// The attention of all heads.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output> {
        let out = self.new_out(&inputs)?;
        self.forward_into(inputs, &out)
    }

    /// [`Flowformer::forward`] into a caller's tensor `[batch, heads, queries, dim_v]`, in its own type: directly
    /// where it is f32, contiguous from where a binding may begin, and of whole groups of four elements; else by
    /// a conversion or a copy on the device.
    ///
    /// # Errors
    /// As [`Flowformer::forward`], and [`attn_core::Error`] for a target of another shape or type.
    pub fn forward_into(&self, inputs: Inputs<'_>, out: &Tensor) -> Result<Output> {
        let shape = self.check(inputs)?;
        ops::check_target("out", out, &self.gpu, &shape.out())?;
        match is_empty(&shape) {
            true => self.nothing(inputs, &shape, out),
            false => self.pass(inputs, &shape, out)?.0.output(out.clone()),
        }
    }

    /// Outputs of a prompt, and the state from which [`Flowformer::decode`] goes on.
    ///
    /// # Errors
    /// As [`Flowformer::forward`], and [`attn_core::Error::Config`] where the configuration is not causal.
    pub fn prefill(&self, inputs: Inputs<'_>) -> Result<(Output, State)> {
        let output = self.forward(inputs)?;
        match output.state.clone() {
            Some(state) => Ok((output, state)),
            None => Err(Error::config("causal", "true", "false").into()),
        }
    }

    /// Outputs of one new token or a few behind `state`, which then holds them, too.
    ///
    /// # Errors
    /// As [`Flowformer::prefill`]; the state is then unchanged.
    pub fn decode(&self, state: &mut State, inputs: Inputs<'_>) -> Result<Output> {
        if inputs.state.is_some() {
            let expected = "none beside that of the stream";
            return Err(Error::config("inputs.state", expected, "one").into());
        }
        let before = state.clone();
        let (output, after) = self.prefill(inputs.with_state(&before))?;
        *state = after;
        Ok(output)
    }

    fn check(&self, inputs: Inputs<'_>) -> Result<AttentionShape> {
        let Inputs { q, k, v, .. } = inputs;
        for (arg, tensor) in [("q", q), ("k", k), ("v", v)] {
            if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
                let (expected, got) = ("f32, f16 or bf16".into(), tensor.dtype().name().into());
                return Err(Error::Dtype { arg, expected, got }.into());
            }
            self.check_device(arg, tensor)?;
        }
        let shape = AttentionShape::from_shapes(q.shape(), k.shape(), v.shape())?;
        if shape.dim_qk == 0 {
            return Err(Error::shape("q", "heads of at least 1 element", q.shape()).into());
        }
        if self.config.causal && shape.queries != shape.keys {
            let expected = format!("{} tokens as q: the causal form has no other", shape.queries);
            return Err(Error::shape("k", expected, k.shape()).into());
        }
        let sides =
            [("valid_q", inputs.valid_q, shape.queries), ("valid_k", inputs.valid_k, shape.keys)];
        for (arg, valid, tokens) in sides {
            let Some(valid) = valid else { continue };
            self.check_device(arg, valid)?;
            if valid.dtype() != DType::U32 {
                let (expected, got) = ("u32".into(), valid.dtype().name().into());
                return Err(Error::Dtype { arg, expected, got }.into());
            }
            if valid.shape() != [shape.batch, tokens] {
                let expected = format!("[{}, {tokens}]", shape.batch);
                return Err(Error::shape(arg, expected, valid.shape()).into());
            }
        }
        if self.config.causal && inputs.valid_q.is_some() != inputs.valid_k.is_some() {
            let expected = "the tokens of valid_q in a causal call";
            return Err(Error::data("valid_k", expected, "others").into());
        }
        match inputs.state {
            Some(_) if !self.config.causal => Err(Error::config("causal", "true", "false").into()),
            Some(state) => state.check(&shape).map(|()| shape),
            None => Ok(shape),
        }
    }

    fn new_out(&self, inputs: &Inputs<'_>) -> Result<Tensor> {
        Tensor::uninit(&self.gpu, &self.check(*inputs)?.out(), inputs.q.dtype())
    }

    fn check_device(&self, arg: &'static str, tensor: &Tensor) -> Result<()> {
        if tensor.gpu().is_same(&self.gpu) {
            return Ok(());
        }
        let got = "a tensor of another Gpu";
        Err(Error::config(arg, &self.gpu.adapter().name, got).into())
    }

    /// Without a sink or a source, or an element of a value.
    fn nothing(&self, inputs: Inputs<'_>, shape: &AttentionShape, out: &Tensor) -> Result<Output> {
        let memory = [shape.batch, shape.heads, shape.dim_qk, shape.dim_v];
        let state = match (self.config.causal, inputs.state) {
            (false, _) => None,
            (true, Some(state)) => Some(state.clone()),
            (true, None) => Some(State::empty(&self.gpu, memory)?),
        };
        ops::convert_into(&Tensor::zeros(&self.gpu, out.shape(), out.dtype())?, out)?;
        Ok(Output {
            out: out.clone(),
            flows: None,
            memory: match &state {
                Some(state) => state.memory()?,
                None => Tensor::zeros(&self.gpu, &memory, DType::F32)?,
            },
            state,
        })
    }
}

/// Whether there is nothing to compute.
fn is_empty(shape: &AttentionShape) -> bool {
    [shape.batch, shape.heads, shape.queries, shape.keys, shape.dim_v].contains(&0)
}
