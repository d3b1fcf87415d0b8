//! Matrix products against loops in f64: shapes, layouts, types, epilogues, every kernel, and limits.

mod common;

use attn_wgpu::matmul::{Epilogue, FEW_ROWS, matmul, matmul_as, matmul_into, matmul_with};
use attn_wgpu::{Activation, Capabilities, DType, DeviceKind, Error, Gpu, Tensor, wgpu};
use common::{cases, download, gpu, open, upload};
use half::{bf16, f16};
use proptest::prelude::*;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// How the last two dimensions lie in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Layout {
    /// The second last dimension is the contiguous one.
    across: bool,
    /// Elements in front of and behind each of both dimensions.
    margins: [[usize; 2]; 2],
    /// Batch entries are the fastest dimension, so that nothing is contiguous.
    interleaved: bool,
}

const PLAIN: Layout = Layout { across: false, margins: [[0; 2]; 2], interleaved: false };
const ACROSS: Layout = Layout { across: true, ..PLAIN };

fn round(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Numbers of a counter, in -1 .. 1.
fn numbers(seed: u64, count: usize, dtype: DType) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| round(dtype, next())).collect()
}

/// A tensor of `dims`, row-major in `data`, in another layout; everything around it is NaN.
fn place(gpu: &Gpu, data: &[f32], dims: &[usize], layout: Layout, dtype: DType) -> Tensor {
    let rank = dims.len();
    let mut order: Vec<usize> = (0..rank).collect();
    if layout.across {
        order.swap(rank - 1, rank - 2);
    }
    if layout.interleaved && rank > 2 {
        let batch = order.remove(rank - 3);
        order.push(batch);
    }
    // Dimension d of the memory is dimension order[d] of the tensor.
    let margin = |d: usize| if d + 2 >= rank { layout.margins[d + 2 - rank] } else { [0; 2] };
    let extent = |d: usize| dims[d] + margin(d)[0] + margin(d)[1];
    let shape: Vec<usize> = order.iter().map(|&d| extent(d)).collect();
    let mut memory = vec![f32::NAN; shape.iter().product()];
    for (index, &value) in data.iter().enumerate() {
        let mut place = vec![0; rank];
        let mut rest = index;
        for d in (0..rank).rev() {
            place[d] = rest % dims[d] + margin(d)[0];
            rest /= dims[d];
        }
        let at = order.iter().zip(&shape).fold(0, |at, (&d, extent)| at * extent + place[d]);
        memory[at] = value;
    }
    let mut tensor = upload(gpu, &memory, &shape, dtype).unwrap();
    let mut inverse = vec![0; rank];
    for (place, &d) in order.iter().enumerate() {
        inverse[d] = place;
    }
    tensor = tensor.permute(&inverse).unwrap();
    for (d, &extent) in dims.iter().enumerate() {
        tensor = tensor.narrow(d, margin(d)[0], extent).unwrap();
    }
    tensor
}

/// A product with its operands on the host.
#[derive(Debug, Clone)]
struct Case {
    rank: [usize; 2],
    batch_a: [usize; 2],
    batch_b: [usize; 2],
    extents: [usize; 3],
    types: [DType; 3],
    layouts: [Layout; 2],
    bias: Option<DType>,
    activation: Activation,
    residual: bool,
    accumulate: bool,
    seed: u64,
}

impl Case {
    fn plain(rows: usize, depth: usize, columns: usize) -> Case {
        Case {
            rank: [2; 2],
            batch_a: [1; 2],
            batch_b: [1; 2],
            extents: [rows, depth, columns],
            types: [DType::F32; 3],
            layouts: [PLAIN; 2],
            bias: None,
            activation: Activation::None,
            residual: false,
            accumulate: false,
            seed: 1,
        }
    }

    fn nt(self) -> Case {
        Case { layouts: [self.layouts[0], ACROSS], ..self }
    }

    fn batched(self, batch_a: [usize; 2], batch_b: [usize; 2]) -> Case {
        Case { rank: [4; 2], batch_a, batch_b, ..self }
    }

