//! This crate's kernels.

pub(super) use attn_wgpu::each::Each;
#[cfg(feature = "bench")]
use attn_wgpu::{Capabilities, KernelSource, catalogue::Entry, each};
use attn_wgpu::{kernel_sources, ops};

kernel_sources! {
    ops::SNIPPETS;
    NORM = "routing_norm",
    NEAREST = "routing_nearest",
    NUMBER = "routing_number",
    GATHER = "routing_gather",
    SUM = "routing_sum",
    LIMITS = "routing_limits",
    LOGITS = "routing_logits",
    SOFTMAX = "routing_softmax",
    MIX = "routing_mix",
    MIX_KEYS = "routing_mix_keys",
    NORM_BACK = "routing_norm_back",
    COUNTS = "routing_counts",
    FOLLOW = "routing_follow",
    ENTER = "routing_enter",
    PLACE = "routing_place",
    AVERAGE = "routing_average",
}

/// Every kernel with the flags it runs with.
#[cfg(feature = "bench")]
const VARIANTS: &[(KernelSource, &[&str])] = &[
    (NORM, &[]),
    (NEAREST, &[]),
    (NEAREST, &["VALID"]),
    (NUMBER, &[]),
    (GATHER, &[]),
    (GATHER, &["SHARE"]),
    (SUM, &[]),
    (SUM, &["MEAN"]),
    (LIMITS, &[]),
    (LIMITS, &["CAUSAL"]),
    (LOGITS, &[]),
    (SOFTMAX, &[]),
    (SOFTMAX, &["BACKWARD"]),
    (MIX, &[]),
    (MIX_KEYS, &[]),
    (NORM_BACK, &[]),
    (NORM_BACK, &["COMMIT"]),
    (COUNTS, &[]),
    (FOLLOW, &[]),
    (FOLLOW, &["MEANS"]),
    (ENTER, &[]),
    (PLACE, &[]),
    (AVERAGE, &[]),
];

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<Entry> {
    each::entries(capabilities, VARIANTS)
}
