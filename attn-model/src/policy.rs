//! Attention as a policy of the model: how the queries of a layer meet the keys and values so far.

mod dense;
mod layer;
mod sink_window;

use std::any::Any;
use std::fmt::Debug;

use attn_wgpu::{DType, Gpu, Tensor};

pub use dense::Dense;
pub use layer::Layer;
pub use sink_window::{SinkPositions, SinkWindow};

use crate::Result;

/// In which form keys are cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyForm {
    /// Rotated by their positions, once, when they are appended.
    #[default]
    Rotated,
    /// As they were projected (and normed, where the model norms keys): the policy rotates them,
    /// each time anew, and may give them other positions than those of the text.
    Raw,
}

/// Which part of a text a pass belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Tokens that were given: a prompt, in one piece or several.
    Prefill,
    /// Tokens that a model continues with.
    Decode {
        /// Number of the pass's first token, counted from 1 behind the last prefill.
        step: usize,
    },
}

/// What a policy is told about a model before the first token.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelShape {
    /// The device that everything runs on.
    pub gpu: Gpu,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key and value heads of a layer; divides `heads`.
    pub heads_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Of each layer, first to last: keys that a query sees, itself included; none for all.
    pub windows: Vec<Option<usize>>,
    /// Longest sequence that the model was made for.
    pub context: usize,
    /// Factor of `q.k`.
    pub scale: f64,
    /// Soft-cap of the logits, `c tanh(s / c)`, before the mask.
    pub soft_cap: Option<f64>,
    /// Type of cached keys and values.
    pub dtype: DType,
}

impl ModelShape {
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.windows.len()
    }
}

/// How attention is computed. A session owns its policy, which may keep state of the session's
/// sequence: each sequence has a policy of its own.
///
/// Errors of a policy are those of the pass: the session is as it was before.
pub trait AttentionPolicy: Any + Debug + Send {
    /// The form in which the model caches keys.
    fn keys(&self) -> KeyForm {
        KeyForm::Rotated
    }

    /// Called once, before the first token.
    ///
    /// # Errors
    /// Where the policy does not fit the model.
    fn begin(&mut self, shape: &ModelShape) -> Result<()> {
        let _ = shape;
        Ok(())
    }

    /// Attention of the new tokens of one layer: `[1, heads, queries, head_dim]`, of any floating-point
    /// type and with any strides. Called for each layer of a pass, first to last, with the new keys
    /// and values already in the cache; a pass that ends early calls it for the first layers only.
    ///
    /// # Errors
    /// Whatever the policy makes of it; the pass ends there.
    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor>;

    /// Forgets what it knows of the tokens from number `len` on, also those of which only some layers
    /// were seen. The default is right for a policy that keeps nothing of single tokens.
    ///
    /// # Errors
    /// Where that cannot be done; the policy is then as before, and so is the session.
    fn truncate(&mut self, len: usize) -> Result<()> {
        let _ = len;
        Ok(())
    }

    /// The same policy with the same state, for another sequence that begins with the same tokens. State
    /// on the device must be copied if it is written in place: tensors are handles.
    ///
    /// # Errors
    /// Those of the device.
    fn fork(&self) -> Result<Box<dyn AttentionPolicy>>;
}
