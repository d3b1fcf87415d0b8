//! What a device can do, as plain data: variant choice is a pure function of it.

use crate::error::{Error, Result};
use crate::settings::Settings;

/// Kind of device; kernels are tuned by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// A graphics card with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU behind a virtual machine, or one that does not say what it is.
    Other,
    /// A software driver that runs kernels on the processor.
    Cpu,
}

impl DeviceKind {
    /// See [`Capabilities::max_loop_steps`].
    pub(crate) fn max_loop_steps(self) -> usize {
        if self == DeviceKind::Cpu { 60_000 } else { usize::MAX }
    }

    pub(crate) fn of(device_type: wgpu::DeviceType) -> Self {
        match device_type {
            wgpu::DeviceType::DiscreteGpu => DeviceKind::Discrete,
            wgpu::DeviceType::IntegratedGpu => DeviceKind::Integrated,
            wgpu::DeviceType::Cpu => DeviceKind::Cpu,
            wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => DeviceKind::Other,
        }
    }
}

/// Range of subgroup sizes (lanes that exchange values without memory).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subgroups {
    /// Smallest size a kernel may get.
    pub min: u32,
    /// Largest size a kernel may get.
    pub max: u32,
}

/// What the kernels of this crate can use on a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// Kind of device.
    pub kind: DeviceKind,
    /// Sizes of subgroups; `None` without the feature, or where the driver does not tell sizes.
    pub subgroups: Option<Subgroups>,
    /// Whether shaders may compute in f16.
    pub f16: bool,
    /// Whether passes can be timed on the device.
    pub timestamps: bool,
    /// Bytes of parameters that a dispatch may carry without a buffer; 0 without the feature.
    pub immediate_bytes: u32,
    /// Invocations in a workgroup.
    pub max_workgroup_threads: u32,
    /// Bytes of workgroup memory.
    pub max_workgroup_bytes: u32,
    /// Iterations of all loops together that one invocation may do. Mesa's software driver ends
    /// every loop after 65,535 of them, without a word, so kernels must stay below; other devices
    /// have no such limit.
    pub max_loop_steps: usize,
    /// Workgroups in one dimension of a dispatch.
    pub max_workgroups: u32,
    /// Bytes of one storage binding.
    pub max_binding_bytes: u64,
    /// Bytes of one buffer.
    pub max_buffer_bytes: u64,
    /// Alignment of a storage binding's offset, in bytes.
    pub offset_alignment: u64,
    /// How kernels split their work: the shipped settings, or measured ones.
    pub settings: Settings,
}

impl Capabilities {
    /// WebGPU's default limits without any optional feature: the least that every device has.
    pub fn webgpu() -> Self {
        Capabilities::new(
            DeviceKind::Other,
            None,
            wgpu::Features::empty(),
            &wgpu::Limits::default(),
        )
    }

    /// Refuses loops of `what` that are too long for this device, which would end them early and give
    /// a wrong result without a word.
    pub fn check_steps(&self, what: String, steps: usize) -> Result<()> {
        if steps <= self.max_loop_steps {
            return Ok(());
        }
        Err(Error::Limit {
            what,
            limit: "iterations of loops in one invocation",
            needed: steps as u64,
            available: self.max_loop_steps as u64,
        })
    }

    pub(crate) fn of(device: &wgpu::Device) -> Self {
        let info = device.adapter_info();
        let features = device.features();
        // Some drivers report 0 for sizes that they do not know.
        let subgroups = (features.contains(wgpu::Features::SUBGROUP) && info.subgroup_min_size > 0)
            .then_some(Subgroups { min: info.subgroup_min_size, max: info.subgroup_max_size });
        Self::new(DeviceKind::of(info.device_type), subgroups, features, &device.limits())
    }

    fn new(
        kind: DeviceKind,
        subgroups: Option<Subgroups>,
        features: wgpu::Features,
        limits: &wgpu::Limits,
    ) -> Self {
        let immediates = features.contains(wgpu::Features::IMMEDIATES);
        Capabilities {
            kind,
            subgroups,
            f16: features.contains(wgpu::Features::SHADER_F16),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            immediate_bytes: if immediates { limits.max_immediate_size } else { 0 },
            max_workgroup_threads: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_loop_steps: kind.max_loop_steps(),
            // Some drivers report more than dispatches accept.
            max_workgroups: limits.max_compute_workgroups_per_dimension.min(65_535),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment.max(16)),
            settings: Settings::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // tracel-ai/cubecl#1388: a driver reports more workgroups than a dispatch accepts.
    #[test]
    fn no_more_workgroups_than_dispatches_accept() {
        let limits = wgpu::Limits {
            max_compute_workgroups_per_dimension: u32::MAX,
            ..wgpu::Limits::default()
        };
        let kind = DeviceKind::Discrete;
        let capabilities = Capabilities::new(kind, None, wgpu::Features::empty(), &limits);
        assert_eq!(capabilities.max_workgroups, 65_535);
    }

    /// A limit for immediates means nothing without the feature.
    #[test]
    fn immediates_need_the_feature() {
        let limits = wgpu::Limits { max_immediate_size: 128, ..wgpu::Limits::default() };
        let with = |features| {
            Capabilities::new(DeviceKind::Other, None, features, &limits).immediate_bytes
        };
        assert_eq!(with(wgpu::Features::empty()), 0);
        assert_eq!(with(wgpu::Features::IMMEDIATES), 128);
    }
}
