//! The paper's equations on the host, in f64.
//!
//! With `N` tokens, blocks of `b`, `nb = ceil(N / b)`, for one query head and its key head:
//!
//! ```text
//! 1  P[i,t]  = softmax_t(q_{N-b+i} . k_t / sqrt(D)), t <= N-b+i     the last b queries
//!    v[t]    = 1/b sum_i P[i,t]        s[d] = 1/b sum_i P[i, N-b+i-d]
//! 2  v_blk[J] = sum of v over block J   s_blk[d'] = sum of s[d] with d' = nb-1 - floor((N-1-d)/b)
//! 3  a[J]    = softmax_J(mean(q probe) . mean(k of J) / sqrt(D))
//!    D_JS    = sqrt(JSD(a, v_blk));  query-aware iff D_JS < tau
//! 4  n_v, n_s lines, by the budget rule
//! 5  block (I, J), J <= I, is on iff J is one of the n_v verticals or I - J one of the n_s slashes
//! 6  query-aware heads: also the largest entries of softmax_J(mean(q of I) . mean(k of J) / sqrt(D))
//!    over J <= I, as many as stay within gamma nb in sum
//! 7  causal attention on these blocks
//! ```
//!
//! The paper selects for whole prompts. Here the `N` tokens may be keys of which only the last `M` have a
//! query: a part of a prompt behind keys of earlier parts. The probe is then the last b of these queries,
//! `I` counts blocks of the whole sequence, from that of the first query on, a block of queries is those of
//! its queries that there are, and the sum of step 6 is over these `R` rows: `gamma R`. With `M = N` all of
//! this is the paper. A part of at most b queries is dense, as its probe would be all of it.

use attn_core::plan::{self, Entries, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::{AttentionShape, Mask, Result, dense};
use ndarray::{Array2, ArrayView2, ArrayView4, Axis, concatenate, s};

use crate::chunk::Chunk;
use crate::{BudgetRule, Config};

/// What decided about a head.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Head {
    /// Mass of each key, seen by the probe `[N]`.
    pub columns: Vec<f64>,
    /// Mass at each distance `[N]`.
    pub distances: Vec<f64>,
    /// Mass of each block of keys `[nb]`.
    pub column_blocks: Vec<f64>,
    /// Mass of each diagonal of blocks `[nb]`.
    pub distance_blocks: Vec<f64>,
    /// Attention of the pooled probe to pooled keys `[nb]`.
    pub pooled: Vec<f64>,
    /// Square root of the Jensen-Shannon divergence of the last two.
    pub divergence: f64,
    /// Whether the head is query-aware.
    pub query_aware: bool,
    /// Keys, and distances, that stay within gamma, plus 1.
    pub covers: [usize; 2],
    /// Vertical and slash lines.
    pub lines: [usize; 2],
}

/// The blocks that each query head attends to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Selection {
    /// Blocks of keys of every block of queries, per head.
    pub plan: SparsePlan,
    /// `[batch * heads]`; empty where all blocks are on ([`Config::is_dense`]).
    pub heads: Vec<Head>,
}

/// Queries, keys and values; see [`attn_core::dense::Inputs`].
pub type Inputs<'a> = dense::Inputs<'a>;

/// Selects blocks, for queries `[batch, heads, M, D]`, the last of a sequence, and all its keys
/// `[batch, heads_kv, N, D]`.
///
/// # Errors
/// [`attn_core::Error`] for parameters out of range, for tensors that do not fit, and for
/// more queries than keys.
pub fn select(
    q: ArrayView4<'_, f64>,
    k: ArrayView4<'_, f64>,
    config: &Config,
) -> Result<Selection> {
    config.validate()?;
    let shape = dense::Inputs::new(q, k, k).check()?;
    let chunk = Chunk::new(&shape, config.block)?;
    let (rows, first) = (chunk.rows(), chunk.first());
    let words = chunk.blocks().div_ceil(32);
    let planes = shape.batch * shape.heads;
    let mut bits = vec![0u32; planes * rows * words];
    let mut heads = Vec::new();
    for plane in 0..planes {
        let (batch, head) = (plane / shape.heads, plane % shape.heads);
        let q = q.slice(s![batch, head, .., ..]);
        let k = k.slice(s![batch, head / shape.group(), .., ..]);
        let own = &mut bits[plane * rows * words..][..rows * words];
        let mut set =
            |row: usize, column: usize| own[row * words + column / 32] |= 1 << (column % 32);
        if config.is_dense(shape.queries, shape.keys) {
            for row in 0..rows {
                (0..=first + row).for_each(|column| set(row, column));
            }
            continue;
        }
        let found = head_of(q, k, config);
        let on = lines_of(&found, config);
        for row in 0..rows {
            let own = first + row;
            for column in (0..=own).filter(|column| on[0][*column] || on[1][own - column]) {
                set(row, column);
            }
        }
        if found.query_aware {
            for (row, column) in query_aware(q, k, &chunk, config) {
                set(row, column);
            }
        }
        heads.push(found);
    }
    Ok(Selection { plan: plan_of(&shape, &chunk, bits), heads })
}

