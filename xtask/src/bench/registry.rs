//! The mechanisms that benchmarks run.

use attn_wgpu::bench::{DenseAttention, DenseStream, Mechanism, RandomPlan, Streamed};

use super::dense_backward::DenseBackward;

/// Every mechanism of the workspace, one line each.
pub fn mechanisms() -> Vec<Box<dyn Mechanism>> {
    vec![
        Box::new(DenseAttention::F32),
        Box::new(DenseAttention::F16),
        Box::new(DenseBackward),
        Box::new(RandomPlan::BLOCKS),
        Box::new(RandomPlan::TOKENS),
        Box::new(attn_flexprefill::bench::Benchmark),
        Box::new(attn_routing::bench::Benchmark),
        Box::new(attn_blockrank::bench::Benchmark),
        Box::new(attn_lightning::bench::Benchmark),
        Box::new(attn_lightning::bench::Masked),
        Box::new(attn_aaren::bench::Benchmark),
        Box::new(attn_flowformer::bench::Benchmark),
        Box::new(attn_titans::bench::Benchmark::LINEAR),
        Box::new(attn_titans::bench::Benchmark::DEEP),
        Box::new(Streamed(DenseStream)),
        Box::new(Streamed(attn_lightning::bench::Decode)),
        Box::new(Streamed(attn_aaren::bench::Update)),
        Box::new(Streamed(attn_titans::bench::Decode)),
    ]
}
