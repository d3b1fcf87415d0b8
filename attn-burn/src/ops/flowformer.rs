//! Flow-Attention.

use std::sync::Arc;

use attn_core::Error as CoreError;
use attn_flowformer::{self as flow, Config, Cotangents, Inputs, Saved, Targets};
use attn_wgpu::{Gpu, Result, Tensor};
use burn::tensor::Int;

use super::{OnGpu, attention_outputs, words};
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// Attention in linear time by conservation of flows, causal or not, see [`attn_flowformer`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Flowformer {
    config: Arc<Config>,
    made: Arc<OnGpu<flow::Flowformer>>,
}

impl Flowformer {
    /// Attention by `config`, which says whether it is causal and whether flows have a bound.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self> {
        config.validate()?;
        Ok(Flowformer { config: Arc::new(config), made: Arc::default() })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The output `[batch, heads, queries, dim_v]` for queries `[batch, heads, queries, dim_qk]`, keys
    /// `[batch, heads_kv, keys, dim_qk]` and values `[batch, heads_kv, keys, dim_v]`; the causal form has as
    /// many queries as keys.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply()`].
    pub fn forward(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
    ) -> Result<burn::tensor::Tensor<4>> {
        self.forward_valid(q, k, v, None, None)
    }

    /// The same with padding: `valid_q` `[batch, queries]` and `valid_k` `[batch, keys]` are 1 for a token and
    /// 0 for padding. The causal form takes both or none, and they are then equal.
    ///
    /// # Errors
    /// As [`Flowformer::forward`].
    pub fn forward_valid(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
        valid_q: Option<burn::tensor::Tensor<2, Int>>,
        valid_k: Option<burn::tensor::Tensor<2, Int>>,
    ) -> Result<burn::tensor::Tensor<4>> {
        let valid = [valid_q.is_some(), valid_k.is_some()];
        let inputs = apply::Inputs::new().float(q).float(k).float(v);
        let inputs = inputs.maybe_int(valid_q).maybe_int(valid_k);
        apply(Flow { layer: self.clone(), valid }, inputs)?.float()
    }

    fn on(&self, gpu: &Gpu) -> Result<flow::Flowformer> {
        self.made.get(gpu, || flow::Flowformer::new(gpu, (*self.config).clone()))
    }
}

/// Inputs are queries, keys, values, and which of their tokens count.
#[derive(Debug)]
struct Flow {
    layer: Flowformer,
    /// Whether it is given which queries count, and which keys.
    valid: [bool; 2],
}

impl Flow {
    /// Where the marks of queries, or of keys, are.
    fn valid(&self, side: usize) -> Option<usize> {
        let before = self.valid[..side].iter().filter(|given| **given).count();
        self.valid[side].then_some(3 + before)
    }

    fn with_inputs<T>(
        &self,
        inputs: &[Tensor],
        run: impl FnOnce(Inputs<'_>) -> Result<T>,
    ) -> Result<T> {
        let marks = |side| self.valid(side).map(|at| words(&inputs[at])).transpose();
        let (valid_q, valid_k) = (marks(0)?, marks(1)?);
        let mut given = Inputs::new(&inputs[0], &inputs[1], &inputs[2]);
        (given.valid_q, given.valid_k) = (valid_q.as_ref(), valid_k.as_ref());
        run(given)
    }
}

impl Operation for Flow {
    type Saved = Saved;

    fn name(&self) -> &'static str {
        "flow attention"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (shape, [out, _]) = attention_outputs(&inputs[0], &inputs[1], &inputs[2])?;
        let causal = self.layer.config.causal;
        if shape.dim_qk == 0 {
            let expected = "heads of at least 1 element";
            return Err(CoreError::shape("q", expected, &inputs[0].shape).into());
        }
        if causal && shape.queries != shape.keys {
            let expected = format!("{} tokens, as q: the causal form has no other", shape.queries);
            return Err(CoreError::shape("k", expected, &inputs[1].shape).into());
        }
        if causal && self.valid[0] != self.valid[1] {
            let expected = "valid_q and valid_k, or none, in the causal form";
            return Err(CoreError::config("valid_q, valid_k", expected, "one").into());
        }
        for (side, arg, tokens) in [(0, "valid_q", shape.queries), (1, "valid_k", shape.keys)] {
            let expected = [shape.batch, tokens];
            let given = self.valid(side).map(|at| &inputs[at].shape);
            if let Some(given) = given.filter(|given| **given != expected) {
                return Err(CoreError::shape(arg, format!("{expected:?}"), given).into());
            }
        }
        Ok(vec![out])
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Saved> {
        let layer = self.layer.on(gpu)?;
        let pass = |given: Inputs<'_>| layer.forward_saved_into(given, &outputs[0]);
        Ok(self.with_inputs(inputs, pass)?.1)
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Saved>) -> Result<()> {
        let given = Inputs::new(&pass.inputs[0], &pass.inputs[1], &pass.inputs[2]);
        let saved = pass.saved.clone().with_inputs(given)?.with_out(&pass.outputs[0])?;
        let [dq, dk, dv] = [0, 1, 2].map(|input| pass.gradient(input));
        let cotangents = Cotangents { out: &pass.cotangents[0] };
        self.layer.on(gpu)?.backward_into(&saved, cotangents, Targets { dq, dk, dv })
    }
}
