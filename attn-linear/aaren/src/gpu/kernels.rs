//! This crate's kernels.

pub(super) use attn_wgpu::each::Each;
#[cfg(feature = "bench")]
use attn_wgpu::{Capabilities, KernelSource, catalogue::Entry, each};
use attn_wgpu::{kernel_sources, ops};

const SNIPPETS: &[(&str, &str)] =
    &[ops::SNIPPETS[0], ("weight", include_str!("../kernels/weight.wgsl"))];

kernel_sources! {
    SNIPPETS;
    DECAY = "aaren_decay",
    SCORES = "aaren_scores",
    SPREAD = "aaren_spread",
    FIRST = "aaren_first",
}

/// Every kernel with the flags it runs with.
#[cfg(feature = "bench")]
const VARIANTS: &[(KernelSource, &[&str])] =
    &[(DECAY, &[]), (SCORES, &[]), (SPREAD, &[]), (FIRST, &[])];

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<Entry> {
    each::entries(capabilities, VARIANTS)
}
