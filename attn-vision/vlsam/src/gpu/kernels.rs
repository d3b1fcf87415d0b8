//! This crate's kernels, and how they are run.

use attn_wgpu::each::{self, workgroup};
use attn_wgpu::{
    Binding, Call, Capabilities, Constants, Gpu, KernelSource, Result, Tensor, kernel_sources, ops,
};

kernel_sources! {
    ops::SNIPPETS;
    ROW_MAX = "vlsam_row_max",
    HEAD_WEIGHTS = "vlsam_head_weights",
    STEP = "vlsam_step",
    MIN_MAX = "vlsam_min_max",
}

/// What a run consists of.
#[derive(Clone, Copy)]
pub(super) enum Share {
    /// Items with an invocation each.
    Items(usize),
    /// So many items of so many elements, each with a workgroup.
    Groups(usize, usize),
}

/// Records a kernel on tensors that begin where it is told.
pub(super) fn run(
    gpu: &Gpu,
    source: &KernelSource,
    flag: Option<&str>,
    tensors: &[&Tensor],
    params: &[u32],
    share: Share,
) -> Result<()> {
    let capabilities = gpu.capabilities();
    let lanes = workgroup(capabilities);
    let (groups, work) = match share {
        Share::Items(count) => (count.div_ceil(lanes as usize), 16.0 * count as f64),
        Share::Groups(count, length) => {
            let steps = length.div_ceil(lanes as usize) + lanes as usize + 1;
            capabilities.check_steps(format!("`{}`", source.name), steps)?;
            (count, 2.0 * count as f64 * length as f64)
        }
    };
    let bindings: Vec<Binding> = tensors.iter().map(|tensor| tensor.binding().0).collect();
    let kernel = gpu.kernel(source, constants(capabilities, flag))?;
    let params = bytemuck::cast_slice(params);
    kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups: groups as u64, work })
}

/// Where a tensor's first element lies in what is bound of it.
pub(super) fn start(tensor: &Tensor) -> u32 {
    tensor.binding().1 as u32
}

fn constants(capabilities: &Capabilities, flag: Option<&str>) -> Constants {
    each::constants(capabilities, flag.as_slice())
}

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<attn_wgpu::catalogue::Entry> {
    let entry = |source, flag, variant: &str| {
        let constants = constants(capabilities, flag);
        attn_wgpu::catalogue::Entry::new(source, constants, variant.into())
    };
    vec![
        entry(ROW_MAX, None, "any"),
        entry(HEAD_WEIGHTS, None, "of probabilities"),
        entry(HEAD_WEIGHTS, Some("LOGITS"), "of logits"),
        entry(STEP, None, "any"),
        entry(MIN_MAX, None, "any"),
    ]
}
