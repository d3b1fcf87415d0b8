//! Dense causal attention and attention in blocks of 64 tokens, for 16 to 128 documents.

use attn_blockrank::bench::Benchmark;
use attn_core::testing::{HostInputs, Values};
use attn_core::{AttentionShape, Mask, dense};
use attn_wgpu::bench::{DenseAttention, Timed, with_criterion};

fn main() -> attn_wgpu::Result<()> {
    let problems = [16, 32, 64, 128].into_iter().map(|documents| {
        let tokens = 64 * (documents + 2);
        let shape = AttentionShape {
            batch: 1,
            heads: 3,
            heads_kv: 1,
            queries: tokens,
            keys: tokens,
            dim_qk: 64,
            dim_v: 64,
        };
        Timed {
            name: format!("documents-{documents}"),
            inputs: HostInputs::random(shape, tokens as u64, Values::Normal),
            config: dense::Config::new().with_mask(Mask::Causal),
        }
    });
    with_criterion(&[&DenseAttention::F32, &Benchmark], problems)
}
