//! Products with packed weights against f64 products of the values that the block formats define: types,
//! shapes, epilogues, every kernel, rows by number, and limits.

mod common;

use attn_core::testing::Budget;
use attn_wgpu::embedding;
use attn_wgpu::matmul::Epilogue;
use attn_wgpu::packed::{
    BlockType, Packed, device_bytes, gather_rows, matmul, matmul_as, matmul_into,
};
use attn_wgpu::{Activation, Capabilities, DType, DeviceKind, Error, Gpu, Tensor, wgpu};
use common::{download, gpu, open, upload};
use half::{bf16, f16};

const KINDS: [BlockType; 5] =
    [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q8_0, BlockType::Q4K, BlockType::Q6K];

/// Numbers of a counter.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// In -1 .. 1.
    fn next(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn numbers(seed: u64, count: usize, dtype: DType) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    (0..count).map(|_| round(dtype, numbers.next())).collect()
}

fn round(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Where the half words of a block are that scale all of it.
fn scale_places(kind: BlockType) -> &'static [usize] {
    match kind {
        BlockType::Q4_0 | BlockType::Q8_0 => &[0],
        BlockType::Q4_1 | BlockType::Q4K => &[0, 2],
        BlockType::Q6K => &[208],
        _ => unreachable!(),
    }
}

/// Blocks of any bits, with scales of either sign around 0.1.
fn blocks(kind: BlockType, rows: usize, width: usize, seed: u64) -> Vec<u8> {
    let (values, bytes) = kind.block();
    let mut numbers = Numbers::new(seed);
    let mut all = Vec::new();
    for _ in 0..rows * width / values {
        let mut block: Vec<u8> = (0..bytes).map(|_| numbers.bits() as u8).collect();
        for &place in scale_places(kind) {
            let scale = f16::from_f32(0.2 * numbers.next());
            block[place..place + 2].copy_from_slice(&scale.to_le_bytes());
        }
        all.extend(block);
    }
    all
}

/// The values of a block, each from its own bits.
fn values_of(kind: BlockType, block: &[u8]) -> Vec<f64> {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let signed = |byte: u8| f64::from(byte as i8);
    let nibble = |from: usize, i: usize| {
        let byte = block[from + i % 16];
        f64::from(if i < 16 { byte & 15 } else { byte >> 4 })
    };
    let value = |i: usize| match kind {
        BlockType::Q4_0 => half(0) * (nibble(2, i) - 8.0),
        BlockType::Q4_1 => half(0) * nibble(4, i) + half(2),
        BlockType::Q8_0 => half(0) * signed(block[2 + i]),
        BlockType::Q4K => {
            let (part, within) = (i / 32, i % 32);
            let byte = block[16 + part / 2 * 32 + within];
            let n = if part % 2 == 0 { byte & 15 } else { byte >> 4 };
            let s = |i: usize| block[4 + i];
            let (scale, minimum) = if part < 4 {
                (s(part) & 63, s(part + 4) & 63)
            } else {
                (
                    (s(part + 4) & 15) | ((s(part - 4) >> 6) << 4),
                    (s(part + 4) >> 4) | ((s(part) >> 6) << 4),
                )
            };
            half(0) * f64::from(scale) * f64::from(n) - half(2) * f64::from(minimum)
        }
        BlockType::Q6K => {
            let (part, within) = (i / 128, i % 128);
            let (quarter, l) = (within / 32, within % 32);
            let low = block[64 * part + 32 * (quarter % 2) + l];
            let low = if quarter < 2 { low & 15 } else { low >> 4 };
            let high = block[128 + 32 * part + l] >> (2 * quarter) & 3;
            let n = f64::from(low | high << 4) - 32.0;
            half(208) * signed(block[192 + i / 16]) * n
        }
        _ => unreachable!(),
    };
    (0..kind.block().0).map(value).collect()
}

fn dequantized(kind: BlockType, blocks: &[u8]) -> Vec<f64> {
    blocks.chunks(kind.block().1).flat_map(|block| values_of(kind, block)).collect()
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}

