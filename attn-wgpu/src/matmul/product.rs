//! One product with its operands ready: splitting it into dispatches, and recording them.

use std::ops::Range;

use super::operands::{Operand, target};
use super::variant::Variant;
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernel::{Call, Constants, KernelSource};
use crate::ops::SNIPPETS as GENERAL;
use crate::tensor::{DType, Tensor};
use crate::vec4::{chunks, is_vec4};

/// All tensors have four dimensions and rows of whole chunks, but for an f32 result.
pub(super) struct Product {
    pub(super) a: Operand,
    pub(super) b: Operand,
    /// `[N]`, rounded up to whole chunks.
    pub(super) bias: Option<Tensor>,
    pub(super) residual: Option<Tensor>,
    pub(super) out: Tensor,
    pub(super) columns: usize,
    pub(super) depth: usize,
    pub(super) activation: Activation,
    pub(super) accumulate: bool,
    pub(super) variant: Variant,
}

/// What one workgroup tile belongs to: a part of the result, over the whole depth.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Job {
    outer: Range<usize>,
    inner: Range<usize>,
    rows: Range<usize>,
    columns: Range<usize>,
    /// Parts of the depth, one dispatch after the other.
    parts: usize,
}

/// Parts of the depth begin at multiples of this.
const DEPTH_UNIT: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    columns: u32,
    depth: u32,
    batches: u32,
    inner: u32,
    row_tiles: u32,
    column_tiles: u32,
    bias_start: u32,
    a: [u32; 4],
    b: [u32; 4],
    residual: [u32; 4],
    out: [u32; 4],
    sums: [u32; 4],
}

/// Where a dispatch stands in the depth of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sums {
    pub(super) go_on: bool,
    pub(super) keep: bool,
}

/// What a kernel is compiled for besides its variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) a: DType,
    pub(super) b: DType,
    pub(super) out: DType,
    pub(super) bias: Option<DType>,
    pub(super) a_across: bool,
    pub(super) b_across: bool,
    pub(super) activation: Activation,
    pub(super) residual: bool,
    pub(super) accumulate: bool,
    /// Whether the result is written element by element, as f32 where rows are no whole chunks.
    pub(super) elements: bool,
    pub(super) sums: Sums,
}

impl Form {
    pub(super) fn constants(&self, variant: &Variant) -> Constants {
        let constants = chunks(variant.constants(), "A", self.a);
        let constants = chunks(constants, "B", self.b);
        let constants = chunks(constants, "Out", self.out);
        let constants = chunks(constants, "Bias", self.bias.unwrap_or(DType::F32));
        let Sums { go_on, keep } = self.sums;
        // A dispatch that keeps its sums has no epilogue.
        let form = if keep {
            Form { bias: None, residual: false, accumulate: false, ..*self }
        } else {
            *self
        };
        let activation = if keep { Activation::None } else { self.activation };
        activation
            .constants(constants)
            .flag("A_COLUMNS", self.a_across)
            .flag("B_ROWS", self.b_across)
            .flag("BIAS", form.bias.is_some())
            .flag("RESIDUAL", form.residual)
            .flag("ACCUMULATE", form.accumulate)
            .flag("OUT_ELEMENTS", self.elements)
            .flag("SUMS", go_on || keep)
            .flag("SUMS_IN", go_on)
            .flag("SUMS_OUT", keep)
    }
}

/// Snippets of the matmul kernels.
pub(super) const SNIPPETS: &[(&str, &str)] = &[
    GENERAL[0],
    GENERAL[1],
    ("halves", include_str!("../../kernels/halves.wgsl")),
    ("matmul_fields", include_str!("../../kernels/matmul_fields.wgsl")),
    ("matmul_left", include_str!("../../kernels/matmul_left.wgsl")),
    ("matmul_operands", include_str!("../../kernels/matmul_operands.wgsl")),
    ("matmul_store", include_str!("../../kernels/matmul_store.wgsl")),
    ("matmul_lanes", include_str!("../../kernels/matmul_lanes.wgsl")),
    ("arguments", include_str!("../../kernels/attention_arguments.wgsl")),
];

/// The kernel of a variant.
pub(super) fn source(variant: &Variant) -> KernelSource {
    let text = match variant {
        Variant::Direct { .. } => include_str!("../../kernels/matmul_direct.wgsl"),
        Variant::Tile { .. } => include_str!("../../kernels/matmul_tile.wgsl"),
        Variant::Rows { .. } => include_str!("../../kernels/matmul_rows.wgsl"),
    };
    KernelSource { name: variant.kernel(), text, imports: SNIPPETS }
}

