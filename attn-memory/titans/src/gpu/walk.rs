//! The walk of a call through its chunks.

use attn_core::Error;
use attn_wgpu::{DType, Result, Tensor, ops};

use super::kernels::{BACK, BOUND, NETWORK, PAIRS, READ, Run, SHARES, Tiles, UPDATE};
use super::state::copied;
use super::{Inputs, State, Titans};
use crate::Activation;

/// Rows of weights and momentum that an invocation changes at most: it holds sums of both.
pub(super) const UPDATED_ROWS: usize = 16;

/// A layer's part of a walk, rows of all tokens `[batch, heads, tokens, ..]`.
pub(super) struct Layer {
    /// What the layer gets of keys, and of queries.
    pub(super) x: Tensor,
    pub(super) r: Tensor,
    /// Its errors, and those within the bound of norms.
    pub(super) error: Tensor,
    pub(super) g: Tensor,
    /// `(R X^T) * C`.
    pub(super) pairs: Tensor,
    /// vec4s of what goes in and what comes out.
    pub(super) depth: usize,
    pub(super) chunks: usize,
}

/// A walk through the chunks of a call.
pub(super) struct Walk<'a> {
    pub(super) titans: &'a Titans,
    pub(super) planes: usize,
    pub(super) tokens: usize,
    /// Tokens of a chunk, as many as the call has at most.
    pub(super) chunk: usize,
    /// Tokens of the first piece, which ends the chunk that the state is in.
    pub(super) lead: usize,
    pub(super) pieces: usize,
    pub(super) v: Tensor,
    pub(super) shares: Tensor,
    pub(super) ends: Tensor,
    pub(super) momentum: Tensor,
    pub(super) layers: Vec<Layer>,
    /// The hidden rows before the activation, at depth 2.
    pub(super) z: Option<Tensor>,
    pub(super) y: Tensor,
}

impl<'a> Walk<'a> {
    pub(super) fn new(titans: &'a Titans, inputs: Inputs<'_>, position: usize) -> Result<Self> {
        let (gpu, config) = (&titans.gpu, &titans.config);
        let &[batch, heads, tokens, _] = inputs.q.shape() else {
            return Err(Error::shape("q", "four extents", inputs.q.shape()).into());
        };
        let rows = |width: usize| Tensor::uninit(gpu, &[batch, heads, tokens, width], DType::F32);
        let chunk = config.chunk.min(tokens);
        let lead = (config.chunk - position).min(tokens);
        let pieces = 1 + (tokens - lead).div_ceil(chunk);
        let width = chunk.next_multiple_of(4);
        let (shares, ends) = (rows(width)?, rows(4)?);
        let momentum = Tensor::uninit(gpu, &[batch, heads, pieces], DType::F32)?;
        let mut layers = Vec::new();
        for (i, extents) in config.layers().into_iter().enumerate() {
            let [depth, chunks] = extents.map(|extent| extent.div_ceil(4));
            let (x, r) = match i {
                0 => (aligned(inputs.k)?, aligned(inputs.q)?),
                _ => (rows(4 * depth)?, rows(4 * depth)?),
            };
            let (error, pairs) = (rows(4 * chunks)?, rows(width)?);
            let g = match config.max_grad_norm {
                Some(_) => rows(4 * chunks)?,
                None => error.clone(),
            };
            layers.push(Layer { x, r, error, g, pairs, depth, chunks });
        }
        let z = config.hidden.map(|hidden| rows(hidden.next_multiple_of(4))).transpose()?;
        let y = rows(config.dim_v.next_multiple_of(4))?;
        let planes = batch * heads;
        let v = aligned(inputs.v)?;
        let walk = Walk {
            titans,
            planes,
            tokens,
            chunk,
            lead,
            pieces,
            v,
            shares,
            ends,
            momentum,
            layers,
            z,
            y,
        };
        walk.share(inputs)?;
        walk.pair(0, 0, pieces)?;
        Ok(walk)
    }

