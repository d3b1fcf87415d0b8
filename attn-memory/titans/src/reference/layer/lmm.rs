//! The memory with its readout: `(RMSNorm(y) gain * silu(x Wgate^T)) Wout^T`, y the memory's heads side by
//! side.

use attn_core::Result;
use ndarray::{Array2, ArrayView2};

use super::parts::{linear, linear_backward, merge, rms, rms_backward, silu, silu_backward, split};
use super::project::Projected;
use super::weights::Weights;
use crate::LayerConfig;
use crate::reference::{Cotangents, State, backward_chunked, forward_chunked};

pub struct Lmm {
    projected: Projected,
    first: State,
    merged: Array2<f64>,
    normed: Array2<f64>,
    gate: Array2<f64>,
    /// `[rows, d_model]`.
    pub out: Array2<f64>,
    pub last: State,
}

impl Lmm {
    pub fn new(
        rows: ArrayView2<'_, f64>,
        first: State,
        weights: &Weights,
        config: &LayerConfig,
    ) -> Result<Self> {
        let readout = weights.readout()?;
        let projected = Projected::new(rows, 0, weights, config);
        let output = forward_chunked(projected.inputs(), &first, &config.memory)?;
        let merged = merge(output.y.view());
        let normed = rms(merged.view(), &readout.gain, config.rms_epsilon);
        let gate = linear(rows, &readout.gate);
        let out = linear((&normed * &silu(&gate)).view(), &readout.out);
        Ok(Lmm { projected, first, merged, normed, gate, out, last: output.state })
    }

    /// Adds to `grads`, and returns the cotangent of the rows.
    pub fn backward(
        &self,
        rows: ArrayView2<'_, f64>,
        d_out: &Array2<f64>,
        weights: &Weights,
        grads: &mut Weights,
        config: &LayerConfig,
    ) -> Result<Array2<f64>> {
        let (readout, d) = (weights.readout()?, grads.readout_mut()?);
        let open = silu(&self.gate);
        let gated = &self.normed * &open;
        let d_gated = linear_backward(gated.view(), &readout.out, d_out, &mut d.out);
        let d_gate = silu_backward(&self.gate, &(&d_gated * &self.normed));
        let mut d_rows = linear_backward(rows, &readout.gate, &d_gate, &mut d.gate);
        let (d_normed, merged) = (d_gated * open, self.merged.view());
        let d_merged =
            rms_backward(merged, &readout.gain, config.rms_epsilon, &d_normed, &mut d.gain);

        let d_y = split(d_merged.view(), config.memory.heads);
        let inputs = self.projected.inputs();
        let by =
            backward_chunked(inputs, &self.first, &config.memory, Cotangents::new(d_y.view()))?;
        for (all, one) in grads.memory.iter_mut().zip(by.d_learned()) {
            *all += &one;
        }
        d_rows += &self.projected.backward(rows, &by, weights, grads, config);
        Ok(d_rows)
    }
}