    fn batch(&self) -> [usize; 2] {
        let one = |d: usize| if self.batch_a[d] == 1 { self.batch_b[d] } else { self.batch_a[d] };
        [one(0), one(1)]
    }

    fn dims_a(&self) -> [usize; 4] {
        [self.batch_a[0], self.batch_a[1], self.extents[0], self.extents[1]]
    }

    fn dims_b(&self) -> [usize; 4] {
        [self.batch_b[0], self.batch_b[1], self.extents[1], self.extents[2]]
    }

    fn dims_out(&self) -> Vec<usize> {
        let [b0, b1] = self.batch();
        let rank = self.rank[0].max(self.rank[1]);
        [b0, b1, self.extents[0], self.extents[2]][4 - rank..].to_vec()
    }

    fn host(&self) -> Host {
        let count = |dims: &[usize]| dims.iter().product();
        Host {
            a: numbers(self.seed, count(&self.dims_a()), self.types[0]),
            b: numbers(self.seed + 1, count(&self.dims_b()), self.types[1]),
            bias: self.bias.map(|dtype| numbers(self.seed + 2, self.extents[2], dtype)),
            residual: numbers(self.seed + 3, count(&self.dims_out()), self.types[2]),
            out: numbers(self.seed + 4, count(&self.dims_out()), self.types[2]),
        }
    }

    fn upload(&self, gpu: &Gpu, host: &Host) -> Operands {
        let (dims_a, dims_b) = (self.dims_a(), self.dims_b());
        let (dims_a, dims_b) = (&dims_a[4 - self.rank[0]..], &dims_b[4 - self.rank[1]..]);
        Operands {
            a: place(gpu, &host.a, dims_a, self.layouts[0], self.types[0]),
            b: place(gpu, &host.b, dims_b, self.layouts[1], self.types[1]),
            bias: self.bias.map(|dtype| {
                // From an odd place on.
                let mut padded = vec![f32::NAN];
                padded.extend(host.bias.as_ref().unwrap());
                let tensor = upload(gpu, &padded, &[padded.len()], dtype).unwrap();
                tensor.narrow(0, 1, self.extents[2]).unwrap()
            }),
            residual: upload(gpu, &host.residual, &self.dims_out(), self.types[2]).unwrap(),
            out: upload(gpu, &host.out, &self.dims_out(), self.types[2]).unwrap(),
        }
    }

    fn epilogue<'a>(&self, operands: &'a Operands) -> Epilogue<'a> {
        let mut epilogue =
            Epilogue::new().with_activation(self.activation).with_dtype(self.types[2]);
        epilogue.bias = operands.bias.as_ref();
        epilogue.residual = self.residual.then_some(&operands.residual);
        epilogue.accumulate = self.accumulate;
        epilogue
    }

    fn run(&self, gpu: &Gpu, host: &Host, device: &Capabilities) -> Vec<f32> {
        let operands = self.upload(gpu, host);
        let (a, b) = (&operands.a, &operands.b);
        matmul_as(a, b, &self.epilogue(&operands), &operands.out, device)
            .unwrap_or_else(|error| panic!("{self:?}: {error}"));
        download(&operands.out).unwrap()
    }

    /// Runs on the kernels of a device and compares.
    fn check(&self, gpu: &Gpu, device: &Capabilities) {
        let host = self.host();
        let got = self.run(gpu, &host, device);
        if let Err(message) = self.judge(&host, &got) {
            panic!("{message}\n{self:?}\n{device:?}");
        }
    }

    /// Every element is within its own bound. With unit roundoff u and S = sum |a b| + |bias|, a sum
    /// in f32 in any order is off by (K + 2) u S at most; activations stretch by less than 1.2 and
    /// are themselves off by 2e-6 of their argument; then two additions and the rounding of the
    /// result's type.
    fn judge(&self, host: &Host, got: &[f32]) -> Result<(), String> {
        let [rows, depth, columns] = self.extents;
        let [b0, b1] = self.batch();
        let unit = f64::from(f32::EPSILON) / 2.0;
        let (stored, least) = match self.types[2] {
            DType::F16 => (2f64.powi(-11), 2f64.powi(-24)),
            DType::BF16 => (2f64.powi(-8), 1e-38),
            _ => (unit, 1e-38),
        };
        if got.len() != b0 * b1 * rows * columns {
            return Err(format!("{} elements", got.len()));
        }
        for (index, &got) in got.iter().enumerate() {
            let (column, row) = (index % columns, index / columns % rows);
            let entry = index / columns / rows;
            let at = |batch: [usize; 2]| {
                let place = |d: usize, i: usize| if batch[d] == 1 { 0 } else { i };
                place(0, entry / b1) * batch[1] + place(1, entry % b1)
            };
            let (at_a, at_b) = (at(self.batch_a), at(self.batch_b));
            let mut sum = host.bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
            let mut size = sum.abs();
            for k in 0..depth {
                let term = f64::from(host.a[(at_a * rows + row) * depth + k])
                    * f64::from(host.b[(at_b * depth + k) * columns + column]);
                sum += term;
                size += term.abs();
            }
            let value = self.activation.reference(sum);
            let mut want = value;
            let mut bound = 1.2 * (depth + 2) as f64 * unit * size;
            if self.activation != Activation::None {
                bound += 2e-6 * sum.abs();
            }
            let mut largest = value.abs();
            for (on, data) in [(self.residual, &host.residual), (self.accumulate, &host.out)] {
                if on {
                    want += f64::from(data[index]);
                    largest += f64::from(data[index]).abs();
                }
            }
            bound += 4.0 * unit * largest + stored * (want.abs() + bound) + least;
            let error = (f64::from(got) - want).abs();
            if error.is_nan() || error > bound {
                return Err(format!(
                    "entry {entry}, row {row}, column {column}: {got}, expected {want}, error {error:e} above {bound:e}"
                ));
            }
        }
        Ok(())
    }
}

