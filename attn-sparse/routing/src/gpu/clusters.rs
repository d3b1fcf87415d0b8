//! Step 5, attention inside clusters, and its derivatives; step 6, the mean of a token's clusters.
//!
//! Two ways compute the same. Dense attention takes each cluster as a head. Where that would not know
//! which keys a query sees, every query has a *limit*: members are listed by rising token, so the keys it
//! sees are the first so many of its cluster. Probabilities are then stored, for some clusters at a time.

use std::ops::Range;

use attn_wgpu::attention::{self, Attention, Inputs};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

use super::kernels::{Each, GATHER, LIMITS, LOGITS, MIX, MIX_KEYS, SOFTMAX, SUM};
use super::routes::{Routes, Slots};
use super::{Routing, Tokens};

/// Groups of four elements that an invocation moves, as in the kernels.
const EACH: usize = 4;

/// How clusters are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Dense,
    Limits { causal: bool },
}

/// The members of all clusters, `[planes, clusters, width, dim]` each.
#[derive(Debug, Clone)]
pub(super) struct Clusters {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// The row of each slot of the keys.
    key_rows: Tensor,
    found: Found,
}

/// What attention found, `[planes, clusters, width, dim]`, and what its derivative needs.
#[derive(Debug, Clone)]
enum Found {
    Dense(Tensor, Box<attention::Saved>),
    Limits(Tensor, Limited),
}

/// Derivatives by the members of the clusters.
pub(super) struct BySlots<'a> {
    routes: &'a Routes,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_slots: Slots,
}

impl BySlots<'_> {
    /// By the normalised queries of all tokens, `[batch, heads, tokens, dim]`.
    pub(super) fn q(&self) -> Result<Tensor> {
        by_tokens(&self.q, self.routes, &self.routes.slots)
    }

    /// By the normalised keys.
    pub(super) fn k(&self) -> Result<Tensor> {
        by_tokens(&self.k, self.routes, &self.key_slots)
    }

    /// By the values.
    pub(super) fn v(&self) -> Result<Tensor> {
        by_tokens(&self.v, self.routes, &self.key_slots)
    }

    /// [`BySlots::v`] into a caller's tensor.
    pub(super) fn v_into(&self, out: &Tensor) -> Result<()> {
        by_tokens_into(&self.v, self.routes, &self.key_slots, None, out)
    }
}

impl Clusters {
    /// Step 5.
    pub(super) fn attend(
        tokens: &Tokens,
        routes: &Routes,
        way: Way,
        layer: &Routing,
    ) -> Result<Clusters> {
        let key_rows = routes.key_rows()?;
        let extents = &routes.extents;
        let shape = [extents.planes(), extents.clusters, routes.width()];
        let q = gathered(&tokens.q, &routes.rows, shape, None)?;
        let k = match routes.shared {
            true => q.clone(),
            false => gathered(tokens.k(), &key_rows, shape, None)?,
        };
        let v = gathered(&tokens.v, &key_rows, shape, None)?;
        let found = match way {
            Way::Dense => {
                let (output, saved) = layer.dense.forward_saved(Inputs::new(&q, &k, &v))?;
                Found::Dense(output.out, Box::new(saved))
            }
            Way::Limits { causal } => {
                let limits = limits(&routes.queries, &routes.keys, causal)?;
                let limited = Limited::new(&limits, &q, &k, layer);
                Found::Limits(limited.forward(&q, &k, &v)?, limited)
            }
        };
        Ok(Clusters { q, k, v, key_rows, found })
    }

    /// Step 6, into `[batch, heads, tokens, dim]`.
    pub(super) fn combine_into(&self, routes: &Routes, epsilon: f64, out: &Tensor) -> Result<()> {
        let (Found::Dense(own, _) | Found::Limits(own, _)) = &self.found;
        by_tokens_into(own, routes, &routes.slots, Some(epsilon), out)
    }

    /// Derivatives by normalised queries and keys and by values, from those by the output
    /// `[batch, heads, tokens, dim]`.
    pub(super) fn backward<'a>(
        &self,
        dense: &Attention,
        routes: &'a Routes,
        epsilon: f64,
        d_out: &Tensor,
    ) -> Result<BySlots<'a>> {
        let extents = &routes.extents;
        let shape = [extents.planes(), extents.clusters, routes.width()];
        let d = gathered(d_out, &routes.rows, shape, Some((&routes.slots, epsilon)))?;
        let [q, k, v] = match &self.found {
            Found::Dense(_, saved) => {
                let cotangents = attention::Cotangents { out: &d, lse: None };
                let grads = dense.backward(saved, cotangents)?;
                [grads.dq, grads.dk, grads.dv]
            }
            Found::Limits(_, limited) => limited.backward(&self.q, &self.k, &self.v, &d)?,
        };
        let key_slots = match routes.shared {
            true => routes.slots.clone(),
            false => Slots::new(&self.key_rows, extents.planes() * extents.tokens)?,
        };
        Ok(BySlots { routes, q, k, v, key_slots })
    }
}

