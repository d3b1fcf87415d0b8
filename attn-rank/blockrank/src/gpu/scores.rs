//! Scores of documents and their gradients.

use attn_core::Error;
use attn_wgpu::{DType, Result, Tensor, ops};

use super::kernels::{DK, DQ, Each, LOGIT_GRAD, MASS, STATS, TOTAL};
use super::{BlockRank, DeviceSegments};
use crate::reference::check_shapes;

/// What [`BlockRank::doc_scores_backward`] needs of a call: its inputs, of which it holds handles, and two
/// numbers for each signal row and piece of a document.
#[derive(Debug, Clone)]
pub struct SavedScores {
    q: Tensor,
    k: Tensor,
    segments: DeviceSegments,
    heads: Vec<usize>,
    /// None where no document has a token.
    stats: Option<Stats>,
}

/// Largest logit and sum of exponentials, f32.
#[derive(Debug, Clone)]
struct Stats {
    /// Of pieces of documents `[items, rows, 2]`.
    items: Tensor,
    /// Of prompts `[batch, rows, 2]`.
    total: Tensor,
    /// The chosen heads, u32.
    heads: Tensor,
}

/// Gradients of scores, each of the type of its input.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ScoreGrads {
    /// By the queries of the signal tokens `[batch, heads, signal, dim]`; 0 for heads that were not chosen.
    pub dq: Tensor,
    /// By the keys `[batch, heads_kv, tokens, dim]`; 0 outside of documents.
    pub dk: Tensor,
}

/// Where [`BlockRank::doc_scores_backward_into`] writes gradients, of the shapes of [`ScoreGrads`], each in its
/// own type; what has no target is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScoreTargets<'a> {
    /// By the queries of the signal tokens.
    pub dq: Option<&'a Tensor>,
    /// By the keys.
    pub dk: Option<&'a Tensor>,
}

impl SavedScores {
    /// The same with inputs at another place: a caller's allocator may have moved them. Their elements must be
    /// those of the forward pass.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors of another shape.
    pub fn with_inputs(self, q: &Tensor, k: &Tensor) -> Result<SavedScores> {
        for (arg, old, new) in [("q", &self.q, q), ("k", &self.k, k)] {
            if old.shape() != new.shape() {
                return Err(Error::shape(arg, format!("{:?}", old.shape()), new.shape()).into());
            }
        }
        Ok(SavedScores { q: q.clone(), k: k.clone(), ..self })
    }
}

/// Queries and keys as kernels address them, and how.
struct Sides {
    q: Tensor,
    k: Tensor,
    /// First vec4, and vec4s from one batch entry, head and token to the next.
    q_places: [u32; 4],
    k_places: [u32; 4],
    signal: usize,
    group: usize,
    heads_kv: usize,
    /// vec4s of a row.
    chunks: usize,
    scale: f64,
}

