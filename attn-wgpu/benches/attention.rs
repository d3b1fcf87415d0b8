//! Dense attention on the named problems that tests use too.

use attn_core::testing::problems;
use attn_wgpu::Result;
use attn_wgpu::bench::{DenseAttention, Timed, with_criterion};

fn main() -> Result<()> {
    let problems = problems().into_iter().map(Timed::from);
    with_criterion(&[&DenseAttention::F32, &DenseAttention::F16], problems)
}