/// Rows of tokens `[.., dim]` in their slots, `[planes, clusters, width, dim]`; with `share` divided by
/// the number of a token's slots plus epsilon.
fn gathered(
    x: &Tensor,
    rows: &Tensor,
    [planes, clusters, width]: [usize; 3],
    share: Option<(&Slots, f64)>,
) -> Result<Tensor> {
    let gpu = x.gpu();
    let dim = x.shape()[3];
    let out = Tensor::uninit(gpu, &[planes, clusters, width, dim], DType::F32)?;
    let chunks = dim / 4;
    let epsilon = share.map_or(0.0, |(_, epsilon)| epsilon);
    let mut tensors = vec![x, rows, &out];
    tensors.extend(share.map(|(slots, _)| &slots.offsets));
    let run = Each {
        source: &GATHER,
        flags: if share.is_some() { &["SHARE"] } else { &[] },
        tensors: &tensors,
        count: planes * clusters * width * chunks.div_ceil(EACH),
        params: &[chunks as u32, (epsilon as f32).to_bits()],
        steps: 1,
        work: 4,
    };
    run.record(gpu)?;
    Ok(out)
}

/// Sums of the slots of each token, `[batch, heads, tokens, dim]`.
fn by_tokens(x: &Tensor, routes: &Routes, slots: &Slots) -> Result<Tensor> {
    let extents = &routes.extents;
    let shape = [extents.batch, extents.heads, extents.tokens, x.shape()[3]];
    listed_sums(x, slots, &shape, extents.clusters)
}

/// The same, or the means with `mean` added to the number of slots, into a caller's tensor.
fn by_tokens_into(
    x: &Tensor,
    routes: &Routes,
    slots: &Slots,
    mean: Option<f64>,
    out: &Tensor,
) -> Result<()> {
    let most = routes.extents.clusters;
    let read = [x, &slots.offsets, &slots.order];
    ops::write_rows(out, &read, |out| listed_sums_into(x, slots, most, mean, out))?;
    Ok(())
}

/// Sums of listed rows of `x` `[planes, blocks, width, dim]`, whose rows are neighbours in a block: as
/// many as `shape` has rows, with at most `most` slots each.
pub(super) fn listed_sums(
    x: &Tensor,
    slots: &Slots,
    shape: &[usize],
    most: usize,
) -> Result<Tensor> {
    let out = Tensor::uninit(x.gpu(), shape, DType::F32)?;
    listed_sums_into(x, slots, most, None, &out)?;
    Ok(out)
}

fn listed_sums_into(
    x: &Tensor,
    slots: &Slots,
    most: usize,
    mean: Option<f64>,
    out: &Tensor,
) -> Result<()> {
    let (chunks, width) = (x.shape()[3] / 4, x.shape()[2]);
    // Derivatives by keys and values of a cluster lie behind one another, clusters at one distance.
    let (_, start) = x.binding();
    let run = Each {
        source: &SUM,
        flags: if mean.is_some() { &["MEAN"] } else { &[] },
        tensors: &[x, &slots.offsets, &slots.order, out],
        count: out.len() / x.shape()[3] * chunks.div_ceil(EACH),
        params: &[
            chunks as u32,
            (start / 4) as u32,
            (x.strides()[1] / 4) as u32,
            width as u32,
            (mean.unwrap_or(0.0) as f32).to_bits(),
        ],
        steps: most,
        work: 8,
    };
    run.record(x.gpu())
}

/// How many keys of its cluster each query sees, u32 as `queries`.
fn limits(queries: &Tensor, keys: &Tensor, causal: bool) -> Result<Tensor> {
    let gpu = queries.gpu();
    let limits = Tensor::uninit(gpu, queries.shape(), DType::U32)?;
    let width = queries.shape()[3];
    let run = Each {
        source: &LIMITS,
        flags: if causal { &["CAUSAL"] } else { &[] },
        tensors: &[queries, keys, &limits],
        count: queries.len(),
        params: &[width as u32],
        steps: 32,
        work: 32,
    };
    run.record(gpu)?;
    Ok(limits)
}

/// Attention of `rows` queries over `keys` keys in each of `clusters` clusters, where a query sees the
/// first `limits` keys.
#[derive(Debug, Clone)]
pub(super) struct Limited {
    gpu: Gpu,
    limits: Tensor,
    clusters: usize,
    rows: usize,
    keys: usize,
    scale: f32,
    /// Bytes of probabilities at once.
    part_bytes: usize,
}

