//! Dense attention and Flow-Attention, both ways and causal.

use attn_core::testing::{HostInputs, Values};
use attn_core::{AttentionShape, Mask, dense};
use attn_flowformer::bench::Benchmark;
use attn_wgpu::bench::{DenseAttention, Timed, with_criterion};

fn main() -> attn_wgpu::Result<()> {
    let problems = [512, 1024, 2048, 4096].into_iter().flat_map(|tokens| {
        [("both-ways", Mask::Full), ("causal", Mask::Causal)].map(|(name, mask)| {
            let shape = AttentionShape {
                batch: 1,
                heads: 4,
                heads_kv: 4,
                queries: tokens,
                keys: tokens,
                dim_qk: 64,
                dim_v: 64,
            };
            Timed {
                name: format!("{name}-{tokens}"),
                inputs: HostInputs::random(shape, tokens as u64, Values::Normal),
                config: dense::Config::new().with_mask(mask),
            }
        })
    });
    with_criterion(&[&DenseAttention::F32, &Benchmark], problems)
}