struct Host {
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Option<Vec<f32>>,
    residual: Vec<f32>,
    out: Vec<f32>,
}

struct Operands {
    a: Tensor,
    b: Tensor,
    bias: Option<Tensor>,
    residual: Tensor,
    out: Tensor,
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

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}

fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 1..20usize,
        3 => prop::sample::select(vec![31, 32, 33, 37, 63, 64, 65, 67, 96, 127, 129, 131]),
        1 => Just(0usize),
    ]
}

fn layout() -> impl Strategy<Value = Layout> {
    let margin = || prop_oneof![3 => Just(0usize), 1 => Just(4usize), 2 => 1..9usize];
    (any::<bool>(), [margin(), margin(), margin(), margin()], prop::bool::weighted(0.15)).prop_map(
        |(across, [a, b, c, d], interleaved)| Layout {
            across,
            margins: [[a, b], [c, d]],
            interleaved,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let dtype = || prop::sample::select(FLOATS.to_vec());
    let batch =
        [0, 1].map(|_| prop::sample::select(vec![(1, 1), (1, 1), (2, 2), (3, 1), (1, 3), (2, 1)]));
    let shape = (2..5usize, 2..5usize, batch, [extent(), extent(), extent()]);
    let kinds = ([dtype(), dtype(), dtype()], [layout(), layout()]);
    let activation = prop::sample::select(Activation::ALL.to_vec());
    let epilogue =
        (prop::option::of(dtype()), activation, any::<bool>(), any::<bool>(), 1..1000u64);
    (shape, kinds, epilogue).prop_map(|(shape, (types, layouts), epilogue)| {
        let (rank_a, rank_b, batch, extents) = shape;
        let (bias, activation, residual, accumulate, seed) = epilogue;
        let present = |rank: usize, d: usize, extent: usize| if rank + d >= 4 { extent } else { 1 };
        Case {
            rank: [rank_a, rank_b],
            batch_a: [0, 1].map(|d| present(rank_a, d, batch[d].0)),
            batch_b: [0, 1].map(|d| present(rank_b, d, batch[d].1)),
            extents,
            types,
            layouts,
            bias,
            activation,
            residual,
            accumulate,
            seed,
        }
    })
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn anything_equals_loops_in_f64(case in case(), kernel in 0..5usize) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let devices = devices(&gpu);
        case.check(&gpu, &devices[kernel % devices.len()]);
    }
}

/// Every kernel at the edges of its tiles, in both layouts of both operands.
#[test]
fn smoke_tile_edges_of_every_kernel() {
    let Some(gpu) = gpu() else { return };
    for device in devices(&gpu) {
        for (rows, depth, columns) in
            [(1, 1, 1), (1, 77, 67), (4, 65, 33), (5, 16, 64), (33, 64, 31), (65, 33, 65)]
        {
            for (a, b) in [(PLAIN, PLAIN), (PLAIN, ACROSS), (ACROSS, PLAIN), (ACROSS, ACROSS)] {
                let case = Case { layouts: [a, b], ..Case::plain(rows, depth, columns) };
                case.check(&gpu, &device);
            }
        }
    }
}

#[test]
fn every_pair_of_types_with_every_epilogue() {
    let Some(gpu) = gpu() else { return };
    let device = gpu.capabilities();
    let mut number = 0;
    for a in FLOATS {
        for b in FLOATS {
            for out in FLOATS {
                // Activations, biases, residual and accumulation go around at different speeds.
                number += 1;
                let case = Case {
                    types: [a, b, out],
                    bias: [None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)][number % 4],
                    activation: Activation::ALL[number % 5],
                    residual: number % 2 == 0,
                    accumulate: number % 3 == 0,
                    seed: number as u64,
                    ..Case::plain(6, 36, 20 + number % 3)
                };
                case.check(&gpu, device);
                case.nt().check(&gpu, device);
            }
        }
    }
}

