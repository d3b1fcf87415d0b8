//! Linear attention with decay, of TransNormerLLM.

use std::sync::Arc;

use attn_core::Error as CoreError;
use attn_lightning::Config;
use attn_wgpu::linear_attention::{Cotangents, Inputs, LinearAttention, MAX_BLOCK, Saved, Targets};
use attn_wgpu::{DType, Gpu, Result, Tensor};

use super::{OnGpu, attention_outputs};
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// Causal linear attention in which a head forgets at a fixed rate, see [`attn_lightning`]:
/// `o_t = sum_{i <= t} exp(-s (t - i)) (q_t . k_i) v_i`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lightning {
    config: Arc<Config>,
    slopes: Arc<[f64]>,
    made: Arc<OnGpu<LinearAttention>>,
}

/// Output, and the state from which later tokens go on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Continued {
    /// `[batch, heads, tokens, dim_v]`.
    pub out: burn::tensor::Tensor<4>,
    /// Behind the last token, `[batch, heads, dim_qk, dim_v]`.
    pub kv: burn::tensor::Tensor<4>,
}

impl Lightning {
    /// Attention with the decays of `config`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self> {
        let slopes = config.head_slopes()?.into();
        Ok(Lightning { config: Arc::new(config), slopes, made: Arc::default() })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The output `[batch, heads, tokens, dim_v]` for queries `[batch, heads, tokens, dim_qk]`, keys
    /// `[batch, heads_kv, tokens, dim_qk]` and values `[batch, heads_kv, tokens, dim_v]`. Products are not
    /// scaled.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply()`].
    pub fn forward(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
    ) -> Result<burn::tensor::Tensor<4>> {
        self.run(false, apply::Inputs::new().float(q).float(k).float(v))?.float()
    }

    /// The same behind the state `[batch, heads, dim_qk, dim_v]` that earlier tokens left, or from the start,
    /// with the state behind the last token. All of them are differentiable. f32.
    ///
    /// # Errors
    /// As [`Lightning::forward`].
    pub fn forward_with_state(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
        kv: Option<burn::tensor::Tensor<4>>,
    ) -> Result<Continued> {
        let inputs = apply::Inputs::new().float(q).float(k).float(v);
        let inputs = match kv {
            Some(kv) => inputs.float(kv),
            None => inputs,
        };
        let mut outputs = self.run(true, inputs)?;
        Ok(Continued { out: outputs.float()?, kv: outputs.float()? })
    }

    fn run(&self, state: bool, inputs: apply::Inputs) -> Result<apply::Outputs> {
        apply(Decayed { layer: self.clone(), state }, inputs)
    }

    fn on(&self, gpu: &Gpu) -> Result<LinearAttention> {
        self.made.get(gpu, || {
            LinearAttention::new(gpu, &self.slopes)?.with_block(self.config.block.min(MAX_BLOCK))
        })
    }
}

/// Inputs are queries, keys, values and perhaps a state.
#[derive(Debug)]
struct Decayed {
    layer: Lightning,
    /// Whether the last state has a cotangent.
    state: bool,
}

fn tensors(inputs: &[Tensor]) -> Inputs<'_> {
    Inputs { q: &inputs[0], k: &inputs[1], v: &inputs[2], kv: inputs.get(3) }
}

impl Operation for Decayed {
    type Saved = Saved;

    fn name(&self) -> &'static str {
        "lightning attention"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (shape, [out, _]) = attention_outputs(&inputs[0], &inputs[1], &inputs[2])?;
        let slopes = self.layer.slopes.len();
        if shape.heads != slopes {
            let expected = format!("{slopes} heads, one for each slope");
            return Err(CoreError::shape("q", expected, &inputs[0].shape).into());
        }
        if shape.keys != shape.queries {
            let expected = format!("{} tokens, as q", shape.queries);
            return Err(CoreError::shape("k", expected, &inputs[1].shape).into());
        }
        let kv = Spec::new([shape.batch, shape.heads, shape.dim_qk, shape.dim_v], DType::F32);
        match inputs.get(3) {
            Some(given) if *given != kv => {
                let expected = format!("{:?} of f32", kv.shape);
                Err(CoreError::shape("kv", expected, &given.shape).into())
            }
            _ => Ok(vec![out, kv]),
        }
    }

    fn differentiable(&self) -> usize {
        if self.state { 2 } else { 1 }
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Saved> {
        self.layer.on(gpu)?.forward_saved_into(tensors(inputs), &outputs[0], &outputs[1])
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Saved>) -> Result<()> {
        let saved = pass.saved.with_inputs(tensors(pass.inputs))?;
        let cotangents = Cotangents { out: &pass.cotangents[0], kv: pass.cotangents.get(1) };
        let [dq, dk, dv, d_kv] = [0, 1, 2, 3].map(|input| pass.gradient(input));
        let targets = Targets { dq, dk, dv, d_kv };
        self.layer.on(gpu)?.backward_into(&saved, cotangents, targets)
    }
}