impl Product {
    /// Records all dispatches.
    pub(super) fn record(&self) -> Result<()> {
        let gpu = self.out.gpu();
        for job in self.jobs(gpu)? {
            let sums = match job.parts {
                1 => None,
                _ => Some(target(&job.out(self)?, DType::F32)?),
            };
            for part in 0..job.parts {
                self.dispatch(gpu, &job, part, sums.as_ref())?;
            }
        }
        Ok(())
    }

    fn form(&self, sums: Sums) -> Form {
        Form {
            a: self.a.tensor.dtype(),
            b: self.b.tensor.dtype(),
            out: self.out.dtype(),
            bias: self.bias.as_ref().map(Tensor::dtype),
            a_across: self.a.across,
            b_across: self.b.across,
            activation: self.activation,
            residual: self.residual.is_some(),
            accumulate: self.accumulate,
            elements: !is_vec4(&self.out),
            sums,
        }
    }

    fn dispatch(&self, gpu: &Gpu, job: &Job, part: usize, sums: Option<&Tensor>) -> Result<()> {
        let state = Sums { go_on: part > 0, keep: part + 1 < job.parts };
        let form = self.form(state);
        let kernel = gpu.kernel(&source(&self.variant), form.constants(&self.variant))?;
        let depth = job.depth(self, part);
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
        let some = |tensor| (!depth.is_empty()).then_some(tensor);
        let (a, a_place) = place(some(job.a(self, &depth)?), 4);
        let (b, b_place) = place(some(job.b(self, &depth)?), 4);
        let (residual, residual_place) = place(job.residual(self)?, 4);
        let (out, out_place) = place(Some(job.out(self)?), if form.elements { 1 } else { 4 });
        let (bias, bias_start) = match &self.bias {
            Some(bias) => {
                let (binding, start) = bias.binding();
                (binding, (start + job.columns.start) / 4)
            }
            None => (unused.binding().0, 0),
        };
        let mut bindings = vec![a, b, bias, residual, out];
        let mut sums_place = [0; 4];
        if let Some(sums) = sums {
            let (binding, at) = place(Some(sums.clone()), 4);
            bindings.push(binding);
            sums_place = at;
        }
        let [row_tiles, column_tiles] = job.tiles(&self.variant);
        let params = Params {
            rows: job.rows.len() as u32,
            columns: job.columns.len() as u32,
            depth: depth.len() as u32,
            batches: (job.outer.len() * job.inner.len()) as u32,
            inner: job.inner.len() as u32,
            row_tiles: row_tiles as u32,
            column_tiles: column_tiles as u32,
            bias_start: bias_start as u32,
            a: a_place,
            b: b_place,
            residual: residual_place,
            out: out_place,
            sums: sums_place,
        };
        let call = Call {
            bindings: &bindings,
            params: bytemuck::bytes_of(&params),
            groups: job.groups(&self.variant),
            work: job.work(depth.len()),
        };
        kernel.dispatch(gpu, &call)
    }

    /// Jobs whose windows fit a binding and whose work is below the cap.
    fn jobs(&self, gpu: &Gpu) -> Result<Vec<Job>> {
        let &[outer, inner, rows, _] = self.out.shape() else { return Ok(Vec::new()) };
        let steps = gpu.capabilities().max_loop_steps;
        let most = (self.variant.max_depth(steps) / DEPTH_UNIT * DEPTH_UNIT).max(DEPTH_UNIT);
        let whole = Job {
            outer: 0..outer,
            inner: 0..inner,
            rows: 0..rows,
            columns: 0..self.columns,
            parts: self.depth.div_ceil(most).max(1),
        };
        let available = gpu.capabilities().max_binding_bytes.min(1 << 32);
        let (mut open, mut done) = (vec![whole], Vec::new());
        while let Some(job) = open.pop() {
            let excess = job.excess(self, available)?;
            let depth = job.depth(self, 0).len();
            let heavy = job.work(depth) > gpu.max_work_per_dispatch()
                || job.groups(&self.variant) > u64::from(u32::MAX);
            if excess.is_none() && !heavy {
                done.push(job);
                continue;
            }
            match (job.smaller(self, excess.as_ref()), excess) {
                (Some(parts), _) => open.extend(parts.into_iter().rev()),
                (None, None) => done.push(job),
                (None, Some(Excess { operand, needed })) => {
                    let what = format!("a part of `{operand}` that one workgroup needs");
                    let limit = "maxStorageBufferBindingSize";
                    return Err(Error::Limit { what, limit, needed, available });
                }
            }
        }
        Ok(done)
    }
}

/// A window that does not fit a binding.
struct Excess {
    operand: &'static str,
    needed: u64,
}

impl Job {
    fn tiles(&self, variant: &Variant) -> [usize; 2] {
        let [rows, columns] = variant.tile_extents();
        [self.rows.len().div_ceil(rows), self.columns.len().div_ceil(columns)]
    }

