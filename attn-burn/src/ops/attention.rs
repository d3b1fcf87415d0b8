//! Dense attention.

use std::sync::Arc;

use attn_core::Error as CoreError;
use attn_core::dense::Config;
use attn_wgpu::attention::{self, Cotangents, Inputs, Saved, Targets};
use attn_wgpu::{DType, Gpu, Result, Tensor};

use super::{OnGpu, attention_outputs};
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// Dense attention with masks, soft-cap and modifiers, see [`attn_core::dense`] for its equations and
/// [`attn_wgpu::attention::Attention`] for what it takes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Attention {
    config: Arc<Config>,
    made: Arc<OnGpu<attention::Attention>>,
}

/// Output and log-sum-exp.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attended {
    /// `[batch, heads, queries, dim_v]`.
    pub out: burn::tensor::Tensor<4>,
    /// `[batch, heads, queries]`, f32.
    pub lse: burn::tensor::Tensor<3>,
}

impl Attention {
    /// Attention by `config`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if the configuration is not usable.
    pub fn new(config: Config) -> Result<Self> {
        config.validate()?;
        Ok(Attention { config: Arc::new(config), made: Arc::default() })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The output `[batch, heads, queries, dim_v]` for queries `[batch, heads, queries, dim_qk]`, keys
    /// `[batch, heads_kv, keys, dim_qk]` and values `[batch, heads_kv, keys, dim_v]`.
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

    /// [`Attention::forward`] with one more logit for each query head in the denominator, `[heads]`.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward_with_sinks(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
        sinks: burn::tensor::Tensor<1>,
    ) -> Result<burn::tensor::Tensor<4>> {
        self.run(false, apply::Inputs::new().float(q).float(k).float(v).float(sinks))?.float()
    }

    /// Output and log-sum-exp, both differentiable: parts of one long attention can be merged. f32.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward_with_lse(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
    ) -> Result<Attended> {
        let mut outputs = self.run(true, apply::Inputs::new().float(q).float(k).float(v))?;
        Ok(Attended { out: outputs.float()?, lse: outputs.float()? })
    }

    fn run(&self, lse: bool, inputs: apply::Inputs) -> Result<apply::Outputs> {
        apply(Dense { attention: self.clone(), lse }, inputs)
    }

    fn on(&self, gpu: &Gpu) -> Result<attention::Attention> {
        self.made.get(gpu, || attention::Attention::new(gpu, (*self.config).clone()))
    }
}

/// Inputs are queries, keys, values and perhaps sinks.
#[derive(Debug)]
struct Dense {
    attention: Attention,
    /// Whether the log-sum-exp has a cotangent.
    lse: bool,
}

fn tensors(inputs: &[Tensor]) -> Inputs<'_> {
    Inputs { q: &inputs[0], k: &inputs[1], v: &inputs[2], sinks: inputs.get(3) }
}

impl Operation for Dense {
    type Saved = ();

    fn name(&self) -> &'static str {
        "attention"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (shape, outputs) = attention_outputs(&inputs[0], &inputs[1], &inputs[2])?;
        if let Some(sinks) = inputs.get(3)
            && (sinks.shape != [shape.heads] || sinks.dtype != DType::F32)
        {
            let expected = format!("[{}] of f32", shape.heads);
            return Err(CoreError::shape("sinks", expected, &sinks.shape).into());
        }
        self.attention.config.mask.validate(shape.lengths())?;
        Ok(outputs.into())
    }

    fn differentiable(&self) -> usize {
        if self.lse { 2 } else { 1 }
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<()> {
        self.attention.on(gpu)?.forward_into(tensors(inputs), &outputs[0], Some(&outputs[1]))
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, ()>) -> Result<()> {
        let saved = Saved::new(tensors(pass.inputs), &pass.outputs[0], &pass.outputs[1]);
        let cotangents = Cotangents { out: &pass.cotangents[0], lse: pass.cotangents.get(1) };
        let [dq, dk, dv, d_sinks] = [0, 1, 2, 3].map(|input| pass.gradient(input));
        let targets = Targets { dq, dk, dv, d_sinks };
        self.attention.on(gpu)?.backward_into(&saved, cotangents, targets)
    }
}
