//! The memory with its projections, convolutions and gates.

use attn_titans::LayerConfig;
use attn_wgpu::Result;
use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::{Device, Tensor};

use super::super::{linear, split};
use crate::ops::{self, MemoryInputs};

/// Logits of momentum and of what is forgotten, before anything is learned.
const BIAS_ETA: f64 = -2.0;
const BIAS_ALPHA: f64 = -4.0;

/// Queries and keys `l2(silu(conv(x W)))` by heads, values `silu(conv(x W))`, steps
/// `theta_max sigmoid(x g + b)`, momentum and forgetting `sigmoid(x g + b)`, and the memory that reads them.
#[derive(Module, Debug)]
pub struct TitansMemory {
    /// `d_model` to `heads * dim_qk`.
    pub w_q: Linear,
    /// `d_model` to `heads * dim_qk`.
    pub w_k: Linear,
    /// `d_model` to `heads * dim_v`.
    pub w_v: Linear,
    /// Kernel of the causal convolution of every feature of queries, `[kernel, features]`; row 0 is the
    /// token's own.
    pub conv_q: Option<Param<Tensor<2>>>,
    /// The same of keys.
    pub conv_k: Option<Param<Tensor<2>>>,
    /// The same of values.
    pub conv_v: Option<Param<Tensor<2>>>,
    /// `d_model` to a step of every head.
    pub g_theta: Linear,
    /// `d_model` to the momentum of every head.
    pub g_eta: Linear,
    /// `d_model` to what every head forgets.
    pub g_alpha: Linear,
    /// First layer of the memories before the first token, `[heads, in, out]`.
    pub m_w0: Param<Tensor<3>>,
    /// Their second layer, at depth 2.
    pub m_w1: Option<Param<Tensor<3>>>,
    theta_max: f64,
    l2_epsilon: f64,
    #[module(skip)]
    memory: ops::Titans,
}

impl TitansMemory {
    pub(super) fn new(
        d_model: usize,
        kernel: usize,
        config: &LayerConfig,
        device: &Device,
    ) -> Result<Self> {
        let memory = &config.memory;
        let heads = memory.heads;
        let (keys, values) = (heads * memory.dim_qk, heads * memory.dim_v);
        let kernels = |features: usize| {
            let bound = (kernel.max(1) as f64).recip().sqrt();
            let initializer = Initializer::Uniform { min: -bound, max: bound };
            (kernel > 0).then(|| initializer.init([kernel, features], device))
        };
        let gate = |bias: f64| {
            let mut gate = linear(d_model, heads, true, device);
            gate.bias = Some(Initializer::Constant { value: bias }.init([heads], device));
            gate
        };
        let mut layers = memory.layers().into_iter().map(|[rows, columns]| {
            let initializer = Initializer::Normal { mean: 0.0, std: (rows as f64).recip().sqrt() };
            initializer.init([heads, rows, columns], device)
        });
        let first = || Initializer::Zeros.init([heads, memory.dim_qk, memory.dim_v], device);
        Ok(TitansMemory {
            w_q: linear(d_model, keys, false, device),
            w_k: linear(d_model, keys, false, device),
            w_v: linear(d_model, values, false, device),
            conv_q: kernels(keys),
            conv_k: kernels(keys),
            conv_v: kernels(values),
            g_theta: gate(0.0),
            g_eta: gate(BIAS_ETA),
            g_alpha: gate(BIAS_ALPHA),
            m_w0: layers.next().unwrap_or_else(first),
            m_w1: layers.next(),
            theta_max: config.theta_max,
            l2_epsilon: config.l2_epsilon,
            memory: ops::Titans::new(memory.clone())?,
        })
    }

    /// The operation.
    pub fn memory(&self) -> &ops::Titans {
        &self.memory
    }

    /// The learned memories for each of `batch` sequences.
    ///
    /// # Errors
    /// As [`ops::Titans::first_state`].
    pub fn first_state(&self, batch: usize) -> Result<Tensor<3>> {
        let layers = [Some(&self.m_w0), self.m_w1.as_ref()];
        let learned: Vec<_> = layers.into_iter().flatten().map(|layer| layer.val()).collect();
        self.memory.first_state(&learned, batch)
    }

    /// Queries `[batch, heads, tokens - skip, dim_qk]` of tokens `[batch, tokens, d_model]`, of which the first
    /// `skip` are there for convolutions alone.
    pub fn queries(&self, x: &Tensor<3>, skip: usize) -> Tensor<4> {
        self.normed(self.side(x, skip, &self.w_q, self.conv_q.as_ref()))
    }

    /// All that the memory reads, of the same tokens.
    pub fn inputs(&self, x: &Tensor<3>, skip: usize) -> MemoryInputs {
        let own = behind(x.clone(), skip);
        let gate = |by: &Linear| sigmoid(by.forward(own.clone())).swap_dims(1, 2);
        MemoryInputs {
            q: self.queries(x, skip),
            k: self.normed(self.side(x, skip, &self.w_k, self.conv_k.as_ref())),
            v: self.side(x, skip, &self.w_v, self.conv_v.as_ref()),
            theta: gate(&self.g_theta) * self.theta_max,
            eta: gate(&self.g_eta),
            alpha: gate(&self.g_alpha),
        }
    }

    /// Tokens that a convolution reaches, its own included.
    pub(super) fn kernel(&self) -> usize {
        self.conv_q.as_ref().map_or(1, |kernel| kernel.dims()[0])
    }

    fn side(
        &self,
        x: &Tensor<3>,
        skip: usize,
        by: &Linear,
        kernel: Option<&Param<Tensor<2>>>,
    ) -> Tensor<4> {
        let projected = by.forward(x.clone());
        let convolved = match kernel {
            Some(kernel) => convolved(projected, kernel.val()),
            None => projected,
        };
        split(silu(behind(convolved, skip)), self.memory.config().heads)
    }

    fn normed(&self, x: Tensor<4>) -> Tensor<4> {
        let squared = x.clone().square().sum_dim(3);
        x / (squared + self.l2_epsilon).sqrt()
    }
}

/// `y_t = sum_j w[j] x_(t-j)` of every feature on its own, with zeros before the first token.
fn convolved(x: Tensor<3>, w: Tensor<2>) -> Tensor<3> {
    let [batch, tokens, features] = x.dims();
    let before = w.dims()[0] - 1;
    let zeros = Tensor::zeros([batch, before, features], &x.device());
    let rows = if before > 0 { Tensor::cat(vec![zeros, x], 1) } else { x };
    let tap = |j: usize| {
        let weights = w.clone().narrow(0, j, 1).unsqueeze::<3>();
        rows.clone().narrow(1, before - j, tokens) * weights
    };
    (1..=before).fold(tap(0), |sum, j| sum + tap(j))
}

fn behind(x: Tensor<3>, skip: usize) -> Tensor<3> {
    if skip == 0 {
        return x;
    }
    let tokens = x.dims()[1] - skip;
    x.narrow(1, skip, tokens)
}