/// Nothing to sum up is 0, and the epilogue still happens; nothing to write is no work.
#[test]
fn extents_of_zero() {
    let Some(gpu) = gpu() else { return };
    for device in devices(&gpu) {
        for rows in [1, 40] {
            let epilogue = Case {
                bias: Some(DType::F32),
                activation: Activation::Silu,
                residual: true,
                ..Case::plain(rows, 0, 9)
            };
            epilogue.check(&gpu, &device);
            Case::plain(rows, 0, 8).nt().check(&gpu, &device);
        }
        for (rows, depth, columns) in [(0, 5, 5), (5, 5, 0), (0, 0, 0)] {
            Case::plain(rows, depth, columns).check(&gpu, &device);
        }
        Case::plain(3, 5, 5).batched([0, 2], [1, 2]).check(&gpu, &device);
    }
}

/// An entry alone, among others, and with others that share its `b`, in every kernel.
#[test]
fn a_batch_entry_does_not_depend_on_others() {
    let Some(gpu) = gpu() else { return };
    for device in devices(&gpu) {
        for rows in [1, 3, FEW_ROWS + 1, 33] {
            for layout in [PLAIN, ACROSS] {
                for shared in [true, false] {
                    let batch_b = if shared { [1, 1] } else { [3, 2] };
                    let case = Case { layouts: [PLAIN, layout], ..Case::plain(rows, 70, 41) }
                        .batched([3, 2], batch_b);
                    let host = case.host();
                    let all = case.run(&gpu, &host, &device);
                    let part = |data: &[f32], entry: usize, size: usize| {
                        data[entry * size..(entry + 1) * size].to_vec()
                    };
                    for entry in [0, 5] {
                        let alone = Case::plain(rows, 70, 41);
                        let alone = Case { layouts: case.layouts, ..alone };
                        let host = Host {
                            a: part(&host.a, entry, rows * 70),
                            b: part(&host.b, if shared { 0 } else { entry }, 70 * 41),
                            ..alone.host()
                        };
                        let got = alone.run(&gpu, &host, &device);
                        assert_eq!(bits(&got), bits(&part(&all, entry, rows * 41)), "{case:?}");
                    }
                }
            }
        }
    }
}

