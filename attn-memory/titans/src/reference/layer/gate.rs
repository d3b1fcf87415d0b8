//! The memory as a gate of attention: `RMSNorm(y) gamma_y * sigmoid(RMSNorm(m) gamma_m)`.

use ndarray::{Array1, Array2, ArrayView2};

use super::parts::{rms, rms_backward};
use crate::reference::network::sigmoid;

pub fn gate(
    y: ArrayView2<'_, f64>,
    m: ArrayView2<'_, f64>,
    [gain_y, gain_m]: &[Array1<f64>; 2],
    epsilon: f64,
) -> Array2<f64> {
    rms(y, gain_y, epsilon) * rms(m, gain_m, epsilon).mapv(sigmoid)
}

/// Adds to `d_gains`, and returns the cotangents of `y` and `m`.
pub fn gate_backward(
    y: ArrayView2<'_, f64>,
    m: ArrayView2<'_, f64>,
    [gain_y, gain_m]: &[Array1<f64>; 2],
    epsilon: f64,
    d_out: ArrayView2<'_, f64>,
    [d_gain_y, d_gain_m]: &mut [Array1<f64>; 2],
) -> [Array2<f64>; 2] {
    let open = rms(m, gain_m, epsilon).mapv(sigmoid);
    let d_normed = &d_out * &open;
    let d_open = &d_out * &rms(y, gain_y, epsilon) * open.mapv(|s| s * (1.0 - s));
    [
        rms_backward(y, gain_y, epsilon, &d_normed, d_gain_y),
        rms_backward(m, gain_m, epsilon, &d_open, d_gain_m),
    ]
}