/// Devices whose kernels this one can run: itself, and as a GPU or a software driver, with and without
/// subgroups.
fn devices(gpu: &Gpu) -> Vec<Capabilities> {
    let own = gpu.capabilities().clone();
    let mut devices = vec![own.clone()];
    for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
        for subgroups in [own.subgroups, None] {
            let device = Capabilities { kind, subgroups, ..own.clone() };
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
    }
    devices
}

/// A product with its operands on the host.
#[derive(Debug, Clone)]
struct Case {
    kind: BlockType,
    batch: Vec<usize>,
    /// Rows of `a`, depth, rows of the weights.
    extents: [usize; 3],
    types: [DType; 2],
    bias: Option<DType>,
    activation: Activation,
    residual: bool,
    accumulate: bool,
}

struct Host {
    a: Vec<f32>,
    blocks: Vec<u8>,
    bias: Option<Vec<f32>>,
    residual: Vec<f32>,
    out: Vec<f32>,
}

impl Case {
    fn plain(kind: BlockType, rows: usize, depth: usize, columns: usize) -> Case {
        Case {
            kind,
            batch: vec![],
            extents: [rows, depth, columns],
            types: [DType::F32; 2],
            bias: None,
            activation: Activation::None,
            residual: false,
            accumulate: false,
        }
    }

    fn shape(&self, width: usize) -> Vec<usize> {
        [&self.batch[..], &[self.extents[0], width]].concat()
    }

    fn host(&self) -> Host {
        let [_, depth, columns] = self.extents;
        let count = |width| self.shape(width).iter().product();
        Host {
            a: numbers(1, count(depth), self.types[0]),
            blocks: blocks(self.kind, columns, depth, 2),
            bias: self.bias.map(|dtype| numbers(3, columns, dtype)),
            residual: numbers(4, count(columns), self.types[1]),
            out: numbers(5, count(columns), self.types[1]),
        }
    }

    fn weight(&self, gpu: &Gpu, host: &Host) -> Packed {
        let [_, depth, columns] = self.extents;
        Packed::from_blocks(gpu, self.kind, columns, depth, &host.blocks).unwrap()
    }

    fn run(&self, gpu: &Gpu, host: &Host, device: &Capabilities) -> Vec<f32> {
        let [_, depth, columns] = self.extents;
        let a = upload(gpu, &host.a, &self.shape(depth), self.types[0]).unwrap();
        let out = upload(gpu, &host.out, &self.shape(columns), self.types[1]).unwrap();
        self.run_into(gpu, host, device, &a, &out);
        download(&out).unwrap()
    }

    fn run_into(&self, gpu: &Gpu, host: &Host, device: &Capabilities, a: &Tensor, out: &Tensor) {
        let columns = self.extents[2];
        let weight = self.weight(gpu, host);
        let bias = host.bias.as_ref().map(|bias| {
            // From an odd place on.
            let padded = [&[f32::NAN], &bias[..]].concat();
            let tensor = upload(gpu, &padded, &[padded.len()], self.bias.unwrap()).unwrap();
            tensor.narrow(0, 1, columns).unwrap()
        });
        let shape = self.shape(columns);
        let residual = upload(gpu, &host.residual, &shape, self.types[1]).unwrap();
        let mut epilogue =
            Epilogue::new().with_activation(self.activation).with_dtype(self.types[1]);
        epilogue.bias = bias.as_ref();
        epilogue.residual = self.residual.then_some(&residual);
        epilogue.accumulate = self.accumulate;
        matmul_as(a, &weight, &epilogue, out, device)
            .unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }

    /// Holds a result to the error budget of a loop in f32 over values in f32.
    fn judge(&self, host: &Host, got: &[f32]) {
        let [_, depth, columns] = self.extents;
        let weights = dequantized(self.kind, &host.blocks);
        let count: usize = self.shape(columns).iter().product();
        let (mut want, mut simple) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for index in 0..count {
            let (row, column) = (index / columns, index % columns);
            let bias = host.bias.as_ref().map_or(0.0, |bias| bias[column]);
            let (mut sum, mut sum_32) = (0.0, 0.0);
            for k in 0..depth {
                let (a, weight) = (host.a[row * depth + k], weights[column * depth + k]);
                sum += f64::from(a) * weight;
                sum_32 += a * weight as f32;
            }
            let mut value = self.activation.reference(sum + f64::from(bias));
            let mut value_32 = self.activation.reference(f64::from(sum_32 + bias)) as f32;
            for (on, data) in [(self.residual, &host.residual), (self.accumulate, &host.out)] {
                if on {
                    value += f64::from(data[index]);
                    value_32 += data[index];
                }
            }
            want.push(value);
            simple.push(round(self.types[1], value_32));
        }
        let what = format!("{self:?}");
        Budget::default().check(&what, got, &simple, &want).unwrap_or_else(|text| panic!("{text}"));
    }

