//! This crate's kernels.

pub(super) use attn_wgpu::each::Each;
#[cfg(feature = "bench")]
use attn_wgpu::{Capabilities, KernelSource, catalogue::Entry, each};
use attn_wgpu::{kernel_sources, ops};

kernel_sources! {
    ops::SNIPPETS;
    STATS = "blockrank_stats",
    TOTAL = "blockrank_total",
    MASS = "blockrank_mass",
    LOGIT_GRAD = "blockrank_logit_grad",
    DK = "blockrank_dk",
    DQ = "blockrank_dq",
    LOSS = "blockrank_loss",
}

/// Every kernel with the flags it runs with.
#[cfg(feature = "bench")]
const VARIANTS: &[(KernelSource, &[&str])] = &[
    (STATS, &[]),
    (TOTAL, &[]),
    (TOTAL, &["PULL"]),
    (MASS, &[]),
    (LOGIT_GRAD, &[]),
    (DK, &[]),
    (DQ, &[]),
    (DQ, &["JOIN"]),
    (LOSS, &[]),
    (LOSS, &["BACKWARD"]),
    (LOSS, &["MEAN"]),
];

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<Entry> {
    each::entries(capabilities, VARIANTS)
}
