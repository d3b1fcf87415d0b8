//! What a layer learns, on a device.

use attn_wgpu::{Gpu, Result, Tensor};
use ndarray::Array2;

use crate::reference;

/// Weights of a layer, f32; those of linear maps are `[out, in]`, without a bias. Also their gradients.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Weights {
    /// Queries, keys, values and gate below each other, `[4 hid, d_model]`.
    pub w_qkvu: Tensor,
    /// Out of attention, `[d_model, hid]`.
    pub w_out: Tensor,
    /// One factor of the gated linear unit, `[glu_dim, d_model]`.
    pub w_v: Tensor,
    /// The other, `[glu_dim, d_model]`.
    pub w_u: Tensor,
    /// Out of the gated linear unit, `[d_model, glu_dim]`.
    pub w_o: Tensor,
    /// Angles of the position embedding, `[heads, dim]`, where the layer has it.
    pub theta: Option<Tensor>,
}

impl Weights {
    pub(super) fn upload(gpu: &Gpu, from: &reference::layer::Weights) -> Result<Self> {
        let up = |x: &Array2<f64>| Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn());
        Ok(Weights {
            w_qkvu: up(&from.w_qkvu)?,
            w_out: up(&from.w_out)?,
            w_v: up(&from.w_v)?,
            w_u: up(&from.w_u)?,
            w_o: up(&from.w_o)?,
            theta: from.theta.as_ref().map(up).transpose()?,
        })
    }
}
