//! The small kernels of a language model as benchmark cases.

use attn_core::testing::{Values, fill};

use super::kernels::{Deviation, KernelCase, PreparedKernel};
use super::upload;
use crate::activation::Activation;
use crate::cache::KvCache;
use crate::embedding::gather_rows;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::norm::{RmsNorm, layer_norm, rms_norm};
use crate::ops;
use crate::rope::{Rope, RopeTable};
use crate::sample::{Sampling, argmax, sample, top_k};
use crate::softmax::{log_softmax_gather, log_sum_exp, softmax};
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

const KERNELS: [RowKernel; 12] = [
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
        name: "layer-norm",
        flops: 6.0,
        tensors: 2.0,
        record: |x| {
            let weight = Tensor::full(x.gpu(), &[x.shape()[1]], 1f32)?;
            let bias = Tensor::full(x.gpu(), &[x.shape()[1]], 0f32)?;
            layer_norm(x, &weight, &bias, 1e-5)
        },
        reference: |row| {
            let count = row.len() as f64;
            let mean = row.iter().sum::<f64>() / count;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            row.iter().map(|x| (x - mean) / (variance + 1e-5).sqrt()).collect()
        },
    },
    RowKernel {
        name: "add",
        flops: 1.0,
        tensors: 3.0,
        record: |x| ops::add(x, x),
        reference: |row| row.iter().map(|x| x + x).collect(),
    },
    RowKernel {
        name: "log-softmax-gather",
        flops: 4.0,
        tensors: 1.0,
        record: |x| log_softmax_gather(x, &Tensor::full(x.gpu(), &[x.shape()[0]], 3u32)?, None),
        reference: |row| vec![row[3] - row.iter().map(|x| x.exp()).sum::<f64>().ln()],
    },
    RowKernel {
        name: "argmax",
        flops: 1.0,
        tensors: 1.0,
        record: argmax,
        reference: |row| vec![ranked(row)[0] as f64],
    },
    RowKernel {
        name: "top-k-50",
        flops: 1.0,
        tensors: 1.0,
        record: |x| Ok(top_k(x, 50)?.0),
        reference: |row| ranked(row)[..50].iter().map(|&i| row[i]).collect(),
    },
    RowKernel {
        name: "sample-k50-p0.9",
        flops: 8.0,
        tensors: 1.0,
        record: |x| {
            let sampling = Sampling { top_k: Some(50), top_p: 0.9, ..Sampling::default() };
            sample(x, &sampling, &Tensor::full(x.gpu(), &[x.shape()[0]], UNIFORM)?)
        },
        reference: |row| vec![drawn(row, 50, 0.9) as f64],
    },
    RowKernel {
        name: "cache-append",
        flops: 0.0,
        tensors: 4.0,
        record: |x| {
            // A row is a token of one head.
            let tokens = x.split(0, &[1, 1, x.shape()[0]])?;
            let dim = x.shape()[1];
            let mut cache = KvCache::new(x.gpu(), 1, 1, dim, dim, x.dtype(), x.shape()[0])?;
            cache.append(&tokens, &tokens)?;
            cache.keys()
        },
        reference: |row| row.to_vec(),
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

/// Where the cumulative probability is cut.
const UNIFORM: f32 = 0.37;

/// Numbers of the elements, largest first, the first of equals first.
fn ranked(row: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    order
}

/// Top-k, then top-p, then the first element at which the cumulative probability exceeds the cut.
fn drawn(row: &[f64], k: usize, p: f64) -> usize {
    let mut kept = ranked(row);
    kept.truncate(k);
    let mass: f64 = kept.iter().map(|&i| row[i].exp()).sum();
    let mut sum = 0.0;
    let fewest = kept.iter().take_while(|&&i| {
        let short = sum < p * mass;
        sum += row[i].exp();
        short
    });
    let mut kept: Vec<usize> = fewest.copied().collect();
    kept.sort_unstable();
    let cut = f64::from(UNIFORM) * kept.iter().map(|&i| row[i].exp()).sum::<f64>();
    let mut sum = 0.0;
    let found = kept.iter().find(|&&i| {
        sum += row[i].exp();
        sum > cut
    });
    found.copied().unwrap_or(usize::MAX)
}

/// Rotation and rows of a table, whose results depend on more than a row.
fn others() -> [KernelCase; 2] {
    let [tokens, heads, dim] = [512usize, 16, 64];
    let rope = move |gpu: &Gpu| {
        let host = fill(3, 0, Values::Normal, tokens * heads * dim);
        let x = upload(gpu, DType::F32, &host, &[1, heads, tokens, dim])?;
        let table = RopeTable::new(gpu, Rope::new(dim, 1e4)?, tokens)?;
        table.reserve(tokens)?;
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let positions = Tensor::from_slice(gpu, &positions, &[tokens])?;
        let want = rotated(&host, tokens, dim);
        let record = move || table.apply(&x, &positions);
        Ok(PreparedKernel::new(record, move |result| compared(&want, result, 4e-6)))
    };
    let [rows, width] = [1024usize, 1024];
    let gather = move |gpu: &Gpu| {
        let host = fill(3, 1, Values::Normal, rows * width);
        let table = upload(gpu, DType::F32, &host, &[rows, width])?;
        let number = move |row: usize| row * 389 % rows;
        let ids: Vec<u32> = (0..rows).map(|row| number(row) as u32).collect();
        let ids = Tensor::from_slice(gpu, &ids, &[rows])?;
        let picked = (0..rows).flat_map(|row| host[number(row) * width..][..width].to_vec());
        let want: Vec<f64> = picked.map(f64::from).collect();
        let record = move || gather_rows(&table, &ids, 1.0, DType::F32);
        Ok(PreparedKernel::new(record, move |result| compared(&want, result, 0.0)))
    };
    let elements = [tokens * heads * dim, rows * width].map(|count| count as f64);
    [
        KernelCase::new("rope", format!("{heads}x{tokens}x{dim}, f32"), rope)
            .with_cost(3.0 * elements[0], 8.0 * elements[0]),
        KernelCase::new("gather-rows", format!("{rows}x{width}, f32"), gather)
            .with_cost(0.0, 8.0 * elements[1]),
    ]
}

/// Pairs `(i, i + dim / 2)` of each token turned by its angles.
fn rotated(x: &[f32], tokens: usize, dim: usize) -> Vec<f64> {
    let value = |index: usize| {
        let (row, i) = (index / dim, index % dim);
        let (token, pair) = (row % tokens, i % (dim / 2));
        let angle = token as f64 * 1e4f64.powf(-2.0 * pair as f64 / dim as f64);
        let [a, b] = [pair, pair + dim / 2].map(|i| f64::from(x[row * dim + i]));
        if i < dim / 2 {
            a * angle.cos() - b * angle.sin()
        } else {
            b * angle.cos() + a * angle.sin()
        }
    };
    (0..x.len()).map(value).collect()
}

/// The cases, or with `quick` one.
pub(super) fn cases(quick: bool) -> Vec<KernelCase> {
    if quick {
        return vec![case(KERNELS[0], [1024, 1024], DType::F32)];
    }
    let shapes = [
        ([1024, 1024], DType::F32),
        ([1024, 1024], DType::F16),
        ([1021, 577], DType::F32),
        ([16, 49_152], DType::F32),
    ];
    let all = |kernel: RowKernel| shapes.map(|(shape, dtype)| case(kernel, shape, dtype));
    KERNELS.into_iter().flat_map(all).chain(others()).collect()
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
    let wide =
        |row: &[f32]| (kernel.reference)(&row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let want: Vec<f64> = x.chunks(width).flat_map(wide).collect();
    compared(&want, result, 4e-6 + half)
}

/// Results are within `relative` of themselves, and 1e-6.
fn compared(want: &[f64], result: &[f32], relative: f64) -> Deviation {
    let mut deviation = Deviation { elements: 0, max_abs: 0.0, of_bound: 0.0 };
    if result.len() != want.len() || result.iter().any(|x| !x.is_finite()) {
        return Deviation { max_abs: f64::INFINITY, of_bound: f64::INFINITY, ..deviation };
    }
    for (&got, want) in result.iter().zip(want) {
        let error = (f64::from(got) - want).abs();
        deviation.elements += 1;
        deviation.max_abs = deviation.max_abs.max(error);
        deviation.of_bound = deviation.of_bound.max(error / (relative * want.abs() + 1e-6));
    }
    deviation
}