    fn check(&self, gpu: &Gpu, device: &Capabilities) {
        let host = self.host();
        self.judge(&host, &self.run(gpu, &host, device));
    }
}

#[test]
fn smoke_every_type_on_every_kernel() {
    let Some(gpu) = gpu() else { return };
    for kind in KINDS {
        let depth = if kind.block().0 == 256 { 768 } else { 160 };
        for device in devices(&gpu) {
            // Exchanges of lanes do not depend on the type.
            let plain = device.subgroups != gpu.capabilities().subgroups;
            if plain && ![BlockType::Q8_0, BlockType::Q6K].contains(&kind) {
                continue;
            }
            for rows in [1, 6] {
                Case::plain(kind, rows, depth, 67).check(&gpu, &device);
            }
        }
    }
}

#[test]
fn values_are_those_of_the_formats() {
    let Some(gpu) = gpu() else { return };
    for kind in KINDS {
        let (rows, width) = (7, 3 * kind.block().0);
        let blocks = blocks(kind, rows, width, 11);
        let packed = Packed::from_blocks(&gpu, kind, rows, width, &blocks).unwrap();
        assert_eq!((packed.kind(), packed.rows(), packed.width()), (kind, rows, width));
        let dense = packed.dequantize().unwrap();
        assert_eq!(dense.shape(), [rows, width]);
        let want: Vec<f32> = dequantized(kind, &blocks).iter().map(|&x| x as f32).collect();
        // Equal, but for the sign of a zero.
        assert_eq!(download(&dense).unwrap(), want, "{kind:?}");
    }
}

/// As many bytes as the file has, of a number of rows rounded up to four, in two buffers of whole chunks.
#[test]
fn bytes_on_the_device() {
    let Some(gpu) = gpu() else { return };
    for kind in KINDS {
        let (values, bytes) = kind.block();
        for (rows, width) in [(0, values), (1, values), (8, 3 * values), (9, 2 * values)] {
            let packed = Packed::uninit(&gpu, kind, rows, width).unwrap();
            let want = (rows.next_multiple_of(4) * width / values * bytes) as u64;
            assert!((want..=want + 32).contains(&packed.bytes()), "{kind:?}");
            assert_eq!(device_bytes(kind, rows, width), packed.bytes(), "{kind:?}");
        }
    }
    assert_eq!(BlockType::Q6K.name(), "Q6_K");
}

#[test]
fn any_number_of_rows() {
    let Some(gpu) = gpu() else { return };
    for kind in [BlockType::Q4_1, BlockType::Q8_0] {
        for rows in [0, 1, 2, 3, 4, 5, 7, 31, 32, 33, 300] {
            Case::plain(kind, rows, 96, 41).check(&gpu, gpu.capabilities());
        }
    }
    // Tile edges of the kernels of GPUs.
    for device in devices(&gpu) {
        for (rows, columns) in [(4, 260), (65, 65)] {
            Case::plain(BlockType::Q4_0, rows, 64, columns).check(&gpu, &device);
        }
    }
}

#[test]
fn every_epilogue_with_every_type() {
    let Some(gpu) = gpu() else { return };
    const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
    let mut number = 0;
    for a in FLOATS {
        for out in FLOATS {
            for rows in [2, 6] {
                // Activations, biases, residual and accumulation go around at different speeds.
                number += 1;
                let case = Case {
                    types: [a, out],
                    bias: [None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)][number % 4],
                    activation: Activation::ALL[number % 5],
                    residual: number % 2 == 0,
                    accumulate: number % 3 == 0,
                    ..Case::plain(BlockType::Q4_1, rows, 64, 20 + number % 3)
                };
                case.check(&gpu, gpu.capabilities());
            }
        }
    }
}

