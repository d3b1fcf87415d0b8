//! Modules: projections around the mechanisms, as burn's own `MultiHeadAttention` has them, so that
//! records have its names (`query`, `key`, `value`, `output`).

mod aaren;
mod attention;
mod dare;
mod flowformer;
mod lightning;
mod plan;
mod routing;
mod titans;

pub use self::aaren::{Aaren, AarenConfig};
pub use self::attention::{Attention, AttentionConfig};
pub use self::dare::{Clicks, Dare, DareConfig, DareHead, DareTables};
pub use self::flowformer::{FlowAttention, FlowAttentionConfig};
pub use self::lightning::{
    GatedLinearAttention, GatedLinearAttentionConfig, GatedLinearUnit, GatedLinearUnitConfig,
    LightningState, TransNormerLayer, TransNormerLayerConfig, simple_rms_norm,
};
pub use self::plan::{PlanAttention, PlanAttentionConfig};
pub use self::routing::{Routed, RoutingAttention, RoutingAttentionConfig};
pub use self::titans::{Titans, TitansConfig, TitansGate, TitansMemory, TitansReadout};

use attn_core::Error;
use attn_wgpu::Result;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

/// `[batch, tokens, heads * dim]` as `[batch, heads, tokens, dim]`, a view.
fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads.max(1)]).swap_dims(1, 2)
}

/// The way back.
fn join(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, tokens, dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * dim])
}

/// Elements of a head.
fn head_dim(d_model: usize, heads: usize) -> Result<usize> {
    match d_model.checked_rem(heads) {
        Some(0) => Ok(d_model / heads),
        _ => {
            let expected = format!("a divisor of {d_model}");
            Err(Error::config("heads", expected, heads).into())
        }
    }
}

/// Heads of keys and values, as many as queries have where it is not said.
fn key_heads(heads: usize, heads_kv: Option<usize>) -> Result<usize> {
    let heads_kv = heads_kv.unwrap_or(heads);
    if heads.checked_rem(heads_kv) == Some(0) {
        return Ok(heads_kv);
    }
    let expected = format!("a divisor of {heads}");
    Err(Error::config("heads_kv", expected, heads_kv).into())
}

fn linear(from: usize, to: usize, bias: bool, device: &Device) -> Linear {
    LinearConfig::new(from, to).with_bias(bias).init(device)
}

/// That `x` is `[batch, tokens, d_model]`.
fn check(arg: &'static str, x: &Tensor<3>, d_model: usize) -> Result<()> {
    let [batch, tokens, width] = x.dims();
    if width == d_model {
        return Ok(());
    }
    let expected = format!("{d_model} elements a token");
    Err(Error::shape(arg, expected, &[batch, tokens, width]).into())
}
