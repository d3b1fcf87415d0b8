//! Attention of the Routing Transformer.

use std::sync::Arc;

use attn_routing::{
    self as routing, Commitment, Config, Cotangents, Saved, Targets, Uninitialised,
};
use attn_wgpu::attention::Inputs;
use attn_wgpu::matmul::matmul;
use attn_wgpu::ops::{add_into, copy};
use attn_wgpu::{DType, Gpu, Result, Tensor};
use burn::tensor::Int;

use super::{OnGpu, attention_outputs, words};
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// Tokens attend within the clusters that centroids make, see [`attn_routing`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Routing {
    config: Arc<Config>,
    made: Arc<OnGpu<routing::Routing>>,
}

/// Centroids and the moving averages that they are made of.
#[derive(Debug, Clone)]
pub struct Centroids {
    /// `[heads, clusters, dim]`.
    pub means: burn::tensor::Tensor<3>,
    /// Moving sums of tokens, `[heads, clusters, dim]`.
    pub sums: burn::tensor::Tensor<3>,
    /// Moving numbers of tokens, `[heads, clusters]`.
    pub counts: burn::tensor::Tensor<2>,
}

/// What a step of training computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Trained {
    /// `[batch, heads, tokens, dim_v]`.
    pub out: burn::tensor::Tensor<4>,
    /// The commitment loss, `[1]`, its factor included: to be added to the model's loss.
    pub commitment: burn::tensor::Tensor<1>,
    /// The centroids after the step; no gradients go through them.
    pub centroids: Centroids,
}

impl Routing {
    /// The layer with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(config: Config) -> Result<Self> {
        config.validate()?;
        Ok(Routing { config: Arc::new(config), made: Arc::default() })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The output `[batch, heads, tokens, dim_v]`, all routes fixed for the gradients. Queries and keys are
    /// `[batch, heads, tokens, dim]`, and keys are not looked at where the configuration shares them;
    /// `valid`, `[batch, tokens]`, is 1 for a token and 0 for padding.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply()`].
    pub fn forward(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
        valid: Option<burn::tensor::Tensor<2, Int>>,
        means: burn::tensor::Tensor<3>,
    ) -> Result<burn::tensor::Tensor<4>> {
        let op = Routed { layer: self.clone(), train: false };
        let inputs = self.inputs(q, k, v).float(means.detach());
        apply(op, inputs.maybe_int(valid))?.float()
    }

    /// The same with the commitment loss and the next centroids.
    ///
    /// # Errors
    /// As [`Routing::forward`].
    pub fn train(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
        valid: Option<burn::tensor::Tensor<2, Int>>,
        centroids: &Centroids,
    ) -> Result<Trained> {
        let op = Routed { layer: self.clone(), train: true };
        let Centroids { means, sums, counts } = centroids.clone();
        let inputs = self.inputs(q, k, v).float(means.detach());
        let inputs = inputs.float(sums.detach()).float(counts.detach());
        let mut outputs = apply(op, inputs.maybe_int(valid))?;
        Ok(Trained {
            out: outputs.float()?,
            commitment: outputs.float()?,
            centroids: Centroids {
                means: outputs.float()?,
                sums: outputs.float()?,
                counts: outputs.float()?,
            },
        })
    }

    /// Keys only where they are not the queries.
    fn inputs(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
    ) -> apply::Inputs {
        let inputs = apply::Inputs::new().float(q);
        if self.config.shared_qk { inputs.float(v) } else { inputs.float(k).float(v) }
    }
}

/// Inputs are queries, keys unless these are the queries, values, and means; in training sums and counts;
/// then perhaps `valid`. Outputs are the output; in training the commitment loss, means, sums and counts.
#[derive(Debug)]
struct Routed {
    layer: Routing,
    train: bool,
}

/// What the backward pass needs.
struct Left {
    saved: Saved,
    commitment: Option<Commitment>,
}

impl Routed {
    fn on(&self, gpu: &Gpu) -> Result<routing::Routing> {
        let make = || routing::Routing::new(gpu, (*self.layer.config).clone());
        self.layer.made.get(gpu, make)
    }

    /// Where keys are among the inputs.
    fn k(&self) -> usize {
        if self.layer.config.shared_qk { 0 } else { 1 }
    }

    /// Where means are.
    fn means(&self) -> usize {
        self.k() + 2
    }

    /// Where `valid` is, if it is given.
    fn valid(&self) -> usize {
        self.means() + if self.train { 3 } else { 1 }
    }

