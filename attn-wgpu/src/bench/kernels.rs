//! General kernels as benchmarks see them: each on a few problems, with its own check. A new kernel is a
//! function that makes its cases, and one line in [`kernel_cases`].

use attn_core::testing::{Values, fill};

use super::upload;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::matmul::matmul;
use crate::tensor::{DType, Tensor};

type Prepare = dyn Fn(&Gpu) -> Result<PreparedKernel> + Send + Sync;
type Check = dyn Fn(&[f32]) -> Deviation;

/// One kernel on one problem.
pub struct KernelCase {
    /// The operation, as `matmul-nt`.
    pub name: &'static str,
    /// Extents and types, as `512x512x512, f32`.
    pub problem: String,
    /// Floating-point operations of one run.
    pub flops: f64,
    /// Bytes that one run has to move at least.
    pub bytes: f64,
    /// Weights that one run reads, where reading them is what counts.
    pub weights: Option<f64>,
    prepare: Box<Prepare>,
}

/// A case with its inputs on a device.
pub struct PreparedKernel {
    record: Box<dyn Fn() -> Result<Tensor>>,
    check: Box<Check>,
}

/// How far a result is from its f64 reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deviation {
    /// Elements that were compared.
    pub elements: usize,
    /// Largest difference; not finite where the result is not.
    pub max_abs: f64,
    /// Largest ratio of a difference to what is allowed at that element: right up to 1.
    pub of_bound: f64,
}

impl KernelCase {
    pub(super) fn new(
        name: &'static str,
        problem: String,
        prepare: impl Fn(&Gpu) -> Result<PreparedKernel> + Send + Sync + 'static,
    ) -> KernelCase {
        let prepare = Box::new(prepare);
        KernelCase { name, problem, flops: 0.0, bytes: 0.0, weights: None, prepare }
    }

    pub(super) fn with_cost(self, flops: f64, bytes: f64) -> KernelCase {
        KernelCase { flops, bytes, ..self }
    }

    /// Uploads the inputs.
    ///
    /// # Errors
    /// Those of the device.
    pub fn prepare(&self, gpu: &Gpu) -> Result<PreparedKernel> {
        (self.prepare)(gpu)
    }
}

impl PreparedKernel {
    pub(super) fn new(
        record: impl Fn() -> Result<Tensor> + 'static,
        check: impl Fn(&[f32]) -> Deviation + 'static,
    ) -> PreparedKernel {
        PreparedKernel { record: Box::new(record), check: Box::new(check) }
    }

    /// Records one run and returns its result, f32 or a half type.
    ///
    /// # Errors
    /// Those of the device.
    pub fn record(&self) -> Result<Tensor> {
        (self.record)()
    }

    /// Compares a result, converted to f32, with the reference.
    pub fn check(&self, result: &[f32]) -> Deviation {
        (self.check)(result)
    }
}

/// The cases of all general kernels, or with `quick` one or two of each.
pub fn kernel_cases(quick: bool) -> Vec<KernelCase> {
    let mut cases = Vec::new();
    cases.extend(matmul_cases(quick));
    cases.extend(super::packed::cases(quick));
    cases.extend(super::rows::cases(quick));
    cases
}

/// How `b` is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weights {
    /// `[N, K]`.
    Nt(DType),
    /// `[K, N]`.
    Nn(DType),
}

fn matmul_cases(quick: bool) -> Vec<KernelCase> {
    use DType::{F16, F32};
    use Weights::{Nn, Nt};
    // Rows, depth, columns: squares, an odd one, the layers of a small language model for a prompt and
    // for a token, and its head.
    let mut cases = vec![([512; 3], Nt(F32)), ([1, 576, 1536], Nt(F16))];
    if !quick {
        cases.extend([
            ([1024; 3], Nt(F32)),
            ([1536; 3], Nt(F32)),
            ([1021; 3], Nt(F32)),
            ([1024; 3], Nt(F16)),
            ([512; 3], Nn(F32)),
            ([1024; 3], Nn(F32)),
            ([1536; 3], Nn(F32)),
            ([1021; 3], Nn(F32)),
            ([1024; 3], Nn(F16)),
            ([512, 576, 1536], Nt(F16)),
            ([512, 1536, 576], Nt(F16)),
            ([1, 576, 1536], Nt(F32)),
            ([1, 1536, 576], Nt(F32)),
            ([1, 576, 49_152], Nt(F32)),
            ([1, 576, 49_152], Nt(F16)),
        ]);
    }
    cases.into_iter().map(|(extents, weights)| matmul_case(extents, weights)).collect()
}

