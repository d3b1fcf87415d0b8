//! What the memory is given of tokens: `l2(silu(conv(x W^T)))` for queries and keys, the same without l2 for
//! values, and gates.

use ndarray::{Array2, Array3, Array4, ArrayView2, ArrayView4, s};

use super::parts::{
    conv, conv_backward, l2, l2_backward, linear, linear_backward, merge, silu, silu_backward,
    split,
};
use super::weights::Weights;
use crate::LayerConfig;
use crate::reference::{Grads, Inputs, network::sigmoid};

/// Queries, keys or values of rows, and what was on the way. The first `skip` rows are there for the
/// convolution alone.
pub struct Side {
    which: usize,
    skip: usize,
    projected: Array2<f64>,
    convolved: Array2<f64>,
    active: Array2<f64>,
    /// `[1, heads, rows - skip, dim]`.
    pub out: Array4<f64>,
}

pub const QUERIES: usize = 0;
const KEYS: usize = 1;
const VALUES: usize = 2;

impl Side {
    pub fn new(
        which: usize,
        rows: ArrayView2<'_, f64>,
        skip: usize,
        weights: &Weights,
        config: &LayerConfig,
    ) -> Self {
        let heads = config.memory.heads;
        let projected = linear(rows, &weights.projections[which]);
        let convolved = match &weights.conv {
            Some(kernels) => conv(&projected, &kernels[which]),
            None => projected.clone(),
        };
        let active = silu(&convolved);
        let merged = match which {
            VALUES => active.clone(),
            _ => l2(&active, heads, config.l2_epsilon),
        };
        let out = split(merged.slice(s![skip.., ..]), heads);
        Side { which, skip, projected, convolved, active, out }
    }

    /// Adds to `grads`, and returns the cotangent of the rows.
    pub fn backward(
        &self,
        rows: ArrayView2<'_, f64>,
        d_out: ArrayView4<'_, f64>,
        weights: &Weights,
        grads: &mut Weights,
        config: &LayerConfig,
    ) -> Array2<f64> {
        let mut d_merged = Array2::zeros(self.active.raw_dim());
        d_merged.slice_mut(s![self.skip.., ..]).assign(&merge(d_out));
        let d_active = match self.which {
            VALUES => d_merged,
            _ => l2_backward(&self.active, config.memory.heads, config.l2_epsilon, &d_merged),
        };
        let d_convolved = silu_backward(&self.convolved, &d_active);
        let d_projected = match (&weights.conv, &mut grads.conv) {
            (Some(kernels), Some(d_kernels)) => {
                let (kernel, d_kernel) = (&kernels[self.which], &mut d_kernels[self.which]);
                conv_backward(&self.projected, kernel, &d_convolved, d_kernel)
            }
            _ => d_convolved,
        };
        let d_w = &mut grads.projections[self.which];
        linear_backward(rows, &weights.projections[self.which], &d_projected, d_w)
    }
}

/// All that a memory reads.
pub struct Projected {
    sides: [Side; 3],
    /// Step without its bound, momentum, forgetting, `[1, heads, tokens]`.
    gates: [Array3<f64>; 3],
    theta: Array3<f64>,
}

impl Projected {
    pub fn new(
        rows: ArrayView2<'_, f64>,
        skip: usize,
        weights: &Weights,
        config: &LayerConfig,
    ) -> Self {
        let side = |which| Side::new(which, rows, skip, weights, config);
        let gates = weights.gates.each_ref().map(|gate| {
            let logits = linear(rows.slice(s![skip.., ..]), &gate.g) + &gate.b;
            let (tokens, heads) = logits.dim();
            Array3::from_shape_fn((1, heads, tokens), |(_, h, t)| sigmoid(logits[[t, h]]))
        });
        let theta = &gates[0] * config.theta_max;
        Projected { sides: [QUERIES, KEYS, VALUES].map(side), gates, theta }
    }

    pub fn inputs(&self) -> Inputs<'_> {
        let [q, k, v] = self.sides.each_ref().map(|side| side.out.view());
        let [_, eta, alpha] = self.gates.each_ref().map(|gate| gate.view());
        Inputs { q, k, v, theta: self.theta.view(), eta, alpha }
    }

    /// Adds to `grads`, and returns the cotangent of the rows.
    pub fn backward(
        &self,
        rows: ArrayView2<'_, f64>,
        d: &Grads,
        weights: &Weights,
        grads: &mut Weights,
        config: &LayerConfig,
    ) -> Array2<f64> {
        let mut d_rows = Array2::zeros(rows.raw_dim());
        for (side, d_out) in self.sides.iter().zip([&d.dq, &d.dk, &d.dv]) {
            d_rows += &side.backward(rows, d_out.view(), weights, grads, config);
        }
        let skip = self.sides[0].skip;
        let d_gates = [&d.d_theta * config.theta_max, d.d_eta.clone(), d.d_alpha.clone()];
        for (i, (gate, d_gate)) in self.gates.iter().zip(&d_gates).enumerate() {
            let (_, heads, tokens) = gate.dim();
            let d_logits = Array2::from_shape_fn((tokens, heads), |(t, h)| {
                let value = gate[[0, h, t]];
                d_gate[[0, h, t]] * value * (1.0 - value)
            });
            let d_weights = &mut grads.gates[i];
            d_weights.b += &d_logits.sum_axis(ndarray::Axis(0));
            let tokens = rows.slice(s![skip.., ..]);
            let mut d_tokens = d_rows.slice_mut(s![skip.., ..]);
            d_tokens += &linear_backward(tokens, &weights.gates[i].g, &d_logits, &mut d_weights.g);
        }
        d_rows
    }
}