    fn tensors<'a>(&self, inputs: &'a [Tensor]) -> Inputs<'a> {
        Inputs::new(&inputs[0], &inputs[self.k()], &inputs[self.k() + 1])
    }
}

impl Operation for Routed {
    type Saved = Left;

    fn name(&self) -> &'static str {
        "routing attention"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (k, at) = (&inputs[self.k()], self.means());
        let (shape, [out, _]) = attention_outputs(&inputs[0], k, &inputs[self.k() + 1])?;
        let check = |arg, index: usize, expected: &[usize]| -> Result<()> {
            match inputs.get(index) {
                Some(given) if given.shape != expected => {
                    let expected = format!("{expected:?}");
                    Err(attn_core::Error::shape(arg, expected, &given.shape).into())
                }
                _ => Ok(()),
            }
        };
        if shape.queries != shape.keys {
            let expected = format!("{} tokens, as q", shape.queries);
            return Err(attn_core::Error::shape("k", expected, &k.shape).into());
        }
        let means = [shape.heads, self.layer.config.clusters, shape.dim_qk];
        check("means", at, &means)?;
        check("valid", self.valid(), &[shape.batch, shape.queries])?;
        if !self.train {
            return Ok(vec![out]);
        }
        check("sums", at + 1, &means)?;
        check("counts", at + 2, &means[..2])?;
        let of = |shape: &[usize]| Spec::new(shape, DType::F32);
        Ok(vec![out, of(&[1]), of(&means), of(&means), of(&means[..2])])
    }

    fn differentiable(&self) -> usize {
        if self.train { 2 } else { 1 }
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<Left> {
        let layer = self.on(gpu)?;
        let (tensors, at) = (self.tensors(inputs), self.means());
        let (means, clusters) = (&inputs[at], self.layer.config.clusters);
        let (heads, dim) = (inputs[0].shape()[1], inputs[0].shape()[3]);
        let mut centroids = Uninitialised::new(heads, clusters, dim).with_means(means)?;
        if self.train {
            centroids = centroids.with_averages(&inputs[at + 1], &inputs[at + 2])?;
        }
        let valid = inputs.get(self.valid()).map(words).transpose()?;
        let (output, saved) =
            layer.forward_saved_into(tensors, valid.as_ref(), &centroids, &outputs[0])?;
        if !self.train {
            return Ok(Left { saved, commitment: None });
        }
        let commitment = layer.commitment_loss(tensors, &output.routes, &centroids)?;
        let next = layer.update(tensors, &output.routes, &centroids)?;
        copy(&commitment.loss, &outputs[1])?;
        copy(&next.means, &outputs[2])?;
        copy(&next.sums, &outputs[3])?;
        copy(&next.counts, &outputs[4])?;
        Ok(Left { saved, commitment: Some(commitment) })
    }

    fn backward(&self, gpu: &Gpu, pass: Backward<'_, Left>) -> Result<()> {
        let layer = self.on(gpu)?;
        let saved = pass.saved.saved.clone().with_inputs(self.tensors(pass.inputs))?;
        let cotangents = Cotangents { out: &pass.cotangents[0] };
        // Centroids come detached. Shared keys are no input of their own, and have a gradient of 0.
        let (dq, dv) = (pass.gradient(0), pass.gradient(self.k() + 1));
        let dk = pass.gradient(1).filter(|_| self.k() > 0);
        let Some(commitment) = &pass.saved.commitment else {
            return layer.backward_into(&saved, cotangents, Targets { dq, dk, dv });
        };
        // What the loss adds is added where the sums belong.
        let part = |target: Option<&Tensor>| match target {
            Some(target) => Tensor::uninit(gpu, target.shape(), target.dtype()).map(Some),
            None => Ok(None),
        };
        let (own_q, own_k) = (part(dq)?, part(dk)?);
        let targets = Targets { dq: own_q.as_ref(), dk: own_k.as_ref(), dv };
        layer.backward_into(&saved, cotangents, targets)?;
        for (own, of_loss, target) in [(own_q, &commitment.dq, dq), (own_k, &commitment.dk, dk)] {
            if let (Some(own), Some(target)) = (own, target) {
                add_into(&own, &times(of_loss, &pass.cotangents[1])?, target)?;
            }
        }
        Ok(())
    }
}

/// `x` times a number that is on the device: a product of matrices with one term an element.
fn times(x: &Tensor, by: &Tensor) -> Result<Tensor> {
    let flat = x.contiguous()?.reshape(&[x.len(), 1])?;
    matmul(&flat, &by.contiguous()?.reshape(&[1, 1])?)?.reshape(x.shape())
}
