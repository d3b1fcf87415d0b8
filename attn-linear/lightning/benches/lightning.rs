//! Dense causal attention, lightning attention, and plain masked linear attention, which keeps a number for
//! each pair of tokens.

use attn_core::testing::{HostInputs, Values};
use attn_core::{AttentionShape, Mask, dense};
use attn_lightning::bench::{Benchmark, Masked};
use attn_wgpu::bench::{DenseAttention, Timed, with_criterion};

fn main() -> attn_wgpu::Result<()> {
    let problems = [256, 512, 1024, 2048, 4096, 8192].map(|tokens| {
        let shape = AttentionShape {
            batch: 1,
            heads: 1,
            heads_kv: 1,
            queries: tokens,
            keys: tokens,
            dim_qk: 64,
            dim_v: 64,
        };
        Timed {
            name: format!("causal-{tokens}"),
            inputs: HostInputs::random(shape, tokens as u64, Values::Normal),
            config: dense::Config::new().with_mask(Mask::Causal),
        }
    });
    with_criterion(&[&DenseAttention::F32, &Benchmark, &Masked], problems)
}
