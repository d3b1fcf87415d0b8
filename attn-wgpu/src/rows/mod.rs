//! Tensors as rows, for kernels that work along the last dimension: how rows are addressed, split
//! over bindings, and shared by lanes.

#[cfg(feature = "bench")]
pub(crate) mod catalogue;

use crate::capabilities::{Capabilities, DeviceKind};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Binding, Constants};
use crate::ops;
use crate::target::refuse_repeats;
use crate::tensor::{DType, Tensor};
use crate::vec4::{four, is_vec4, vec4};

pub(crate) const SNIPPETS: &[(&str, &str)] = &[
    ("linear", include_str!("../../kernels/linear.wgsl")),
    ("activation", include_str!("../../kernels/activation.wgsl")),
    ("arguments", include_str!("../../kernels/attention_arguments.wgsl")),
    ("halves", include_str!("../../kernels/halves.wgsl")),
    ("source", include_str!("../../kernels/source.wgsl")),
    ("target", include_str!("../../kernels/target.wgsl")),
    ("keys", include_str!("../../kernels/keys.wgsl")),
    ("soft_cap", include_str!("../../kernels/soft_cap.wgsl")),
    ("row_place", include_str!("../../kernels/row_place.wgsl")),
    ("row_item", include_str!("../../kernels/row_item.wgsl")),
    ("row_reduce", include_str!("../../kernels/row_reduce.wgsl")),
    ("row_root", include_str!("../../kernels/row_root.wgsl")),
    ("row_mass", include_str!("../../kernels/row_mass.wgsl")),
    ("row_keys", include_str!("../../kernels/row_keys.wgsl")),
    ("row_best", include_str!("../../kernels/row_best.wgsl")),
    ("row_select", include_str!("../../kernels/row_select.wgsl")),
];

/// A kernel of the folder `kernels` that works on rows.
macro_rules! row_kernel {
    ($name:literal) => {
        $crate::kernel::KernelSource {
            name: $name,
            text: include_str!(concat!("../kernels/", $name, ".wgsl")),
            imports: $crate::rows::SNIPPETS,
        }
    };
}
pub(crate) use row_kernel;

/// Start and strides of a tensor `[e0, e1, e2, width]`, in vec4s or words: `Place` of
/// row_place.wgsl.
pub(crate) type Place = [u32; 4];

/// What kernels on rows begin their parameters with.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Extents {
    pub(crate) rows: u32,
    /// Elements, or vec4s where a kernel has no use for rows as such.
    pub(crate) width: u32,
    pub(crate) extent_1: u32,
    pub(crate) extent_2: u32,
}

impl Extents {
    pub(crate) fn of(window: &Tensor, width: usize) -> Extents {
        let shape = window.shape();
        let rows: usize = shape[..3].iter().product();
        let (extent_1, extent_2) = (shape[1] as u32, shape[2] as u32);
        Extents { rows: rows as u32, width: width as u32, extent_1, extent_2 }
    }
}

/// How the rows of one width are shared by lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sharing {
    pub(crate) workgroup: u32,
    /// Lanes of a row, a power of two.
    pub(crate) lanes: u32,
    /// Lanes that combine by shuffles, a power of two.
    pub(crate) shuffled: u32,
}

impl Sharing {
    /// A pure function of the width and the device, so that a row's result never depends on the
    /// rows beside it. `passes` over the row must stay below the device's limit of loop steps.
    ///
    /// Software drivers: a few lanes, for what lanes exchange is dear. Without subgroups the lanes
    /// of a row are few, as each adds up what all of them found.
    pub(crate) fn new(width: usize, passes: usize, capabilities: &Capabilities) -> Sharing {
        let chunks = width.div_ceil(4).max(1);
        let cpu = capabilities.kind == DeviceKind::Cpu;
        let (usual, base) = if cpu { (8, 32) } else { (256, 128) };
        // A workgroup of several rows repeats the last one where there are no more, so wide rows have
        // their own.
        let base = if chunks > 1024 { 1 } else { base };
        let most = if capabilities.subgroups.is_some() { usual } else { usual.min(32) };
        // Lanes that have less than a few vec4s cost more than they help.
        let wanted = chunks.div_ceil(if cpu { 2 } else { 4 }).next_power_of_two().min(most);
        let threads = capabilities.max_workgroup_threads.min(256);
        let smallest = capabilities.subgroups.map_or(1, |subgroups| subgroups.min.max(1));
        let of = |lanes: u32| {
            let shuffled = lanes.min(1 << smallest.ilog2());
            Sharing { workgroup: lanes.max(base.min(threads)), lanes, shuffled }
        };
        let mut sharing = of((wanted as u32).min(threads));
        while sharing.steps(width, passes) > capabilities.max_loop_steps
            && 2 * sharing.lanes <= threads
        {
            sharing = of(2 * sharing.lanes);
        }
        sharing
    }