/// The plan of blocks as bits, `[planes, rows, words]`: tiles of queries, or ranges where the first query is
/// inside of a block.
pub(crate) fn plan_of(shape: &AttentionShape, chunk: &Chunk, words: Vec<u32>) -> SparsePlan {
    let (rows, planes) = (chunk.rows(), shape.batch * shape.heads);
    let (bk, origin) = (chunk.block() as u32, 0);
    let rows = match chunk.lead() {
        0 => Rows::Tiled { bq: bk },
        _ => {
            let ranges = || (0..planes).flat_map(|_| (0..rows).map(|row| chunk.queries_of(row)));
            Rows::Ranges {
                plane_ptr: (0..=planes).map(|plane| (plane * rows) as u32).collect(),
                q_start: ranges().map(|range| range.start as u32).collect(),
                q_len: ranges().map(|range| range.len() as u32).collect(),
            }
        }
    };
    let part = Part::new(rows, Entries::Bits { bk, origin, words });
    SparsePlan::new(PlanShape::from(shape), Share::PerHead, true, vec![part])
}

/// Selection, then causal attention on the selected blocks.
///
/// # Errors
/// As [`select`].
pub fn forward(inputs: Inputs<'_>, config: &Config) -> Result<(dense::Output, Selection)> {
    let selection = select(inputs.q, inputs.k, config)?;
    let mut attention = dense::Config::new().with_mask(Mask::Causal);
    if let Some(scale) = config.scale {
        attention = attention.with_scale(scale);
    }
    let output = plan::forward(inputs, &selection.plan, &attention)?;
    Ok((output, selection))
}

/// Steps 1 to 4.
fn head_of(q: ArrayView2<'_, f64>, k: ArrayView2<'_, f64>, config: &Config) -> Head {
    let (tokens, block) = (k.nrows(), config.block);
    let blocks = tokens.div_ceil(block);
    let probe = q.slice(s![q.nrows() - block.., ..]);
    let map = probe_map(probe, k);
    let mut columns = vec![0.0; tokens];
    let mut distances = vec![0.0; tokens];
    for ((row, key), weight) in map.indexed_iter() {
        columns[key] += weight / block as f64;
        if let Some(distance) = (tokens - block + row).checked_sub(key) {
            distances[distance] += weight / block as f64;
        }
    }
    let mut column_blocks = vec![0.0; blocks];
    let mut distance_blocks = vec![0.0; blocks];
    for at in 0..tokens {
        column_blocks[at / block] += columns[at];
        distance_blocks[blocks - 1 - (tokens - 1 - at) / block] += distances[at];
    }

    let keys = pool(k, block);
    let query = probe.mean_axis(Axis(0)).unwrap_or_default();
    let pooled = softmax(&keys.dot(&query).mapv(|x| x / root(k)).to_vec());
    let divergence = divergence(&pooled, &column_blocks);
    let query_aware = divergence < config.tau;

    let covers = [cover(&columns, config.gamma) + 1, cover(&distances, config.gamma) + 1];
    let (min, max) = (config.min_blocks(), config.max_blocks(blocks));
    let lines = match (query_aware, config.budget_rule) {
        (true, _) => [min, min],
        (false, BudgetRule::TokensDiv) => {
            let divisor = config.line_divisor.unwrap_or(block);
            covers.map(|cover| (cover / divisor + 1).max(min).min(max))
        }
        (false, BudgetRule::BlockCover) => [&column_blocks, &distance_blocks]
            .map(|mass| reach(mass, config.gamma).max(min).min(max)),
    };
    Head {
        columns,
        distances,
        column_blocks,
        distance_blocks,
        pooled,
        divergence,
        query_aware,
        covers,
        lines,
    }
}

