//! One round of dispatches: listing the items of work, computing them, merging what they give.

use std::ops::Range;

use attn_core::plan::Share;

use super::bounds::{groups, queries};
use super::executor::{PlanAttention, Run, copies};
use super::params::{Geometry, Pass};
use super::transfer::near_weight;
use crate::attention::call::{Bound as Window, bind};
use crate::attention::jobs::Job;
use crate::attention::mask_table::Side;
use crate::attention::params::{Common, storage};
use crate::error::Result;
use crate::guard::lock;
use crate::kernel::{Binding, Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::tensor::{DType, Tensor};

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
    snippet!("attention_pairs"),
    snippet!("plan_fields"),
    snippet!("plan_groups"),
    snippet!("plan_cursor"),
    snippet!("plan_work"),
    snippet!("plan_step"),
    snippet!("plan_walk"),
    snippet!("plan_visit"),
    snippet!("plan_grad_fields"),
    snippet!("plan_stats"),
    ("each", include_str!("../../kernels/select_each.wgsl")),
];

/// A kernel of the folder `kernels` that reads plans.
macro_rules! plan_kernel {
    ($name:literal) => {
        $crate::kernel::KernelSource {
            name: $name,
            text: include_str!(concat!("../../kernels/", $name, ".wgsl")),
            imports: $crate::plan::round::SNIPPETS,
        }
    };
}
pub(super) use plan_kernel;

pub(crate) const COST: KernelSource = plan_kernel!("plan_cost");
pub(crate) const ITEMS: KernelSource = plan_kernel!("plan_items");
pub(crate) const DISPATCH: KernelSource = plan_kernel!("plan_dispatch");
pub(crate) const FORWARD: KernelSource = plan_kernel!("attention_plan");
pub(crate) const MERGE: KernelSource = plan_kernel!("attention_plan_merge");

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

/// A pass of one round: its parameters, and bounds of its work for one key head.
pub(super) struct Step {
    pub(super) geometry: Geometry,
    pub(super) items: u64,
    pub(super) pairs: f64,
}

/// The passes of one round.
pub(super) struct Steps {
    pub(super) each: Vec<Step>,
    /// Groups of all.
    pub(super) listed: u32,
    /// Key heads that go through every group.
    pub(super) copies: Range<usize>,
}

impl Steps {
    /// Words of the listing of items: offsets, total, numbers of keys.
    pub(super) fn words(&self) -> usize {
        2 * self.listed as usize + 1
    }

    /// Items at most.
    pub(super) fn items(&self) -> u64 {
        let count: u64 = self.each.iter().map(|step| step.items).sum();
        count * self.copies.len() as u64
    }
}

impl Run<'_> {
    pub(super) fn steps(&self, job: &Job) -> Steps {
        let copies = copies(self.plan, job);
        let mut listed = 0;
        let mut each = Vec::new();
        for pass in &self.passes {
            let range = groups(self.plan, pass, job);
            let bound = self.bound(pass, range.clone());
            let geometry = Geometry {
                kv_count: copies.len() as u32,
                kv_base: if self.plan.share == Share::AllHeads { copies.start as u32 } else { 0 },
                chunk: self.chunk as u32,
                tile: self.tile as u32,
                first_group: range.start as u32,
                group_count: range.len() as u32,
                base: listed,
                ..pass.geometry(self.plan)
            };
            listed += range.len() as u32;
            each.push(Step { geometry, items: bound.items, pairs: bound.pairs });
        }
        for step in &mut each {
            step.geometry.listed = listed;
        }
        Steps { each, listed, copies }
    }
}

/// A kernel that goes through the items of a round.
pub(super) struct Sweep<'a> {
    pub(super) source: &'a KernelSource,
    pub(super) constants: Constants,
    pub(super) bindings: Vec<Binding>,
    /// Which binding is the words of a part.
    pub(super) plan: usize,
    /// Operations for each pair of a query and a key.
    pub(super) per_pair: f64,
}

/// Where the merged rows of a round go: the window, vec4s of a row, and log-sum-exps unless the partial
/// results are sums.
pub(super) struct Target<'a> {
    pub(super) window: Window,
    pub(super) width: usize,
    pub(super) lse: Option<&'a Tensor>,
}

impl PlanAttention {
    pub(super) fn round(&self, run: &Run<'_>, job: &Job, out: &Tensor, lse: &Tensor) -> Result<()> {
        let steps = run.steps(job);
        let items = Tensor::uninit(&self.gpu, &[steps.words()], DType::U32)?;
        let parts = self.forward_parts(run, job, &steps, &items)?;
        let rows = queries(run.plan, job);
        let window = bind(&job.window(out, &job.heads, &rows)?, rows.start);
        let width = run.call.v.shape()[3] / 4;
        let target = Target { window, width, lse: Some(lse) };
        self.merge(run, job, &steps, (&parts, &items), target)
    }