    /// Steps of loops: of each pass, and of adding up its result.
    fn steps(&self, width: usize, passes: usize) -> usize {
        let chunks = width.div_ceil(4).div_ceil(self.lanes as usize);
        passes * (chunks + (self.lanes / self.shuffled) as usize)
    }

    pub(crate) fn constants(&self) -> Constants {
        Constants::new()
            .int("WORKGROUP", self.workgroup)
            .int("LANES", self.lanes)
            .int("SHUFFLED", self.shuffled)
            .int("SHUFFLE_BITS", self.shuffled.ilog2())
            .int("PARTS", self.lanes / self.shuffled)
            .flag("SUBGROUP", self.shuffled > 1)
            .flag("ACROSS", self.lanes > self.shuffled)
    }

    pub(crate) fn groups(&self, rows: u32) -> u64 {
        u64::from(rows).div_ceil(u64::from(self.workgroup / self.lanes))
    }

    /// Refuses rows that need more steps of loops than the device does.
    pub(crate) fn check(&self, what: &str, width: usize, passes: usize, gpu: &Gpu) -> Result<()> {
        let what = format!("`{what}` of rows of {width} elements");
        gpu.capabilities().check_steps(what, self.steps(width, passes))
    }
}

/// Adds the storage types of sources and target.
pub(crate) fn storage(constants: Constants, source: DType, target: Option<DType>) -> Constants {
    constants
        .flag("SOURCE_F16", source == DType::F16)
        .flag("SOURCE_BF16", source == DType::BF16)
        .flag("TARGET_F16", target == Some(DType::F16))
        .flag("TARGET_BF16", target == Some(DType::BF16))
}

/// Vec4s that an invocation of an elementwise kernel handles.
pub(crate) const ITEMS: u32 = 4;

/// Constants of an elementwise kernel, and the vec4s of one workgroup.
pub(crate) fn elementwise(capabilities: &Capabilities) -> (Constants, u64) {
    let workgroup = ops::workgroup(capabilities);
    let constants = Constants::new().int("WORKGROUP", workgroup).int("ITEMS", ITEMS);
    (constants, u64::from(workgroup * ITEMS))
}

/// Checks that a tensor is of floats, on `gpu`, and has one to four dimensions.
pub(crate) fn check(arg: &'static str, tensor: &Tensor, gpu: &Gpu) -> Result<()> {
    check_float(arg, tensor.dtype())?;
    check_device(arg, tensor, gpu)?;
    if !(1..=4).contains(&tensor.shape().len()) {
        let expected = "one to four dimensions";
        return Err(attn_core::Error::shape(arg, expected, tensor.shape()).into());
    }
    Ok(())
}

pub(crate) fn check_float(arg: &'static str, dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(());
    }
    let (expected, got) = ("f32, f16 or bf16".into(), dtype.name().into());
    Err(attn_core::Error::Dtype { arg, expected, got }.into())
}

pub(crate) fn check_device(arg: &'static str, tensor: &Tensor, gpu: &Gpu) -> Result<()> {
    if tensor.gpu().is_same(gpu) {
        return Ok(());
    }
    let (expected, got) = (gpu.adapter().name.as_str(), "a tensor of another Gpu");
    Err(attn_core::Error::config(arg, expected, got).into())
}

/// Checks type and shape of a tensor.
pub(crate) fn check_form(
    arg: &'static str,
    tensor: &Tensor,
    shape: &[usize],
    dtype: DType,
) -> Result<()> {
    if tensor.dtype() != dtype {
        let (expected, got) = (dtype.name().into(), tensor.dtype().name().into());
        return Err(attn_core::Error::Dtype { arg, expected, got }.into());
    }
    if tensor.shape() != shape {
        return Err(attn_core::Error::shape(arg, format!("{shape:?}"), tensor.shape()).into());
    }
    Ok(())
}

/// The tensor with four dimensions, addressable in groups of four elements: itself, or a packed
/// copy whose last dimension is filled up with zeros.
pub(crate) fn source(tensor: &Tensor) -> Result<Tensor> {
    vec4(&four(tensor))
}

/// A vector of weights as f32 that kernels can address in groups of four elements.
pub(crate) fn weights(arg: &'static str, tensor: &Tensor, width: usize) -> Result<Tensor> {
    if tensor.shape() != [width] {
        return Err(attn_core::Error::shape(arg, format!("[{width}]"), tensor.shape()).into());
    }
    source(&ops::convert(tensor, DType::F32)?)
}

