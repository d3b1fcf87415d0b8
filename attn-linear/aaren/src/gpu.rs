//! The attention on a device. The equations are those of [`crate::reference`].
//!
//! ```text
//! row_dot            scores; those of masked tokens stand for -inf
//! softmax_scan       outputs and log-sum-exps of all prefixes, tile by tile, and the state after them
//! ```
//!
//! and back:
//!
//! ```text
//! row_dot            g . o, beside the cotangents g in one tensor, and those of the log-sum-exps
//! aaren_decay        e^(lse_t - lse_(t+1))
//! recurrence         R, rho and lambda at once, from the last token to the first
//! row_dot            v . R
//! aaren_scores       p and ds
//! aaren_spread       dv = p R and dk = scale ds q, added over the heads that share a key
//! column_sums        dq = scale sum ds k
//! aaren_first        of the state before the first token
//! ```
//!
//! Nothing is read back. Everything that the heads hold is f32, whatever the inputs are stored as.

mod kernels;
mod state;
mod train;

use attn_core::{AttentionShape, Error};
use attn_wgpu::scan::{self, RowDot, SoftmaxState, row_dot, softmax_scan, softmax_scan_into};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

#[cfg(feature = "bench")]
pub use self::kernels::kernels;
pub use self::state::State;
pub use self::train::{Cotangents, Grads, Saved, Targets};

use crate::Config;

/// The score of a token that does not count.
const MASKED: f32 = -3e38;

/// The query of each head, and the keys and values of the tokens, on a device.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[heads, dim_qk]`, or `[batch, heads, dim_qk]` where each batch entry has its own; f32 or a
    /// half type.
    pub q: &'a Tensor,
    /// Keys `[batch, heads_kv, tokens, dim_qk]`, f32 or a half type; `heads_kv` divides `heads`.
    pub k: &'a Tensor,
    /// Values `[batch, heads_kv, tokens, dim_v]`, f32 or a half type; outputs have their type.
    pub v: &'a Tensor,
    /// Which tokens count, u32 `[batch, tokens]`: 1, and 0 for those that do not. Default: all.
    pub valid: Option<&'a Tensor>,
    /// What the tokens before these left. Default: nothing.
    pub state: Option<&'a State>,
}

impl<'a> Inputs<'a> {
    /// All tokens, from the first one on.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Inputs { q, k, v, valid: None, state: None }
    }

    /// The same with tokens, u32 `[batch, tokens]`, that do not count. Their keys and values may hold
    /// anything.
    pub fn with_valid(self, valid: &'a Tensor) -> Self {
        Inputs { valid: Some(valid), ..self }
    }

    /// The same behind the tokens of `state`.
    pub fn with_state(self, state: &'a State) -> Self {
        Inputs { state: Some(state), ..self }
    }
}

/// What [`Aaren::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// Attention over the tokens up to each one `[batch, heads, tokens, dim_v]`, of the type of `v`; 0 where
    /// none counts.
    pub out: Tensor,
    /// Natural log-sum-exp of their scores, f32 `[batch, heads, tokens]`; -inf where none counts.
    pub lse: Tensor,
    /// What a stream keeps after the last token.
    pub state: State,
}

/// Softmax attention of one query a head over every prefix.
#[derive(Debug, Clone)]
pub struct Aaren {
    gpu: Gpu,
    config: Config,
}

/// A call that was checked.
struct Call<'a> {
    inputs: Inputs<'a>,
    shape: AttentionShape,
    /// `[batch or 1, heads, 1, dim_qk]`.
    q: Tensor,
    scale: f32,
}

impl Aaren {
    /// The attention with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Aaren> {
        config.validate()?;
        Ok(Aaren { gpu: gpu.clone(), config })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The extents of a call; its result has those of [`AttentionShape::out`] and [`AttentionShape::lse`].
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit.
    pub fn shape(&self, inputs: &Inputs<'_>) -> Result<AttentionShape> {
        Ok(self.call(*inputs)?.shape)
    }

