//! Recording the kernels of a call: parts of the batch and heads, runs of blocks within them.

use std::ops::Range;

use super::variant::Variant;
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Binding, Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::rows::{Place, SNIPPETS, bind, storage};
use crate::tensor::{DType, Tensor};

macro_rules! chunk_kernel {
    ($name:literal) => {
        KernelSource {
            name: $name,
            text: include_str!(concat!("../../kernels/", $name, ".wgsl")),
            imports: IMPORTS,
        }
    };
}

/// Snippets of the kernels of blocks.
const IMPORTS: &[(&str, &str)] = &[
    SNIPPETS[0],
    ("halves", include_str!("../../kernels/halves.wgsl")),
    ("source", include_str!("../../kernels/source.wgsl")),
    ("row_place", include_str!("../../kernels/row_place.wgsl")),
    ("chunk_powers", include_str!("../../kernels/chunk_powers.wgsl")),
    ("chunk_rows_fields", include_str!("../../kernels/chunk_rows_fields.wgsl")),
    ("chunk_rows_operands", include_str!("../../kernels/chunk_rows_operands.wgsl")),
    ("chunk_states_fields", include_str!("../../kernels/chunk_states_fields.wgsl")),
    ("chunk_states_operands", include_str!("../../kernels/chunk_states_operands.wgsl")),
];

pub(super) const PASS: KernelSource = chunk_kernel!("chunk_pass");

/// The kernel of one side of the blocks.
pub(super) fn rows_kernel(variant: &Variant) -> KernelSource {
    match variant {
        Variant::Direct { .. } => chunk_kernel!("chunk_rows"),
        Variant::Tile => chunk_kernel!("chunk_rows_tile"),
    }
}

/// The kernel of states, or of what [`PASS`] makes states of.
pub(super) fn states_kernel(variant: &Variant) -> KernelSource {
    match variant {
        Variant::Direct { .. } => chunk_kernel!("chunk_states"),
        Variant::Tile => chunk_kernel!("chunk_states_tile"),
    }
}

/// Columns of pairs that a workgroup has at once, at least.
const LEAST_PAIRS: usize = 16;

/// Parameters of all kernels of blocks.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    entries: u32,
    heads: u32,
    group: u32,
    first_head: u32,
    tokens: u32,
    block: u32,
    row_tiles: u32,
    column_tiles: u32,
    depth4: u32,
    width4: u32,
    /// The bits of NaN, or whether there is a first state.
    extra: u32,
    /// Whether the walk, or the triangle, is the other way.
    upper: u32,
    places: [Place; 5],
}

/// What all dispatches of a call share.
pub(super) struct Sweep<'a> {
    pub(super) gpu: &'a Gpu,
    /// `[heads, block + 1]`.
    pub(super) powers: &'a Tensor,
    pub(super) block: usize,
    /// Query heads of a key head.
    pub(super) group: usize,
    pub(super) dtype: DType,
    /// The first query head of the windows.
    pub(super) first_head: usize,
}

/// Windows of the kernel of states, and which way it goes.
pub(super) struct States<'a> {
    pub(super) a: &'a Tensor,
    pub(super) b: &'a Tensor,
    /// Query heads that share a head of `a` and `b`.
    pub(super) group: usize,
    pub(super) first: Option<&'a Tensor>,
    pub(super) states: &'a Tensor,
    pub(super) end: &'a Tensor,
    pub(super) reversed: bool,
}

/// Windows of the kernel of rows, and which side of the triangle it computes.
pub(super) struct Rows<'a> {
    pub(super) a: &'a Tensor,
    pub(super) b: &'a Tensor,
    pub(super) x: &'a Tensor,
    pub(super) states: &'a Tensor,
    pub(super) out: &'a Tensor,
    pub(super) upper: bool,
    pub(super) transposed: bool,
}

