//! Executing plans.

use std::ops::Range;

use attn_core::AttentionShape;
use attn_core::Mask;
use attn_core::dense::Config;
use attn_core::plan::Combine;

use super::device::{DevicePlan, near_weight};
use super::params::{FAR, Geometry, Pass, chunk, pack};
use super::rounds::{Bound, MAX_PARTS, bound, grid, groups, queries};
use crate::attention::call::{Bound as Window, Call, bind, check_output};
use crate::attention::jobs::{Job, bytes};
use crate::attention::mask_table::Side;
use crate::attention::params::{Common, storage};
use crate::attention::variant::Variant;
use crate::attention::{Attention, Inputs, Output};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::tensor::{DType, Tensor};
use crate::vec4::is_vec4;

macro_rules! snippet {
    ($name:literal) => {
        ($name, include_str!(concat!("../../kernels/", $name, ".wgsl")))
    };
}

/// Snippets of the kernels that read plans.
pub(crate) const SNIPPETS: &[(&str, &str)] = &[
    snippet!("linear"),
    snippet!("attention_fields"),
    snippet!("attention_storage"),
    snippet!("attention_logits"),
    snippet!("attention_lanes"),
    snippet!("attention_arguments"),
    snippet!("attention_item"),
    snippet!("attention_absorb"),
    snippet!("plan_fields"),
    snippet!("plan_groups"),
    snippet!("plan_cursor"),
];

macro_rules! kernel {
    ($name:literal) => {
        KernelSource {
            name: $name,
            text: include_str!(concat!("../../kernels/", $name, ".wgsl")),
            imports: SNIPPETS,
        }
    };
}

pub(crate) const COST: KernelSource = kernel!("plan_cost");
pub(crate) const ITEMS: KernelSource = kernel!("plan_items");
pub(crate) const DISPATCH: KernelSource = kernel!("plan_dispatch");
pub(crate) const FORWARD: KernelSource = kernel!("attention_plan");
pub(crate) const MERGE: KernelSource = kernel!("attention_plan_merge");

/// Passes of one plan at most: what there is room for in the dispatch arguments.
const MAX_PASSES: usize = 64;

