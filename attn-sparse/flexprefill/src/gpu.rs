//! Selection and attention on a device.
//!
//! ```text
//! probe, pool            masses of keys, distances, blocks                    steps 1, 2
//! block_scores           pooled probe on pooled keys                          step 3
//! cover_rows             how many keys, distances or blocks, and pairs        steps 4, 6
//! flexprefill_decide     the pattern of each head, its lines and pairs        steps 3, 4
//! top_k_bits             the lines, and for query-aware heads the pairs       steps 5, 6
//! bits_shift_or, ..      both as bits of blocks
//! PlanAttention          attention on these blocks                            step 7
//! ```
//!
//! Nothing is read back: counts stay on the device.

use std::ops::Range;

use attn_core::dense::Config as Dense;
use attn_core::plan::{PlanShape, Share};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::attention::Inputs;
use attn_wgpu::plan::{DeviceEntries, DevicePart, DevicePlan, DeviceRows, PlanAttention, Region};
use attn_wgpu::select::{
    BlockScores, Cover, Pool, PoolKind, Short, Wanted, bits_causal_into, bits_or, bits_shift_or,
    block_scores, cover_rows, pool, probe, top_k_bits,
};
use attn_wgpu::{Call, Capabilities, Constants, DType, Gpu, KernelSource, Result, Tensor, ops};

use crate::chunk::Chunk;
use crate::selection::{Heads, Selection};
use crate::{BudgetRule, Config};

const DECIDE: KernelSource = KernelSource {
    name: "flexprefill_decide",
    text: include_str!("kernels/flexprefill_decide.wgsl"),
    imports: ops::SNIPPETS,
};

/// Lanes that share a head.
const WORKGROUP: u32 = 64;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    planes: u32,
    blocks: u32,
    pooled_start: u32,
    mass_start: u32,
    verticals_start: u32,
    slashes_start: u32,
    pairs_start: u32,
    decided_start: u32,
    tau: f32,
    min_lines: u32,
    max_lines: u32,
    divisor: u32,
}

/// The paper's mechanism on a device.
#[derive(Debug, Clone)]
pub struct FlexPrefill {
    gpu: Gpu,
    config: Config,
    attention: PlanAttention,
}

/// What [`FlexPrefill::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// `[batch, heads, M, D]`, of the inputs' type.
    pub out: Tensor,
    /// Log-sum-exp of the rows, `[batch, heads, M]`, f32: results can be merged with others.
    pub lse: Tensor,
    /// The blocks it was computed on.
    pub selection: Selection,
}

