//! FlexPrefill as the attention of a language model (feature `model`).
//!
//! ```no_run
//! use attn_flexprefill::Config;
//! use attn_flexprefill::policy::FlexPrefillPolicy;
//! use attn_model::{Model, Options, Source};
//!
//! # fn main() -> Result<(), attn_model::Error> {
//! # let tokens = [0; 4096];
//! let source = Source::open(std::path::Path::new("model"))?;
//! let model = Model::from_source(&attn_wgpu::Gpu::new()?, &source, Options::default(), &mut |_, _| ())?;
//! let policy = FlexPrefillPolicy::new(Config::new().with_gamma(0.9));
//! let mut session = model.session_with(4096, policy)?;
//! session.forward(&tokens)?;
//! for pass in session.policy_as::<FlexPrefillPolicy>().iter().flat_map(|policy| policy.passes()) {
//!     println!("layer {}, tokens {:?}: {:?}", pass.layer, pass.tokens, pass.heads()?);
//! }
//! # Ok(())
//! # }
//! ```

use std::ops::Range;

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_model::policy::{Layer, ModelShape, Phase};
use attn_model::{AttentionPolicy, Result};
use attn_wgpu::attention::Inputs;
use attn_wgpu::{DType, Tensor, ops};

use crate::{Config, FlexPrefill, Head, Selection};

/// The prompt's attention by [`FlexPrefill`], with the scale and the soft-cap of the model. Keys are
/// cached rotated.
///
/// The model's own attention remains for
///
/// * tokens that the model continues with: the method is dense there;
/// * layers with a window;
/// * prompts and parts of prompts that [`Config::is_dense`] names: few keys, or not more queries than a
///   block.
///
/// A prompt in parts is another computation than the whole prompt, as each part selects by its own last
/// queries; only where everything is selected are they equal. The same parts give the same bits.
///
/// Selection takes the model's factor of `q.k`, and not its soft-cap.
#[derive(Debug, Clone)]
pub struct FlexPrefillPolicy {
    config: Config,
    running: Option<Running>,
    passes: Vec<LayerPass>,
}

/// What a session's model decides.
#[derive(Debug, Clone)]
struct Running {
    method: FlexPrefill,
    /// From the factor of `q.k` that selection takes to the model's.
    factor: f32,
}

/// One layer in one pass over a part of a prompt.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LayerPass {
    /// Number of the layer, the first of which is 0.
    pub layer: usize,
    /// The tokens of the pass, counted from the beginning of the sequence.
    pub tokens: Range<usize>,
    /// What was selected; `None` where the model's own attention ran.
    pub selection: Option<Selection>,
}

/// What a pass did in one head.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct HeadPass {
    /// Pattern and numbers of lines.
    pub head: Head,
    /// Share of the pairs of a query and a key up to its own that were computed.
    pub density: f64,
}

impl LayerPass {
    /// Of each query head; empty where the model's own attention ran. Waits for the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn heads(&self) -> Result<Vec<HeadPass>> {
        let Some(selection) = &self.selection else { return Ok(Vec::new()) };
        let heads = selection.heads.as_ref().map(|heads| heads.read()).transpose()?;
        let pairs = heads.into_iter().flatten().zip(selection.densities()?);
        Ok(pairs.map(|(head, density)| HeadPass { head, density }).collect())
    }
}

impl FlexPrefillPolicy {
    /// A policy with these parameters. They are checked when a session begins, which also refuses a
    /// [`Config::scale`]: that is the model's.
    pub fn new(config: Config) -> FlexPrefillPolicy {
        FlexPrefillPolicy { config, running: None, passes: Vec::new() }
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What was done in each layer of every pass over a part of the prompt, in the order in which they ran.
    /// Holds on to the selected blocks on the device, one bit for each pair of blocks of a head. Passes of
    /// which tokens were forgotten ([`AttentionPolicy::truncate`]) are gone.
    ///
    /// How long it took, [`Gpu::profile`](attn_wgpu::Gpu::profile) tells.
    pub fn passes(&self) -> &[LayerPass] {
        &self.passes
    }
}

impl Running {
    fn attend(&self, layer: &Layer<'_>) -> Result<(Tensor, Selection)> {
        let (q, k, v) = (layer.rotated_q()?, layer.rotated_keys()?, layer.values()?);
        let selection = match self.factor {
            1.0 => self.method.select(&q, &k)?,
            factor => {
                let scaled = ops::scale(&ops::convert(&q, DType::F32)?, factor)?;
                self.method.select(&scaled, &k)?
            }
        };
        let out = layer.output()?;
        self.method.attend_into(Inputs::new(&q, &k, &v), &selection, &out, None)?;
        Ok((out, selection))
    }
}

impl AttentionPolicy for FlexPrefillPolicy {
    fn begin(&mut self, shape: &ModelShape) -> Result<()> {
        let mut attention = Dense::new().with_mask(Mask::Causal).with_scale(shape.scale);
        if let Some(cap) = shape.soft_cap {
            attention = attention.with_soft_cap(cap);
        }
        let method = FlexPrefill::with_attention(&shape.gpu, self.config.clone(), attention)?;
        let factor = (shape.scale * (shape.head_dim as f64).sqrt()) as f32;
        self.running = Some(Running { method, factor });
        self.passes.clear();
        Ok(())
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        if layer.phase() != Phase::Prefill {
            return layer.dense();
        }
        let Some(running) = &self.running else {
            let got = "one that no session has begun with";
            return Err(attn_core::Error::config("policy", "one of a session", got).into());
        };
        let (queries, keys) = (layer.query_positions().len(), layer.positions().len());
        let is_dense = *layer.mask() != Mask::Causal || self.config.is_dense(queries, keys);
        let (out, selection) = match is_dense {
            true => (layer.dense()?, None),
            false => running.attend(layer).map(|(out, selection)| (out, Some(selection)))?,
        };
        let tokens = keys - queries..keys;
        self.passes.push(LayerPass { layer: layer.index(), tokens, selection });
        Ok(out)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.passes.retain(|pass| pass.tokens.end <= len);
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}