/// Nothing to sum up is 0, and the epilogue still happens; nothing to write is no work.
#[test]
fn extents_of_zero() {
    let Some(gpu) = gpu() else { return };
    for device in devices(&gpu) {
        for rows in [1, 6] {
            let case = Case {
                bias: Some(DType::F32),
                activation: Activation::Silu,
                residual: true,
                ..Case::plain(BlockType::Q4_1, rows, 0, 9)
            };
            case.check(&gpu, &device);
            Case::plain(BlockType::Q4_1, rows, 32, 0).check(&gpu, &device);
        }
    }
}

/// A row of a result is the same alone, among others of a product that the same kernel computes, in any
/// batch, and in a second run.
#[test]
fn rows_depend_on_nothing_else() {
    let Some(gpu) = gpu() else { return };
    for device in devices(&gpu) {
        for (all, some) in [(3, 1), (40, 6)] {
            let case = Case::plain(BlockType::Q8_0, all, 96, 38);
            let host = case.host();
            let want = case.run(&gpu, &host, &device);
            assert_eq!(bits(&case.run(&gpu, &host, &device)), bits(&want));
            let first = all - some;
            let part = Case { extents: [some, 96, 38], ..case.clone() };
            let host = Host { a: host.a[first * 96..].to_vec(), ..part.host() };
            let got = part.run(&gpu, &host, &device);
            assert_eq!(bits(&got), bits(&want[first * 38..]), "{device:?}");
            let batch = Case { batch: vec![2, 3], ..case };
            let host = batch.host();
            let together = batch.run(&gpu, &host, &device);
            batch.judge(&host, &together);
            let entry = Case { batch: vec![], ..batch };
            let host = Host { a: host.a[all * 96 * 4..all * 96 * 5].to_vec(), ..entry.host() };
            let got = entry.run(&gpu, &host, &device);
            assert_eq!(bits(&got), bits(&together[all * 38 * 4..all * 38 * 5]), "{device:?}");
        }
    }
}

/// NaN and infinity stay in the rows and columns that read them.
#[test]
fn unusable_numbers_stay_where_they_are() {
    let Some(gpu) = gpu() else { return };
    for device in devices(&gpu) {
        for rows in [3, 6] {
            let case = Case::plain(BlockType::Q4_1, rows, 64, 22);
            let mut host = case.host();
            let want = case.run(&gpu, &host, &device);
            host.a[2 * 64 + 33] = f32::NAN;
            let row_bytes = 2 * 20;
            for (row, scale) in [(9, f16::NAN), (12, f16::INFINITY)] {
                host.blocks[row * row_bytes..row * row_bytes + 2]
                    .copy_from_slice(&scale.to_le_bytes());
            }
            let got = case.run(&gpu, &host, &device);
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                let (row, column) = (index / 22, index % 22);
                if row == 2 || column == 9 || column == 12 {
                    assert!(!got.is_finite(), "{row}, {column}: {got}");
                } else {
                    assert_eq!(got.to_bits(), want.to_bits(), "{row}, {column}");
                }
            }
        }
    }
}

