//! One product with its operands ready: splitting it into dispatches, and recording them.

use std::ops::Range;

use super::blocks::{BlockType, GROUP, STEP};
use super::variant::{Variant, block_constants, scale_chunk};
use super::weight::Packed;
use crate::activation::Activation;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Binding, Call, Constants, KernelSource};
use crate::ops::SNIPPETS as GENERAL;
use crate::tensor::{DType, Tensor};
use crate::vec4::{chunks, is_vec4};

/// All tensors have four dimensions and rows of whole chunks, but for an f32 result.
pub(super) struct Product<'a> {
    pub(super) a: Tensor,
    pub(super) weight: &'a Packed,
    /// `[N]`, rounded up to whole chunks.
    pub(super) bias: Option<Tensor>,
    pub(super) residual: Option<Tensor>,
    pub(super) out: Tensor,
    pub(super) activation: Activation,
    pub(super) accumulate: bool,
    pub(super) variant: Variant,
}

/// What is too large of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excess {
    Binding,
    Work,
}

/// The part of a result that a dispatch computes.
#[derive(Debug, Clone)]
struct Job {
    outer: Range<usize>,
    inner: Range<usize>,
    rows: Range<usize>,
    /// Groups of four columns.
    groups: Range<usize>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    columns: u32,
    blocks: u32,
    batches: u32,
    inner: u32,
    row_tiles: u32,
    column_tiles: u32,
    bias_start: u32,
    a: [u32; 4],
    residual: [u32; 4],
    out: [u32; 4],
    codes: [u32; 2],
    scales: [u32; 2],
}

/// What a kernel is compiled for besides its variant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) kind: BlockType,
    pub(super) a: DType,
    pub(super) out: DType,
    pub(super) bias: Option<DType>,
    pub(super) activation: Activation,
    pub(super) residual: bool,
    pub(super) accumulate: bool,
    /// Whether the result is written element by element, as f32 where rows are no whole chunks.
    pub(super) elements: bool,
}

impl Form {
    pub(super) fn constants(&self, variant: &Variant) -> Constants {
        let constants = block_constants(self.kind, variant.constants());
        let constants = chunks(constants, "A", self.a);
        let constants = chunks(constants, "Out", self.out);
        let constants = chunks(constants, "Bias", self.bias.unwrap_or(DType::F32));
        self.activation
            .constants(constants)
            .flag("BIAS", self.bias.is_some())
            .flag("RESIDUAL", self.residual)
            .flag("ACCUMULATE", self.accumulate)
            .flag("OUT_ELEMENTS", self.elements)
    }
}

const SNIPPETS: &[(&str, &str)] = &[
    GENERAL[0],
    GENERAL[1],
    ("halves", include_str!("../../kernels/halves.wgsl")),
    ("packed_fields", include_str!("../../kernels/packed_fields.wgsl")),
    ("matmul_left", include_str!("../../kernels/matmul_left.wgsl")),
    ("packed_operands", include_str!("../../kernels/packed_operands.wgsl")),
    ("packed_block", include_str!("../../kernels/packed_block.wgsl")),
    ("matmul_store", include_str!("../../kernels/matmul_store.wgsl")),
    ("matmul_lanes", include_str!("../../kernels/matmul_lanes.wgsl")),
    ("arguments", include_str!("../../kernels/attention_arguments.wgsl")),
];

/// The kernel of a variant.
pub(super) fn source(variant: &Variant) -> KernelSource {
    let text = match variant {
        Variant::Few { .. } => include_str!("../../kernels/packed_few.wgsl"),
        Variant::Direct { .. } => include_str!("../../kernels/packed_direct.wgsl"),
        Variant::Lanes { .. } => include_str!("../../kernels/packed_lanes.wgsl"),
        Variant::Tile { .. } => include_str!("../../kernels/packed_tile.wgsl"),
    };
    KernelSource { name: variant.kernel(), text, imports: SNIPPETS }
}

