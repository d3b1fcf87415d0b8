//! Softmax attention of one query over every prefix.

use std::sync::Arc;

use attn_aaren::{self as aaren, Config, Cotangents, Inputs, Saved, Targets};
use attn_core::{AttentionShape, Error as CoreError};
use attn_wgpu::{Gpu, Result, Tensor};
use burn::tensor::Int;

use super::{OnGpu, words};
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// Softmax attention of a query that does not depend on the tokens, over the tokens up to each one, see
/// [`attn_aaren`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Aaren {
    config: Arc<Config>,
    made: Arc<OnGpu<aaren::Aaren>>,
}

impl Aaren {
    /// Attention by `config`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self> {
        config.validate()?;
        Ok(Aaren { config: Arc::new(config), made: Arc::default() })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Outputs of all prefixes `[batch, heads, tokens, dim_v]` for queries `[heads, dim_qk]`, or
    /// `[batch, heads, dim_qk]` where each batch entry has its own, keys `[batch, heads_kv, tokens, dim_qk]`
    /// and values `[batch, heads_kv, tokens, dim_v]`.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply()`].
    pub fn forward<const D: usize>(
        &self,
        q: burn::tensor::Tensor<D>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
    ) -> Result<burn::tensor::Tensor<4>> {
        self.forward_valid(q, k, v, None)
    }

    /// The same with tokens that do not count: `valid` `[batch, tokens]` is 1 for a token that does and 0 for
    /// one that does not. The output is 0 where no token counts yet.
    ///
    /// # Errors
    /// As [`Aaren::forward`].
    pub fn forward_valid<const D: usize>(
        &self,
        q: burn::tensor::Tensor<D>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
        valid: Option<burn::tensor::Tensor<2, Int>>,
    ) -> Result<burn::tensor::Tensor<4>> {
        let inputs = apply::Inputs::new().float(q).float(k).float(v).maybe_int(valid);
        apply(Prefixes(self.clone()), inputs)?.float()
    }

    fn on(&self, gpu: &Gpu) -> Result<aaren::Aaren> {
        self.made.get(gpu, || aaren::Aaren::new(gpu, (*self.config).clone()))
    }
}

/// Inputs are queries, keys, values, and perhaps which tokens count.
#[derive(Debug)]
struct Prefixes(Aaren);

fn tensors<'a>(inputs: &'a [Tensor], valid: Option<&'a Tensor>) -> Inputs<'a> {
    Inputs { valid, ..Inputs::new(&inputs[0], &inputs[1], &inputs[2]) }
}

fn marks(inputs: &[Tensor]) -> Result<Option<Tensor>> {
    inputs.get(3).map(words).transpose()
}

impl Operation for Prefixes {
    type Saved = Saved;

    fn name(&self) -> &'static str {
        "aaren"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]];
        for (arg, spec) in [("q", q), ("k", k), ("v", v)] {
            if !spec.is_float() {
                let (expected, got) = ("f32, f16 or bf16".into(), spec.dtype.name().into());
                return Err(CoreError::Dtype { arg, expected, got }.into());
            }
        }
        let &[batch, _, tokens, _] = k.shape.as_slice() else {
            let expected = "[batch, heads_kv, tokens, dim_qk]";
            return Err(CoreError::shape("k", expected, &k.shape).into());
        };
        let (heads, dim) = match *q.shape.as_slice() {
            [heads, dim] => (heads, dim),
            [entries, heads, dim] if entries == batch => (heads, dim),
            _ => {
                let expected = format!("[heads, dim_qk] or [{batch}, heads, dim_qk]");
                return Err(CoreError::shape("q", expected, &q.shape).into());
            }
        };
        let shape = AttentionShape::from_shapes(&[batch, heads, tokens, dim], &k.shape, &v.shape)?;
        if let Some(valid) = inputs.get(3).filter(|valid| valid.shape != [batch, tokens]) {
            let expected = format!("[{batch}, {tokens}]");
            return Err(CoreError::shape("valid", expected, &valid.shape).into());
        }
        Ok(vec![Spec::new(shape.out(), v.dtype)])
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Saved> {
        let valid = marks(inputs)?;
        let given = tensors(inputs, valid.as_ref());
        Ok(self.0.on(gpu)?.forward_saved_into(given, &outputs[0])?.1)
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Saved>) -> Result<()> {
        let valid = marks(pass.inputs)?;
        let saved = pass.saved.clone().with_inputs(tensors(pass.inputs, valid.as_ref()))?;
        let saved = saved.with_out(&pass.outputs[0])?;
        let [dq, dk, dv] = [0, 1, 2].map(|input| pass.gradient(input));
        let cotangents = Cotangents::new(&pass.cotangents[0]);
        self.0.on(gpu)?.backward_into(&saved, cotangents, Targets { dq, dk, dv })?;
        Ok(())
    }
}