/// Operands that kernels cannot read where they are, and results that are views.
#[test]
fn strides_of_operands_and_results() {
    let Some(gpu) = gpu() else { return };
    for (rows, types) in [
        (2, [DType::F32, DType::F32]),
        (6, [DType::F16, DType::F32]),
        (6, [DType::F32, DType::F16]),
    ] {
        let case = Case { types, ..Case::plain(BlockType::Q4_1, rows, 64, 24) };
        let host = case.host();
        // Columns of a wider tensor, from an odd place on, and a transposed one.
        let wide: Vec<f32> = (0..rows)
            .flat_map(|row| [&[f32::NAN; 3], &host.a[row * 64..(row + 1) * 64]].concat())
            .collect();
        let a = upload(&gpu, &wide, &[rows, 67], types[0]).unwrap().narrow(1, 3, 64).unwrap();
        let turned: Vec<f32> = (0..64 * rows).map(|i| host.a[i % rows * 64 + i / rows]).collect();
        let turned = upload(&gpu, &turned, &[64, rows], types[0]).unwrap();
        for a in [a, turned.permute(&[1, 0]).unwrap()] {
            for margin in [4, 3] {
                if margin == 3 && types[1] != DType::F32 {
                    continue;
                }
                let width = 24 + 2 * margin;
                let before = numbers(9, (rows + 2) * width, types[1]);
                let whole = upload(&gpu, &before, &[rows + 2, width], types[1]).unwrap();
                let view = whole.narrow(0, 1, rows).unwrap().narrow(1, margin, 24).unwrap();
                case.run_into(&gpu, &host, gpu.capabilities(), &a, &view);
                case.judge(&host, &download(&view).unwrap());
                let after = download(&whole).unwrap();
                for (index, (after, before)) in after.iter().zip(&before).enumerate() {
                    let (row, column) = (index / width, index % width);
                    let inside =
                        (1..=rows).contains(&row) && (margin..margin + 24).contains(&column);
                    assert!(inside || after == before, "{row}, {column}");
                }
            }
        }
    }
}

#[test]
fn rows_by_number() {
    let Some(gpu) = gpu() else { return };
    for kind in KINDS {
        let (rows, width) = (11, 2 * kind.block().0);
        let packed =
            Packed::from_blocks(&gpu, kind, rows, width, &blocks(kind, rows, width, 3)).unwrap();
        let dense = packed.dequantize().unwrap();
        let numbers = [3u32, 10, 0, 3, 7, 11, 8, u32::MAX];
        let ids = Tensor::from_slice(&gpu, &numbers, &[2, 4]).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let got = gather_rows(&packed, &ids, 0.5, dtype).unwrap();
            assert_eq!((got.shape(), got.dtype()), ([2, 4, width].as_slice(), dtype));
            let want = embedding::gather_rows(&dense, &ids, 0.5, dtype).unwrap();
            let (got, want) = (download(&got).unwrap(), download(&want).unwrap());
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(got == want || got.is_nan() && want.is_nan(), "{kind:?} {index}");
            }
            assert!(got[5 * width].is_nan() && got[8 * width - 1].is_nan());
        }
    }
    let none = Packed::uninit(&gpu, BlockType::Q8_0, 0, 32).unwrap();
    let ids = Tensor::from_slice(&gpu, &[0u32], &[1]).unwrap();
    let row = download(&gather_rows(&none, &ids, 1.0, DType::F32).unwrap()).unwrap();
    assert!(row.len() == 32 && row.iter().all(|x| x.is_nan()));
    let nothing = Tensor::from_slice::<u32>(&gpu, &[], &[0]).unwrap();
    assert_eq!(gather_rows(&none, &nothing, 1.0, DType::F32).unwrap().shape(), [0, 32]);
}

#[test]
fn rows_are_written_in_any_pieces() {
    let Some(gpu) = gpu() else { return };
    for kind in KINDS {
        let (rows, width) = (14, kind.block().0);
        let blocks = blocks(kind, rows, width, 5);
        let row_bytes = kind.block().1;
        let want = Packed::from_blocks(&gpu, kind, rows, width, &blocks).unwrap();
        let want = bits(&download(&want.dequantize().unwrap()).unwrap());
        for ends in [vec![4, 12, 14], vec![1, 3, 9, 10, 14], vec![14]] {
            let packed = Packed::uninit(&gpu, kind, rows, width).unwrap();
            let mut pieces: Vec<[usize; 2]> =
                [0].iter().chain(&ends).zip(&ends).map(|(&a, &b)| [a, b]).collect();
            pieces.reverse();
            for [first, end] in pieces {
                packed.write_rows(first, &blocks[first * row_bytes..end * row_bytes]).unwrap();
            }
            packed.write_rows(14, &[]).unwrap();
            assert_eq!(bits(&download(&packed.dequantize().unwrap()).unwrap()), want, "{kind:?}");
        }
    }
}