/// Binding of groups of a part of a matrix, with start and stride in units of `chunk` words.
pub(super) fn bind_groups(
    part: &Tensor,
    groups: &Range<usize>,
    chunk: usize,
) -> Result<(Binding, [u32; 2])> {
    let (binding, start) = part.narrow(0, groups.start, groups.len())?.binding();
    Ok((binding, [(start / chunk) as u32, (part.strides()[0] / chunk) as u32]))
}

impl Product<'_> {
    /// Records all dispatches.
    pub(super) fn record(&self) -> Result<()> {
        let gpu = self.out.gpu();
        let &[outer, inner, rows, _] = self.out.shape() else { return Ok(()) };
        for groups in self.weight.windows()? {
            let mut open = vec![Job { outer: 0..outer, inner: 0..inner, rows: 0..rows, groups }];
            while let Some(job) = open.pop() {
                let excess = self.excess(gpu, &job)?;
                match excess.and_then(|excess| self.halves(&job, excess)) {
                    Some(halves) => open.extend(halves.into_iter().rev()),
                    // The dispatch itself refuses bindings that are still too large.
                    None => self.dispatch(gpu, &job)?,
                }
            }
        }
        Ok(())
    }

    fn form(&self) -> Form {
        Form {
            kind: self.weight.kind(),
            a: self.a.dtype(),
            out: self.out.dtype(),
            bias: self.bias.as_ref().map(Tensor::dtype),
            activation: self.activation,
            residual: self.residual.is_some(),
            accumulate: self.accumulate,
            elements: !is_vec4(&self.out),
        }
    }

    /// The columns of a group range that exist.
    fn columns(&self, job: &Job) -> Range<usize> {
        job.groups.start * GROUP..(job.groups.end * GROUP).min(self.weight.rows())
    }

    fn rows_of(&self, tensor: &Tensor, job: &Job) -> Result<Tensor> {
        tensor
            .narrow(0, job.outer.start, job.outer.len())?
            .narrow(1, job.inner.start, job.inner.len())?
            .narrow(2, job.rows.start, job.rows.len())
    }

    /// The part of the result, or of a tensor like it, that belongs to a job.
    fn window(&self, tensor: &Tensor, job: &Job) -> Result<Tensor> {
        let Range { start, end } = self.columns(job);
        let end = end.next_multiple_of(GROUP).min(tensor.shape()[3]);
        self.rows_of(tensor, job)?.narrow(3, start, end - start)
    }

    fn tiles(&self, job: &Job) -> [usize; 2] {
        let [rows, chunks] = self.variant.tile_extents();
        [job.rows.len().div_ceil(rows), job.groups.len().div_ceil(chunks)]
    }

    fn groups(&self, job: &Job) -> u64 {
        let tiles = self.tiles(job).into_iter().chain([job.outer.len(), job.inner.len()]);
        tiles.map(|count| count as u64).product()
    }

    /// Floating-point operations.
    fn work(&self, job: &Job) -> f64 {
        let columns = job.groups.len() * GROUP;
        let extents = [job.outer.len(), job.inner.len(), job.rows.len(), columns];
        let depth = self.weight.width();
        2.0 * extents.into_iter().chain([depth]).map(|extent| extent as f64).product::<f64>()
    }

    /// Why a job must be smaller. Windows of the weights fit already.
    fn excess(&self, gpu: &Gpu, job: &Job) -> Result<Option<Excess>> {
        let available = gpu.capabilities().max_binding_bytes.min(1 << 32);
        let residual = self.residual.as_ref().map(|tensor| self.window(tensor, job)).transpose()?;
        let windows =
            [Some(self.rows_of(&self.a, job)?), Some(self.window(&self.out, job)?), residual];
        if windows.iter().flatten().any(|tensor| tensor.binding().0.bytes > available) {
            return Ok(Some(Excess::Binding));
        }
        let heavy = self.work(job) > gpu.max_work_per_dispatch();
        Ok((heavy || self.groups(job) > u64::from(u32::MAX)).then_some(Excess::Work))
    }

    /// A job in two: by the batch first; then by rows as long as there are many, or as they make
    /// bindings large, or by columns.
    fn halves(&self, job: &Job, excess: Excess) -> Option<[Job; 2]> {
        let [tile_rows, tile_groups] = self.variant.tile_extents();
        let middle = |range: &Range<usize>, unit: usize| {
            // Whole tiles as long as there are any.
            let unit = if range.len() > unit { unit } else { 1 };
            let half = range.len().div_ceil(unit) / 2 * unit;
            (half > 0).then_some(range.start + half)
        };
        let pair = |first: &dyn Fn(&mut Job), second: &dyn Fn(&mut Job)| {
            let mut jobs = [job.clone(), job.clone()];
            first(&mut jobs[0]);
            second(&mut jobs[1]);
            jobs
        };
        if let Some(at) = middle(&job.outer, 1) {
            return Some(pair(&|job| job.outer.end = at, &|job| job.outer.start = at));
        }
        if let Some(at) = middle(&job.inner, 1) {
            return Some(pair(&|job| job.inner.end = at, &|job| job.inner.start = at));
        }
        let (rows, groups) = (middle(&job.rows, tile_rows), middle(&job.groups, tile_groups));
        let by_rows = excess == Excess::Binding || job.rows.len() > tile_rows;
        match (rows, groups) {
            (Some(at), _) if by_rows || groups.is_none() => {
                Some(pair(&|job| job.rows.end = at, &|job| job.rows.start = at))
            }
            (_, Some(at)) => Some(pair(&|job| job.groups.end = at, &|job| job.groups.start = at)),
            _ => None,
        }
    }

    fn dispatch(&self, gpu: &Gpu, job: &Job) -> Result<()> {
        let form = self.form();
        let kernel = gpu.kernel(&source(&self.variant), form.constants(&self.variant))?;
        // Where a binding is not used, the kernel gets something that is large enough.
        let unused = Tensor::uninit(gpu, &[4], DType::F32)?;
        let place = |tensor: Option<Tensor>, unit: usize| {
            let Some(tensor) = tensor else { return (unused.binding().0, [0; 4]) };
            let (binding, start) = tensor.binding();
            let step = |d: usize| match tensor.shape()[d] {
                1 => 0,
                _ => (tensor.strides()[d] / unit) as u32,
            };
            (binding, [(start / unit) as u32, step(0), step(1), step(2)])
        };
        let (kind, empty) = (self.weight.kind(), self.weight.width() == 0);
        let part = |part: &Tensor, chunk: usize| match empty {
            true => Ok((unused.binding().0, [0; 2])),
            false => bind_groups(part, &job.groups, chunk),
        };
        let (a, a_place) = place((!empty).then_some(self.rows_of(&self.a, job)?), 4);
        let (codes, codes_place) = part(&self.weight.codes, 4)?;
        let (scales, scales_place) = part(&self.weight.scales, scale_chunk(kind))?;
        let residual = self.residual.as_ref().map(|tensor| self.window(tensor, job)).transpose()?;
        let (residual, residual_place) = place(residual, 4);
        let out = self.window(&self.out, job)?;
        let (out, out_place) = place(Some(out), if form.elements { 1 } else { 4 });
        let (bias, bias_start) = match &self.bias {
            Some(bias) => {
                let (binding, start) = bias.binding();
                (binding, start / 4 + job.groups.start)
            }
            None => (unused.binding().0, 0),
        };
        let [row_tiles, column_tiles] = self.tiles(job);
        let params = Params {
            rows: job.rows.len() as u32,
            columns: self.columns(job).len() as u32,
            blocks: (self.weight.width() / STEP) as u32,
            batches: (job.outer.len() * job.inner.len()) as u32,
            inner: job.inner.len() as u32,
            row_tiles: row_tiles as u32,
            column_tiles: column_tiles as u32,
            bias_start: bias_start as u32,
            a: a_place,
            residual: residual_place,
            out: out_place,
            codes: codes_place,
            scales: scales_place,
        };
        let call = Call {
            bindings: &[a, codes, scales, bias, residual, out],
            params: bytemuck::bytes_of(&params),
            groups: self.groups(job),
            work: self.work(job),
        };
        kernel.dispatch(gpu, &call)
    }
}