/// A new tensor that `write` fills, given in a form as [`source`]'s.
pub(crate) fn write(
    gpu: &Gpu,
    shape: &[usize],
    dtype: DType,
    write: impl FnOnce(&Tensor) -> Result<()>,
) -> Result<Tensor> {
    let width = shape.last().copied().unwrap_or(1);
    let mut padded = shape.to_vec();
    padded.pop();
    padded.push(width.next_multiple_of(4));
    let target = Tensor::uninit(gpu, &padded, dtype)?;
    if shape.contains(&0) {
        return target.narrow(shape.len() - 1, 0, width);
    }
    write(&four(&target))?;
    target.narrow(shape.len() - 1, 0, width)?.contiguous()
}

/// Fills a caller's tensor by `write`, directly where [`source`] would return the tensor itself.
pub(crate) fn write_into(out: &Tensor, write: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
    refuse_repeats("out", out)?;
    let target = four(out);
    if out.is_empty() {
        return Ok(());
    }
    if is_vec4(&target) {
        return write(&target);
    }
    let written = self::write(out.gpu(), out.shape(), out.dtype(), write)?;
    ops::copy(&written, out)
}

/// Binding and place of a window, in vec4s.
pub(crate) fn bind(window: &Tensor) -> (Binding, Place) {
    let (binding, start) = window.binding();
    (binding, place(window, start, 4))
}

/// As [`bind`], for a window that is written: the binding covers the whole buffer where it may, so
/// that windows that move through one buffer share a bind group.
pub(crate) fn bind_target(window: &Tensor, sources: &[&Tensor]) -> (Binding, Place) {
    if sources.iter().any(|source| source.buffer().0 == window.buffer().0) {
        return bind(window);
    }
    let (binding, start) = window.whole_binding();
    (binding, place(window, start, 4))
}

/// Start and strides in units of `unit` elements.
pub(crate) fn place(window: &Tensor, start: usize, unit: usize) -> Place {
    let stride =
        |d: usize| if window.shape()[d] > 1 { (window.strides()[d] / unit) as u32 } else { 0 };
    [(start / unit) as u32, stride(0), stride(1), stride(2)]
}

/// Calls `run` with windows of the tensors, of equal extents in the dimensions `dims`, that fit into
/// bindings; where no division helps, the kernel's dispatch refuses the binding.
pub(crate) fn windows(
    tensors: &[&Tensor],
    dims: std::ops::Range<usize>,
    run: &mut dyn FnMut(&[&Tensor]) -> Result<()>,
) -> Result<()> {
    let Some(first) = tensors.first() else { return Ok(()) };
    let limit = first.gpu().capabilities().max_binding_bytes.min(1 << 32);
    if tensors.iter().all(|tensor| tensor.binding().0.bytes <= limit) {
        return run(tensors);
    }
    // Rows may be divided in any place, their elements only between groups of four.
    let unit = |d: usize| if d == 3 { 4 } else { 1 };
    let span = |&d: &usize| {
        let of = |tensor: &&Tensor| (tensor.shape()[d] - 1) * tensor.strides()[d];
        tensors.iter().map(of).max()
    };
    let Some(d) = dims.clone().filter(|&d| first.shape()[d] > unit(d)).max_by_key(span) else {
        return run(tensors);
    };
    let extent = first.shape()[d];
    let half = (extent / 2).next_multiple_of(unit(d)).min(extent - 1);
    for (start, len) in [(0, half), (half, extent - half)] {
        let parts: Vec<Tensor> =
            tensors.iter().map(|tensor| tensor.narrow(d, start, len)).collect::<Result<_>>()?;
        windows(&parts.iter().collect::<Vec<_>>(), dims.clone(), run)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Subgroups;

    #[test]
    fn lanes_are_shared_by_width_and_device() {
        let plain = Capabilities::webgpu();
        let gpu = Capabilities { subgroups: Some(Subgroups { min: 32, max: 32 }), ..plain.clone() };
        let cpu = Capabilities {
            kind: DeviceKind::Cpu,
            max_loop_steps: 60_000,
            subgroups: Some(Subgroups { min: 8, max: 8 }),
            ..plain.clone()
        };
        for (width, passes, capabilities, workgroup, lanes, shuffled) in [
            (1, 2, &gpu, 128, 1, 1),
            (64, 2, &gpu, 128, 4, 4),
            (1024, 2, &gpu, 128, 64, 32),
            (16_384, 2, &gpu, 256, 256, 32),
            (1024, 2, &plain, 128, 32, 1),
            (8192, 2, &cpu, 8, 8, 8),
            (4, 2, &cpu, 32, 1, 1),
            (1024, 2, &cpu, 32, 8, 8),
            (262_144, 36, &cpu, 64, 64, 8),
        ] {
            let want = Sharing { workgroup, lanes, shuffled };
            assert_eq!(Sharing::new(width, passes, capabilities), want, "{width}");
        }
        let tiny = Capabilities { max_workgroup_threads: 16, ..gpu };
        assert_eq!(Sharing::new(4096, 2, &tiny).workgroup, 16);
    }
}
