//! The small kernels of a language model as benchmark cases.

use attn_core::testing::{Values, fill};

use super::kernels::{Deviation, KernelCase, PreparedKernel};
use super::upload;
use crate::activation::Activation;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::norm::{RmsNorm, rms_norm};
use crate::ops;
use crate::softmax::{log_sum_exp, softmax};
use crate::tensor::{DType, Tensor};

/// A kernel whose result for a row depends on that row of its input alone.
#[derive(Clone, Copy)]
struct RowKernel {
    name: &'static str,
    /// Operations an element.
    flops: f64,
    /// Tensors of the input's size that are read or written.
    tensors: f64,
    record: fn(&Tensor) -> Result<Tensor>,
    reference: fn(&[f64]) -> Vec<f64>,
}

const KERNELS: [RowKernel; 5] = [
    RowKernel {
        name: "softmax",
        flops: 6.0,
        tensors: 2.0,
        record: softmax,
        reference: |row| {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            row.iter().map(|x| x.exp() / sum).collect()
        },
    },
    RowKernel {
        name: "log-sum-exp",
        flops: 4.0,
        tensors: 1.0,
        record: log_sum_exp,
        reference: |row| vec![row.iter().map(|x| x.exp()).sum::<f64>().ln()],
    },
    RowKernel {
        name: "rms-norm",
        flops: 4.0,
        tensors: 2.0,
        record: |x| {
            let weight = Tensor::full(x.gpu(), &[x.shape()[1]], 1f32)?;
            rms_norm(x, &weight, &RmsNorm::new(1e-5))
        },
        reference: |row| {
            let square: f64 = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            row.iter().map(|x| x / (square + 1e-5).sqrt()).collect()
        },
    },
    RowKernel {
        name: "gated-silu",
        flops: 8.0,
        tensors: 2.0,
        record: |x| ops::gated(x, x, Activation::Silu),
        reference: |row| row.iter().map(|x| Activation::Silu.reference(*x) * x).collect(),
    },
    RowKernel {
        name: "soft-cap",
        flops: 16.0,
        tensors: 2.0,
        record: |x| ops::soft_cap(x, 30.0),
        reference: |row| row.iter().map(|x| 30.0 * (x / 30.0).tanh()).collect(),
    },
];

/// The cases, or with `quick` one of each kernel.
pub(super) fn cases(quick: bool) -> Vec<KernelCase> {
    let mut shapes = vec![([1024, 1024], DType::F32)];
    if !quick {
        shapes.extend([
            ([1024, 1024], DType::F16),
            ([1021, 577], DType::F32),
            ([16, 49_152], DType::F32),
        ]);
    }
    let all = |kernel: RowKernel| shapes.clone().into_iter().map(move |(s, d)| case(kernel, s, d));
    KERNELS.into_iter().flat_map(all).collect()
}

fn case(kernel: RowKernel, [rows, width]: [usize; 2], dtype: DType) -> KernelCase {
    let prepare = move |gpu: &Gpu| {
        let host = fill(2, 0, Values::Normal, rows * width);
        let x = upload(gpu, dtype, &host, &[rows, width])?;
        // The reference starts from what is stored.
        let host = ops::convert(&x, DType::F32)?.to_vec::<f32>()?;
        let check = move |result: &[f32]| check(kernel, &host, width, dtype, result);
        let record = move || (kernel.record)(&x);
        Ok(PreparedKernel::new(record, check))
    };
    let elements = (rows * width) as f64;
    KernelCase::new(kernel.name, format!("{rows}x{width}, {}", dtype.name()), prepare)
        .with_cost(kernel.flops * elements, kernel.tensors * elements * dtype.bytes() as f64)
}

/// Results are within 4e-6 of themselves, and half a unit of their storage type.
fn check(kernel: RowKernel, x: &[f32], width: usize, dtype: DType, result: &[f32]) -> Deviation {
    let half = match dtype {
        DType::F16 => 0.5f64.powi(11),
        DType::BF16 => 0.5f64.powi(8),
        _ => 0.0,
    };
    let mut deviation = Deviation { elements: 0, max_abs: 0.0, of_bound: 0.0 };
    let wide =
        |row: &[f32]| (kernel.reference)(&row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let want: Vec<f64> = x.chunks(width).flat_map(wide).collect();
    if result.len() != want.len() || result.iter().any(|x| !x.is_finite()) {
        return Deviation { max_abs: f64::INFINITY, of_bound: f64::INFINITY, ..deviation };
    }
    for (&got, want) in result.iter().zip(want) {
        let error = (f64::from(got) - want).abs();
        deviation.elements += 1;
        deviation.max_abs = deviation.max_abs.max(error);
        deviation.of_bound = deviation.of_bound.max(error / ((4e-6 + half) * want.abs() + 1e-6));
    }
    deviation
}
