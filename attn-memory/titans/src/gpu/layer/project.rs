//! What the memory is given of tokens: `l2(silu(conv(x W^T)))` for queries and keys, the same without l2 for
//! values, and gates.

use attn_wgpu::matmul::{Epilogue, matmul_into, matmul_with};
use attn_wgpu::norm::{RmsNorm, rms_norm};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use ndarray::{Array1, Array2, Axis, concatenate};

use super::parts::{heads, opened, owned, upload};
use crate::gpu::Inputs;
use crate::gpu::kernels::{CONV, Run};
use crate::reference::layer::Weights;
use crate::{Activation, LayerConfig};

/// What one call of the memory reads.
pub(super) struct Given {
    rows: [Tensor; 3],
    gates: [Tensor; 3],
}

impl Given {
    pub(super) fn inputs(&self) -> Inputs<'_> {
        let ([q, k, v], [theta, eta, alpha]) = (&self.rows, &self.gates);
        Inputs { q, k, v, theta, eta, alpha }
    }

    pub(super) fn queries(&self) -> &Tensor {
        &self.rows[0]
    }
}

/// Projections, convolutions and gates of a memory.
#[derive(Debug, Clone)]
pub(super) struct Project {
    /// Heads and elements of queries and keys, and of values.
    qk: [usize; 2],
    v: [usize; 2],
    /// Of queries, keys and values below each other `[features, d_model]`.
    w: Tensor,
    /// `[kernel, features]`; a single row of ones where there is no convolution.
    conv: Tensor,
    /// Step, momentum and forgetting below each other `[3 heads, d_model]`.
    gates: Tensor,
    /// Their biases, and what their sigmoids are multiplied by, `[3 heads]`.
    biases: Tensor,
    bounds: Tensor,
    /// Gain and epsilon with which a norm by the mean square is one by the sum of squares.
    gain: Tensor,
    epsilon: f32,
}

impl Project {
    pub(super) fn new(gpu: &Gpu, weights: &Weights, config: &LayerConfig) -> Result<Self> {
        let memory = &config.memory;
        let (qk, v) = ([memory.heads, memory.dim_qk], [memory.heads, memory.dim_v]);
        let features = weights.projections.iter().map(Array2::nrows).sum();
        let conv = match &weights.conv {
            Some(kernels) => beside(Axis(1), kernels.each_ref())?,
            None => Array2::ones((1, features)),
        };
        let gates = weights.gates.each_ref();
        let biases: Array1<f64> = gates.iter().flat_map(|gate| gate.b.iter().copied()).collect();
        let bounds = Array1::from_shape_fn(3 * memory.heads, |i| {
            if i < memory.heads { config.theta_max } else { 1.0 }
        });
        let dim = memory.dim_qk as f64;
        Ok(Project {
            qk,
            v,
            w: upload(gpu, &beside(Axis(0), weights.projections.each_ref())?)?,
            conv: upload(gpu, &conv)?,
            gates: upload(gpu, &beside(Axis(0), gates.map(|gate| &gate.g))?)?,
            biases: upload(gpu, &biases)?,
            bounds: upload(gpu, &bounds)?,
            gain: upload(gpu, &Array1::from_elem(memory.dim_qk, dim.sqrt().recip()))?,
            epsilon: (config.l2_epsilon / dim) as f32,
        })
    }

    /// Columns of queries, and of all.
    fn columns(&self) -> [usize; 2] {
        let queries = self.qk[0] * self.qk[1];
        [queries, 2 * queries + self.v[0] * self.v[1]]
    }

    /// Shapes of the rows that the next call's convolutions reach: of queries alone, and of all.
    pub(super) fn tails(&self, batch: usize) -> [[usize; 3]; 2] {
        self.columns().map(|columns| [batch, self.conv.shape()[0] - 1, columns])
    }

    /// What the memory reads of `x` `[batch, tokens, d_model]`; the tail moves behind it.
    pub(super) fn all(&self, x: &Tensor, tail: &mut Tensor) -> Result<Given> {
        let active = self.convolved(x, tail)?;
        let [queries, all] = self.columns();
        let q = self.normed(&heads(&active, 0, self.qk)?)?;
        let k = self.normed(&heads(&active, queries, self.qk)?)?;
        let v = heads(&active, 2 * queries, self.v)?;
        debug_assert_eq!(active.shape()[2], all);
        let bias = Epilogue::new().with_bias(&self.biases);
        let logits = matmul_with(x, &self.gates.permute(&[1, 0])?, &bias)?;
        let gates = opened(&self.bounds, &logits)?;
        let gate = |i: usize| gates.narrow(2, i * self.v[0], self.v[0])?.permute(&[0, 2, 1]);
        Ok(Given { rows: [q, k, v], gates: [gate(0)?, gate(1)?, gate(2)?] })
    }

    /// The same of queries alone.
    pub(super) fn queries(&self, x: &Tensor, tail: &mut Tensor) -> Result<Tensor> {
        self.normed(&heads(&self.convolved(x, tail)?, 0, self.qk)?)
    }

    /// `silu(conv(x W^T))` of as many columns as the tail has.
    fn convolved(&self, x: &Tensor, tail: &mut Tensor) -> Result<Tensor> {
        let gpu = x.gpu();
        let (batch, tokens) = (x.shape()[0], x.shape()[1]);
        let (before, columns) = (tail.shape()[1], tail.shape()[2]);
        let rows = Tensor::uninit(gpu, &[batch, before + tokens, columns], DType::F32)?;
        ops::copy(tail, &rows.narrow(1, 0, before)?)?;
        let w = self.w.narrow(0, 0, columns)?.permute(&[1, 0])?;
        matmul_into(x, &w, &Epilogue::new(), &rows.narrow(1, before, tokens)?)?;
        let out = Tensor::uninit(gpu, &[batch, tokens, columns], DType::F32)?;
        let &[kernel, stride] = self.conv.shape() else { return Ok(out) };
        let run = Run {
            source: &CONV,
            activation: Some(Activation::Silu),
            tensors: &[&rows, &self.conv, &out],
            count: out.len(),
            params: &[tokens, columns, kernel, stride].map(|number| number as u32),
            steps: kernel,
            work: 2 * kernel + 16,
        };
        run.record(gpu)?;
        *tail = owned(&rows.narrow(1, tokens, before)?)?;
        Ok(out)
    }

    /// Rows divided by their Euclidean norms.
    fn normed(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.gain, &RmsNorm::new(self.epsilon))
    }
}

/// Matrices behind each other along an axis.
fn beside(axis: Axis, parts: [&Array2<f64>; 3]) -> Result<Array2<f64>> {
    let views = parts.map(|part| part.view());
    let misfit = |error| attn_core::Error::data("weights", "extents that fit together", error);
    Ok(concatenate(axis, &views).map_err(misfit)?)
}