    /// Through all pieces; the state moves on.
    pub(super) fn run(self, state: &mut State) -> Result<Tensor> {
        let config = &self.titans.config;
        let mut left = self.tokens;
        for piece in 0..self.pieces {
            let length = if piece == 0 { self.lead } else { left.min(config.chunk) };
            if state.position > 0 {
                self.errors(piece, &state.start)?;
            } else {
                self.errors(piece, &state.w)?;
                if length < config.chunk {
                    state.start = copied(&state.w)?;
                }
            }
            self.read(piece, state)?;
            for (i, layer) in self.layers.iter().enumerate() {
                self.update(piece, layer, [&state.w[i], &state.s[i]])?;
            }
            left -= length;
            state.position = (state.position + length) % config.chunk;
        }
        if state.position == 0 {
            state.start = copied(&state.w)?;
        }
        Ok(self.y)
    }

    pub(super) fn share(&self, inputs: Inputs<'_>) -> Result<()> {
        let config = &self.titans.config;
        let gates = [whole(inputs.theta)?, whole(inputs.eta)?, whole(inputs.alpha)?];
        let [theta, eta, alpha] = &gates;
        let chunk = self.chunk;
        let sizes =
            [self.tokens, self.pieces, chunk, self.lead, self.width()].map(|size| size as u32);
        let mut params = sizes.to_vec();
        params.push((config.coefficient as f32).to_bits());
        let run = Run {
            source: &SHARES,
            activation: None,
            tensors: &[theta, eta, alpha, &self.shares, &self.ends, &self.momentum],
            count: self.planes * self.pieces * (chunk + 1),
            params: &params,
            steps: chunk,
            work: 8 * chunk,
        };
        run.record(&self.titans.gpu)
    }

    /// The pairs of one layer, in `pieces` pieces from `piece` on.
    pub(super) fn pair(&self, layer: usize, piece: usize, pieces: usize) -> Result<()> {
        let Layer { x, r, pairs, depth, .. } = &self.layers[layer];
        let chunks = self.chunk.div_ceil(4);
        let tensors = [r, x, &self.shares, pairs];
        let (steps, work) = (*depth, 32 * depth);
        self.rows(&PAIRS, None, &tensors, piece, pieces, [*depth, chunks], [steps, work])
    }

    /// The errors of all layers at the weights `start`.
    pub(super) fn errors(&self, piece: usize, start: &[Tensor]) -> Result<()> {
        let config = &self.titans.config;
        for (i, layer) in self.layers.iter().enumerate() {
            let Layer { x, error, depth, chunks, .. } = layer;
            let size = [*depth, *chunks];
            let cost = [*depth, 32 * depth];
            match (self.layers.get(i + 1), &self.z) {
                (Some(next), Some(z)) => {
                    let tensors = [x, &start[i], z, &next.x];
                    self.rows(&NETWORK, self.activation(), &tensors, piece, 1, size, cost)?;
                }
                _ => {
                    let tensors = [x, &start[i], &self.v, error];
                    self.rows(&NETWORK, None, &tensors, piece, 1, size, cost)?;
                }
            }
        }
        if let (Some(z), [first, second]) = (&self.z, &self.layers[..]) {
            let tensors = [&second.error, &start[1], z, &first.error];
            let size = [second.chunks, first.chunks];
            let cost = [second.chunks, 32 * second.chunks];
            self.rows(&BACK, self.activation(), &tensors, piece, 1, size, cost)?;
        }
        match config.max_grad_norm {
            Some(bound) => self.layers.iter().try_for_each(|layer| self.bound(piece, layer, bound)),
            None => Ok(()),
        }
    }

    pub(super) fn bound(&self, piece: usize, layer: &Layer, bound: f64) -> Result<()> {
        let Layer { x, error, g, depth, chunks, .. } = layer;
        let tiles = self.chunk.div_ceil(4);
        let mut params = self.params(piece, 1, tiles, [*depth, 1]).to_vec();
        let coefficient = self.titans.config.coefficient as f32;
        params.extend([*chunks as u32, coefficient.to_bits(), (bound as f32).to_bits()]);
        let run = Run {
            source: &BOUND,
            activation: None,
            tensors: &[x, error, g],
            count: self.planes * tiles,
            params: &params,
            steps: 4 * (depth + 2 * chunks),
            work: 32 * (depth + 2 * chunks),
        };
        run.record(&self.titans.gpu)
    }

