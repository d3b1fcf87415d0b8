//! Where burn's memory becomes tensors of `attn-wgpu`: the only module that knows cubecl.
//!
//! A crossing runs on cubecl's device thread, so nothing else of burn's gets in between. Asking for the
//! buffer of a tensor submits what burn has queued for it, which is why buffers are asked for immediately
//! before our commands are recorded, and never kept; ours are submitted before the crossing ends. Both
//! submit to one queue, so its order is the order of the program.

use attn_wgpu::{DType, Result, Tensor};
use burn::backend::DispatchDevice;
use burn::tensor::{DType as BurnDType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::wgpu::{AutoCompiler, WgpuServer};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use crate::device::find;
use crate::operands::Operands;
use crate::operation::{Spec, Step, fail, kernel_error};

type Server = WgpuServer<AutoCompiler>;

/// Runs a step on burn's tensors, into burn's tensors.
///
/// # Panics
/// Where the step fails: the operations of a burn backend have no other way to say so.
pub(crate) fn run(step: &Step, given: Operands<CubeBackend>) -> Operands<CubeBackend> {
    let inputs: Vec<_> = given.floats.into_iter().chain(given.ints).collect();
    match cross(step, &inputs) {
        Ok((outputs, kinds)) => {
            let mut made = Operands::default();
            for (tensor, float) in outputs.into_iter().zip(kinds) {
                if float { made.floats.push(tensor) } else { made.ints.push(tensor) }
            }
            made
        }
        Err(error) => fail(step.name(), &error),
    }
}

fn cross(step: &Step, inputs: &[CubeTensor]) -> Result<(Vec<CubeTensor>, Vec<bool>)> {
    let first = inputs.first().ok_or_else(|| kernel_error(step.name(), "no input"))?;
    let gpu = find(&DispatchDevice::Cube(first.device.clone()))?;
    let specs = inputs.iter().map(spec).collect::<Result<Vec<_>>>()?;
    let wanted = step.outputs(&specs)?;
    let outputs: Vec<_> = wanted
        .iter()
        .map(|spec| {
            let shape = Shape::from(spec.shape.clone());
            let (client, device) = (first.client.clone(), first.device.clone());
            empty_device_contiguous_dtype(client, device, shape, burn_dtype(spec.dtype))
        })
        .collect();
    let record = || -> Result<()> {
        // They keep the memory in its place until our commands are submitted.
        let mut held = Vec::new();
        let mut view = |tensor: &CubeTensor| -> Result<Tensor> {
            let spec = spec(tensor)?;
            if spec.is_empty() {
                return Tensor::uninit(&gpu, &spec.shape, spec.dtype);
            }
            let resource = tensor
                .client
                .get_resource::<Server>(tensor.handle.clone())
                .map_err(|error| kernel_error(step.name(), error))?;
            let place = resource.resource();
            let offset = place.offset as usize / spec.dtype.bytes();
            let (buffer, strides) = (place.buffer.clone(), tensor.meta.strides());
            let view = Tensor::from_buffer(&gpu, buffer, offset, &spec.shape, strides, spec.dtype);
            held.push(resource);
            view
        };
        let inputs = inputs.iter().map(&mut view).collect::<Result<Vec<_>>>()?;
        let targets = outputs.iter().map(&mut view).collect::<Result<Vec<_>>>()?;
        let recorded = step.record(&gpu, &inputs, &targets);
        // Also what a failed step recorded: later it would write into memory that is somebody else's.
        gpu.flush().and(recorded)
    };
    first.client.exclusive(record).map_err(|error| kernel_error(step.name(), error))??;
    let kinds = wanted.iter().map(|spec| spec.is_float()).collect();
    Ok((outputs, kinds))
}

fn spec(tensor: &CubeTensor) -> Result<Spec> {
    let plain = tensor.qparams.is_none() && !tensor.meta.is_tiled();
    let dtype = Some(tensor.dtype).filter(|_| plain).and_then(own_dtype);
    let dtype = dtype.ok_or_else(|| attn_core::Error::Dtype {
        arg: "inputs",
        expected: "f32, f16, bf16, i32 or u32, neither quantised nor in tiles".into(),
        got: format!("{:?}", tensor.dtype),
    })?;
    Ok(Spec::new(tensor.meta.shape().to_vec(), dtype))
}

/// The type of elements, where both sides have it.
pub(crate) fn own_dtype(dtype: BurnDType) -> Option<DType> {
    match dtype {
        BurnDType::F32 => Some(DType::F32),
        BurnDType::F16 => Some(DType::F16),
        BurnDType::BF16 => Some(DType::BF16),
        BurnDType::I32 => Some(DType::I32),
        BurnDType::U32 => Some(DType::U32),
        _ => None,
    }
}

pub(crate) fn burn_dtype(dtype: DType) -> BurnDType {
    match dtype {
        DType::F16 => BurnDType::F16,
        DType::BF16 => BurnDType::BF16,
        DType::I32 => BurnDType::I32,
        DType::U32 => BurnDType::U32,
        _ => BurnDType::F32,
    }
}