impl BlockRank {
    /// How much of the attention of the signal tokens each document gets: queries of the signal tokens
    /// `[batch, heads, signal, dim]` (of any number: [`Config::signal_rows`](crate::Config::signal_rows) does not
    /// count here) on keys `[batch, heads_kv, tokens, dim]`, both as attention reads them, f32 or a half type.
    /// Returns f32 `[batch, documents]` with as many documents as the prompt that has most; 0 behind a prompt's
    /// last one.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn doc_scores(&self, q: &Tensor, k: &Tensor, segments: &DeviceSegments) -> Result<Tensor> {
        Ok(self.doc_scores_saved(q, k, segments)?.0)
    }

    /// [`BlockRank::doc_scores`], and what its backward pass needs.
    ///
    /// # Errors
    /// As [`BlockRank::doc_scores`].
    pub fn doc_scores_saved(
        &self,
        q: &Tensor,
        k: &Tensor,
        segments: &DeviceSegments,
    ) -> Result<(Tensor, SavedScores)> {
        let host = segments.host();
        let shape = [host.batch(), host.most_documents()];
        let scores = Tensor::uninit(&self.gpu, &shape, DType::F32)?;
        let saved = self.scores(q, k, segments, &scores)?;
        Ok((scores, saved))
    }

    /// [`BlockRank::doc_scores_saved`] with the scores in a caller's tensor, in its own type.
    ///
    /// # Errors
    /// As [`BlockRank::doc_scores`], and [`attn_core::Error`] for a target of another shape or of integers.
    pub fn doc_scores_into(
        &self,
        q: &Tensor,
        k: &Tensor,
        segments: &DeviceSegments,
        scores: &Tensor,
    ) -> Result<SavedScores> {
        let host = segments.host();
        ops::check_target("scores", scores, &self.gpu, &[host.batch(), host.most_documents()])?;
        let (own, saved) = self.doc_scores_saved(q, k, segments)?;
        ops::convert_into(&own, scores)?;
        Ok(saved)
    }

    /// The gradients of [`BlockRank::doc_scores`] from those by the scores `[batch, documents]`. Deterministic.
    ///
    /// # Errors
    /// [`attn_core::Error`] for a cotangent of another shape or type; errors of the device.
    pub fn doc_scores_backward(
        &self,
        saved: &SavedScores,
        d_scores: &Tensor,
    ) -> Result<ScoreGrads> {
        let new = |x: &Tensor| Tensor::uninit(&self.gpu, x.shape(), x.dtype());
        let (dq, dk) = (new(&saved.q)?, new(&saved.k)?);
        let targets = ScoreTargets { dq: Some(&dq), dk: Some(&dk) };
        self.doc_scores_backward_into(saved, d_scores, targets)?;
        Ok(ScoreGrads { dq, dk })
    }

    /// [`BlockRank::doc_scores_backward`] into callers' tensors: directly where they are f32, contiguous from
    /// where a binding may begin, and of whole groups of four elements; else a conversion or a copy on the device
    /// follows. They must not overlap each other.
    ///
    /// # Errors
    /// As [`BlockRank::doc_scores_backward`], and [`attn_core::Error`] for targets of another shape or of
    /// integers.
    pub fn doc_scores_backward_into(
        &self,
        saved: &SavedScores,
        d_scores: &Tensor,
        targets: ScoreTargets<'_>,
    ) -> Result<()> {
        let host = saved.segments.host();
        let expected = [host.batch(), host.most_documents()];
        if d_scores.shape() != expected {
            let expected = format!("{expected:?}");
            return Err(Error::shape("d_scores", expected, d_scores.shape()).into());
        }
        self.check_float("d_scores", d_scores)?;
        for (arg, target, like) in [("dq", targets.dq, &saved.q), ("dk", targets.dk, &saved.k)] {
            if let Some(target) = target {
                ops::check_target(arg, target, &self.gpu, like.shape())?;
            }
        }
        let Some(stats) = &saved.stats else {
            return [targets.dq, targets.dk].into_iter().flatten().try_for_each(|target| {
                let zeros = Tensor::zeros(&self.gpu, target.shape(), target.dtype())?;
                ops::convert_into(&zeros, target)
            });
        };
        let sides = self.sides(&saved.q, &saved.k)?;
        let d_scores = ops::convert(d_scores, DType::F32)?.contiguous()?;
        let dz = self.logit_grad(saved, stats, &sides, &d_scores)?;
        if let Some(dq) = targets.dq {
            self.dq(saved, stats, &sides, &dz, dq)?;
        }
        if let Some(dk) = targets.dk {
            self.dk(saved, stats, &sides, &dz, dk)?;
        }
        Ok(())
    }

    fn scores(
        &self,
        q: &Tensor,
        k: &Tensor,
        segments: &DeviceSegments,
        scores: &Tensor,
    ) -> Result<SavedScores> {
        let host = segments.host();
        self.check_float("q", q)?;
        self.check_float("k", k)?;
        if !segments.gpu().is_same(&self.gpu) {
            let got = "those of another Gpu";
            return Err(Error::config("segments", &self.gpu.adapter().name, got).into());
        }
        check_shapes(q.shape(), k.shape(), host)?;
        let sides = self.sides(q, k)?;
        let heads = self.config.heads_of(q.shape()[1])?;
        let (q, k) = (q.clone(), k.clone());
        let tables = &segments.tables;
        let mut saved = SavedScores { q, k, segments: segments.clone(), heads, stats: None };
        if tables.items() == 0 {
            if !scores.is_empty() {
                let zeros = Tensor::zeros(&self.gpu, scores.shape(), DType::F32)?;
                ops::copy(&zeros, scores)?;
            }
            return Ok(saved);
        }
        let words: Vec<u32> = saved.heads.iter().map(|&head| head as u32).collect();
        let stats = Stats {
            heads: Tensor::from_slice(&self.gpu, &words, &[words.len()])?,
            items: self.pairs(tables.items(), saved.rows())?,
            total: self.pairs(host.batch(), saved.rows())?,
        };
        let rows = saved.rows();
        let scale = (sides.scale * std::f64::consts::LOG2_E) as f32;
        let mut params = vec![rows as u32, sides.signal as u32, sides.group as u32];
        params.extend([sides.chunks as u32, scale.to_bits()]);
        params.extend(sides.q_places.into_iter().chain(sides.k_places));
        Each {
            source: &STATS,
            flags: &[],
            tensors: &[&sides.q, &sides.k, &tables.items, &stats.heads, &stats.items],
            count: tables.items() * rows,
            params: &params,
            steps: sides.chunks.max(tables.part_steps()),
            work: 8 * tables.part_steps() * sides.chunks,
        }
        .record(&self.gpu)?;
        self.total(&[&stats.items, &tables.prompts, &stats.total], &saved, &[], [0, 0])?;
        Each {
            source: &MASS,
            flags: &[],
            tensors: &[&stats.items, &stats.total, &tables.spans, scores],
            count: scores.len(),
            params: &[rows as u32, host.most_documents() as u32],
            steps: rows.max(tables.longest),
            work: 8 * rows,
        }
        .record(&self.gpu)?;
        saved.stats = Some(stats);
        Ok(saved)
    }

    /// Sums over the items of every prompt.
    fn total(
        &self,
        tensors: &[&Tensor],
        saved: &SavedScores,
        flags: &[&str],
        d_places: [u32; 2],
    ) -> Result<()> {
        let (tables, host) = (&saved.segments.tables, saved.segments.host());
        Each {
            source: &TOTAL,
            flags,
            tensors,
            count: host.batch() * saved.rows(),
            params: &[saved.rows() as u32, d_places[0], d_places[1]],
            steps: tables.longest,
            work: 8 * tables.longest,
        }
        .record(&self.gpu)
    }

    /// Derivatives by the products of queries and keys, `[batch, rows, tokens in whole groups of four]`.
    fn logit_grad(
        &self,
        saved: &SavedScores,
        stats: &Stats,
        sides: &Sides,
        d_scores: &Tensor,
    ) -> Result<Tensor> {
        let (tables, host) = (&saved.segments.tables, saved.segments.host());
        let (rows, batch) = (saved.rows(), host.batch());
        let d_places = [d_scores.binding().1 as u32, host.most_documents() as u32];
        let means = Tensor::uninit(&self.gpu, &[batch, rows], DType::F32)?;
        let tensors =
            [&stats.items, &tables.prompts, &stats.total, &tables.items, d_scores, &means];
        self.total(&tensors, saved, &["PULL"], d_places)?;
        let width = host.tokens().next_multiple_of(4);
        let dz = Tensor::uninit(&self.gpu, &[batch, rows, width], DType::F32)?;
        let scale = (sides.scale * std::f64::consts::LOG2_E) as f32;
        let factor = (sides.scale / rows as f64) as f32;
        let mut params = vec![rows as u32, sides.signal as u32, sides.group as u32];
        params.extend([sides.chunks as u32, host.tokens() as u32]);
        params.extend([scale.to_bits(), factor.to_bits()]);
        params.extend(sides.q_places.into_iter().chain(sides.k_places).chain(d_places));
        let (q, k, heads) = (&sides.q, &sides.k, &stats.heads);
        Each {
            source: &LOGIT_GRAD,
            flags: &[],
            tensors: &[q, k, heads, &tables.owners, &stats.total, &means, d_scores, &dz],
            count: dz.len() / 4,
            params: &params,
            steps: sides.chunks,
            work: 32 * sides.chunks,
        }
        .record(&self.gpu)?;
        Ok(dz)
    }

    fn dq(
        &self,
        saved: &SavedScores,
        stats: &Stats,
        sides: &Sides,
        dz: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        let (tables, host) = (&saved.segments.tables, saved.segments.host());
        let rows = saved.rows();
        let heads = saved.q.shape()[1];
        let shape = [tables.parts(), rows, 4 * sides.chunks];
        let sums = Tensor::uninit(&self.gpu, &shape, DType::F32)?;
        let mut params = vec![rows as u32, sides.signal as u32, sides.group as u32];
        params.extend([heads as u32, sides.chunks as u32, host.tokens() as u32]);
        params.extend(sides.k_places);
        Each {
            source: &DQ,
            flags: &[],
            tensors: &[&sides.k, dz, &tables.items, &tables.parts, &stats.heads, &sums],
            count: sums.len() / 4,
            params: &params,
            steps: tables.part_steps(),
            work: 8 * tables.part_steps() * tables.part_steps(),
        }
        .record(&self.gpu)?;
        let place = |head: usize| match saved.heads.binary_search(&head) {
            Ok(place) => place as u32,
            Err(_) => u32::MAX,
        };
        let places: Vec<u32> = (0..heads).map(place).collect();
        let places = Tensor::from_slice(&self.gpu, &places, &[heads])?;
        let count = host.batch() * heads * sides.signal * sides.chunks;
        ops::write_rows(out, &[&sums, &tables.prompts, &places], |out| {
            Each {
                source: &DQ,
                flags: &["JOIN"],
                tensors: &[&sums, &tables.prompts, &places, out],
                count,
                params: &params,
                steps: tables.longest,
                work: 4 * tables.longest,
            }
            .record(&self.gpu)
        })?;
        Ok(())
    }

    fn dk(
        &self,
        saved: &SavedScores,
        stats: &Stats,
        sides: &Sides,
        dz: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        let (tables, host) = (&saved.segments.tables, saved.segments.host());
        let rows = saved.rows();
        let mut params = vec![rows as u32, sides.signal as u32, sides.group as u32];
        params.extend([sides.heads_kv as u32, sides.chunks as u32, host.tokens() as u32]);
        params.extend(sides.q_places);
        let tiles = host.tokens().div_ceil(4);
        let (q, heads, owners) = (&sides.q, &stats.heads, &tables.owners);
        ops::write_rows(out, &[q, heads, owners, dz], |out| {
            Each {
                source: &DK,
                flags: &[],
                tensors: &[q, heads, owners, dz, out],
                count: host.batch() * sides.heads_kv * tiles * sides.chunks,
                params: &params,
                steps: rows,
                work: 32 * rows,
            }
            .record(&self.gpu)
        })?;
        Ok(())
    }

    fn pairs(&self, count: usize, rows: usize) -> Result<Tensor> {
        Tensor::uninit(&self.gpu, &[count, rows, 2], DType::F32)
    }

    pub(super) fn check_float(&self, arg: &'static str, x: &Tensor) -> Result<()> {
        if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            let (expected, got) = ("f32, f16 or bf16".into(), x.dtype().name().into());
            return Err(Error::Dtype { arg, expected, got }.into());
        }
        if !x.gpu().is_same(&self.gpu) {
            let got = "a tensor of another Gpu";
            return Err(Error::config(arg, &self.gpu.adapter().name, got).into());
        }
        Ok(())
    }

    fn sides(&self, q: &Tensor, k: &Tensor) -> Result<Sides> {
        let (heads, heads_kv, dim) = (q.shape()[1], k.shape()[1], q.shape()[3]);
        let signal = q.shape()[2];
        let (q, k) = (rows_of(q)?, rows_of(k)?);
        Ok(Sides {
            q_places: places(&q),
            k_places: places(&k),
            q,
            k,
            signal,
            group: heads / heads_kv,
            heads_kv,
            chunks: dim.div_ceil(4),
            scale: self.config.scale_for(dim),
        })
    }
}

impl SavedScores {
    /// Signal rows of all chosen heads.
    fn rows(&self) -> usize {
        self.heads.len() * self.q.shape()[2]
    }
}

/// The tensor of four dimensions in f32, rows in whole groups of four elements: itself, or a copy filled up
/// with zeros.
fn rows_of(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let (shape, strides) = (x.shape(), x.strides());
    let whole = (0..3).all(|d| shape[d] == 1 || strides[d].is_multiple_of(4));
    let last = shape[3].is_multiple_of(4) && strides[3] == 1;
    if whole && last && x.binding().1.is_multiple_of(4) {
        return Ok(x);
    }
    let mut shape = shape.to_vec();
    shape[3] = shape[3].next_multiple_of(4);
    let copied = Tensor::uninit(x.gpu(), &shape, DType::F32)?;
    ops::copy(&x, &copied)?;
    Ok(copied)
}

/// In groups of four elements: the first one, and from one batch entry, head and token to the next.
fn places(x: &Tensor) -> [u32; 4] {
    let step = |dim: usize| if x.shape()[dim] == 1 { 0 } else { (x.strides()[dim] / 4) as u32 };
    [(x.binding().1 / 4) as u32, step(0), step(1), step(2)]
}
