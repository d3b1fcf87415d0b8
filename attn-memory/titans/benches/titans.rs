//! Dense causal attention, and memories of depth 1 and 2.

use attn_core::testing::{HostInputs, Values};
use attn_core::{AttentionShape, Mask, dense};
use attn_titans::bench::Benchmark;
use attn_wgpu::bench::{DenseAttention, Timed, with_criterion};

fn main() -> attn_wgpu::Result<()> {
    let problems = [256, 1024, 4096].map(|tokens| {
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
    with_criterion(&[&DenseAttention::F32, &Benchmark::LINEAR, &Benchmark::DEEP], problems)
}