impl Sweep<'_> {
    fn params(&self, out: [usize; 2], depth4: usize, width4: usize, tiles: [usize; 2]) -> Params {
        let [entries, heads] = out;
        Params {
            entries: entries as u32,
            heads: heads as u32,
            group: self.group as u32,
            first_head: self.first_head as u32,
            tokens: 0,
            block: self.block as u32,
            row_tiles: tiles[0] as u32,
            column_tiles: tiles[1] as u32,
            depth4: depth4 as u32,
            width4: width4 as u32,
            extra: 0,
            upper: 0,
            places: [[0; 4]; 5],
        }
    }

    /// Records the states beside all blocks.
    pub(super) fn states(&self, call: &States<'_>) -> Result<()> {
        let (a, b) = (call.a.shape(), call.b.shape());
        let [depth4, width4] = [a[3] / 4, b[3] / 4];
        let [batch, heads] = [call.end.shape()[0], call.end.shape()[1]];
        let entries = batch * heads;
        let variant = Variant::of(self.gpu.capabilities());
        let [rows, columns] = variant.extents();
        let tiles = [(4 * depth4).div_ceil(rows), (4 * width4).div_ceil(columns)];
        let unused = Tensor::uninit(self.gpu, &[1, 1, 1, 4], DType::F32)?;
        let windows = [call.a, call.b, call.first.unwrap_or(&unused), call.states, call.end];
        let (bindings, places) = self.bind(windows);
        let params = Params {
            group: call.group as u32,
            tokens: a[2] as u32,
            extra: call.first.is_some().into(),
            upper: call.reversed.into(),
            places,
            ..self.params([entries, heads], depth4, width4, tiles)
        };
        let [a, b, first, states, end] = bindings;
        let bindings = [a, b, first, self.powers.binding().0, states, end];
        let run = |kernel: KernelSource, constants: Constants, groups: u64, work: f64| {
            let params = bytemuck::bytes_of(&params);
            let dispatch = Dispatch { bindings: &bindings, params, groups, work };
            self.gpu.kernel(&kernel, constants)?.dispatch(self.gpu, &dispatch)
        };
        let blocks = match variant {
            Variant::Direct { .. } => 1,
            Variant::Tile => call.states.shape()[2],
        };
        let groups = (entries * tiles[0] * tiles[1] * blocks) as u64;
        let work = states_work(entries, params.tokens as usize, 4 * depth4, 4 * width4);
        run(states_kernel(&variant), storage(variant.constants(), self.dtype, None), groups, work)?;
        if variant == Variant::Tile {
            let lanes = ops::workgroup(self.gpu.capabilities());
            let groups = ((entries * 4 * depth4 * width4) as u64).div_ceil(u64::from(lanes));
            run(PASS, pass_constants(lanes, self.dtype), groups, 2.0 * call.states.len() as f64)?;
        }
        Ok(())
    }

    /// Records one side of the blocks.
    pub(super) fn rows(&self, call: &Rows<'_>) -> Result<()> {
        let [depth4, width4] = [call.a.shape()[3] / 4, call.out.shape()[3] / 4];
        let &[batch, heads, tokens, _] = call.out.shape() else { return Ok(()) };
        let variant = Variant::of(self.gpu.capabilities());
        let [rows, columns] = variant.extents();
        let blocks = tokens.div_ceil(self.block);
        let tiles = [self.block.min(tokens).div_ceil(rows), (4 * width4).div_ceil(columns)];
        let (bindings, places) = self.bind([call.a, call.b, call.x, call.states, call.out]);
        let params = Params {
            tokens: tokens as u32,
            extra: f32::NAN.to_bits(),
            upper: call.upper.into(),
            places,
            ..self.params([batch * heads, heads], depth4, width4, tiles)
        };
        let constants = rows_constants(&variant, self.dtype, call.transposed);
        let kernel = self.gpu.kernel(&rows_kernel(&variant), constants)?;
        let [a, b, x, states, out] = bindings;
        let members = if call.upper { self.group } else { 1 };
        // Of each member: the state, and for each tile of pairs their products and their use.
        let tiles_of_pairs = self.block.min(tokens).div_ceil(LEAST_PAIRS);
        let steps = members * (depth4 + tiles_of_pairs * (depth4 + LEAST_PAIRS));
        self.gpu.capabilities().check_steps(format!("`{}`", rows_kernel(&variant).name), steps)?;
        kernel.dispatch(
            self.gpu,
            &Dispatch {
                bindings: &[a, b, x, states, self.powers.binding().0, out],
                params: bytemuck::bytes_of(&params),
                groups: (batch * heads * blocks * tiles[0] * tiles[1]) as u64,
                work: rows_work(
                    batch * heads * members,
                    tokens,
                    self.block,
                    4 * depth4,
                    4 * width4,
                ),
            },
        )
    }

    fn bind(&self, windows: [&Tensor; 5]) -> ([Binding; 5], [Place; 5]) {
        let bound = windows.map(bind);
        let places = bound.each_ref().map(|(_, place)| *place);
        (bound.map(|(binding, _)| binding), places)
    }
}

pub(super) fn rows_constants(variant: &Variant, dtype: DType, transposed: bool) -> Constants {
    storage(variant.constants(), dtype, None).flag("STATE_T", transposed)
}

/// Of a type of inputs that the kernel has bound and does not read.
pub(super) fn pass_constants(lanes: u32, dtype: DType) -> Constants {
    storage(Constants::new().int("WORKGROUP", lanes), dtype, None)
}

fn states_work(entries: usize, tokens: usize, depth: usize, width: usize) -> f64 {
    2.0 * entries as f64 * tokens as f64 * depth as f64 * width as f64
}

