//! Executing plans.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use attn_core::AttentionShape;
use attn_core::Mask;
use attn_core::dense::Config;
use attn_core::plan::{PlanShape, Share};

use super::bounds::{Bound, MAX_PARTS, bound, grid, groups, queries};
use super::device::DevicePlan;
use super::params::{FAR, Pass, chunk, pack};
use crate::attention::call::{Call, check_output};
use crate::attention::jobs::{Grid, Job, bytes};
use crate::attention::variant::Variant;
use crate::attention::{Attention, Inputs, Output};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops;
use crate::tensor::{DType, Tensor};
use crate::vec4::is_vec4;

/// Passes of one plan at most: what there is room for in the dispatch arguments.
const MAX_PASSES: usize = 64;

/// Attention over sparse plans: a softmax over the keys that a plan gives each query.
///
/// Scale, soft-cap and modifier are those of dense attention ([`Attention`]), and so are types and
/// layouts. A query without any key has output 0 and log-sum-exp -inf. Bit-equal from run to run, and so
/// are gradients.
///
/// Memory beyond inputs and outputs: partial results of f32, up to 16 for each row and its part of the
/// near part, 64 MiB of them at once; more only for plans of several parts or of listed rows.
#[derive(Debug, Clone)]
pub struct PlanAttention {
    pub(super) dense: Attention,
    pub(super) gpu: Gpu,
    /// Numbers of workgroups, four words a pass. Locked from where a round writes them to where it is
    /// recorded, since several threads may record.
    pub(super) args: Arc<Mutex<Tensor>>,
    /// Keys of a chunk, for tests.
    pub(super) chunk: Option<usize>,
}

/// One call.
pub(super) struct Run<'a> {
    pub(super) call: &'a Call,
    pub(super) plan: &'a DevicePlan,
    pub(super) passes: Vec<Pass<'a>>,
    pub(super) variant: Variant,
    /// Whether groups of lanes split the keys.
    pub(super) split: bool,
    /// Rows of one item.
    pub(super) tile: usize,
    pub(super) chunk: usize,
}