/// NaN and infinity stay in their rows and columns, and two runs give the same bits.
#[test]
fn rows_and_columns_do_not_touch_each_other() {
    let Some(gpu) = gpu() else { return };
    for device in devices(&gpu) {
        for (rows, layout) in [(3, PLAIN), (3, ACROSS), (35, PLAIN), (35, ACROSS)] {
            let case = Case { layouts: [PLAIN, layout], ..Case::plain(rows, 35, 66) };
            let mut host = case.host();
            let want = case.run(&gpu, &host, &device);
            assert_eq!(bits(&case.run(&gpu, &host, &device)), bits(&want));
            host.a[2 * 35 + 34] = f32::NAN;
            host.b[65] = f32::INFINITY;
            let got = case.run(&gpu, &host, &device);
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                if index / 66 == 2 || index % 66 == 65 {
                    assert!(!got.is_finite(), "{index}");
                } else {
                    assert_eq!(got.to_bits(), want.to_bits(), "{index}");
                }
            }
        }
    }
}

fn small_bindings(bytes: u64) -> Option<Gpu> {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: bytes, ..wgpu::Limits::default() };
    open(Gpu::builder().limits(limits))
}

/// Operands above the largest binding: rows, columns, depth, and batch entries are split.
#[test]
fn operands_above_the_binding_limit_are_split() {
    let (Some(whole), Some(gpu)) = (gpu(), small_bindings(16 << 10)) else { return };
    for (case, dispatches) in [
        // 60 KB of weights by columns, 60 KB of weights by depth, and with an epilogue.
        (Case::plain(3, 100, 150).nt(), 4),
        (Case::plain(3, 1200, 12), 4),
        (Case::plain(40, 1200, 12), 12),
        (Case { activation: Activation::Relu, ..Case::plain(3, 1200, 12) }, 4),
        (Case { layouts: [ACROSS, PLAIN], ..Case::plain(60, 1100, 12) }, 12),
        (Case::plain(150, 40, 64), 3),
        (Case::plain(20, 40, 30).batched([5, 2], [5, 2]), 2),
        (Case::plain(5, 40, 300).batched([3, 1], [1, 1]).nt(), 3),
    ] {
        let case = Case { bias: Some(DType::F32), residual: true, accumulate: true, ..case };
        for (device, reference) in devices(&gpu).iter().zip(devices(&whole)) {
            let before = gpu.stream_stats().dispatches;
            case.check(&gpu, device);
            let done = gpu.stream_stats().dispatches - before;
            assert!(done >= dispatches, "{done} dispatches: {case:?}");
            // Only lanes that share the depth sum up in another order.
            let exact = case.extents[0] > FEW_ROWS || device.kind == DeviceKind::Cpu;
            if exact && reference.subgroups == device.subgroups {
                let host = case.host();
                let (split, want) =
                    (case.run(&gpu, &host, device), case.run(&whole, &host, &reference));
                assert_eq!(bits(&split), bits(&want), "{case:?}");
            }
        }
    }
}

/// Weights whose rows alone are too far apart cannot be bound in parts.
#[test]
fn a_part_that_cannot_be_split_is_refused() {
    let Some(gpu) = small_bindings(16 << 10) else { return };
    let case = Case::plain(1, 200, 2000);
    let operands = case.upload(&gpu, &case.host());
    let outcome = matmul(&operands.a, &operands.b);
    assert!(matches!(&outcome, Err(Error::Limit { available: 16_384, .. })), "{outcome:?}");
    case.nt().check(&gpu, gpu.capabilities());
}

/// More steps than one invocation may loop are split over the depth.
#[test]
fn loops_are_kept_below_the_limit() {
    let Some(gpu) = gpu() else { return };
    for device in devices(&gpu) {
        let device = Capabilities { max_loop_steps: 100, ..device };
        for rows in [2, 20] {
            let case = Case { bias: Some(DType::F16), ..Case::plain(rows, 2500, 7) };
            case.check(&gpu, &device);
            case.nt().check(&gpu, &device);
        }
    }
}

#[test]
fn work_above_the_cap_is_split_and_changes_no_bit() {
    let (Some(whole), Some(capped)) = (gpu(), open(Gpu::builder().max_work_per_dispatch(1e5)))
    else {
        return;
    };
    let case = Case::plain(100, 64, 200).batched([2, 1], [2, 1]);
    let host = case.host();
    let want = case.run(&whole, &host, whole.capabilities());
    let got = case.run(&capped, &host, capped.capabilities());
    assert_eq!(bits(&got), bits(&want));
    assert!(capped.stream_stats().dispatches >= 30);
}

