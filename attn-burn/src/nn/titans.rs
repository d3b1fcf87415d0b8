//! Layers of Titans: the memory alone, or as context, gate or layer beside attention.

mod context;
mod memory;

use std::sync::Arc;

use attn_core::dense::Config as Dense;
use attn_core::{Error, Mask};
use attn_titans::{Combination, LayerConfig};
use attn_wgpu::Result;
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::{Linear, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::{Device, Tensor};

use self::context::Segments;
pub use self::memory::TitansMemory;
use super::{Attention, AttentionConfig, check, join, linear};
use crate::ops::Remembered;

/// Extents of a [`Titans`] that its [`LayerConfig`] does not say.
#[derive(Config, Debug)]
pub struct TitansConfig {
    /// Elements of a token.
    pub d_model: usize,
    /// Tokens that a causal convolution reaches, its own included; 0 for none.
    #[config(default = 4)]
    pub kernel: usize,
    /// Learned tokens in front of every sequence.
    #[config(default = 0)]
    pub persistent: usize,
}

/// A layer of Titans, see [`attn_titans::reference::layer`] for its equations.
///
/// **[`Combination::LiteralContext`] leaks later tokens of a segment into earlier outputs**, as the paper has
/// it: for encoders, never for autoregressive models. All other combinations are causal.
///
/// Fields have the names of the weights in files of `attn-titans`, where they are not burn's own modules.
/// Residuals and norms around the layer are the model's.
#[derive(Module, Debug)]
pub struct Titans {
    /// The memory, with what it reads of tokens.
    pub memory: TitansMemory,
    /// Tokens in front of every sequence, `[persistent, d_model]`; they are not in the output.
    pub persist: Option<Param<Tensor<2>>>,
    /// Beside the memory.
    pub attention: Option<Attention>,
    /// Behind the memory; as context, it has none.
    pub readout: Option<TitansReadout>,
    /// Attention gated by the memory, as context and as gate.
    pub gate: Option<TitansGate>,
    d_model: usize,
    #[module(skip)]
    config: Arc<LayerConfig>,
    #[module(skip)]
    segments: Segments,
}

/// `(RMSNorm(y) * silu(x Wgate)) Wout`, for what the memory's heads read at the tokens `x`.
#[derive(Module, Debug)]
pub struct TitansReadout {
    /// `d_model` to `heads * dim_v`.
    pub w_gate: Linear,
    /// `heads * dim_v` to `d_model`.
    pub w_out: Linear,
    /// Of all heads together.
    pub g_out: RmsNorm,
}

/// `RMSNorm(y) * sigmoid(RMSNorm(m))`, for attention `y` and what the memory answers.
#[derive(Module, Debug)]
pub struct TitansGate {
    /// Of attention.
    pub gam_y: RmsNorm,
    /// Of the memory's answers.
    pub gam_m: RmsNorm,
}

impl TitansConfig {
    /// The module with random weights. At first steps are half of their bound, memories forget 2 % of
    /// themselves a token, and momentum is 0.1.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] as [`LayerConfig::validate`], for heads that do not divide where there is
    /// attention, and where the memory is a context, for heads whose values are not `d_model` elements
    /// together.
    pub fn init(&self, config: LayerConfig, device: &Device) -> Result<Titans> {
        config.validate()?;
        let d_model = self.d_model;
        let features = config.memory.heads * config.memory.dim_v;
        let (context, gated, mask) = match config.combination {
            Combination::Alone => (false, false, None),
            Combination::Context { .. } | Combination::LiteralContext { .. } => {
                (true, true, Some(Mask::Causal))
            }
            Combination::Gate { window } => {
                let mask = Mask::SinkWindow { left: window - 1, sinks: self.persistent };
                (false, true, Some(mask))
            }
            Combination::Layer { window } => {
                (false, false, Some(Mask::Window { left: window - 1, right: 0 }))
            }
            ref other => {
                let got = format!("{other:?}");
                return Err(Error::config("combination", "one of this crate", got).into());
            }
        };
        if context && features != d_model {
            let expected = format!("heads of {d_model} elements together");
            return Err(Error::config("dim_v", expected, features).into());
        }
        let norm = |width| RmsNormConfig::new(width).with_epsilon(config.rms_epsilon).init(device);
        let attention = |mask| {
            let attention = AttentionConfig::new(d_model, config.memory.heads).with_bias(false);
            attention.init_with(Dense::new().with_mask(mask), device)
        };
        let persist = || Initializer::Normal { mean: 0.0, std: (d_model as f64).recip().sqrt() };
        Ok(Titans {
            memory: TitansMemory::new(d_model, self.kernel, &config, device)?,
            persist: (self.persistent > 0)
                .then(|| persist().init([self.persistent, d_model], device)),
            attention: mask.map(attention).transpose()?,
            readout: (!context).then(|| TitansReadout {
                w_gate: linear(d_model, features, false, device),
                w_out: linear(features, d_model, false, device),
                g_out: norm(features),
            }),
            gate: gated.then(|| TitansGate { gam_y: norm(d_model), gam_m: norm(d_model) }),
            d_model,
            config: Arc::new(config),
            segments: Segments::default(),
        })
    }
}

impl Titans {
    /// The parameters.
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// Of tokens `[batch, tokens, d_model]` from the start of their sequences.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply`](crate::apply()).
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        Ok(self.forward_with_state(x)?.0)
    }

    /// The same with the memories behind the last token, in the layout of [`ops::Titans`](crate::ops::Titans).
    ///
    /// # Errors
    /// As [`Titans::forward`].
    pub fn forward_with_state(&self, x: Tensor<3>) -> Result<(Tensor<3>, Tensor<3>)> {
        check("x", &x, self.d_model)?;
        let [batch, tokens, _] = x.dims();
        let context = self.readout.is_none();
        if batch == 0 || tokens == 0 && (context || self.persist.is_none()) {
            return Ok((x, self.memory.first_state(batch)?));
        }
        let literal = matches!(self.config.combination, Combination::LiteralContext { .. });
        match (&self.config.combination, &self.attention, &self.gate) {
            (
                Combination::Context { segment } | Combination::LiteralContext { segment },
                Some(attention),
                Some(gate),
            ) => self.in_context(x, *segment, literal, attention, gate),
            _ => self.beside(x),
        }
    }

    /// Persistent tokens and `x`.
    fn rows(&self, x: Tensor<3>) -> Tensor<3> {
        match self.persistent(x.dims()[0]) {
            Some(persistent) => Tensor::cat(vec![persistent, x], 1),
            None => x,
        }
    }

    /// `[batch, persistent, d_model]`.
    fn persistent(&self, batch: usize) -> Option<Tensor<3>> {
        let persist = self.persist.as_ref()?.val();
        let [count, width] = persist.dims();
        Some(persist.unsqueeze::<3>().expand([batch, count, width]))
    }

    /// The memory alone, as gate and as layer: one pass over persistent tokens and the sequence.
    fn beside(&self, x: Tensor<3>) -> Result<(Tensor<3>, Tensor<3>)> {
        let [batch, tokens, _] = x.dims();
        let rows = self.rows(x.clone());
        let state = self.memory.first_state(batch)?;
        let inputs = self.memory.inputs(&rows, 0);
        let Remembered { y, state } = self.memory.memory().forward_with_state(inputs, state)?;
        if tokens == 0 {
            return Ok((x, state));
        }
        let m = match &self.readout {
            Some(readout) => readout.forward(rows.clone(), join(y)),
            None => join(y),
        };
        let count = rows.dims()[1] - tokens;
        let own = |all: Tensor<3>| all.narrow(1, count, tokens);
        let out = match (&self.attention, &self.gate) {
            (None, _) => own(m),
            (Some(attention), Some(gate)) => gate.forward(own(attention.forward(rows)?), own(m)),
            (Some(attention), None) => own(attention.forward(m)?),
        };
        Ok((out, state))
    }
}

impl TitansReadout {
    /// Of tokens `[batch, tokens, d_model]` and what the memory read `[batch, tokens, heads * dim_v]`.
    pub fn forward(&self, x: Tensor<3>, y: Tensor<3>) -> Tensor<3> {
        self.w_out.forward(self.g_out.forward(y) * silu(self.w_gate.forward(x)))
    }
}

impl TitansGate {
    /// Attention `y` gated by the memory's answers `m`, both `[batch, tokens, d_model]`.
    pub fn forward(&self, y: Tensor<3>, m: Tensor<3>) -> Tensor<3> {
        self.gam_y.forward(y) * sigmoid(self.gam_m.forward(m))
    }
}