/// A write follows what was recorded before it.
#[test]
fn recorded_operations_see_the_old_contents() {
    let Some(gpu) = gpu() else { return };
    let [old, new] = [7, 8].map(|seed| blocks(BlockType::Q8_0, 8, 32, seed));
    let packed = Packed::from_blocks(&gpu, BlockType::Q8_0, 8, 32, &old).unwrap();
    let before = packed.dequantize().unwrap();
    packed.write_rows(0, &new).unwrap();
    let after = packed.dequantize().unwrap();
    for (tensor, blocks) in [(before, old), (after, new)] {
        let want: Vec<f32> =
            dequantized(BlockType::Q8_0, &blocks).iter().map(|&x| x as f32).collect();
        assert_eq!(download(&tensor).unwrap(), want);
    }
}

/// Weights, operands and results above the largest binding: no bit changes.
#[test]
fn what_no_binding_holds_is_split() {
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: 16 << 10, ..wgpu::Limits::default() };
    let (Some(whole), Some(gpu)) = (gpu(), open(Gpu::builder().limits(limits))) else { return };
    for (case, least) in [
        // 43 KB of codes, 61 KB of `a`, 78 KB of results, and batch entries.
        (Case::plain(BlockType::Q4_1, 3, 256, 333), 3),
        (Case::plain(BlockType::Q8_0, 120, 128, 12), 4),
        (Case::plain(BlockType::Q4_0, 6, 32, 3250), 5),
        (Case { batch: vec![5, 3], ..Case::plain(BlockType::Q4_1, 6, 128, 60) }, 3),
    ] {
        let case = Case { bias: Some(DType::F32), residual: true, accumulate: true, ..case };
        let host = case.host();
        let pairs = devices(&gpu).into_iter().zip(devices(&whole));
        let own = gpu.capabilities().subgroups;
        for (device, reference) in pairs.filter(|(device, _)| device.subgroups == own) {
            let before = gpu.stream_stats().dispatches;
            let got = case.run(&gpu, &host, &device);
            assert!(gpu.stream_stats().dispatches - before >= least, "{case:?}");
            if reference.subgroups == device.subgroups && reference.kind == device.kind {
                let want = case.run(&whole, &host, &reference);
                assert_eq!(bits(&got), bits(&want), "{case:?}");
            }
            case.judge(&host, &got);
        }
    }
    let table = blocks(BlockType::Q8_0, 300, 128, 6);
    let ids = [0u32, 299, 130, 131, 7, 300, 123, 124];
    let rows = |gpu: &Gpu| {
        let packed = Packed::from_blocks(gpu, BlockType::Q8_0, 300, 128, &table).unwrap();
        let ids = Tensor::from_slice(gpu, &ids, &[8]).unwrap();
        let gathered = gather_rows(&packed, &ids, 1.0, DType::F32).unwrap();
        (download(&gathered).unwrap(), download(&packed.dequantize().unwrap()).unwrap())
    };
    let (got, want) = (rows(&gpu), rows(&whole));
    assert_eq!((bits(&got.0), bits(&got.1)), (bits(&want.0), bits(&want.1)));
    // Four rows that no binding holds cannot be split.
    let wide = Packed::uninit(&gpu, BlockType::Q8_0, 4, 4128).unwrap();
    let a = Tensor::zeros(&gpu, &[1, 4128], DType::F32).unwrap();
    for outcome in [matmul(&a, &wide, &Epilogue::new()), wide.dequantize()] {
        assert!(matches!(&outcome, Err(Error::Limit { available: 16_384, .. })), "{outcome:?}");
    }
}

#[test]
fn work_above_the_cap_is_split_and_changes_no_bit() {
    let (Some(whole), Some(capped)) = (gpu(), open(Gpu::builder().max_work_per_dispatch(1e5)))
    else {
        return;
    };
    let case = Case { batch: vec![2], ..Case::plain(BlockType::Q4_1, 50, 64, 200) };
    let host = case.host();
    let want = case.run(&whole, &host, whole.capabilities());
    let got = case.run(&capped, &host, capped.capabilities());
    assert_eq!(bits(&got), bits(&want));
    assert!(capped.stream_stats().dispatches >= 20);
}

