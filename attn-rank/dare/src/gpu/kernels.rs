//! This crate's kernels, and how they are run.

use attn_wgpu::each::Each;
use attn_wgpu::{
    Binding, Capabilities, Constants, DeviceKind, Gpu, KernelSource, Result, Tensor,
    kernel_sources, ops,
};

const SNIPPETS: &[(&str, &str)] = &[
    ops::SNIPPETS[0],
    ops::SNIPPETS[3],
    ("choose", include_str!("../kernels/dare_choose.wgsl")),
    ("put", include_str!("../kernels/dare_put.wgsl")),
    ("row_chunk", include_str!("../kernels/dare_row_chunk.wgsl")),
    ("place", include_str!("../kernels/dare_place.wgsl")),
];

kernel_sources! {
    SNIPPETS;
    PACK = "dare_pack",
    SEARCH = "dare_search",
    MERGE = "dare_merge",
    RECALL = "dare_recall",
    KEPT = "dare_kept",
    ROWS = "dare_rows",
    POOL = "dare_pool",
    DOTS = "dare_dots",
    SLOPES = "dare_slopes",
    FEATURES = "dare_features",
    FEATURES_BACK = "dare_features_back",
    TAU = "dare_tau",
    COLUMNS = "dare_columns",
    NORM = "dare_norm",
    PRELU = "dare_prelu",
    LOSS = "dare_loss",
}

/// One run of a kernel of independent invocations.
pub(super) struct Run<'a> {
    pub(super) source: &'a KernelSource,
    pub(super) flags: &'a [(&'static str, bool)],
    /// What is bound, in order; where each begins in its binding is the kernel's business.
    pub(super) tensors: &'a [&'a Tensor],
    /// Invocations.
    pub(super) count: usize,
    /// Parameters behind the number of invocations.
    pub(super) params: &'a [u32],
    /// Steps of its longest loop.
    pub(super) steps: usize,
}

impl Run<'_> {
    /// Records it; nothing for no invocation.
    pub(super) fn record(&self, gpu: &Gpu) -> Result<()> {
        let flags: Vec<&str> =
            self.flags.iter().filter(|(_, on)| *on).map(|(flag, _)| *flag).collect();
        let run = Each {
            source: self.source,
            flags: &flags,
            tensors: self.tensors,
            count: self.count,
            params: self.params,
            steps: self.steps,
            work: 8 * self.steps,
        };
        run.record(gpu)
    }
}

pub(super) fn bindings(tensors: &[&Tensor]) -> Vec<Binding> {
    tensors.iter().map(|tensor| tensor.binding().0).collect()
}

pub(super) fn flagged(constants: Constants, flags: &[(&'static str, bool)]) -> Constants {
    flags.iter().fold(constants, |constants, &(flag, on)| constants.flag(flag, on))
}

/// A number of elements as kernels count them.
pub(super) fn words(arg: &'static str, count: usize) -> Result<u32> {
    u32::try_from(count).map_err(|_| attn_core::Error::config(arg, "fewer than 2^32", count).into())
}

/// Behaviours of a workgroup of a search, and of neighbours in one lane's hands: 2^(2 ELEMENT_ROUNDS) of
/// dare_choose.wgsl.
pub(super) const TILE: usize = 1024;
const GROUP: u32 = 8;

/// Constants of the kernels that search.
pub(super) fn search_constants(capabilities: &Capabilities) -> Constants {
    let wanted = if capabilities.kind == DeviceKind::Cpu { 8 } else { 128 };
    let lanes = 1 << wanted.min(capabilities.max_workgroup_threads).max(1).ilog2();
    Constants::new().int("WORKGROUP", lanes).int("TILE", TILE as u32).int("GROUP", GROUP)
}

/// Columns of a workgroup that sums columns, and lanes of each.
pub(super) fn column_lanes(capabilities: &Capabilities) -> (u32, u32) {
    match capabilities.kind {
        DeviceKind::Cpu => (8, 2),
        _ => (16, capabilities.max_workgroup_threads.min(256) / 16),
    }
}

pub(super) fn column_constants(capabilities: &Capabilities) -> Constants {
    let (columns, parts) = column_lanes(capabilities);
    Constants::new().int("COLUMNS", columns).int("PARTS", parts)
}

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<attn_wgpu::catalogue::Entry> {
    let independent: [(&KernelSource, &[&[&'static str]]); 13] = [
        (
            &PACK,
            &[
                &[],
                &["TIME"],
                &["MASK"],
                &["TIME", "MASK"],
                &["CANDIDATES"],
                &["CANDIDATES", "TIME"],
            ],
        ),
        (&KEPT, &[&[], &["LOOK_UP"], &["STORED"]]),
        (&ROWS, &[&[]]),
        (&POOL, &[&[]]),
        (&DOTS, &[&[]]),
        (&SLOPES, &[&[]]),
        (&FEATURES, &[&[], &["PRODUCT"]]),
        (&FEATURES_BACK, &[&[], &["PRODUCT"], &["ACCUMULATE"], &["PRODUCT", "ACCUMULATE"]]),
        (&TAU, &[&[]]),
        (&NORM, &[&[], &["BACKWARD"], &["BACKWARD", "FIXED"]]),
        (&PRELU, &[&[], &["BACKWARD"]]),
        (&LOSS, &[&[], &["LABEL"]]),
        (
            &LOSS,
            &[&["BACKWARD", "D_PROB"], &["BACKWARD", "D_LOSS"], &["BACKWARD", "D_PROB", "D_LOSS"]],
        ),
    ];
    let searches: [(&KernelSource, &[&[&'static str]]); 3] = [
        (
            &SEARCH,
            &[
                &[],
                &["LAST"],
                &["SCORES"],
                &["SCORES", "LAST"],
                &["SCORES", "NEWEST"],
                &["SCORES", "NEWEST", "LAST"],
            ],
        ),
        (&MERGE, &[&[], &["LAST"], &["NEWEST"], &["NEWEST", "LAST"]]),
        (&RECALL, &[&[], &["LAST"], &["HALF"], &["HALF", "LAST"]]),
    ];
    let plain = attn_wgpu::each::constants(capabilities, &[]);
    let columns: [&[&'static str]; 4] = [&[], &["SQUARES"], &["PRODUCTS"], &["BELOW"]];
    let mut list = Vec::new();
    let mut add = |source: &KernelSource, constants: &Constants, forms: &[&[&'static str]]| {
        for flags in forms {
            let constants =
                flags.iter().fold(constants.clone(), |constants, flag| constants.flag(flag, true));
            let entry = attn_wgpu::catalogue::Entry::new(*source, constants, format!("{flags:?}"));
            list.push(entry);
        }
    };
    for (source, forms) in independent {
        add(source, &plain, forms);
    }
    for (source, forms) in searches {
        add(source, &search_constants(capabilities), forms);
    }
    add(&COLUMNS, &column_constants(capabilities), &columns);
    list
}

#[cfg(all(test, feature = "bench"))]
mod tests {
    use super::*;

    /// Every form that is listed is a kernel, and none is listed twice.
    #[test]
    fn what_is_listed_compiles() {
        let Some(gpu) = attn_wgpu::testing::gpu() else { return };
        let mut labels = Vec::new();
        for entry in kernels(gpu.capabilities()) {
            labels.push(gpu.kernel(&entry.source, entry.constants).unwrap().label().to_owned());
        }
        let count = labels.len();
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), count);
    }
}