impl FlexPrefill {
    /// The mechanism with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<FlexPrefill> {
        let mut dense = Dense::new().with_mask(Mask::Causal);
        if let Some(scale) = config.scale {
            dense = dense.with_scale(scale);
        }
        FlexPrefill::with_attention(gpu, Config { scale: None, ..config }, dense)
    }

    /// The mechanism with the logits of `attention` on the selected blocks: its scale, soft-cap and
    /// modifier. Selection knows neither of them.
    ///
    /// # Errors
    /// As [`FlexPrefill::new`], and [`attn_core::Error::Config`] for a mask that is not causal and for a
    /// scale in `config` besides.
    pub fn with_attention(gpu: &Gpu, config: Config, attention: Dense) -> Result<FlexPrefill> {
        config.validate()?;
        if let Some(scale) = config.scale {
            return Err(attn_core::Error::config("scale", "that of the attention", scale).into());
        }
        if attention.mask != Mask::Causal {
            let got = attention.mask.name();
            return Err(attn_core::Error::config("mask", "causal", got).into());
        }
        let config = Config { scale: attention.scale, ..config };
        let attention = PlanAttention::new(gpu, attention)?;
        Ok(FlexPrefill { gpu: gpu.clone(), config, attention })
    }

    /// The parameters, with the scale of the attention.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Selects the blocks that each head attends to, for queries `[batch, heads, M, D]`, the last of a
    /// sequence, and all its keys `[batch, heads_kv, N, D]`: steps 0 to 6. With fewer queries than keys,
    /// a part of a prompt, as [`mod@crate::reference`] says.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] for tensors that do not fit, or more queries than keys; those of the
    /// device.
    pub fn select(&self, q: &Tensor, k: &Tensor) -> Result<Selection> {
        let shape = AttentionShape::from_shapes(q.shape(), k.shape(), k.shape())?;
        let chunk = Chunk::new(&shape, self.config.block)?;
        let grid = [shape.batch, shape.heads, chunk.rows(), chunk.blocks().div_ceil(32)];
        let (bits, heads) =
            match self.config.is_dense(shape.queries, shape.keys) || grid.contains(&0) {
                true => (Tensor::full(&self.gpu, &[1; 4], u32::MAX)?.expand(&grid)?, None),
                false => {
                    let found = self.look(q, k, &shape, &chunk)?;
                    let bits = self.bits(&found, grid, chunk.first() as i32)?;
                    (bits, Some(Heads { decided: found.decided }))
                }
            };
        let lead = match chunk.lead() {
            0 => None,
            lead => Some(self.plan(&shape, &chunk, &bits, 0..lead)?),
        };
        let plan = self.plan(&shape, &chunk, &bits, chunk.lead()..shape.queries)?;
        Ok(Selection { plan, lead, heads, shape, chunk })
    }

    /// Selection, then causal attention on the selected blocks. Inputs are all f32 or all of one half
    /// type; selection is in f32.
    ///
    /// # Errors
    /// As [`FlexPrefill::select`].
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output> {
        self.attend(inputs, &self.select(inputs.q, inputs.k)?)
    }

    /// Attention on blocks that were selected before.
    ///
    /// # Errors
    /// As [`PlanAttention::forward`].
    pub fn attend(&self, inputs: Inputs<'_>, selection: &Selection) -> Result<Output> {
        let shape =
            AttentionShape::from_shapes(inputs.q.shape(), inputs.k.shape(), inputs.v.shape())?;
        let out = Tensor::uninit(&self.gpu, &shape.out(), inputs.q.dtype())?;
        let lse = Tensor::uninit(&self.gpu, &shape.lse(), DType::F32)?;
        self.attend_into(inputs, selection, &out, Some(&lse))?;
        Ok(Output { out, lse, selection: selection.clone() })
    }

    /// [`FlexPrefill::attend`] into a caller's tensors: `out` with any strides that do not overlap, `lse`,
    /// where wanted, contiguous.
    ///
    /// # Errors
    /// As [`PlanAttention::forward_into`].
    pub fn attend_into(
        &self,
        inputs: Inputs<'_>,
        selection: &Selection,
        out: &Tensor,
        lse: Option<&Tensor>,
    ) -> Result<()> {
        let Some(lead) = &selection.lead else {
            return self.attention.forward_into(inputs, &selection.plan, out, lse);
        };
        let shape =
            AttentionShape::from_shapes(inputs.q.shape(), inputs.k.shape(), inputs.v.shape())?;
        if shape.queries != selection.shape.queries {
            let expected = format!("{} queries as the selection", selection.shape.queries);
            return Err(attn_core::Error::shape("q", expected, inputs.q.shape()).into());
        }
        for (plan, start) in [(lead, 0), (&selection.plan, lead.shape().queries)] {
            let part = |tensor: &Tensor| tensor.narrow(2, start, plan.shape().queries);
            let q = part(inputs.q)?;
            let own = Tensor::uninit(&self.gpu, &q.shape()[..3], DType::F32)?;
            self.attention.forward_into(
                Inputs { q: &q, ..inputs },
                plan,
                &part(out)?,
                Some(&own),
            )?;
            if let Some(lse) = lse {
                ops::copy(&own, &part(lse)?)?;
            }
        }
        Ok(())
    }

    /// Steps 1 to 4, and the scores of step 6.
    fn look(&self, q: &Tensor, k: &Tensor, shape: &AttentionShape, chunk: &Chunk) -> Result<Found> {
        let Config { block, gamma, tau, budget_rule, .. } = self.config;
        let (tokens, planes) = (shape.keys, shape.batch * shape.heads);
        let blocks = chunk.blocks();
        let scale = 1.0 / (shape.dim_qk as f32).sqrt();
        let last = q.narrow(2, shape.queries - block, block)?;
        let seen = probe(&last, k, scale)?;
        let per_block = |mass: &Tensor, short| {
            let sums = Pool { short, ..Pool::new(block, PoolKind::Sum) };
            let mass = mass.reshape(&[shape.batch, shape.heads, tokens, 1])?;
            pool(&mass, &sums)?.contiguous()?.reshape(&[shape.batch, shape.heads, blocks])
        };
        let columns = per_block(&seen.columns, Short::Last)?;
        let distances = per_block(&seen.distances, Short::First)?;

        let mean = Pool::new(block, PoolKind::Mean);
        let keys = pool(k, &mean)?;
        let free = BlockScores { causal: false, ..BlockScores::new(scale) };
        let pooled = block_scores(&pool(&last, &mean)?, &keys, &free)?;
        let rows = |tensor: Tensor| tensor.contiguous()?.reshape(&[planes, blocks]);
        let pooled = rows(pooled)?;

        let share = gamma.min(f64::from(f32::MAX)) as f32;
        let [verticals, slashes] = match budget_rule {
            BudgetRule::BlockCover => {
                [&columns, &distances].map(|mass| cover_rows(mass, share, Cover::AtLeast))
            }
            BudgetRule::TokensDiv => {
                [&seen.columns, &seen.distances].map(|mass| cover_rows(mass, share, Cover::AtMost))
            }
        };
        // Pairs of blocks of query-aware heads, if there may be any.
        let scores = match tau > 0.0 {
            false => None,
            true => {
                let words = BlockScores { align: 32, ..BlockScores::new(scale) };
                let scores = block_scores(&pooled_queries(q, chunk, &mean)?, &keys, &words)?;
                let width = chunk.rows() * blocks.next_multiple_of(32);
                Some(scores.contiguous()?.reshape(&[planes, width])?)
            }
        };
        let pairs = match &scores {
            None => Tensor::zeros(&self.gpu, &[planes], DType::U32)?,
            Some(scores) => {
                let sum = (gamma * chunk.rows() as f64).min(f64::from(f32::MAX)) as f32;
                cover_rows(scores, sum, Cover::AtMost)?
            }
        };
        let counts = [&verticals?, &slashes?, &pairs];
        let decided = self.decide(&pooled, &rows(columns.clone())?, counts, blocks)?;
        Ok(Found { columns, distances, scores, decided })
    }

    fn decide(
        &self,
        pooled: &Tensor,
        mass: &Tensor,
        counts: [&Tensor; 3],
        blocks: usize,
    ) -> Result<Tensor> {
        let planes = pooled.shape()[0];
        let workgroup = workgroup(self.gpu.capabilities());
        let longest = blocks.div_ceil(workgroup as usize) + workgroup as usize;
        self.gpu
            .capabilities()
            .check_steps("`flexprefill_decide` of this many blocks".into(), longest)?;
        let decided = Tensor::uninit(&self.gpu, &[5, planes], DType::U32)?;
        let all = [pooled, mass, counts[0], counts[1], counts[2], &decided].map(Tensor::binding);
        let start = |number: usize| all[number].1 as u32;
        let Config { block, tau, budget_rule, line_divisor, .. } = self.config;
        let params = Params {
            planes: planes as u32,
            blocks: blocks as u32,
            pooled_start: start(0),
            mass_start: start(1),
            verticals_start: start(2),
            slashes_start: start(3),
            pairs_start: start(4),
            decided_start: start(5),
            tau: tau as f32,
            min_lines: self.config.min_blocks() as u32,
            max_lines: self.config.max_blocks(blocks) as u32,
            divisor: match budget_rule {
                BudgetRule::BlockCover => 0,
                BudgetRule::TokensDiv => line_divisor.unwrap_or(block).min(1 << 30) as u32,
            },
        };
        let kernel = self.gpu.kernel(&DECIDE, constants(self.gpu.capabilities()))?;
        kernel.dispatch(
            &self.gpu,
            &Call {
                bindings: &all.map(|(binding, _)| binding),
                params: bytemuck::bytes_of(&params),
                groups: planes as u64,
                work: 20.0 * (planes * blocks) as f64,
            },
        )?;
        Ok(decided)
    }

    /// Steps 5 and 6, as bits of blocks `[batch, heads, rows, words]`; row 0 is block `first`.
    fn bits(&self, found: &Found, grid: [usize; 4], first: i32) -> Result<Tensor> {
        let [batch, heads, rows, words] = grid;
        let count = |number: usize| {
            found.decided.narrow(0, number, 1)?.contiguous()?.reshape(&[batch, heads])
        };
        if self.config.budget_rule == BudgetRule::TokensDiv {
            // The first block takes one of the places.
            let most = Tensor::full(&self.gpu, &[1; 3], f32::INFINITY)?;
            for mass in [&found.columns, &found.distances] {
                ops::copy(&most.expand(&[batch, heads, 1])?, &mass.narrow(2, 0, 1)?)?;
            }
        }
        let mut start = vec![0u32; words];
        start[0] = 1;
        let start = Tensor::from_slice(&self.gpu, &start, &[1, 1, words])?;
        let start = start.expand(&[batch, heads, words])?;
        let lines = |mass: &Tensor, number| -> Result<Tensor> {
            bits_or(&top_k_bits(mass, Wanted::Each(&count(number)?))?.bits, &start)
        };
        let (verticals, slashes) = (lines(&found.columns, 0)?, lines(&found.distances, 1)?);
        let verticals = verticals.reshape(&[batch, heads, 1, words])?.expand(&grid)?;
        let mut bits = bits_shift_or(&verticals, &slashes, first)?;
        if self.config.slash_both {
            bits = bits_shift_or(&bits, &slashes, first - 1)?;
        }
        if let Some(scores) = &found.scores {
            let wanted = count(2)?.reshape(&[batch * heads])?;
            let pairs = top_k_bits(scores, Wanted::Each(&wanted))?.bits;
            bits = bits_or(&bits, &pairs.reshape(&[batch, heads, rows, words])?)?;
        }
        Ok(bits)
    }

    /// The plan of some queries on these blocks, without those behind a row's own.
    fn plan(
        &self,
        shape: &AttentionShape,
        chunk: &Chunk,
        bits: &Tensor,
        queries: Range<usize>,
    ) -> Result<DevicePlan> {
        let block = self.config.block as u32;
        // Queries in front of a bound between blocks are the first row.
        let row = usize::from(queries.start > 0);
        let bits = bits.narrow(2, row, queries.len().div_ceil(self.config.block))?;
        let rows = DeviceRows::Tiled { bq: block };
        let entries = DeviceEntries::Bits { bk: block, origin: 0 };
        let groups = bits.len() / bits.shape()[3].max(1);
        let part = DevicePart::new(&self.gpu, rows, entries, groups, bits.len(), false)?;
        if !bits.is_empty() {
            let data = part.region(Region::Data)?.reshape(bits.shape())?;
            bits_causal_into(&bits, (chunk.first() + row) as i32, &data)?;
        }
        let mut plan = PlanShape::from(shape);
        plan.queries = queries.len();
        plan.q_off += queries.start as i64;
        DevicePlan::new(plan, Share::PerHead, true, part)
    }
}

