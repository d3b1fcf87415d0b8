//! How the kernels of a run are recorded.

use std::ops::Range;

use attn_wgpu::{DType, KernelSource, Result, Tensor};

use super::run::Replay;
use crate::Activation;
use crate::gpu::kernels::{BOTH_BACK, OUTER, Run, STATE_DOTS, Tiles};
use crate::gpu::walk::Layer;

/// Rows of an invocation at most: most products have two sums of each.
const MOST_ROWS: usize = 16;

impl Replay<'_> {
    pub(super) fn rows(&self, width: usize) -> Result<Tensor> {
        let mut shape = self.walk.shares.shape().to_vec();
        shape[3] = width;
        Tensor::uninit(&self.walk.titans.gpu, &shape, DType::F32)
    }

    pub(super) fn both(
        &self,
        a: &Tensor,
        [w, s]: [&Tensor; 2],
        [by_w, by_s]: [&Tensor; 2],
        pieces: Range<usize>,
        layer: &Layer,
        planes: usize,
    ) -> Result<()> {
        let (size, cost) = ([layer.chunks, layer.depth], [layer.chunks, 64 * layer.chunks]);
        let tensors = [a, w, s, by_w, by_s];
        self.product(&BOTH_BACK, None, &tensors, pieces, size, &[planes as u32], cost)
    }

    pub(super) fn outer(
        &self,
        [a, b]: [&Tensor; 2],
        w: &Tensor,
        piece: usize,
        size: [usize; 2],
    ) -> Result<()> {
        self.weights(&OUTER, &[a, b, w], piece, size, 8)
    }

    /// A product that changes weights in place.
    pub(super) fn weights(
        &self,
        source: &KernelSource,
        tensors: &[&Tensor],
        piece: usize,
        [depth, chunks]: [usize; 2],
        work: usize,
    ) -> Result<()> {
        let walk = &self.walk;
        let tiles = self.tiles(4 * depth);
        let count = tiles.count(4 * depth);
        let run = Run {
            source,
            activation: None,
            tensors,
            count: walk.planes * count,
            params: &walk.params(piece, 1, count, [depth, chunks]),
            steps: walk.chunk,
            work: work * walk.chunk,
        };
        run.tiled(&walk.titans.gpu, tiles, chunks)
    }

    /// A product of rows of pieces, with parameters of its own behind the common ones; `work` is that of a row
    /// and four columns.
    #[expect(clippy::too_many_arguments, reason = "what a kernel is run with")]
    pub(super) fn product(
        &self,
        source: &KernelSource,
        activation: Option<Activation>,
        tensors: &[&Tensor],
        pieces: Range<usize>,
        size: [usize; 2],
        extra: &[u32],
        [steps, work]: [usize; 2],
    ) -> Result<()> {
        let walk = &self.walk;
        let tiles = self.tiles(walk.chunk);
        let count = tiles.count(walk.chunk);
        let mut params = walk.params(pieces.start, pieces.len(), count, size).to_vec();
        params.extend(extra);
        let run = Run {
            source,
            activation,
            tensors,
            count: walk.planes * pieces.len() * count,
            params: &params,
            steps,
            work,
        };
        run.tiled(&walk.titans.gpu, tiles, size[1])
    }

    /// For so many rows, of which an invocation may hold two sums.
    pub(super) fn tiles(&self, rows: usize) -> Tiles {
        Tiles::of(self.walk.titans.gpu.capabilities(), rows.min(MOST_ROWS))
    }

    /// A kernel without products on four rows of pieces an invocation, with parameters of its own.
    pub(super) fn each(
        &self,
        source: &KernelSource,
        activation: Option<Activation>,
        tensors: &[&Tensor],
        pieces: Range<usize>,
        size: [usize; 2],
        extra: &[u32],
    ) -> Result<()> {
        let walk = &self.walk;
        let tiles = walk.chunk.div_ceil(4);
        let mut params = walk.params(pieces.start, pieces.len(), tiles, size).to_vec();
        params.extend(extra);
        let steps = walk.chunk + 8 * size[0] + 8 * extra.first().map_or(0, |&width| width as usize);
        let run = Run {
            source,
            activation,
            tensors,
            count: walk.planes * pieces.len() * tiles * size[1],
            params: &params,
            steps,
            work: 16 * steps,
        };
        run.record(&walk.titans.gpu)
    }

    /// Products of rows with rows, token by token.
    pub(super) fn dots(
        &self,
        source: &KernelSource,
        tensors: &[&Tensor],
        depth: usize,
        extra: &[u32],
    ) -> Result<()> {
        let mut params = vec![depth as u32];
        params.extend(extra);
        let run = Run {
            source,
            activation: None,
            tensors,
            count: self.walk.planes * self.walk.tokens,
            params: &params,
            steps: depth,
            work: 32 * depth,
        };
        run.record(&self.walk.titans.gpu)
    }

    pub(super) fn state_dots(
        &self,
        i: usize,
        piece: usize,
        by: [&Tensor; 2],
        out: &Tensor,
    ) -> Result<()> {
        let walk = &self.walk;
        let Layer { depth, chunks, .. } = &walk.layers[i];
        let before: usize = walk.layers[..i].iter().map(|layer| 4 * layer.depth).sum();
        let numbers = [4 * depth, *chunks, walk.planes, piece, out.shape()[2], before];
        let run = Run {
            source: &STATE_DOTS,
            activation: None,
            tensors: &[by[0], by[1], &self.w[i], &self.s[i], out],
            count: 4 * depth * walk.planes,
            params: &numbers.map(|number| number as u32),
            steps: *chunks,
            work: 24 * chunks,
        };
        run.record(&walk.titans.gpu)
    }
}