impl PlanAttention {
    /// Attention by `config` on `gpu`. The mask must be [`Mask::Full`], [`Mask::Causal`] or a
    /// [`Mask::Window`] that ends at the query, and as causal as the plans. A window takes keys away
    /// that are farther than its left end, as [`DevicePlan::with_max_dist`] does.
    ///
    /// # Errors
    /// As [`Attention::new`], and [`attn_core::Error::Config`] for other masks.
    pub fn new(gpu: &Gpu, config: Config) -> Result<PlanAttention> {
        if !matches!(config.mask, Mask::Full | Mask::Causal | Mask::Window { right: 0, .. }) {
            let expected = "full, causal or a window without keys behind the query";
            return Err(attn_core::Error::config("mask", expected, config.mask.name()).into());
        }
        let args = Arc::new(Mutex::new(Tensor::indirect(gpu, 4 * MAX_PASSES)?));
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
        let plan = &self.masked(plan)?;
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
        let plan = &self.masked(plan)?;
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

    /// The plan without what the mask takes away.
    pub(super) fn masked(&self, plan: &DevicePlan) -> Result<DevicePlan> {
        let Mask::Window { left, .. } = self.config().mask else { return Ok(plan.clone()) };
        let PlanShape { batch, heads, heads_kv, queries, keys, q_off, .. } = plan.shape;
        // A mask's positions are those of queries at the end.
        let aligned = PlanShape::new(batch, heads, heads_kv, queries, keys).q_off;
        if aligned != q_off {
            let expected = format!("{aligned} under {}", self.config().mask.name());
            return Err(attn_core::Error::config("q_off", expected, q_off).into());
        }
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        let most = plan.max_dist.map_or(left, |most| most.min(left));
        Ok(plan.clone().with_max_dist(most))
    }

    pub(super) fn check(&self, inputs: Inputs<'_>, plan: &DevicePlan) -> Result<AttentionShape> {
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
        if plan.causal != (self.config().mask != Mask::Full) {
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
        let need = Need { item_bytes: run.item_bytes(), per_pair: run.per_pair() };
        let jobs = self.rounds(&run, &grid(plan), need, |job| {
            let out = bytes(&job.window(out, &job.heads, &queries(plan, job))?);
            Ok(vec![("out", out), ("lse", bytes(lse))])
        })?;
        for job in jobs {
            self.round(&run, &job, out, lse)?;
        }
        Ok(())
    }

    /// Refuses loops that are too long for this device: over the keys of a chunk, and over what comes
    /// before it in a group.
    pub(super) fn check_steps(&self, run: &Run<'_>) -> Result<()> {
        self.dense.check_steps("plan", run.most_before() + 3 * run.chunk)
    }

    /// Rounds whose windows fit a binding, whose work is below the cap, and whose partial results do
    /// not take too much memory.
    pub(super) fn rounds(
        &self,
        run: &Run<'_>,
        grid: &Grid,
        need: Need,
        windows: impl Fn(&Job) -> Result<Vec<(&'static str, u64)>>,
    ) -> Result<Vec<Job>> {
        let keys = 0..run.plan.shape.keys;
        let bounds = |job: &Job| {
            let copies = copies(run.plan, job).len() as u64;
            run.passes.iter().fold((0, 0.0), |(bytes, work), pass| {
                let bound = run.bound(pass, groups(run.plan, pass, job));
                let items = bound.items * copies;
                (
                    bytes + items * need.item_bytes,
                    work + bound.pairs * copies as f64 * need.per_pair,
                )
            })
        };
        let work = |job: &Job| match bounds(job) {
            (bytes, _) if bytes > MAX_PARTS => f64::INFINITY,
            (_, work) => work,
        };
        Job::split(grid, &self.gpu, work, |job| {
            let mut all = run.call.windows(job, &queries(run.plan, job), &keys)?;
            all.extend(windows(job)?);
            all.push(("partial results", bounds(job).0));
            Ok(all)
        })
    }
}

/// What one item needs: bytes of partial results, and operations for each pair of a query and a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    pub(super) item_bytes: u64,
    pub(super) per_pair: f64,
}

impl Run<'_> {
    /// Steps to a key of a group at most: entries or words before it.
    pub(super) fn most_before(&self) -> usize {
        let most_listed = |pass: &Pass<'_>| {
            let part = pass.part.filter(|part| {
                matches!(
                    part.entries,
                    super::DeviceEntries::Ranges | super::DeviceEntries::Bits { .. }
                )
            });
            part.map_or(0, |part| {
                // Entries of a group are apart and not empty, unless in a multiset.
                let most = if part.multiset { usize::MAX } else { self.plan.shape.keys };
                part.capacity.min(most)
            })
        };
        self.passes.iter().map(most_listed).max().unwrap_or(0)
    }

    pub(super) fn bound(&self, pass: &Pass<'_>, groups: Range<usize>) -> Bound {
        bound(self.plan, pass, groups, self.tile, self.chunk)
    }

    /// Operations of one pair of a query and a key in a forward pass.
    pub(super) fn per_pair(&self) -> f64 {
        2.0 * (self.call.shape.dim_qk + self.call.shape.dim_v) as f64
    }

    /// Bytes of one item's partial results: sums, and a vec4 of statistics for each row.
    pub(super) fn item_bytes(&self) -> u64 {
        (self.tile * (self.call.v.shape()[3] + 4) * 4) as u64
    }
}

/// The key heads of a round that share each list.
pub(super) fn copies(plan: &DevicePlan, job: &Job) -> Range<usize> {
    match plan.share {
        Share::AllHeads => job.heads_kv(plan.shape.group()),
        _ => 0..1,
    }
}