#[test]
fn plain_devices_and_poisoned_buffers() {
    let plain = ["subgroup", "f16", "immediates", "timestamps"]
        .into_iter()
        .fold(Gpu::builder().webgpu_limits(), |builder, name| builder.disable(name));
    for builder in [plain, Gpu::builder().poison(true)] {
        let Some(gpu) = open(builder) else { return };
        for device in devices(&gpu) {
            for case in [
                Case::plain(3, 33, 35),
                Case::plain(3, 33, 35).nt(),
                Case { types: [DType::F16; 3], residual: true, ..Case::plain(37, 61, 67) },
                Case { types: [DType::F32, DType::BF16, DType::F32], ..Case::plain(37, 61, 67) }
                    .nt(),
            ] {
                case.check(&gpu, &device);
            }
        }
    }
}

/// Results go where they belong in a caller's tensor, and nowhere else.
#[test]
fn into_views_of_a_callers_tensor() {
    let Some(gpu) = gpu() else { return };
    for (dtype, margin) in [(DType::F32, 4), (DType::F32, 3), (DType::F16, 4), (DType::BF16, 8)] {
        let case = Case { types: [DType::F32, DType::F32, dtype], ..Case::plain(9, 20, 24) };
        let host = case.host();
        let operands = case.upload(&gpu, &host);
        let before = numbers(9, 11 * (24 + 2 * margin), dtype);
        let whole = upload(&gpu, &before, &[11, 24 + 2 * margin], dtype).unwrap();
        let view = whole.narrow(0, 1, 9).unwrap().narrow(1, margin, 24).unwrap();
        matmul_into(&operands.a, &operands.b, &case.epilogue(&operands), &view).unwrap();
        case.judge(&host, &download(&view).unwrap()).unwrap();
        let after = download(&whole).unwrap();
        for (index, (after, before)) in after.iter().zip(&before).enumerate() {
            let (row, column) = (index / (24 + 2 * margin), index % (24 + 2 * margin));
            if !(1..10).contains(&row) || !(margin..margin + 24).contains(&column) {
                assert_eq!(after, before, "{row}, {column}");
            }
        }
    }
}

#[test]
fn wrong_arguments_are_told() {
    let Some(gpu) = gpu() else { return };
    let zeros = |shape: &[usize], dtype| Tensor::zeros(&gpu, shape, dtype).unwrap();
    let (a, b) = (zeros(&[3, 4], DType::F32), zeros(&[4, 5], DType::F32));
    let message = |outcome: Result<Tensor, Error>| outcome.unwrap_err().to_string();
    let told = |outcome, words: &[&str]| {
        let text = message(outcome);
        assert!(words.iter().all(|word| text.contains(word)), "{text}: {words:?}");
    };
    told(matmul(&a, &a), &["`b`", "[.., 4, N]"]);
    told(matmul(&a.narrow(0, 0, 3).unwrap().reshape(&[12]).unwrap(), &b), &["`a`"]);
    let wide = |batch| zeros(&[batch, 3, 4], DType::F32);
    told(matmul(&wide(2), &zeros(&[3, 4, 5], DType::F32)), &["`b`", "batch"]);
    told(matmul(&zeros(&[3, 4], DType::U32), &b), &["`a`", "u32"]);
    told(matmul_with(&a, &b, &Epilogue::new().with_bias(&b)), &["`bias`", "[5]"]);
    told(matmul_with(&a, &b, &Epilogue::new().with_residual(&a)), &["`residual`", "[3, 5]"]);
    told(matmul_with(&a, &b, &Epilogue::new().accumulating()), &["accumulate"]);
    told(matmul_with(&a, &b, &Epilogue::new().with_dtype(DType::I32)), &["i32"]);
    let (b, out) = (zeros(&[4, 8], DType::F32), zeros(&[3, 8], DType::F32));
    let overlapping = matmul_into(&a, &b, &Epilogue::new().with_residual(&out), &out);
    assert!(matches!(overlapping, Err(Error::Kernel { .. })), "{overlapping:?}");
}