/// Attention over sparse plans: a softmax over the keys that a plan gives each query.
///
/// Scale, soft-cap and modifier are those of dense attention ([`Attention`]), and so are types and
/// layouts. A query without any key has output 0 and log-sum-exp -inf. Bit-equal from run to run.
///
/// Memory beyond inputs and outputs: partial results of f32, up to 16 for each row and its part of the
/// near part, 64 MiB of them at once; more only for plans of several parts or of listed rows.
#[derive(Debug, Clone)]
pub struct PlanAttention {
    dense: Attention,
    gpu: Gpu,
    /// Numbers of workgroups, four words a pass.
    args: Tensor,
    /// Keys of a chunk, for tests.
    chunk: Option<usize>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct CostParams {
    queries: u32,
    keys: u32,
    geometry: Geometry,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DispatchParams {
    base: u32,
    behind: u32,
    copies: u32,
    limit: u32,
    at: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ForwardParams {
    common: Common,
    geometry: Geometry,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct MergeParams {
    dim_v: u32,
    heads: u32,
    first_query: u32,
    row_queries: u32,
    row_count: u32,
    first_batch: u32,
    first_head: u32,
    queries: u32,
    keys: u32,
    out: [u32; 4],
    lse: [u32; 3],
    near_weight: u32,
    geometry: Geometry,
}

/// One call.
struct Run<'a> {
    call: &'a Call,
    plan: &'a DevicePlan,
    passes: Vec<Pass<'a>>,
    variant: Variant,
    /// Whether groups of lanes split the keys.
    split: bool,
    /// Rows of one item.
    tile: usize,
    chunk: usize,
}

/// A pass of one round: its parameters, and bounds of its work for one key head.
struct Step {
    geometry: Geometry,
    items: u64,
    pairs: f64,
}

impl PlanAttention {
    /// Attention by `config` on `gpu`. The mask must be [`Mask::Full`] or [`Mask::Causal`], and say
    /// the same as the plans: which keys are seen is their matter.
    ///
    /// # Errors
    /// As [`Attention::new`], and [`attn_core::Error::Config`] for other masks.
    pub fn new(gpu: &Gpu, config: Config) -> Result<PlanAttention> {
        if !matches!(config.mask, Mask::Full | Mask::Causal) {
            return Err(
                attn_core::Error::config("mask", "full or causal", config.mask.name()).into()
            );
        }
        let args = Tensor::indirect(gpu, 4 * MAX_PASSES)?;
        Ok(PlanAttention {
            dense: Attention::new(gpu, config)?,
            gpu: gpu.clone(),
            args,
            chunk: None,
        })
    }

    /// The same with chunks of so many keys, at least 1, whatever their number: for tests.
    #[doc(hidden)]
    pub fn with_chunk(self, keys: usize) -> PlanAttention {
        PlanAttention { chunk: Some(keys.max(1)), ..self }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.dense.config()
    }

    /// Records attention over a plan into fresh tensors.
    ///
    /// # Errors
    /// As [`Attention::forward`], and [`attn_core::Error`] where the plan was made for other extents
    /// or another mask, or where there are sinks, which plans do not know.
    pub fn forward(&self, inputs: Inputs<'_>, plan: &DevicePlan) -> Result<Output> {
        let shape = self.check(inputs, plan)?;
        let out = Tensor::uninit(&self.gpu, &shape.out(), inputs.q.dtype())?;
        let lse = Tensor::uninit(&self.gpu, &shape.lse(), DType::F32)?;
        self.run(inputs, plan, shape, &out, &lse)?;
        Ok(Output { out, lse, row_max: None, argmax: None, column_sums: None })
    }

    /// Records attention over a plan into a caller's tensors: `out` with any strides that do not
    /// overlap, `lse`, where wanted, contiguous.
    ///
    /// # Errors
    /// As [`PlanAttention::forward`], and [`attn_core::Error::Shape`] for outputs of another shape.
    pub fn forward_into(
        &self,
        inputs: Inputs<'_>,
        plan: &DevicePlan,
        out: &Tensor,
        lse: Option<&Tensor>,
    ) -> Result<()> {
        let shape = self.check(inputs, plan)?;
        check_output("out", out, &shape.out(), inputs.q.dtype())?;
        let lse = match lse {
            Some(lse) => {
                check_output("lse", lse, &shape.lse(), DType::F32)?;
                lse.clone()
            }
            None => Tensor::uninit(&self.gpu, &shape.lse(), DType::F32)?,
        };
        self.run(inputs, plan, shape, out, &lse)
    }

    fn check(&self, inputs: Inputs<'_>, plan: &DevicePlan) -> Result<AttentionShape> {
        let config = |arg, expected: &str, got: String| -> Error {
            attn_core::Error::config(arg, expected, got).into()
        };
        if inputs.sinks.is_some() {
            return Err(config("sinks", "none with a plan", "some".into()));
        }
        let shape = self.dense.check(inputs)?;
        let of = &plan.shape;
        let wanted = [of.batch, of.heads, of.heads_kv, of.queries, of.keys];
        let got = [shape.batch, shape.heads, shape.heads_kv, shape.queries, shape.keys];
        if wanted != got {
            let expected =
                format!("{wanted:?} (batch, heads, heads_kv, queries, keys) as the plan");
            return Err(attn_core::Error::shape("q, k, v", expected, &got).into());
        }
        if plan.causal != (self.config().mask == Mask::Causal) {
            let (mask, causal) = (self.config().mask.name(), plan.causal);
            let got = format!("{mask}, and causal: {causal}");
            return Err(config("mask", "what the plan says", got));
        }
        if of.q_off.unsigned_abs() >= FAR || shape.queries.max(shape.keys) as u64 >= FAR {
            return Err(config("q_off", "positions below 2^29", format!("{}", of.q_off)));
        }
        for part in &plan.parts {
            self.dense.check_device("plan", &part.words)?;
        }
        if plan.parts.len() >= MAX_PASSES {
            let expected = format!("fewer than {MAX_PASSES} parts");
            return Err(config("parts", &expected, plan.parts.len().to_string()));
        }
        Ok(shape)
    }

    fn run(
        &self,
        inputs: Inputs<'_>,
        plan: &DevicePlan,
        shape: AttentionShape,
        out: &Tensor,
        lse: &Tensor,
    ) -> Result<()> {
        if shape.batch * shape.heads * shape.queries == 0 {
            return Ok(());
        }
        if shape.keys == 0 {
            let [batch, heads, queries] = shape.lse();
            return self.dense.run_without_keys(
                inputs,
                out,
                &lse.reshape(&[1, batch, heads, queries])?,
            );
        }
        if !is_vec4(out) {
            let mut padded = out.shape().to_vec();
            padded[3] = padded[3].next_multiple_of(4);
            let padded = Tensor::uninit(&self.gpu, &padded, out.dtype())?;
            self.run(inputs, plan, shape, &padded, lse)?;
            return ops::copy(&padded.narrow(3, 0, shape.dim_v)?, out);
        }
        let call = self.dense.prepare(inputs, shape)?;
        let passes = Pass::of(plan);
        let most = passes.iter().map(|pass| pass.most_queries(plan)).max().unwrap_or(1);
        let rows = most.max(1) * pack(plan);
        let (variant, split) =
            Variant::plan(shape.dim_qk, shape.dim_v, rows, self.gpu.capabilities());
        let tile = if split { variant.rows as usize } else { variant.tile() };
        let chunk = self.chunk.unwrap_or_else(|| chunk(shape.keys));
        let run = Run { call: &call, plan, passes, variant, split, tile, chunk };
        self.check_steps(&run)?;
        for job in self.rounds(&run, out, lse)? {
            self.round(&run, &job, out, lse)?;
        }
        Ok(())
    }

    /// Refuses loops that are too long for this device: over the keys of a chunk, and over what comes
    /// before it in a group.
    fn check_steps(&self, run: &Run<'_>) -> Result<()> {
        let most_listed = |pass: &Pass<'_>| {
            let part = pass.part.filter(|part| {
                matches!(
                    part.entries,
                    super::DeviceEntries::Ranges | super::DeviceEntries::Bits { .. }
                )
            });
            part.map_or(0, |part| part.capacity.min(run.plan.shape.keys))
        };
        let before = run.passes.iter().map(most_listed).max().unwrap_or(0);
        self.dense.check_steps("plan", before + 3 * run.chunk)
    }

    /// Rounds whose windows fit a binding, whose work is below the cap, and whose partial results do
    /// not take too much memory.
    fn rounds(&self, run: &Run<'_>, out: &Tensor, lse: &Tensor) -> Result<Vec<Job>> {
        let keys = 0..run.plan.shape.keys;
        let shape = &run.call.shape;
        let per_pair = 2.0 * (shape.dim_qk + shape.dim_v) as f64;
        let bounds = |job: &Job| {
            let copies = copies(run.plan, job).len() as u64;
            run.passes.iter().fold((0, 0.0), |(bytes, work), pass| {
                let bound = run.bound(pass, groups(run.plan, pass, job));
                let items = bound.items * copies;
                (bytes + items * run.item_bytes(), work + bound.pairs * copies as f64 * per_pair)
            })
        };
        let work = |job: &Job| match bounds(job) {
            (bytes, _) if bytes > MAX_PARTS => f64::INFINITY,
            (_, work) => work,
        };
        Job::split(&grid(run.plan), &self.gpu, work, |job| {
            let rows = queries(run.plan, job);
            let mut windows = run.call.windows(job, &rows, &keys)?;
            windows.push(("out", bytes(&job.window(out, &job.heads, &rows)?)));
            windows.push(("lse", bytes(lse)));
            windows.push(("partial results", bounds(job).0));
            Ok(windows)
        })
    }

    fn round(&self, run: &Run<'_>, job: &Job, out: &Tensor, lse: &Tensor) -> Result<()> {
        let plan = run.plan;
        let copies = copies(plan, job);
        let mut listed = 0;
        let mut steps = Vec::new();
        for pass in &run.passes {
            let range = groups(plan, pass, job);
            let bound = run.bound(pass, range.clone());
            let geometry = Geometry {
                kv_count: copies.len() as u32,
                kv_base: if plan.share == attn_core::plan::Share::AllHeads {
                    copies.start as u32
                } else {
                    0
                },
                chunk: run.chunk as u32,
                tile: run.tile as u32,
                first_group: range.start as u32,
                group_count: range.len() as u32,
                base: listed,
                ..pass.geometry(plan)
            };
            listed += range.len() as u32;
            steps.push(Step { geometry, items: bound.items, pairs: bound.pairs });
        }
        for step in &mut steps {
            step.geometry.listed = listed;
        }
        let items = Tensor::uninit(&self.gpu, &[2 * listed as usize + 1], DType::U32)?;
        self.list_items(run, &steps, &items, listed)?;
        let count: u64 = steps.iter().map(|step| step.items).sum();
        let vec4s = count * copies.len() as u64 * run.item_bytes() / 16;
        let parts = Tensor::uninit(&self.gpu, &[vec4s.max(1) as usize * 4], DType::F32)?;
        let rows = queries(plan, job);
        let bounds = run.call.bind(job, &rows, &(0..plan.shape.keys))?;
        let table = self.dense.table(run.call.shape.lengths(), run.tile, Side::Queries)?;
        let common =
            Common { total: u32::MAX, ..self.dense.common(run.call, job, &table, &bounds) };
        let bindings = [
            bounds.q.binding,
            bounds.k.binding,
            bounds.v.binding,
            parts.binding().0,
            // The words of a part come here.
            items.binding().0,
            items.binding().0,
            table.words.binding().0,
        ];
        for (number, (pass, step)) in run.passes.iter().zip(&steps).enumerate() {
            let constants =
                pass.constants(self.dense.form(run.call.dtype()).constants(&run.variant));
            let biased = pass.part.is_some_and(|part| part.biased);
            let constants = constants.flag("SPLIT", run.split).flag("KEY_BIAS", biased);
            let kernel = self.gpu.kernel(&FORWARD, constants)?;
            let mut bindings = bindings.clone();
            if let Some(part) = pass.part {
                bindings[4] = part.words.binding().0;
            }
            let copies = copies.len() as u64;
            let params = ForwardParams { common, geometry: step.geometry };
            let dispatch = Dispatch {
                bindings: &bindings,
                params: bytemuck::bytes_of(&params),
                groups: step.items * copies,
                work: step.pairs
                    * copies as f64
                    * 2.0
                    * (run.call.shape.dim_qk + run.call.shape.dim_v) as f64,
            };
            kernel.dispatch_indirect(&self.gpu, &dispatch, &self.args.narrow(0, 4 * number, 3)?)?;
        }
        let target = bind(&job.window(out, &job.heads, &rows)?, rows.start);
        self.merge(run, job, &steps, (&parts, &items), target, lse)
    }

    /// The offsets of the items of each group, and the dispatch arguments of each pass.
    fn list_items(&self, run: &Run<'_>, steps: &[Step], items: &Tensor, listed: u32) -> Result<()> {
        let capabilities = self.gpu.capabilities();
        let workgroup = ops::workgroup(capabilities);
        let shape = &run.plan.shape;
        let (items, _) = items.binding();
        for (pass, step) in run.passes.iter().zip(steps) {
            let constants = pass.constants(Constants::new().int("WORKGROUP", workgroup));
            let words = match pass.part {
                Some(part) => part.words.binding().0,
                None => self.dense.unused()?,
            };
            let (queries, keys) = (shape.queries as u32, shape.keys as u32);
            let params = CostParams { queries, keys, geometry: step.geometry };
            let groups = u64::from(step.geometry.group_count).div_ceil(workgroup.into());
            let dispatch = Dispatch {
                bindings: &[words, items.clone()],
                params: bytemuck::bytes_of(&params),
                groups,
                work: 0.0,
            };
            self.gpu.kernel(&COST, constants)?.dispatch(&self.gpu, &dispatch)?;
        }
        let lanes = scan_lanes(capabilities.max_workgroup_threads);
        capabilities
            .check_steps("`plan` of this many groups".into(), listed as usize / lanes as usize)?;
        let kernel = self.gpu.kernel(&ITEMS, Constants::new().int("WORKGROUP", lanes))?;
        let dispatch = Dispatch {
            bindings: std::slice::from_ref(&items),
            params: bytemuck::bytes_of(&listed),
            groups: 1,
            work: 0.0,
        };
        kernel.dispatch(&self.gpu, &dispatch)?;
        let kernel = self.gpu.kernel(&DISPATCH, Constants::new())?;
        for (number, Step { geometry, .. }) in steps.iter().enumerate() {
            let params = DispatchParams {
                base: geometry.base,
                behind: geometry.base + geometry.group_count,
                copies: geometry.kv_count,
                limit: capabilities.max_workgroups,
                at: 4 * number as u32,
            };
            let dispatch = Dispatch {
                bindings: &[items.clone(), self.args.binding().0],
                params: bytemuck::bytes_of(&params),
                groups: 1,
                work: 0.0,
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
        }
        Ok(())
    }

    fn merge(
        &self,
        run: &Run<'_>,
        job: &Job,
        steps: &[Step],
        (parts, items): (&Tensor, &Tensor),
        target: Window,
        lse: &Tensor,
    ) -> Result<()> {
        let plan = run.plan;
        let workgroup = ops::workgroup(self.gpu.capabilities());
        let listed = plan.listing.is_some();
        // What is found without the listing: the only part, or the near part where it stands alone.
        let tiled = run.passes.iter().position(|pass| !listed || pass.part.is_none());
        let constants = storage(Constants::new().int("WORKGROUP", workgroup), run.call.dtype())
            .flag("LISTING", listed)
            .flag("TILED", tiled.is_some())
            .flag("WEIGHTS", !matches!(plan.combine, Combine::Single | Combine::Lse));
        let kernel = self.gpu.kernel(&MERGE, constants)?;
        let number = |step: &Step| step.geometry.base.wrapping_sub(step.geometry.first_group);
        let (listing, part_base) = match &plan.listing {
            Some(listing) => {
                let mut bases: Vec<u32> = steps.iter().map(number).collect();
                bases.push(0);
                (
                    listing.binding().0,
                    Tensor::from_slice(&self.gpu, &bases, &[bases.len()])?.binding().0,
                )
            }
            None => (self.dense.unused()?, self.dense.unused()?),
        };
        let geometry = match tiled.and_then(|tiled| steps.get(tiled)) {
            Some(step) => step.geometry,
            None => match steps.first() {
                Some(step) => step.geometry,
                None => Geometry {
                    tile: run.tile as u32,
                    ..Pass { part: None, near: false }.geometry(plan)
                },
            },
        };
        let rows: Range<usize> = queries(plan, job);
        let [_, heads, queries] = run.call.shape.lse();
        let (lse, lse_start) = lse.binding();
        let row_count = job.planes() * rows.len();
        let dim_v = run.call.v.shape()[3] / 4;
        let params = MergeParams {
            dim_v: dim_v as u32,
            heads: job.heads.len() as u32,
            first_query: rows.start as u32,
            row_queries: rows.len() as u32,
            row_count: row_count as u32,
            first_batch: job.batch.start as u32,
            first_head: job.heads.start as u32,
            queries: queries as u32,
            keys: plan.shape.keys as u32,
            out: target.place,
            lse: [
                (lse_start + (job.batch.start * heads + job.heads.start) * queries) as u32,
                (heads * queries) as u32,
                queries as u32,
            ],
            near_weight: near_weight(&plan.combine).to_bits(),
            geometry,
        };
        let dispatch = Dispatch {
            bindings: &[
                parts.binding().0,
                items.binding().0,
                target.binding,
                lse,
                listing,
                part_base,
            ],
            params: bytemuck::bytes_of(&params),
            groups: ((row_count * dim_v) as u64).div_ceil(workgroup.into()),
            work: (8 * row_count * dim_v) as f64,
        };
        kernel.dispatch(&self.gpu, &dispatch)
    }
}

impl Run<'_> {
    fn bound(&self, pass: &Pass<'_>, groups: Range<usize>) -> Bound {
        bound(self.plan, pass, groups, self.tile, self.chunk)
    }

    /// Bytes of one item's partial results: sums, and a vec4 of statistics for each row.
    fn item_bytes(&self) -> u64 {
        (self.tile * (self.call.v.shape()[3] + 4) * 4) as u64
    }
}

/// Lanes of the workgroup that adds up the items.
pub(crate) fn scan_lanes(most: u32) -> u32 {
    most.min(64)
}

/// The key heads of a round that share each list.
fn copies(plan: &DevicePlan, job: &Job) -> Range<usize> {
    match plan.share {
        attn_core::plan::Share::AllHeads => job.heads_kv(plan.shape.group()),
        _ => 0..1,
    }
}