#[test]
fn plain_devices_and_poisoned_buffers() {
    let plain = ["subgroup", "f16", "immediates", "timestamps"]
        .into_iter()
        .fold(Gpu::builder().webgpu_limits(), |builder, name| builder.disable(name));
    for builder in [plain, Gpu::builder().poison(true)] {
        let Some(gpu) = open(builder) else { return };
        for rows in [2, 6] {
            let case =
                Case { types: [DType::F16; 2], ..Case::plain(BlockType::Q6K, rows, 512, 35) };
            case.check(&gpu, gpu.capabilities());
        }
        let packed =
            Packed::from_blocks(&gpu, BlockType::Q4_0, 3, 32, &blocks(BlockType::Q4_0, 3, 32, 1));
        let values = download(&packed.unwrap().dequantize().unwrap()).unwrap();
        assert!(values.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn wrong_arguments_are_told() {
    let Some(gpu) = gpu() else { return };
    let told = |outcome: Result<(), Error>, words: &[&str]| {
        let text = outcome.unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}: {words:?}");
    };
    for (kind, width) in [(BlockType::Q4_0, 48), (BlockType::Q4K, 128), (BlockType::Q6K, 300)] {
        let outcome = Packed::uninit(&gpu, kind, 2, width).map(drop);
        told(outcome, &["width", kind.name(), &width.to_string()]);
    }
    let far = Packed::uninit(&gpu, BlockType::Q8_0, usize::MAX, 32).map(drop);
    told(far, &["2^32"]);
    let from =
        |bytes: usize| Packed::from_blocks(&gpu, BlockType::Q8_0, 3, 64, &vec![0; bytes]).map(drop);
    told(from(203), &["blocks", "3 rows of 68 bytes", "203"]);
    told(from(2 * 68), &["blocks", "136"]);
    let weight = Packed::uninit(&gpu, BlockType::Q8_0, 5, 64).unwrap();
    told(weight.write_rows(0, &[0; 67]), &["blocks", "68 bytes"]);
    told(weight.write_rows(4, &[0; 2 * 68]), &["first", "2 rows from 4 on"]);
    told(weight.write_rows(6, &[]), &["first"]);
    told(weight.write_rows(usize::MAX, &[0; 68]), &["first"]);

    let zeros = |gpu: &Gpu, shape: &[usize], dtype| Tensor::zeros(gpu, shape, dtype).unwrap();
    let a = zeros(&gpu, &[3, 64], DType::F32);
    let product = |a: &Tensor, epilogue: &Epilogue<'_>| matmul(a, &weight, epilogue).map(drop);
    let plain = Epilogue::new();
    told(product(&zeros(&gpu, &[3, 32], DType::F32), &plain), &["`a`", "[.., M, 64]"]);
    told(product(&zeros(&gpu, &[64], DType::F32), &plain), &["`a`"]);
    told(product(&zeros(&gpu, &[3, 64], DType::U32), &plain), &["`a`", "u32"]);
    told(
        product(&zeros(&gpu, &[3, 64], DType::U32), &plain.with_dtype(DType::F32)),
        &["`a`", "u32"],
    );
    told(product(&a, &plain.with_dtype(DType::I32)), &["i32"]);
    told(product(&a, &plain.accumulating()), &["accumulate"]);
    told(product(&a, &plain.with_bias(&a)), &["`bias`", "[5]"]);
    told(product(&a, &plain.with_bias(&zeros(&gpu, &[5], DType::I32))), &["`bias`", "i32"]);
    told(product(&a, &plain.with_residual(&a)), &["`residual`", "[3, 5]"]);
    let half = zeros(&gpu, &[3, 5], DType::F16);
    told(product(&a, &plain.with_residual(&half)), &["`residual`", "f16"]);
    let into = |out: &Tensor| matmul_into(&a, &weight, &plain, out);
    told(into(&half), &["`out`", "f16"]);
    told(into(&zeros(&gpu, &[5, 3], DType::F32)), &["`out`", "[3, 5]"]);
    told(
        into(&zeros(&gpu, &[5, 3], DType::F32).permute(&[1, 0]).unwrap()),
        &["`out`", "contiguous"],
    );
    told(into(&zeros(&gpu, &[1, 5], DType::F32).expand(&[3, 5]).unwrap()), &["`out`", "repeated"]);
    let square = Packed::uninit(&gpu, BlockType::Q8_0, 64, 64).unwrap();
    let overlapping = matmul_into(&a, &square, &plain, &a);
    assert!(matches!(overlapping, Err(Error::Kernel { .. })), "{overlapping:?}");
    let short = Capabilities { max_loop_steps: 1, ..gpu.capabilities().clone() };
    let outcome = matmul_as(&a, &weight, &plain, &zeros(&gpu, &[3, 5], DType::F32), &short);
    assert!(matches!(outcome, Err(Error::Limit { available: 1, .. })), "{outcome:?}");

    let ids = Tensor::from_slice(&gpu, &[0u32], &[1]).unwrap();
    let rows = |ids: &Tensor, dtype| gather_rows(&weight, ids, 1.0, dtype).map(drop);
    told(rows(&a, DType::F32), &["`ids`", "f32"]);
    told(rows(&ids.reshape(&[1, 1, 1, 1]).unwrap(), DType::F32), &["`ids`", "three"]);
    told(rows(&ids, DType::U32), &["`dtype`", "u32"]);

    let Some(other) = open(Gpu::builder()) else { return };
    let stranger = zeros(&other, &[3, 64], DType::F32);
    told(product(&stranger, &plain), &["`a`", "another Gpu"]);
    told(product(&a, &plain.with_bias(&zeros(&other, &[5], DType::F32))), &["`bias`", "another"]);
    told(into(&zeros(&other, &[3, 5], DType::F32)), &["`out`", "another"]);
    let ids = Tensor::from_slice(&other, &[0u32], &[1]).unwrap();
    told(rows(&ids, DType::F32), &["`ids`", "another"]);
}

/// Times beside those of the same products with weights in f16, in one run: `ATTN_SPEED_CASES=M=1. cargo test
/// --features bench --test packed speed -- --nocapture`, with any part of the names of cases.
#[cfg(feature = "bench")]
#[test]
fn speed_beside_f16() {
    use attn_wgpu::bench::{best_seconds, quantized};
    use attn_wgpu::matmul::matmul as dense_matmul;
    let Ok(wanted) = std::env::var("ATTN_SPEED_CASES") else {
        println!("skipped: a measurement, which ATTN_SPEED_CASES asks for");
        return;
    };
    let Some(gpu) = gpu() else { return };
    use BlockType::{Q4_1, Q8_0};
    for (kind, depth, columns) in [
        (Q4_1, 576, 960),
        (Q4_1, 576, 576),
        (Q4_1, 576, 3072),
        (Q4_1, 1536, 576),
        (Q8_0, 576, 3072),
        (Q8_0, 576, 49_152),
    ] {
        let (blocks, values) = quantized(kind, &numbers(1, depth * columns, DType::F32));
        let weight = Packed::from_blocks(&gpu, kind, columns, depth, &blocks).unwrap();
        let dense = upload(&gpu, &values, &[columns, depth], DType::F16).unwrap();
        let dense = dense.permute(&[1, 0]).unwrap();
        for rows in [1, 4, 32, 256, 1000] {
            let name = format!("{} {depth}x{columns} M={rows}.", kind.name());
            if !name.contains(&wanted) || rows * columns > 1 << 20 && rows > 1 << 5 {
                continue;
            }
            let a = upload(&gpu, &numbers(2, rows * depth, DType::F32), &[rows, depth], DType::F32);
            let a = a.unwrap();
            let plain = Epilogue::new();
            let mut packed = || matmul(&a, &weight, &plain).map(drop);
            let packed = best_seconds(&gpu, &mut packed).unwrap();
            let mut half = || dense_matmul(&a, &dense).map(drop);
            let half = best_seconds(&gpu, &mut half).unwrap();
            let each = |seconds: f64| 1e9 * seconds / (rows * depth * columns) as f64;
            println!(
                "{name} packed {:.0} us ({:.4} ns a weight and row), f16 {:.0} us ({:.4}), ratio {:.2}",
                1e6 * packed,
                each(packed),
                1e6 * half,
                each(half),
                half / packed
            );
        }
    }
}
