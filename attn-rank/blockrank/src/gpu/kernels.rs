//! This crate's kernels, and how they are run.

use attn_wgpu::{
    Binding, Call, Capabilities, Constants, DeviceKind, Gpu, KernelSource, Result, Tensor, ops,
};

macro_rules! kernels {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) const $name: KernelSource = KernelSource {
            name: $file,
            text: include_str!(concat!("../kernels/", $file, ".wgsl")),
            imports: ops::SNIPPETS,
        };)*
    };
}

kernels! {
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

/// One run of a kernel of independent invocations.
pub(super) struct Run<'a> {
    pub(super) source: &'a KernelSource,
    pub(super) flags: &'a [&'a str],
    /// What is bound, in order; each begins where its binding begins, or the kernel knows where.
    pub(super) tensors: &'a [&'a Tensor],
    /// Invocations.
    pub(super) count: usize,
    /// Parameters behind the number of invocations.
    pub(super) params: &'a [u32],
    /// Steps of its longest loop.
    pub(super) steps: usize,
    /// Operations of an invocation.
    pub(super) work: usize,
}

impl Run<'_> {
    /// Records it.
    pub(super) fn record(&self, gpu: &Gpu) -> Result<()> {
        let capabilities = gpu.capabilities();
        capabilities.check_steps(format!("`{}`", self.source.name), self.steps + 1)?;
        let count = u32::try_from(self.count).map_err(|_| {
            let expected = "fewer than 2^32 pieces of work";
            attn_core::Error::config("tokens", expected, self.count)
        })?;
        let kernel = gpu.kernel(self.source, constants(capabilities, self.flags))?;
        let bindings: Vec<Binding> = self.tensors.iter().map(|tensor| tensor.binding().0).collect();
        let mut params = vec![count];
        params.extend(self.params);
        let call = Call {
            bindings: &bindings,
            params: bytemuck::cast_slice(&params),
            groups: u64::from(count).div_ceil(u64::from(workgroup(capabilities))),
            work: self.work as f64 * self.count as f64,
        };
        kernel.dispatch(gpu, &call)
    }
}

/// Invocations of a workgroup; they are independent.
fn workgroup(capabilities: &Capabilities) -> u32 {
    let wanted = if capabilities.kind == DeviceKind::Cpu { 16 } else { 64 };
    wanted.min(capabilities.max_workgroup_threads)
}

fn constants(capabilities: &Capabilities, flags: &[&str]) -> Constants {
    let constants = Constants::new().int("WORKGROUP", workgroup(capabilities));
    flags.iter().fold(constants, |constants, flag| constants.flag(flag, true))
}

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<attn_wgpu::catalogue::Entry> {
    let entry = |&(source, flags): &(KernelSource, &[&str])| {
        let variant = if flags.is_empty() { "any".into() } else { flags.join(", ") };
        attn_wgpu::catalogue::Entry::new(source, constants(capabilities, flags), variant)
    };
    VARIANTS.iter().map(entry).collect()
}
