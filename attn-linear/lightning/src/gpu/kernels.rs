//! This crate's kernels, and how they are run.

use attn_wgpu::{
    Binding, Call, Capabilities, Constants, DeviceKind, Gpu, KernelSource, Result, Tensor,
};

macro_rules! kernels {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) const $name: KernelSource = KernelSource {
            name: $file,
            text: include_str!(concat!("../kernels/", $file, ".wgsl")),
            imports: SNIPPETS,
        };)*

        #[cfg(feature = "bench")]
        const ALL: &[KernelSource] = &[$($name),*];
    };
}

const SNIPPETS: &[(&str, &str)] = &[
    ("each", include_str!("../kernels/each.wgsl")),
    ("waves", include_str!("../kernels/waves.wgsl")),
];

kernels! {
    LRPE = "lightning_lrpe",
    LRPE_BACKWARD = "lightning_lrpe_backward",
    LRPE_THETA = "lightning_lrpe_theta",
    SUM = "lightning_sum",
    SILU_BACKWARD = "lightning_silu_backward",
}

/// One run of a kernel.
pub(super) struct Run<'a> {
    pub(super) source: &'a KernelSource,
    /// What is bound, in order; each begins where its binding begins, or the kernel knows where.
    pub(super) tensors: &'a [&'a Tensor],
    /// Invocations.
    pub(super) count: usize,
    /// Parameters behind the number of invocations.
    pub(super) params: &'a [u32],
    /// Steps of its loops.
    pub(super) steps: usize,
}

impl Run<'_> {
    /// Records it.
    pub(super) fn record(&self, gpu: &Gpu) -> Result<()> {
        let capabilities = gpu.capabilities();
        capabilities.check_steps(format!("`{}`", self.source.name), self.steps)?;
        let count = u32::try_from(self.count).map_err(|_| {
            attn_core::Error::config("tokens", "fewer than 2^32 elements", self.count)
        })?;
        let kernel = gpu.kernel(self.source, constants(capabilities))?;
        let bindings: Vec<Binding> = self.tensors.iter().map(|tensor| tensor.binding().0).collect();
        let mut params = vec![count];
        params.extend(self.params);
        let call = Call {
            bindings: &bindings,
            params: bytemuck::cast_slice(&params),
            groups: u64::from(count).div_ceil(u64::from(workgroup(capabilities))),
            work: 20.0 * self.steps.max(1) as f64 * self.count as f64,
        };
        kernel.dispatch(gpu, &call)
    }
}

/// Invocations of a workgroup; they are independent.
fn workgroup(capabilities: &Capabilities) -> u32 {
    let wanted = if capabilities.kind == DeviceKind::Cpu { 16 } else { 64 };
    wanted.min(capabilities.max_workgroup_threads)
}

fn constants(capabilities: &Capabilities) -> Constants {
    Constants::new().int("WORKGROUP", workgroup(capabilities))
}

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<attn_wgpu::catalogue::Entry> {
    let entry = |&source: &KernelSource| {
        attn_wgpu::catalogue::Entry::new(source, constants(capabilities), "any".into())
    };
    ALL.iter().map(entry).collect()
}
