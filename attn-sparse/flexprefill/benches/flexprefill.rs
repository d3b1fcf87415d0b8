//! Dense attention, the prompt by FlexPrefill, and its two stages: on heads of a known pattern, which show what
//! can be saved, and on random inputs, where almost nothing can be left out.

#[path = "../tests/common/mod.rs"]
mod common;

use attn_core::testing::{HostInputs, by_name};
use attn_core::{AttentionShape, Mask, dense};
use attn_flexprefill::bench::Benchmark;
use attn_wgpu::bench::{DenseAttention, Timed, with_criterion};
use common::{Head, block_head, line_head};

fn main() -> attn_wgpu::Result<()> {
    let heads = [("blocks-4k", block_head(1, 4096, 64, 64)), ("lines-4k", line_head(1, 4096, 64))];
    let mut problems: Vec<_> = heads.map(|(name, head)| timed(name, head)).into();
    problems.extend(by_name("smollm2-prefill-2k").map(Timed::from));
    with_criterion(&[&DenseAttention::F32, &Benchmark], problems)
}

fn timed(name: &str, [q, k, v]: Head) -> Timed {
    let (_, _, tokens, dim) = q.dim();
    let shape = AttentionShape {
        batch: 1,
        heads: 1,
        heads_kv: 1,
        queries: tokens,
        keys: tokens,
        dim_qk: dim,
        dim_v: dim,
    };
    let [q, k, v] = [q, k, v].map(|x| x.into_iter().collect());
    let inputs = HostInputs { shape, q, k, v, sinks: None };
    Timed { name: name.into(), inputs, config: dense::Config::new().with_mask(Mask::Causal) }
}