fn matmul_case([rows, depth, columns]: [usize; 3], weights: Weights) -> KernelCase {
    let (dtype, transposed) = match weights {
        Weights::Nt(dtype) => (dtype, true),
        Weights::Nn(dtype) => (dtype, false),
    };
    let prepare = move |gpu: &Gpu| {
        let host_a = fill(1, 0, Values::Normal, rows * depth);
        let host_b = rounded(dtype, fill(1, 1, Values::Normal, depth * columns));
        let a = upload(gpu, DType::F32, &host_a, &[rows, depth])?;
        let b = if transposed {
            upload(gpu, dtype, &host_b, &[columns, depth])?.permute(&[1, 0])?
        } else {
            upload(gpu, dtype, &host_b, &[depth, columns])?
        };
        let check = move |result: &[f32]| {
            let at = |k: usize, n: usize| {
                let place = if transposed { n * depth + k } else { k * columns + n };
                f64::from(host_b[place])
            };
            check_matmul([rows, depth, columns], &host_a, at, result)
        };
        Ok(PreparedKernel { record: Box::new(move || matmul(&a, &b)), check: Box::new(check) })
    };
    let (m, k, n) = (rows as f64, depth as f64, columns as f64);
    let layout = if transposed { "nt" } else { "nn" };
    KernelCase {
        name: match (rows, layout) {
            (1, _) => "matvec",
            (_, "nt") => "matmul-nt",
            _ => "matmul-nn",
        },
        problem: format!("{rows}x{depth}x{columns}, {} weights", dtype.name()),
        flops: 2.0 * m * k * n,
        bytes: 4.0 * m * (k + n) + dtype.bytes() as f64 * k * n,
        weights: (rows == 1).then_some(k * n),
        prepare: Box::new(prepare),
    }
}

/// Numbers as a storage type holds them.
fn rounded(dtype: DType, mut data: Vec<f32>) -> Vec<f32> {
    if dtype == DType::F16 {
        data.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32());
    }
    data
}

/// Elements of a product that are compared.
const SAMPLES: usize = 2000;

/// A sum of K products in f32, in any order, is off by at most (K + 2) roundings of the sum of their
/// magnitudes.
pub(super) fn check_matmul(
    [rows, depth, columns]: [usize; 3],
    a: &[f32],
    b: impl Fn(usize, usize) -> f64,
    result: &[f32],
) -> Deviation {
    let total = rows * columns;
    let mut deviation = Deviation { elements: 0, max_abs: 0.0, of_bound: 0.0 };
    if result.len() != total || result.iter().any(|x| !x.is_finite()) {
        return Deviation { max_abs: f64::INFINITY, of_bound: f64::INFINITY, ..deviation };
    }
    // A step that shares no factor with usual extents visits every row and column.
    let count = SAMPLES.min(total);
    let picks = (0..count).map(|i| (i as u128 * 1_000_003 * 7919 % total as u128) as usize);
    for index in picks.chain([0, total - 1, columns - 1, total - columns]) {
        let (row, column) = (index / columns, index % columns);
        let (mut sum, mut size) = (0.0, 0.0);
        for k in 0..depth {
            let term = f64::from(a[row * depth + k]) * b(k, column);
            sum += term;
            size += f64::abs(term);
        }
        let error = (f64::from(result[index]) - sum).abs();
        let bound = (depth + 2) as f64 * f64::from(f32::EPSILON) / 2.0 * size;
        deviation.elements += 1;
        deviation.max_abs = deviation.max_abs.max(error);
        deviation.of_bound = deviation.of_bound.max(error / bound);
    }
    deviation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_products_are_told() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let check =
            |result: &[f32]| check_matmul([2, 2, 2], &a, |k, n| b[k * 2 + n], result).of_bound;
        assert_eq!(check(&[19.0, 22.0, 43.0, 50.0]), 0.0);
        assert!(check(&[19.0, 22.0, 43.0, 50.001]) > 1.0);
        assert!(check(&[19.0, 22.0, f32::NAN, 50.0]).is_infinite());
        assert!(check(&[19.0]).is_infinite());
    }
}