/// Means of the queries of each row of blocks.
fn pooled_queries(q: &Tensor, chunk: &Chunk, mean: &Pool) -> Result<Tensor> {
    let lead = chunk.lead();
    if lead == 0 {
        return pool(q, mean);
    }
    let &[batch, heads, queries, dim] = q.shape() else { return pool(q, mean) };
    let pooled = Tensor::uninit(q.gpu(), &[batch, heads, chunk.rows(), dim], DType::F32)?;
    for (row, queries) in [(0, 0..lead), (1, lead..queries)] {
        let own = pool(&q.narrow(2, queries.start, queries.len())?, mean)?;
        ops::copy(&own, &pooled.narrow(2, row, own.shape()[2])?)?;
    }
    Ok(pooled)
}

/// Lanes that share a head on this device.
fn workgroup(capabilities: &Capabilities) -> u32 {
    WORKGROUP.min(capabilities.max_workgroup_threads)
}

fn constants(capabilities: &Capabilities) -> Constants {
    Constants::new().int("WORKGROUP", workgroup(capabilities))
}

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<attn_wgpu::catalogue::Entry> {
    let variant = "any".into();
    vec![attn_wgpu::catalogue::Entry::new(DECIDE, constants(capabilities), variant)]
}

/// What selection looks at.
struct Found {
    /// `[batch, heads, blocks]`.
    columns: Tensor,
    /// `[batch, heads, blocks]`.
    distances: Tensor,
    /// Of pairs of blocks, `[planes, blocks * blocks in whole words]`.
    scores: Option<Tensor>,
    /// See [`Heads`].
    decided: Tensor,
}