    /// Lists the items of a round and computes the partial result of each.
    pub(super) fn forward_parts(
        &self,
        run: &Run<'_>,
        job: &Job,
        steps: &Steps,
        items: &Tensor,
    ) -> Result<Tensor> {
        let args = lock(&self.args);
        self.list_items(run, steps, items, &args)?;
        let vec4s = steps.items() * run.item_bytes() / 16;
        let parts = Tensor::uninit(&self.gpu, &[vec4s.max(1) as usize * 4], DType::F32)?;
        let rows = queries(run.plan, job);
        let bounds = run.call.bind(job, &rows, &(0..run.plan.shape.keys))?;
        let table = self.dense.table(run.call.shape.lengths(), run.tile, Side::Queries)?;
        let common =
            Common { total: u32::MAX, ..self.dense.common(run.call, job, &table, &bounds) };
        let sweep = Sweep {
            source: &FORWARD,
            constants: self
                .dense
                .form(run.call.dtype())
                .constants(&run.variant)
                .flag("SPLIT", run.split),
            bindings: vec![
                bounds.q.binding,
                bounds.k.binding,
                bounds.v.binding,
                parts.binding().0,
                items.binding().0,
                items.binding().0,
                table.words.binding().0,
            ],
            plan: 4,
            per_pair: run.per_pair(),
        };
        self.sweep(run, steps, &args, &sweep, |step| ForwardParams {
            common,
            geometry: step.geometry,
        })?;
        Ok(parts)
    }

    /// Dispatches a kernel for every pass of a round.
    pub(super) fn sweep<P: bytemuck::Pod>(
        &self,
        run: &Run<'_>,
        steps: &Steps,
        args: &Tensor,
        sweep: &Sweep<'_>,
        params: impl Fn(&Step) -> P,
    ) -> Result<()> {
        let copies = steps.copies.len() as u64;
        for (number, (pass, step)) in run.passes.iter().zip(&steps.each).enumerate() {
            let biased = pass.part.is_some_and(|part| part.biased);
            let constants = pass.constants(sweep.constants.clone()).flag("KEY_BIAS", biased);
            let kernel = self.gpu.kernel(sweep.source, constants)?;
            let mut bindings = sweep.bindings.clone();
            if let Some(part) = pass.part {
                bindings[sweep.plan] = part.words.binding().0;
            }
            let params = params(step);
            let dispatch = Dispatch {
                bindings: &bindings,
                params: bytemuck::bytes_of(&params),
                groups: step.items * copies,
                work: step.pairs * copies as f64 * sweep.per_pair,
            };
            kernel.dispatch_indirect(&self.gpu, &dispatch, &args.narrow(0, 4 * number, 3)?)?;
        }
        Ok(())
    }

    /// The offsets of the items of each group, and the dispatch arguments of each pass.
    pub(super) fn list_items(
        &self,
        run: &Run<'_>,
        steps: &Steps,
        items: &Tensor,
        args: &Tensor,
    ) -> Result<()> {
        let capabilities = self.gpu.capabilities();
        let workgroup = ops::workgroup(capabilities);
        let shape = &run.plan.shape;
        let (items, _) = items.binding();
        let listed = steps.listed;
        for (pass, step) in run.passes.iter().zip(&steps.each) {
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
        capabilities.check_steps(
            "`plan` of this many groups".into(),
            2 * listed as usize / lanes as usize,
        )?;
        let kernel = self.gpu.kernel(&ITEMS, Constants::new().int("WORKGROUP", lanes))?;
        let dispatch = Dispatch {
            bindings: std::slice::from_ref(&items),
            params: bytemuck::bytes_of(&listed),
            groups: 1,
            work: 0.0,
        };
        kernel.dispatch(&self.gpu, &dispatch)?;
        let kernel = self.gpu.kernel(&DISPATCH, Constants::new())?;
        for (number, Step { geometry, .. }) in steps.each.iter().enumerate() {
            let params = DispatchParams {
                base: geometry.base,
                behind: geometry.base + geometry.group_count,
                copies: geometry.kv_count,
                limit: capabilities.max_workgroups,
                at: 4 * number as u32,
            };
            let dispatch = Dispatch {
                bindings: &[items.clone(), args.binding().0],
                params: bytemuck::bytes_of(&params),
                groups: 1,
                work: 0.0,
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
        }
        Ok(())
    }

    /// Merges partial results into rows, or adds them up.
    pub(super) fn merge(
        &self,
        run: &Run<'_>,
        job: &Job,
        Steps { each: steps, .. }: &Steps,
        (parts, items): (&Tensor, &Tensor),
        target: Target<'_>,
    ) -> Result<()> {
        let plan = run.plan;
        let workgroup = ops::workgroup(self.gpu.capabilities());
        let listed = plan.listing.is_some();
        // What is found without the listing: the only part, or the near part where it stands alone.
        let tiled = run.passes.iter().position(|pass| !listed || pass.part.is_none());
        let constants = storage(Constants::new().int("WORKGROUP", workgroup), run.call.dtype())
            .flag("LISTING", listed)
            .flag("TILED", tiled.is_some())
            .flag("SUMS", target.lse.is_none())
            .flag("WEIGHTS", target.lse.is_some() && run.plan.is_weighted());
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
        let (lse, lse_start) = match target.lse {
            Some(lse) => lse.binding(),
            None => (self.dense.unused()?, 0),
        };
        let row_count = job.planes() * rows.len();
        let dim_v = target.width;
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
            out: target.window.place,
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
                target.window.binding,
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

/// Lanes of the workgroup that adds up the items.
pub(crate) fn scan_lanes(most: u32) -> u32 {
    most.min(64)
}