    pub(super) fn read(&self, piece: usize, state: &State) -> Result<()> {
        for (i, layer) in self.layers.iter().enumerate() {
            let Layer { r, g, pairs, depth, chunks, .. } = layer;
            if i > 0 {
                self.pair(i, piece, 1)?;
            }
            let (out, activation) = match self.layers.get(i + 1) {
                Some(next) => (&next.r, self.activation()),
                None => (&self.y, None),
            };
            let tensors = [r, &state.w[i], &state.s[i], pairs, g, &self.ends, out];
            let cost = [depth + self.chunk, 64 * depth + 8 * self.chunk];
            self.rows(&READ, activation, &tensors, piece, 1, [*depth, *chunks], cost)?;
        }
        Ok(())
    }

    pub(super) fn update(&self, piece: usize, layer: &Layer, [w, s]: [&Tensor; 2]) -> Result<()> {
        let Layer { x, g, depth, chunks, .. } = layer;
        let tensors = [x, g, &self.ends, &self.shares, &self.momentum, w, s];
        let gpu = &self.titans.gpu;
        let tiles = Tiles::of(gpu.capabilities(), (4 * depth).min(UPDATED_ROWS));
        let count = tiles.count(4 * depth);
        let run = Run {
            source: &UPDATE,
            activation: None,
            tensors: &tensors,
            count: self.planes * count,
            params: &self.params(piece, 1, count, [*depth, *chunks]),
            steps: self.chunk,
            work: 16 * self.chunk,
        };
        run.tiled(gpu, tiles, *chunks)
    }

    /// A kernel on tiles of rows of pieces.
    #[expect(clippy::too_many_arguments, reason = "what a kernel is run with")]
    pub(super) fn rows(
        &self,
        source: &attn_wgpu::KernelSource,
        activation: Option<Activation>,
        tensors: &[&Tensor],
        piece: usize,
        pieces: usize,
        size: [usize; 2],
        [steps, work]: [usize; 2],
    ) -> Result<()> {
        let gpu = &self.titans.gpu;
        let tiles = Tiles::of(gpu.capabilities(), self.chunk);
        let count = tiles.count(self.chunk);
        let run = Run {
            source,
            activation,
            tensors,
            count: self.planes * pieces * count,
            params: &self.params(piece, pieces, count, size),
            steps,
            work,
        };
        run.tiled(gpu, tiles, size[1])
    }

    pub(super) fn params(
        &self,
        piece: usize,
        pieces: usize,
        tiles: usize,
        size: [usize; 2],
    ) -> [u32; 9] {
        let [depth, chunks] = size;
        [self.tokens, piece, pieces, self.chunk, self.lead, self.pieces, tiles, depth, chunks]
            .map(|number| number as u32)
    }

    /// Elements of a row of shares.
    pub(super) fn width(&self) -> usize {
        self.chunk.next_multiple_of(4)
    }

    pub(super) fn activation(&self) -> Option<Activation> {
        Some(self.titans.config.activation)
    }
}

/// The tensor in f32, contiguous from the beginning of a binding on, rows filled up with zeros to whole
/// groups of four elements.
pub(super) fn aligned(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = last.next_multiple_of(4);
    }
    fitted(x, &shape)
}

/// The tensor in f32, contiguous from the beginning of a binding on.
pub(super) fn whole(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let shape = x.shape().to_vec();
    fitted(x, &shape)
}

pub(super) fn fitted(x: Tensor, shape: &[usize]) -> Result<Tensor> {
    if shape == x.shape() && x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x);
    }
    let copy = Tensor::uninit(x.gpu(), shape, DType::F32)?;
    ops::copy(&x, &copy)?;
    Ok(copy)
}