impl Limited {
    pub(super) fn new(limits: &Tensor, q: &Tensor, k: &Tensor, layer: &Routing) -> Limited {
        Limited {
            gpu: q.gpu().clone(),
            limits: limits.clone(),
            clusters: q.shape()[0] * q.shape()[1],
            rows: q.shape()[2],
            keys: k.shape()[2],
            scale: layer.config.scale as f32,
            part_bytes: layer.part_bytes,
        }
    }

    /// Clusters whose probabilities are stored at a time.
    fn parts(&self) -> Vec<Range<usize>> {
        let bytes = 4 * self.rows * self.keys.next_multiple_of(4);
        let each = (self.part_bytes / bytes.max(1)).max(1);
        let starts = (0..self.clusters).step_by(each);
        starts.map(|start| start..(start + each).min(self.clusters)).collect()
    }

    /// `[planes, clusters, rows, dim_v]`.
    pub(super) fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mut shape = q.shape().to_vec();
        shape[3] = v.shape()[3];
        let out = Tensor::uninit(&self.gpu, &shape, DType::F32)?;
        for part in self.parts() {
            let p = self.probabilities(&part, q, k)?;
            self.mix(&part, &p, v, &out)?;
        }
        Ok(out)
    }

    /// Derivatives by `q`, `k` and `v`, from those by the output.
    pub(super) fn backward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        d: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let like = |x: &Tensor| Tensor::uninit(&self.gpu, x.shape(), DType::F32);
        let (dq, dk, dv) = (like(q)?, like(k)?, like(v)?);
        for part in self.parts() {
            let p = self.probabilities(&part, q, k)?;
            self.mix_keys(&part, &p, d, &dv)?;
            let ds = self.products(&part, d, v, 1.0)?;
            self.softmax(&part, &ds, Some(&p))?;
            self.mix(&part, &ds, k, &dq)?;
            self.mix_keys(&part, &ds, q, &dk)?;
        }
        Ok([dq, dk, dv])
    }

    fn probabilities(&self, part: &Range<usize>, q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let logits = self.products(part, q, k, self.scale)?;
        self.softmax(part, &logits, None)?;
        Ok(logits)
    }

    /// Vec4s of a row of probabilities.
    fn chunks(&self) -> usize {
        self.keys.div_ceil(4)
    }

    fn products(&self, part: &Range<usize>, q: &Tensor, k: &Tensor, scale: f32) -> Result<Tensor> {
        let out = [part.len(), self.rows, 4 * self.chunks()];
        let out = Tensor::uninit(&self.gpu, &out, DType::F32)?;
        let chunks = q.shape()[3] / 4;
        let run = Each {
            source: &LOGITS,
            flags: &[],
            tensors: &[q, k, &self.limits, &out],
            count: part.len() * self.rows.div_ceil(4) * self.chunks(),
            params: &[
                part.start as u32,
                self.rows as u32,
                self.keys as u32,
                chunks as u32,
                scale.to_bits(),
            ],
            steps: chunks,
            work: 128 * chunks,
        };
        run.record(&self.gpu)?;
        Ok(out)
    }

    /// In place; with `p`, from derivatives by probabilities to those by products.
    fn softmax(&self, part: &Range<usize>, x: &Tensor, p: Option<&Tensor>) -> Result<()> {
        let mut tensors = vec![x, &self.limits];
        tensors.extend(p);
        let run = Each {
            source: &SOFTMAX,
            flags: if p.is_some() { &["BACKWARD"] } else { &[] },
            tensors: &tensors,
            count: part.len() * self.rows,
            params: &[(part.start * self.rows) as u32, self.chunks() as u32, self.scale.to_bits()],
            steps: 3 * self.chunks(),
            work: 12 * self.keys,
        };
        run.record(&self.gpu)
    }

    fn mix(&self, part: &Range<usize>, a: &Tensor, x: &Tensor, out: &Tensor) -> Result<()> {
        let chunks = x.shape()[3] / 4;
        let tiles = self.rows.div_ceil(4);
        self.sums(&MIX, (part, tiles * chunks), [a, x, out], self.chunks())
    }

    fn mix_keys(&self, part: &Range<usize>, a: &Tensor, x: &Tensor, out: &Tensor) -> Result<()> {
        let chunks = x.shape()[3] / 4;
        self.sums(&MIX_KEYS, (part, self.chunks() * chunks), [a, x, out], self.rows)
    }

    fn sums(
        &self,
        source: &attn_wgpu::KernelSource,
        (part, each): (&Range<usize>, usize),
        [a, x, out]: [&Tensor; 3],
        steps: usize,
    ) -> Result<()> {
        let run = Each {
            source,
            flags: &[],
            tensors: &[a, x, &self.limits, out],
            count: part.len() * each,
            params: &[
                part.start as u32,
                self.rows as u32,
                self.keys as u32,
                (x.shape()[3] / 4) as u32,
            ],
            steps,
            work: 128 * steps,
        };
        run.record(&self.gpu)
    }
}
