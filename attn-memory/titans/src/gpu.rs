//! The memory on a device, in the dual form: the steps of [`crate::reference`], chunk by chunk.
//!
//! ```text
//! titans_shares     C, beta, kappa, omega of all chunks, from the gates
//! titans_pairs      (Q K^T) * C of all chunks
//! then for each chunk, as its gradients need the weights that the one before left:
//!   titans_network  the errors of its values, with what is between the layers
//!   titans_back     at depth 2, the errors of the first layer
//!   titans_read     what its queries read, layer by layer; titans_pairs in front of the second
//!   titans_update   weights and momentum behind it, layer by layer
//! ```
//!
//! In chunks of one token, and in streams, titans_token does it all (`decode.rs`). The derivative is in
//! `backward.rs`, the walk in `walk.rs`, and what is too large for one in `parts.rs`. Nothing is read back.
//! All batch entries and heads are in one dispatch. Every invocation owns some rows of a chunk, or of the
//! weights, and four columns; on software drivers lanes share what they load.

mod backward;
mod decode;
mod kernels;
pub mod layer;
mod parts;
mod read;
mod state;
mod walk;

use attn_core::Error;
use attn_wgpu::{DType, Gpu, Result, Tensor};

pub use self::backward::{Cotangents, Grads, Saved};
pub use self::decode::Decoder;
#[cfg(feature = "bench")]
pub use self::kernels::kernels;
use self::parts::{Keep, Plan, pieces};
pub use self::state::State;
use self::state::check_tensor;
use crate::Config;

/// Queries, keys, values and gates on a device, in f32, f16 or bf16; everything is computed in f32.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, tokens, dim_qk]`.
    pub q: &'a Tensor,
    /// Keys `[batch, heads, tokens, dim_qk]`.
    pub k: &'a Tensor,
    /// Values `[batch, heads, tokens, dim_v]`.
    pub v: &'a Tensor,
    /// Steps `[batch, heads, tokens]`.
    pub theta: &'a Tensor,
    /// Momentum `[batch, heads, tokens]`.
    pub eta: &'a Tensor,
    /// What is forgotten `[batch, heads, tokens]`.
    pub alpha: &'a Tensor,
}

/// What [`Titans::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// What was read `[batch, heads, tokens, dim_v]`, of the queries' type.
    pub y: Tensor,
    /// Behind the last token.
    pub state: State,
}

/// The memory on a device.
#[derive(Debug, Clone)]
pub struct Titans {
    gpu: Gpu,
    config: Config,
}

impl Titans {
    /// The memory with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Titans> {
        config.validate()?;
        Ok(Titans { gpu: gpu.clone(), config })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is read with all tokens, and the state behind them. `state` stays as it is.
    ///
    /// # Errors
    /// [`attn_core::Error`] for tensors and a state that do not fit together; those of the device.
    pub fn forward(&self, inputs: Inputs<'_>, state: &State) -> Result<Output> {
        let extents = self.check(inputs, state)?;
        let [batch, heads, tokens] = extents;
        if self.config.chunk == 1 && batch * heads * tokens > 0 && self.has_tokens()? {
            let mut decoder = self.decoder(state)?;
            let y = decoder.decode(inputs)?;
            return Ok(Output { y, state: decoder.state()? });
        }
        let all = pieces(&self.config, state.position, tokens);
        let plan = Plan::new(&self.gpu, &self.config, extents, state.position, all, Keep::Rows);
        self.walk(inputs, state, extents, &plan, &mut Vec::new())
    }

    fn check(&self, inputs: Inputs<'_>, state: &State) -> Result<[usize; 3]> {
        let extents = self.check_inputs(inputs)?;
        self.check_state(state, extents[0])?;
        Ok(extents)
    }

    /// Batch, heads and tokens.
    fn check_inputs(&self, inputs: Inputs<'_>) -> Result<[usize; 3]> {
        let config = &self.config;
        let &[batch, heads, tokens, _] = inputs.q.shape() else {
            let expected = "[batch, heads, tokens, dim_qk]";
            return Err(Error::shape("q", expected, inputs.q.shape()).into());
        };
        let rows = |dim| vec![batch, config.heads, tokens, dim];
        let gates = vec![batch, config.heads, tokens];
        for (arg, tensor, expected) in [
            ("q", inputs.q, rows(config.dim_qk)),
            ("k", inputs.k, rows(config.dim_qk)),
            ("v", inputs.v, rows(config.dim_v)),
            ("theta", inputs.theta, gates.clone()),
            ("eta", inputs.eta, gates.clone()),
            ("alpha", inputs.alpha, gates),
        ] {
            self.check_float(arg, tensor, &expected)?;
        }
        Ok([batch, heads, tokens])
    }

    fn check_state(&self, state: &State, batch: usize) -> Result<()> {
        let (config, heads) = (&self.config, self.config.heads);
        for (arg, layers) in
            [("state.w", &state.w), ("state.s", &state.s), ("state.start", &state.start)]
        {
            if layers.len() != config.depth() {
                let expected = format!("{} layers", config.depth());
                return Err(Error::config(arg, expected, layers.len()).into());
            }
            for (layer, [rows, columns]) in layers.iter().zip(config.layers()) {
                let padded = [rows, columns].map(|extent| extent.next_multiple_of(4));
                check_tensor(arg, layer, &self.gpu, &[batch, heads, padded[0], padded[1]])?;
            }
        }
        if state.position >= config.chunk {
            let expected = format!("below the chunk of {} tokens", config.chunk);
            return Err(Error::data("state.position", expected, state.position).into());
        }
        Ok(())
    }

    fn check_float(&self, arg: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
        check_tensor(arg, tensor, &self.gpu, expected)?;
        if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            let (expected, got) = ("f32, f16 or bf16".into(), tensor.dtype().name().into());
            return Err(Error::Dtype { arg, expected, got }.into());
        }
        Ok(())
    }
}
