//! The probabilities themselves.

use attn_core::AttentionShape;

use super::call::{Call, check_output, vec4, wrong_type};
use super::forward::SNIPPETS;
use super::jobs::{Grid, Job, bytes};
use super::mask_table::Side;
use super::params::Common;
use super::variant::Variant;
use super::{Attention, Inputs};
use crate::error::Result;
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::tensor::{DType, Tensor};

const WEIGHTS: KernelSource = KernelSource {
    name: "attention_weights",
    text: include_str!("../../kernels/attention_weights.wgsl"),
    imports: SNIPPETS,
};

/// Queries of a tile of the map: enough to pay for loading the tile's keys.
const BLOCK: usize = 64;

/// The form of the kernel.
pub(super) fn blocked(constants: Constants) -> Constants {
    constants.int("BLOCK", BLOCK as u32)
}

impl Attention {
    /// The probabilities `p_it = exp(s_it - lse_i)` of every query and key, `[batch, heads, queries,
    /// keys]`, f32, from a lse that was computed before; 0 where the query does not see the key.
    /// Rows add up to 1, those with a sink to less, and those without a key to 0. Of the values only
    /// the extents count.
    ///
    /// Unlike everything else here this takes `queries * keys` numbers a head. For some queries of a
    /// long sequence narrow `q` and `lse` to them. Masks, and the positions that modifiers see, are
    /// aligned bottom-right: under a mask that only looks back (causal, a window with `right` 0, a
    /// window with sink tokens) narrow also `k` and `v`, to the last key that those queries see, keys
    /// `0..b + N - M` for the queries `a..b` of `M` over `N` keys. The rows are then those of the whole
    /// call, bit for bit. Under [`attn_core::Mask::Full`] all keys stay, and other masks have to be
    /// those of the chosen queries.
    ///
    /// # Errors
    /// As [`Attention::forward`], and [`attn_core::Error::Shape`] for a lse of another shape;
    /// [`crate::Error::Limit`] where 64 rows of one head exceed a binding.
    pub fn weights(&self, inputs: Inputs<'_>, lse: &Tensor) -> Result<Tensor> {
        let AttentionShape { batch, heads, queries, keys, .. } = self.check(inputs)?;
        let weights = Tensor::uninit(&self.gpu, &[batch, heads, queries, keys], DType::F32)?;
        self.weights_into(inputs, lse, &weights)?;
        Ok(weights)
    }

    /// [`Attention::weights`] into a caller's tensor of any strides that do not overlap, whose last
    /// dimension is contiguous.
    ///
    /// # Errors
    /// As [`Attention::weights`], and [`attn_core::Error`] for a target of another shape, type or
    /// layout.
    pub fn weights_into(&self, inputs: Inputs<'_>, lse: &Tensor, target: &Tensor) -> Result<()> {
        let shape = self.check(inputs)?;
        self.check_device("lse", lse)?;
        self.check_device("target", target)?;
        if lse.dtype() != DType::F32 {
            return Err(wrong_type("lse", DType::F32.name(), lse));
        }
        if lse.shape() != shape.lse() {
            let expected = format!("{:?}", shape.lse());
            return Err(attn_core::Error::shape("lse", expected, lse.shape()).into());
        }
        let extents = [shape.batch, shape.heads, shape.queries, shape.keys];
        check_output("target", target, &extents, DType::F32)?;
        if shape.keys > 1 && target.strides()[3] != 1 {
            let expected = format!("{extents:?} with a contiguous last dimension");
            return Err(attn_core::Error::shape("target", expected, target.shape()).into());
        }
        if target.is_empty() {
            return Ok(());
        }
        // The kernel reads no values, so these may have any layout.
        let k = vec4(inputs.k, true)?;
        let call = Call { shape, q: vec4(inputs.q, false)?, v: k.clone(), k, sinks: None };
        self.run_weights(&call, &lse.contiguous()?, target)
    }

    fn run_weights(&self, call: &Call, lse: &Tensor, target: &Tensor) -> Result<()> {
        let shape = &call.shape;
        let capabilities = self.gpu.capabilities();
        let variant = Variant::backward(shape.dim_qk, shape.dim_qk, capabilities);
        let constants = blocked(self.form(call.dtype()).constants(&variant));
        let kernel = self.gpu.kernel(&WEIGHTS, constants)?;
        // Only its rows are read, so the forward kernel's table serves.
        let tile = Variant::forward(shape.dim_qk, shape.dim_v, capabilities).tile();
        let table = self.table(shape.lengths(), tile, Side::Queries)?;
        let key_tiles = shape.keys.div_ceil(variant.tile());
        let grid = Grid::new(shape, shape.queries.div_ceil(BLOCK) * key_tiles);
        let queries = |job: &Job| {
            let blocks = job.tiles.start / key_tiles..job.tiles.end.div_ceil(key_tiles);
            blocks.start * BLOCK..(blocks.end * BLOCK).min(shape.queries)
        };
        let keys = 0..shape.keys;
        let per_tile = 2.0 * (shape.dim_qk * variant.tile() * BLOCK.min(shape.queries)) as f64;
        let work = |job: &Job| per_tile * (job.planes() * job.tiles.len()) as f64;
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries(job), &keys)?;
            let weights = job.window(target, &job.heads, &queries(job))?;
            windows.extend([("lse", bytes(lse)), ("weights", bytes(&weights))]);
            Ok(windows)
        })?;
        for job in jobs {
            let rows = queries(&job);
            let bounds = call.bind(&job, &rows, &keys)?;
            let (lse, lse_start) = lse.binding();
            let window = job.window(target, &job.heads, &rows)?;
            let (weights, start) = window.binding();
            let [batch, head, row] = [0, 1, 2].map(|d| window.strides()[d] as u32);
            // Rows are numbered from the call's query 0, as in the windows of the inputs.
            let start = (start as u32).wrapping_sub((rows.start as u32).wrapping_mul(row));
            let plane = job.batch.start * shape.heads + job.heads.start;
            let total = job.planes() * job.tiles.len();
            let params = Common {
                out: [start, batch, head, row],
                stats_start: (lse_start + plane * shape.queries) as u32,
                first_tile: job.tiles.start as u32,
                tiles: job.tiles.len() as u32,
                total: total as u32,
                ..self.common(call, &job, &table, &bounds)
            };
            let dispatch = Dispatch {
                bindings: &[
                    bounds.q.binding,
                    bounds.k.binding,
                    lse,
                    weights,
                    table.words.binding().0,
                ],
                params: bytemuck::bytes_of(&params),
                groups: total as u64,
                work: work(&job),
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
        }
        Ok(())
    }
}