    fn groups(&self, variant: &Variant) -> u64 {
        let tiles = self.tiles(variant).into_iter().chain([self.outer.len(), self.inner.len()]);
        tiles.map(|count| count as u64).product()
    }

    /// Floating-point operations over a part of the depth.
    fn work(&self, depth: usize) -> f64 {
        let extents = [self.outer.len(), self.inner.len(), self.rows.len(), self.columns.len()];
        2.0 * extents.into_iter().chain([depth]).map(|extent| extent as f64).product::<f64>()
    }

    fn depth(&self, product: &Product, part: usize) -> Range<usize> {
        let length = product.depth.div_ceil(self.parts).next_multiple_of(DEPTH_UNIT);
        (part * length).min(product.depth)..((part + 1) * length).min(product.depth)
    }

    /// The part of a tensor `[.., .., outer, contiguous]` that belongs to the job's batch entries.
    fn window(
        &self,
        tensor: &Tensor,
        rows: &Range<usize>,
        within: &Range<usize>,
    ) -> Result<Tensor> {
        let end = within.end.next_multiple_of(4).min(tensor.shape()[3]);
        tensor
            .narrow(0, self.outer.start, self.outer.len())?
            .narrow(1, self.inner.start, self.inner.len())?
            .narrow(2, rows.start, rows.len())?
            .narrow(3, within.start, end - within.start)
    }

    fn a(&self, product: &Product, depth: &Range<usize>) -> Result<Tensor> {
        let Operand { tensor, across } = &product.a;
        let (rows, within) = if *across { (depth, &self.rows) } else { (&self.rows, depth) };
        self.window(tensor, rows, within)
    }

    fn b(&self, product: &Product, depth: &Range<usize>) -> Result<Tensor> {
        let Operand { tensor, across } = &product.b;
        let (rows, within) = if *across { (depth, &self.columns) } else { (&self.columns, depth) };
        self.window(tensor, rows, within)
    }

    fn out(&self, product: &Product) -> Result<Tensor> {
        self.window(&product.out, &self.rows, &self.columns)
    }

    fn residual(&self, product: &Product) -> Result<Option<Tensor>> {
        let residual = product.residual.as_ref();
        residual.map(|tensor| self.window(tensor, &self.rows, &self.columns)).transpose()
    }

    fn excess(&self, product: &Product, available: u64) -> Result<Option<Excess>> {
        let depth = self.depth(product, 0);
        let windows = [
            ("a", Some(self.a(product, &depth)?)),
            ("b", Some(self.b(product, &depth)?)),
            ("residual", self.residual(product)?),
            ("out", Some(self.out(product)?)),
        ];
        let bytes = windows.into_iter().filter_map(|(operand, tensor)| {
            let needed = tensor?.binding().0.bytes;
            (needed > available).then_some(Excess { operand, needed })
        });
        Ok(bytes.max_by_key(|excess| excess.needed))
    }

    /// Halves: of the batch first, else of what makes the operand large that does not fit, or of the
    /// longer side of the result. Only `b` or `a` across the depth make the depth a matter of limits,
    /// so that how an element is summed up never depends on the batch.
    fn smaller(&self, product: &Product, excess: Option<&Excess>) -> Option<Vec<Job>> {
        let [tile_rows, tile_columns] = product.variant.tile_extents();
        let halves = |range: &Range<usize>, unit: usize, make: &dyn Fn(Range<usize>) -> Job| {
            // Whole tiles as long as there are any, then whole chunks.
            let unit = if range.len() > unit { unit } else { unit.min(4) };
            let half = range.len().div_ceil(unit) / 2 * unit;
            let middle = range.start + half;
            (half > 0).then(|| vec![make(range.start..middle), make(middle..range.end)])
        };
        let outer = || halves(&self.outer, 1, &|outer| Job { outer, ..self.clone() });
        let inner = || halves(&self.inner, 1, &|inner| Job { inner, ..self.clone() });
        let rows = || halves(&self.rows, tile_rows.max(4), &|rows| Job { rows, ..self.clone() });
        let columns =
            || halves(&self.columns, tile_columns, &|columns| Job { columns, ..self.clone() });
        let parts = || {
            let more = Job { parts: self.parts * 2, ..self.clone() };
            (product.depth > self.parts * DEPTH_UNIT).then(|| vec![more])
        };
        let batch = || outer().or_else(inner);
        match excess.map(|excess| excess.operand) {
            Some("a") if product.a.across => batch().or_else(parts).or_else(rows),
            Some("a") => batch().or_else(rows).or_else(parts),
            Some("b") if product.b.across => batch().or_else(parts).or_else(columns),
            Some("b") => batch().or_else(columns).or_else(parts),
            Some(_) => batch().or_else(rows).or_else(columns),
            None if self.rows.len() > self.columns.len() => batch().or_else(rows).or_else(columns),
            None => batch().or_else(columns).or_else(rows),
        }
    }
}
