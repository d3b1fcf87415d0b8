//! This crate's kernels.

pub(super) use attn_wgpu::each::Each;
#[cfg(feature = "bench")]
use attn_wgpu::{Capabilities, KernelSource, catalogue::Entry, each};
use attn_wgpu::{kernel_sources, ops};

const SNIPPETS: &[(&str, &str)] =
    &[ops::SNIPPETS[0], ops::SNIPPETS[4], ("waves", include_str!("../kernels/waves.wgsl"))];

kernel_sources! {
    SNIPPETS;
    LRPE = "lightning_lrpe",
    LRPE_BACKWARD = "lightning_lrpe_backward",
    LRPE_THETA = "lightning_lrpe_theta",
    SUM = "lightning_sum",
    SILU_BACKWARD = "lightning_silu_backward",
}

/// Every kernel with the flags it runs with.
#[cfg(feature = "bench")]
const VARIANTS: &[(KernelSource, &[&str])] =
    &[(LRPE, &[]), (LRPE_BACKWARD, &[]), (LRPE_THETA, &[]), (SUM, &[]), (SILU_BACKWARD, &[])];

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<Entry> {
    each::entries(capabilities, VARIANTS)
}