fn rows_work(entries: usize, tokens: usize, block: usize, depth: usize, width: usize) -> f64 {
    let pairs = block.min(tokens) as f64 * (depth + width) as f64;
    2.0 * entries as f64 * tokens as f64 * (pairs + depth as f64 * width as f64)
}

/// Batch entries and key heads that are computed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) batch: Range<usize>,
    pub(super) heads_kv: Range<usize>,
    pub(super) group: usize,
}

impl Part {
    /// The window of a tensor `[batch, heads, ..]` of query heads.
    pub(super) fn of_heads(&self, tensor: &Tensor) -> Result<Tensor> {
        let (start, count) = (self.heads_kv.start * self.group, self.heads_kv.len() * self.group);
        tensor.narrow(0, self.batch.start, self.batch.len())?.narrow(1, start, count)
    }

    /// The window of a tensor `[batch, heads_kv, ..]` of key heads.
    pub(super) fn of_keys(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.narrow(0, self.batch.start, self.batch.len())?.narrow(
            1,
            self.heads_kv.start,
            self.heads_kv.len(),
        )
    }

    fn halves(&self) -> Option<[Part; 2]> {
        let split = |range: &Range<usize>| {
            let middle = range.start + range.len() / 2;
            (range.len() > 1).then_some([range.start..middle, middle..range.end])
        };
        if let Some(parts) = split(&self.batch) {
            return Some(parts.map(|batch| Part { batch, ..self.clone() }));
        }
        split(&self.heads_kv).map(|parts| parts.map(|heads_kv| Part { heads_kv, ..self.clone() }))
    }
}

/// How a call is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) parts: Vec<Part>,
    /// Blocks of a run.
    pub(super) run: usize,
    pub(super) blocks: usize,
    pub(super) block: usize,
    pub(super) tokens: usize,
}

/// States of a call that keeps none take at most so many bytes, where runs are long enough all the same.
const WORKSPACE: usize = 64 << 20;
/// Tokens of a run that is long enough.
const LONG_RUN: usize = 4096;

/// What limits a plan.
pub(super) struct Limits<'a> {
    pub(super) capabilities: &'a Capabilities,
    pub(super) max_work: f64,
    /// Bytes of the states beside one block, of all heads.
    pub(super) state_bytes: usize,
    /// Whether the states beside all blocks are kept.
    pub(super) keeps: bool,
    /// Operations of one block of one key head and batch entry.
    pub(super) block_work: f64,
}

impl Plan {
    /// Splits a call of `extents` batch entries, key heads and tokens. `bytes` is the largest binding
    /// of a part's tensors in so many tokens.
    pub(super) fn new(
        [batch, heads_kv, tokens]: [usize; 3],
        group: usize,
        block: usize,
        limits: &Limits<'_>,
        bytes: &dyn Fn(&Part, usize) -> Result<u64>,
    ) -> Result<Plan> {
        let blocks = tokens.div_ceil(block);
        // Steps of four tokens, and one a block.
        let steps = block.div_ceil(4) + 1;
        let mut run = (limits.capabilities.max_loop_steps / steps).clamp(1, blocks);
        while !limits.keeps && run * limits.state_bytes > WORKSPACE && run * block > LONG_RUN {
            run = run.div_ceil(2);
        }
        let whole = Part { batch: 0..batch, heads_kv: 0..heads_kv, group };
        let fits = |part: &Part, run: usize| -> Result<bool> {
            let entries = part.batch.len() * part.heads_kv.len();
            let states = limits.state_bytes / (batch * heads_kv) * entries * run;
            let largest = bytes(part, (run * block).min(tokens))?.max(states as u64);
            let work = limits.block_work * (entries * run) as f64;
            let available = limits.capabilities.max_binding_bytes.min(1 << 32);
            Ok(largest <= available && (work <= limits.max_work || run * entries == 1))
        };
        let least = Part { batch: 0..1, heads_kv: 0..1, group };
        while run > 1 && !fits(&least, run)? {
            run = run.div_ceil(2);
        }
        let (mut open, mut parts) = (vec![whole], Vec::new());
        while let Some(part) = open.pop() {
            match part.halves() {
                Some([first, second]) if !fits(&part, run)? => open.extend([second, first]),
                _ => parts.push(part),
            }
        }
        Ok(Plan { parts, run, blocks, block, tokens })
    }

    /// The blocks of each run, in order.
    pub(super) fn runs(&self) -> Vec<Range<usize>> {
        let starts = (0..self.blocks).step_by(self.run);
        starts.map(|start| start..(start + self.run).min(self.blocks)).collect()
    }

    /// The window of a tensor `[.., .., tokens, dim]` in a run.
    pub(super) fn tokens_of(&self, tensor: &Tensor, run: &Range<usize>) -> Result<Tensor> {
        let (start, end) = (run.start * self.block, (run.end * self.block).min(self.tokens));
        tensor.narrow(2, start, end - start)
    }
}