    /// Outputs of all prefixes, by a parallel scan.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output> {
        let call = self.call(inputs)?;
        let scan = softmax_scan(&call.scores()?, inputs.v, call.first(), inputs.v.dtype())?;
        Ok(Output { out: scan.out, lse: scan.lse, state: State::new(scan.last) })
    }

    /// [`Aaren::forward`] into a caller's tensors: `out` `[batch, heads, tokens, dim_v]` in its own type,
    /// `lse` f32 `[batch, heads, tokens]`.
    ///
    /// # Errors
    /// As [`Aaren::forward`], and [`attn_core::Error`] for targets of other shapes or types.
    pub fn forward_into(&self, inputs: Inputs<'_>, out: &Tensor, lse: &Tensor) -> Result<State> {
        let call = self.call(inputs)?;
        let scores = call.scores()?;
        Ok(State::new(softmax_scan_into(&scores, inputs.v, call.first(), out, lse)?))
    }

    /// Outputs of a prompt, and the state from which [`Aaren::decode`] and [`Aaren::fold`] go on.
    ///
    /// # Errors
    /// As [`Aaren::forward`].
    pub fn prefill(&self, inputs: Inputs<'_>) -> Result<(Output, State)> {
        let output = self.forward(inputs)?;
        let state = output.state.clone();
        Ok((output, state))
    }

    /// Outputs of one new token or a few behind `state`, which then holds them, too. Tokens that come
    /// together are combined on their own before they meet the state, so that many at once lose less to
    /// rounding than one by one.
    ///
    /// # Errors
    /// As [`Aaren::forward`], and [`attn_core::Error::Config`] where the inputs bring a state of their own;
    /// the state is then unchanged.
    pub fn decode(&self, state: &mut State, inputs: Inputs<'_>) -> Result<Output> {
        let output = self.forward(behind(&state.clone(), inputs)?)?;
        *state = output.state.clone();
        Ok(output)
    }

    /// Takes in some new tokens without their outputs; that after the last one is [`State::out`].
    ///
    /// # Errors
    /// As [`Aaren::decode`].
    pub fn fold(&self, state: &mut State, inputs: Inputs<'_>) -> Result<()> {
        let before = state.clone();
        let call = self.call(behind(&before, inputs)?)?;
        *state = State::new(scan::softmax_fold(&call.scores()?, inputs.v, call.first())?);
        Ok(())
    }

    fn call<'a>(&self, inputs: Inputs<'a>) -> Result<Call<'a>> {
        let Inputs { q, k, v, .. } = inputs;
        for (arg, tensor) in [("q", q), ("k", k), ("v", v)] {
            if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
                let (expected, got) = ("f32, f16 or bf16".into(), tensor.dtype().name().into());
                return Err(Error::Dtype { arg, expected, got }.into());
            }
            if !tensor.gpu().is_same(&self.gpu) {
                let got = "a tensor of another Gpu";
                return Err(Error::config(arg, &self.gpu.adapter().name, got).into());
            }
        }
        let &[batch, _, tokens, _] = k.shape() else {
            let expected = "[batch, heads_kv, tokens, dim_qk]";
            return Err(Error::shape("k", expected, k.shape()).into());
        };
        let (own, heads, dim_qk) = match *q.shape() {
            [heads, dim_qk] => (q.split(0, &[1, heads, 1])?, heads, dim_qk),
            [entries, heads, dim_qk] if entries == batch => {
                (q.split(1, &[heads, 1])?, heads, dim_qk)
            }
            _ => {
                let expected = format!("[heads, dim_qk] or [{batch}, heads, dim_qk]");
                return Err(Error::shape("q", expected, q.shape()).into());
            }
        };
        let shape =
            AttentionShape::from_shapes(&[batch, heads, tokens, dim_qk], k.shape(), v.shape())?;
        if let Some(state) = inputs.state {
            let expected = [batch, heads, shape.dim_v];
            if state.shape() != expected {
                let expected = format!("{expected:?}");
                return Err(Error::shape("state", expected, &state.shape()).into());
            }
        }
        let scale = self.config.scale_for(dim_qk) as f32;
        Ok(Call { inputs, shape, q: own, scale })
    }
}

impl<'a> Call<'a> {
    /// f32 `[batch, heads, tokens]`.
    fn scores(&self) -> Result<Tensor> {
        let call = RowDot::new(self.inputs.k, &self.q).with_factor(self.scale);
        let call = call.with_valid(self.inputs.valid, MASKED);
        row_dot(call)
    }

    fn first(&self) -> Option<&'a SoftmaxState> {
        self.inputs.state.map(State::element)
    }
}

/// The inputs behind a state.
fn behind<'a>(state: &'a State, inputs: Inputs<'a>) -> Result<Inputs<'a>> {
    match inputs.state {
        None => Ok(inputs.with_state(state)),
        Some(_) => {
            Err(Error::config("inputs.state", "none beside that of the stream", "one").into())
        }
    }
}

/// The tensor in f32, contiguous from the beginning of a binding on, rows filled up with zeros to whole
/// groups of four elements.
fn whole(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let width = x.shape().last().copied().unwrap_or(1);
    if width.is_multiple_of(4) && x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x);
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(width.next_multiple_of(4));
    let copied = Tensor::uninit(x.gpu(), &shape, DType::F32)?;
    ops::copy(&x, &copied)?;
    Ok(copied)
}