/// Step 5: which blocks of keys, and which diagonals of blocks, are on.
fn lines_of(head: &Head, config: &Config) -> [Vec<bool>; 2] {
    let pick = |mass: &[f64], count: usize| {
        let mut mass = mass.to_vec();
        if config.budget_rule == BudgetRule::TokensDiv {
            // The first one takes one of the places.
            mass[0] = f64::INFINITY;
        }
        let mut on = vec![false; mass.len()];
        on[0] = true;
        for at in order(&mass).into_iter().take(count) {
            on[at] = true;
        }
        on
    };
    let verticals = pick(&head.column_blocks, head.lines[0]);
    let mut slashes = pick(&head.distance_blocks, head.lines[1]);
    if config.slash_both {
        for at in (1..slashes.len()).rev() {
            slashes[at] |= slashes[at - 1];
        }
    }
    [verticals, slashes]
}

/// Step 6: pairs of a row of blocks and a block of keys.
fn query_aware(
    q: ArrayView2<'_, f64>,
    k: ArrayView2<'_, f64>,
    chunk: &Chunk,
    config: &Config,
) -> Vec<(usize, usize)> {
    let mut pooled = pool(q.slice(s![chunk.lead().., ..]), config.block);
    if chunk.lead() > 0 {
        let lead = pool(q.slice(s![..chunk.lead(), ..]), config.block);
        pooled = concatenate![Axis(0), lead, pooled];
    }
    let scores = pooled.dot(&pool(k, config.block).t()) / root(k);
    let (rows, blocks) = scores.dim();
    let mut map = vec![0.0; rows * blocks];
    for (row, scores) in scores.rows().into_iter().enumerate() {
        let weights = softmax(&scores.to_vec()[..=chunk.first() + row]);
        map[row * blocks..][..weights.len()].copy_from_slice(&weights);
    }
    let order = order(&map);
    let count = within(&order, &map, config.gamma * rows as f64);
    let pairs = order.into_iter().take(count).map(|at| (at / blocks, at % blocks));
    pairs.filter(|(row, column)| *column <= chunk.first() + row).collect()
}

/// Weights of the last queries on the keys they may see.
fn probe_map(probe: ArrayView2<'_, f64>, k: ArrayView2<'_, f64>) -> Array2<f64> {
    let (rows, tokens) = (probe.nrows(), k.nrows());
    let mut map = probe.dot(&k.t()) / root(k);
    for (row, mut weights) in map.rows_mut().into_iter().enumerate() {
        let seen = tokens - rows + row + 1;
        let soft = softmax(&weights.to_vec()[..seen]);
        weights.fill(0.0);
        weights.iter_mut().zip(soft).for_each(|(weight, soft)| *weight = soft);
    }
    map
}

/// Means over blocks; a short last block has a short mean.
fn pool(x: ArrayView2<'_, f64>, block: usize) -> Array2<f64> {
    let blocks = x.nrows().div_ceil(block);
    let mut pooled = Array2::zeros((blocks, x.ncols()));
    for (chunk, mut row) in x.axis_chunks_iter(Axis(0), block).zip(pooled.rows_mut()) {
        row.assign(&chunk.mean_axis(Axis(0)).unwrap_or_default());
    }
    pooled
}

fn root(k: ArrayView2<'_, f64>) -> f64 {
    (k.ncols() as f64).sqrt()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// `sqrt(1/2 KL(a || m) + 1/2 KL(b || m))` with `m = (a + b) / 2` and natural logarithms.
fn divergence(a: &[f64], b: &[f64]) -> f64 {
    let part = |x: f64, y: f64| if x > 0.0 { x * (2.0 * x / (x + y)).ln() } else { 0.0 };
    let sum: f64 = a.iter().zip(b).map(|(&a, &b)| part(a, b) + part(b, a)).sum();
    (sum / 2.0).max(0.0).sqrt()
}

/// Places of the largest first; of equal ones the first, and of what is not a number the last.
fn order(values: &[f64]) -> Vec<usize> {
    let key = |at: &usize| if values[*at].is_nan() { f64::NEG_INFINITY } else { values[*at] };
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|a, b| key(b).total_cmp(&key(a)));
    places
}

/// How many of the largest have a sum of at most `share`.
fn cover(values: &[f64], share: f64) -> usize {
    within(&order(values), values, share)
}

fn within(order: &[usize], values: &[f64], share: f64) -> usize {
    let mut sum = 0.0;
    let stays = |at: &&usize| {
        sum += values[**at];
        sum <= share
    };
    order.iter().take_while(stays).count()
}

/// The least number of the largest with a sum of at least `share`; all, if there are not enough.
fn reach(values: &[f64], share: f64) -> usize {
    let mut sum = 0.0;
    let order = order(values);
    let enough = order.iter().position(|&at| {
        sum += values[at];
        sum >= share
    });
    enough.map_or(values.len(), |place| place + 1)
}
