//! Attention of the last queries, summed by key and by distance.

use super::scores::{Extents4, grouped, logits};
use super::{Words, each_long, select_kernel};
use crate::error::Result;
use crate::kernel::{Call, Constants, KernelSource};
use crate::rows::{self, Extents, Place, Sharing};
use crate::tensor::{DType, Tensor};

pub(crate) const LSE: KernelSource = select_kernel!("select_probe_lse");
pub(crate) const COLUMNS: KernelSource = select_kernel!("select_probe_columns");
pub(crate) const DISTANCES: KernelSource = select_kernel!("select_probe_distances");

/// Loops over a row of logits.
pub(crate) const PASSES: usize = 1;

/// Logits of a head that are held at a time, and of all heads.
const HEAD_LOGITS: usize = 1 << 19;
const ALL_LOGITS: usize = 1 << 24;

/// What [`probe`] found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Probe {
    /// Mean over the queries of the probability of each key, f32 `[B, H, N]`.
    pub columns: Tensor,
    /// Mean over the queries of the probability of the key at each distance, f32 `[B, H, N]`.
    pub distances: Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LseParams {
    extents: Extents,
    x: Place,
    lse: Place,
    first: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ColumnParams {
    count: u32,
    chunks: u32,
    extent_1: u32,
    queries: u32,
    x: Place,
    keys: u32,
    first: i32,
    out_start: u32,
    out_stride: u32,
    share: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DistanceParams {
    count: u32,
    chunks: u32,
    lowest: u32,
    extent_1: u32,
    x: Place,
    queries: u32,
    keys: u32,
    distances: u32,
    first: i32,
    out_start: u32,
    share: f32,
}

/// Causal attention of the last `b` queries `[B, H, b, D]` to all keys `k` `[B, Hkv, N, D]`, query `i`
/// at position `N - b + i`, as two profiles. With `P[i, t] = softmax_t(scale q_i . k_t)`:
///
/// ```text
/// columns[t]   = 1/b sum_i P[i, t]
/// distances[d] = 1/b sum_i P[i, N - b + i - d]
/// ```
///
/// Either adds up to 1. The map of probabilities is never stored: logits are computed for a slab of
/// keys at a time, at most 64 MiB of them, and twice where there are several slabs.
///
/// # Errors
/// [`attn_core::Error`] for shapes or types that do not fit; [`crate::Error::Limit`] for so many queries
/// that loops would be longer than the device allows.
pub fn probe(q_last: &Tensor, k: &Tensor, scale: f32) -> Result<Probe> {
    let gpu = q_last.gpu();
    let extents = Extents4::of(q_last, k)?;
    let Extents4 { batch, heads, heads_kv, queries, keys, .. } = extents;
    let shape = [batch, heads, keys];
    let distances = Tensor::zeros(gpu, &shape, DType::F32)?;
    if queries == 0 || shape.contains(&0) {
        return Ok(Probe { columns: Tensor::zeros(gpu, &shape, DType::F32)?, distances });
    }
    let columns = Tensor::uninit(gpu, &shape, DType::F32)?;
    let q = grouped(q_last, scale, &extents)?;
    // The width of a slab follows from one head, so that others change no bit.
    let slab = (HEAD_LOGITS / queries / 64 * 64).max(64).min(keys);
    let group = heads / heads_kv;
    let at_once = (ALL_LOGITS / (group * queries * slab)).clamp(1, heads_kv);
    for entry in 0..batch {
        for first in (0..heads_kv).step_by(at_once) {
            let count = at_once.min(heads_kv - first);
            let part = |tensor: &Tensor, per_head: usize| {
                tensor.narrow(0, entry, 1)?.narrow(1, first * per_head, count * per_head)
            };
            Heads {
                q: part(&q, 1)?,
                k: part(k, 1)?,
                columns: part(&columns, group)?,
                distances: part(&distances, group)?,
                queries,
                slab,
            }
            .run()?;
        }
    }
    Ok(Probe { columns, distances })
}

/// Some heads of a batch entry.
struct Heads {
    /// `[1, heads_kv, g * queries, D]`.
    q: Tensor,
    /// `[1, heads_kv, N, D]`.
    k: Tensor,
    /// `[1, heads, N]`.
    columns: Tensor,
    distances: Tensor,
    queries: usize,
    slab: usize,
}

impl Heads {
    fn run(&self) -> Result<()> {
        let lse = Tensor::uninit(
            self.q.gpu(),
            &[1, self.columns.shape()[1], self.queries, 1],
            DType::F32,
        )?;
        let starts = || (0..self.keys()).step_by(self.slab);
        let mut kept = None;
        for start in starts() {
            let logits = self.logits(start)?;
            self.lse(&logits, &lse, start)?;
            kept = (self.slab == self.keys()).then_some(logits);
        }
        for start in starts() {
            let logits = match kept.take() {
                Some(logits) => logits,
                None => self.logits(start)?,
            };
            self.columns(&logits, &lse, start)?;
            self.distances(&logits, &lse, start)?;
        }
        Ok(())
    }

    fn keys(&self) -> usize {
        self.k.shape()[2]
    }

    /// The last key of a slab that query 0 sees.
    fn first(&self, start: usize) -> i32 {
        (self.keys() as i64 - self.queries as i64 - start as i64) as i32
    }

    /// `[1, heads, queries, keys of the slab]`.
    fn logits(&self, start: usize) -> Result<Tensor> {
        let slab = self.k.narrow(2, start, self.slab.min(self.keys() - start))?;
        logits(&self.q, &slab, self.queries)
    }

    fn lse(&self, x: &Tensor, lse: &Tensor, start: usize) -> Result<()> {
        let gpu = x.gpu();
        let width = x.shape()[3];
        // Of the full slab, so that all slabs run alike.
        let sharing = Sharing::new(self.slab, PASSES, gpu.capabilities());
        sharing.check("probe", self.slab, PASSES, gpu)?;
        let kernel = gpu.kernel(&LSE, constants(&sharing, start > 0))?;
        let ((x_binding, x_place), (lse_binding, _)) = (rows::bind(x), lse.binding());
        let params = LseParams {
            extents: Extents::of(x, width),
            x: x_place,
            lse: rows::place(lse, 0, 1),
            first: self.first(start),
        };
        let groups = sharing.groups(params.extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 6.0 * x.len() as f64);
        kernel.dispatch(gpu, &Call { bindings: &[x_binding, lse_binding], params, groups, work })
    }

    fn columns(&self, x: &Tensor, lse: &Tensor, start: usize) -> Result<()> {
        let (heads, keys) = (x.shape()[1], x.shape()[3]);
        let out = self.columns.narrow(2, start, keys)?;
        let chunks = keys.div_ceil(4);
        let params = ColumnParams {
            count: (heads * chunks) as u32,
            chunks: chunks as u32,
            extent_1: heads as u32,
            queries: self.queries as u32,
            keys: keys as u32,
            first: self.first(start),
            x: rows::bind(x).1,
            out_start: Words::of(&out).start,
            out_stride: self.keys() as u32,
            share: 1.0 / self.queries as f32,
        };
        let (params, steps) = (bytemuck::bytes_of(&params), (heads * chunks, self.queries + 4));
        each_long(x.gpu(), &COLUMNS, &[], &[x, lse, &out], params, steps)
    }

    fn distances(&self, x: &Tensor, lse: &Tensor, start: usize) -> Result<()> {
        let (heads, keys) = (x.shape()[1], x.shape()[3]);
        let highest = self.keys() - 1 - start;
        let lowest = (highest + 2).saturating_sub(keys + self.queries);
        let chunks = (highest + 1 - lowest).div_ceil(4);
        let params = DistanceParams {
            count: (heads * chunks) as u32,
            chunks: chunks as u32,
            lowest: lowest as u32,
            extent_1: heads as u32,
            queries: self.queries as u32,
            keys: keys as u32,
            distances: self.keys() as u32,
            first: self.first(start),
            x: rows::place(x, x.binding().1, 1),
            out_start: Words::of(&self.distances).start,
            share: 1.0 / self.queries as f32,
        };
        let (params, steps) = (bytemuck::bytes_of(&params), (heads * chunks, self.queries));
        each_long(x.gpu(), &DISTANCES, &[], &[x, lse, &self.distances], params, steps)
    }
}

pub(crate) fn constants(sharing: &Sharing, more: bool) -> Constants {
    sharing.constants().flag("MORE", more)
}
