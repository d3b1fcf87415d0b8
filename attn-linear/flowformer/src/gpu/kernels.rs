//! This crate's kernels.

pub(super) use attn_wgpu::each::Each;
#[cfg(feature = "bench")]
use attn_wgpu::{Capabilities, KernelSource, catalogue::Entry, each};
use attn_wgpu::{kernel_sources, ops};

kernel_sources! {
    ops::SNIPPETS;
    SIGMOID = "flow_sigmoid",
    SCALE = "flow_scale",
    MARKS = "flow_marks",
    NUMBERS = "flow_numbers",
    BACK = "flow_back",
}

/// Every kernel with the flags it runs with.
#[cfg(feature = "bench")]
const VARIANTS: &[(KernelSource, &[&str])] = &[
    (SIGMOID, &[]),
    (SIGMOID, &["VALID"]),
    (SCALE, &[]),
    (MARKS, &[]),
    (MARKS, &["CAUSAL"]),
    (NUMBERS, &["RATE"]),
    (NUMBERS, &["SINK", "HAS_Y"]),
    (NUMBERS, &["SOURCE"]),
    (NUMBERS, &["COMP", "HAS_Y"]),
    (NUMBERS, &["OWN", "HAS_Y"]),
    (NUMBERS, &["DECAY"]),
    (NUMBERS, &["D_SINK", "HAS_Y", "HAS_Z"]),
    (NUMBERS, &["D_RATE", "HAS_Y", "HAS_Z"]),
    (NUMBERS, &["D_SOURCE", "HAS_Y", "HAS_Z"]),
    (BACK, &[]),
];

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<Entry> {
    each::entries(capabilities, VARIANTS)
}
