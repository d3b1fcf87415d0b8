//! Kernels whose invocations are independent of each other: how the small kernels of most mechanisms run.
//!
//! Such a kernel's parameters begin with `count`, the number of invocations. With the snippet `each` of
//! [`ops::SNIPPETS`] it is a function `one(index)`; others count by themselves. The constant
//! `WORKGROUP` is the number of invocations of a workgroup.

use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Binding, Call, Constants, KernelSource};
use crate::ops;
use crate::tensor::Tensor;

/// Declares the kernels of a crate: `kernel_sources!(snippets; NAME = "file", ..)` makes a [`KernelSource`] of
/// each file `../kernels/file.wgsl`, seen from the file of the declaration, and `ALL` of all of them.
#[macro_export]
macro_rules! kernel_sources {
    ($imports:expr; $($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) const $name: $crate::KernelSource = $crate::KernelSource {
            name: $file,
            text: include_str!(concat!("../kernels/", $file, ".wgsl")),
            imports: $imports,
        };)*
    };
}

/// One run of a kernel of independent invocations.
#[derive(Debug, Clone, Copy)]
pub struct Each<'a> {
    /// The kernel.
    pub source: &'a KernelSource,
    /// Its flags that are on.
    pub flags: &'a [&'a str],
    /// What is bound, in order. Where a tensor begins within its binding is the kernel's business.
    pub tensors: &'a [&'a Tensor],
    /// Invocations.
    pub count: usize,
    /// Parameters behind the number of invocations.
    pub params: &'a [u32],
    /// Steps of the longest loop of an invocation.
    pub steps: usize,
    /// Operations of an invocation, roughly: by them work is cut into submissions.
    pub work: usize,
}

impl Each<'_> {
    /// Records it.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) for more steps than a loop may have, [`attn_core::Error::Config`] for
    /// 2^32 invocations and more; those of [`Kernel::dispatch`](crate::Kernel::dispatch).
    pub fn record(&self, gpu: &Gpu) -> Result<()> {
        let constants = constants(gpu.capabilities(), self.flags);
        let groups = self.count.div_ceil(workgroup(gpu.capabilities()) as usize);
        self.record_as(gpu, constants, groups, self.work as f64 * self.count as f64)
    }

    /// Records it with constants, a number of workgroups and work that the caller counts; flags do not matter.
    ///
    /// # Errors
    /// As [`Each::record`].
    pub fn record_as(
        &self,
        gpu: &Gpu,
        constants: Constants,
        groups: usize,
        work: f64,
    ) -> Result<()> {
        let name = self.source.name;
        gpu.capabilities().check_steps(format!("`{name}`"), self.steps.saturating_add(1))?;
        let count = u32::try_from(self.count).map_err(|_| {
            let expected = format!("fewer than 2^32 invocations of `{name}`");
            attn_core::Error::config("tokens", expected, self.count)
        })?;
        let kernel = gpu.kernel(self.source, constants)?;
        let bindings: Vec<Binding> = self.tensors.iter().map(|tensor| tensor.binding().0).collect();
        let mut params = vec![count];
        params.extend(self.params);
        let params = bytemuck::cast_slice(&params);
        kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups: groups as u64, work })
    }
}

/// Invocations of a workgroup.
pub fn workgroup(capabilities: &Capabilities) -> u32 {
    ops::workgroup(capabilities)
}

/// The constants of such a kernel, with the flags that are on.
pub fn constants(capabilities: &Capabilities, flags: &[&str]) -> Constants {
    let constants = Constants::new().int("WORKGROUP", workgroup(capabilities));
    flags.iter().fold(constants, |constants, flag| constants.flag(flag, true))
}

/// Kernels with the flags that they run with, as tools list them that check kernels.
#[cfg(feature = "bench")]
pub fn entries(
    capabilities: &Capabilities,
    variants: &[(KernelSource, &[&str])],
) -> Vec<crate::catalogue::Entry> {
    let entry = |&(source, flags): &(KernelSource, &[&str])| {
        let variant = if flags.is_empty() { "any".into() } else { flags.join(", ") };
        crate::catalogue::Entry::new(source, constants(capabilities, flags), variant)
    };
    variants.iter().map(entry).collect()
}
