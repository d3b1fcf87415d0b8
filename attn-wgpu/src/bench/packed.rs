//! Products with packed weights as benchmark cases, on the shapes of the same products in f16.

use attn_core::testing::{Values, fill};
use half::f16;

use super::kernels::{KernelCase, PreparedKernel, check_matmul};
use super::upload;
use crate::gpu::Gpu;
use crate::matmul::Epilogue;
use crate::packed::{BlockType, Packed, matmul};
use crate::tensor::DType;

/// Rows, depth, columns: the layers of a small language model for a token and for a prompt, and its head.
pub(super) fn cases(quick: bool) -> Vec<KernelCase> {
    use BlockType::{Q4_1, Q8_0};
    let mut cases = vec![([1, 576, 1536], Q4_1)];
    if !quick {
        cases.extend([
            ([1, 1536, 576], Q4_1),
            ([1, 576, 49_152], Q8_0),
            ([512, 576, 1536], Q4_1),
            ([512, 1536, 576], Q4_1),
            ([512, 576, 1536], Q8_0),
        ]);
    }
    cases.into_iter().map(|(extents, kind)| case(extents, kind)).collect()
}

fn case([rows, depth, columns]: [usize; 3], kind: BlockType) -> KernelCase {
    let prepare = move |gpu: &Gpu| {
        let host_a = fill(1, 0, Values::Normal, rows * depth);
        let (blocks, values) = quantized(kind, &fill(1, 1, Values::Normal, depth * columns));
        let a = upload(gpu, DType::F32, &host_a, &[rows, depth])?;
        let weight = Packed::from_blocks(gpu, kind, columns, depth, &blocks)?;
        let check = move |result: &[f32]| {
            let at = |k: usize, n: usize| f64::from(values[n * depth + k]);
            check_matmul([rows, depth, columns], &host_a, at, result)
        };
        Ok(PreparedKernel::new(move || matmul(&a, &weight, &Epilogue::new()), check))
    };
    let (m, k, n) = (rows as f64, depth as f64, columns as f64);
    let name = if rows == 1 { "matvec-packed" } else { "matmul-packed" };
    let problem = format!("{rows}x{depth}x{columns}, {} weights", kind.name());
    let (values, bytes) = kind.block();
    let weights = k * n * bytes as f64 / values as f64;
    let mut case = KernelCase::new(name, problem, prepare)
        .with_cost(2.0 * m * k * n, 4.0 * m * (k + n) + weights);
    case.weights = (rows == 1).then_some(k * n);
    case
}

/// Blocks whose values are near `data`, and the values: `Q8_0` by the largest magnitude of a block,
/// anything else as `Q4_1` by its range.
pub fn quantized(kind: BlockType, data: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut blocks, mut values) = (Vec::new(), Vec::with_capacity(data.len()));
    let scale = |x: f32| {
        let half = f16::from_f32(x);
        (half.to_le_bytes(), half.to_f32())
    };
    for block in data.chunks_exact(32) {
        let least = block.iter().copied().fold(f32::INFINITY, f32::min);
        let most = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if kind == BlockType::Q8_0 {
            let (bytes, d) = scale(most.max(-least) / 127.0);
            blocks.extend(bytes);
            for x in block {
                let n = (x / d).round().clamp(-127.0, 127.0);
                blocks.push(n as i8 as u8);
                values.push(d * n);
            }
            continue;
        }
        let ((bytes, d), (bytes_m, m)) = (scale((most - least) / 15.0), scale(least));
        blocks.extend(bytes.into_iter().chain(bytes_m));
        let codes: Vec<u8> =
            block.iter().map(|x| ((x - m) / d).round().clamp(0.0, 15.0) as u8).collect();
        blocks.extend((0..16).map(|i| codes[i] | codes[16 + i] << 4));
        values.extend(codes.iter().map(|&n| d * f32::from(n) + m));
    }
    (blocks, values)
}
