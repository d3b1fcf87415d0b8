//! One round of dispatches: listing the items of work, and going through them.

use std::ops::Range;

use attn_core::plan::Share;

use super::bounds::{groups, queries};
use super::executor::{PlanAttention, Run, copies};
use super::merge::Target;
use super::params::Geometry;
use crate::attention::call::bind;
use crate::attention::jobs::Job;
use crate::attention::mask_table::Side;
use crate::attention::params::Common;
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
    /// Whether it relies on the order of keys in a list.
    pub(super) in_order: bool,
    /// Operations for each pair of a query and a key.
    pub(super) per_pair: f64,
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
            in_order: false,
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
            let multiset = sweep.in_order && pass.part.is_some_and(|part| part.multiset);
            let constants = pass.constants(sweep.constants.clone());
            let constants = constants.flag("KEY_BIAS", biased).flag("MULTISET", multiset);
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
}

/// Lanes of the workgroup that adds up the items.
pub(crate) fn scan_lanes(most: u32) -> u32 {
    most.min(64)
}
