//! The memory on a device, in the dual form: the steps of [`crate::reference`], chunk by chunk.
//!
//! ```text
//! titans_shares     C, beta, kappa, omega of all chunks, from the gates
//! titans_pairs      (Q K^T) * C of all chunks
//! then for each chunk, as its gradients need the weights that the one before left:
//!   titans_network  the errors of its values, with what is between the layers
//!   titans_back     at depth 2, the errors of the first layer
//!   titans_read     what its queries read, layer by layer; titans_pairs in front of the second
//!   titans_update   weights and momentum behind it, layer by layer
//! ```
//!
//! In chunks of one token, and in streams, titans_token does it all (`decode.rs`). The derivative is in
//! `backward.rs`, what is too large for one walk in `parts.rs`. Nothing is read back. All batch entries and
//! heads are in one dispatch. Every invocation owns some rows of a chunk, or of the weights, and four
//! columns; on software drivers lanes share what they load.

mod backward;
mod decode;
mod kernels;
mod parts;
mod state;

use attn_core::Error;
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

pub use self::backward::{Cotangents, Grads, Saved};
pub use self::decode::Decoder;
#[cfg(feature = "bench")]
pub use self::kernels::kernels;
use self::kernels::{BACK, BOUND, NETWORK, PAIRS, READ, Run, SHARES, Tiles, UPDATE};
use self::parts::{Keep, Plan, pieces};
pub use self::state::State;
use self::state::{check_tensor, copied};
use crate::{Activation, Config};

/// Queries, keys, values and gates on a device, in f32, f16 or bf16; everything is computed in f32.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, tokens, dim_qk]`.
    pub q: &'a Tensor,
    /// Keys `[batch, heads, tokens, dim_qk]`.
    pub k: &'a Tensor,
    /// Values `[batch, heads, tokens, dim_v]`.
    pub v: &'a Tensor,
    /// Steps `[batch, heads, tokens]`.
    pub theta: &'a Tensor,
    /// Momentum `[batch, heads, tokens]`.
    pub eta: &'a Tensor,
    /// What is forgotten `[batch, heads, tokens]`.
    pub alpha: &'a Tensor,
}

/// What [`Titans::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// What was read `[batch, heads, tokens, dim_v]`, of the queries' type.
    pub y: Tensor,
    /// Behind the last token.
    pub state: State,
}

/// The memory on a device.
#[derive(Debug, Clone)]
pub struct Titans {
    gpu: Gpu,
    config: Config,
}

impl Titans {
    /// The memory with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Titans> {
        config.validate()?;
        Ok(Titans { gpu: gpu.clone(), config })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is read with all tokens, and the state behind them. `state` stays as it is.
    ///
    /// # Errors
    /// [`attn_core::Error`] for tensors and a state that do not fit together; those of the device.
    pub fn forward(&self, inputs: Inputs<'_>, state: &State) -> Result<Output> {
        let extents = self.check(inputs, state)?;
        let [batch, heads, tokens] = extents;
        if self.config.chunk == 1 && batch * heads * tokens > 0 && self.has_tokens()? {
            let mut decoder = self.decoder(state)?;
            let y = decoder.decode(inputs)?;
            return Ok(Output { y, state: decoder.state()? });
        }
        let all = pieces(&self.config, state.position, tokens);
        let plan = Plan::new(&self.gpu, &self.config, extents, state.position, all, Keep::Rows);
        self.walk(inputs, state, extents, &plan, &mut Vec::new())
    }

    fn check(&self, inputs: Inputs<'_>, state: &State) -> Result<[usize; 3]> {
        let extents = self.check_inputs(inputs)?;
        self.check_state(state, extents[0])?;
        Ok(extents)
    }

    /// Batch, heads and tokens.
    fn check_inputs(&self, inputs: Inputs<'_>) -> Result<[usize; 3]> {
        let config = &self.config;
        let &[batch, heads, tokens, _] = inputs.q.shape() else {
            let expected = "[batch, heads, tokens, dim_qk]";
            return Err(Error::shape("q", expected, inputs.q.shape()).into());
        };
        let rows = |dim| vec![batch, config.heads, tokens, dim];
        let gates = vec![batch, config.heads, tokens];
        for (arg, tensor, expected) in [
            ("q", inputs.q, rows(config.dim_qk)),
            ("k", inputs.k, rows(config.dim_qk)),
            ("v", inputs.v, rows(config.dim_v)),
            ("theta", inputs.theta, gates.clone()),
            ("eta", inputs.eta, gates.clone()),
            ("alpha", inputs.alpha, gates),
        ] {
            self.check_float(arg, tensor, &expected)?;
        }
        Ok([batch, heads, tokens])
    }

    fn check_state(&self, state: &State, batch: usize) -> Result<()> {
        let config = &self.config;
        let heads = config.heads;
        for (arg, layers) in
            [("state.w", &state.w), ("state.s", &state.s), ("state.start", &state.start)]
        {
            if layers.len() != config.depth() {
                let expected = format!("{} layers", config.depth());
                return Err(Error::config(arg, expected, layers.len()).into());
            }
            for (layer, [rows, columns]) in layers.iter().zip(config.layers()) {
                let padded = [rows, columns].map(|extent| extent.next_multiple_of(4));
                check_tensor(arg, layer, &self.gpu, &[batch, heads, padded[0], padded[1]])?;
            }
        }
        if state.position >= config.chunk {
            let expected = format!("below the chunk of {} tokens", config.chunk);
            return Err(Error::data("state.position", expected, state.position).into());
        }
        Ok(())
    }

    fn check_float(&self, arg: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
        check_tensor(arg, tensor, &self.gpu, expected)?;
        if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            let (expected, got) = ("f32, f16 or bf16".into(), tensor.dtype().name().into());
            return Err(Error::Dtype { arg, expected, got }.into());
        }
        Ok(())
    }
}

/// Rows of weights and momentum that an invocation changes at most: it holds sums of both.
const UPDATED_ROWS: usize = 16;

/// A layer's part of a walk, rows of all tokens `[batch, heads, tokens, ..]`.
struct Layer {
    /// What the layer gets of keys, and of queries.
    x: Tensor,
    r: Tensor,
    /// Its errors, and those within the bound of norms.
    error: Tensor,
    g: Tensor,
    /// `(R X^T) * C`.
    pairs: Tensor,
    /// vec4s of what goes in and what comes out.
    depth: usize,
    chunks: usize,
}

/// A walk through the chunks of a call.
struct Walk<'a> {
    titans: &'a Titans,
    planes: usize,
    tokens: usize,
    /// Tokens of a chunk, as many as the call has at most.
    chunk: usize,
    /// Tokens of the first piece, which ends the chunk that the state is in.
    lead: usize,
    pieces: usize,
    v: Tensor,
    shares: Tensor,
    ends: Tensor,
    momentum: Tensor,
    layers: Vec<Layer>,
    /// The hidden rows before the activation, at depth 2.
    z: Option<Tensor>,
    y: Tensor,
}

impl<'a> Walk<'a> {
    fn new(titans: &'a Titans, inputs: Inputs<'_>, position: usize) -> Result<Self> {
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
    fn run(self, state: &mut State) -> Result<Tensor> {
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

    fn share(&self, inputs: Inputs<'_>) -> Result<()> {
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
    fn pair(&self, layer: usize, piece: usize, pieces: usize) -> Result<()> {
        let Layer { x, r, pairs, depth, .. } = &self.layers[layer];
        let chunks = self.chunk.div_ceil(4);
        let tensors = [r, x, &self.shares, pairs];
        let (steps, work) = (*depth, 32 * depth);
        self.rows(&PAIRS, None, &tensors, piece, pieces, [*depth, chunks], [steps, work])
    }

    /// The errors of all layers at the weights `start`.
    fn errors(&self, piece: usize, start: &[Tensor]) -> Result<()> {
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

    fn bound(&self, piece: usize, layer: &Layer, bound: f64) -> Result<()> {
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

    fn read(&self, piece: usize, state: &State) -> Result<()> {
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

    fn update(&self, piece: usize, layer: &Layer, [w, s]: [&Tensor; 2]) -> Result<()> {
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
    fn rows(
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

    fn params(&self, piece: usize, pieces: usize, tiles: usize, size: [usize; 2]) -> [u32; 9] {
        let [depth, chunks] = size;
        [self.tokens, piece, pieces, self.chunk, self.lead, self.pieces, tiles, depth, chunks]
            .map(|number| number as u32)
    }

    /// Elements of a row of shares.
    fn width(&self) -> usize {
        self.chunk.next_multiple_of(4)
    }

    fn activation(&self) -> Option<Activation> {
        Some(self.titans.config.activation)
    }
}

/// The tensor in f32, contiguous from the beginning of a binding on, rows filled up with zeros to whole
/// groups of four elements.
fn aligned(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = last.next_multiple_of(4);
    }
    fitted(x, &shape)
}

/// The tensor in f32, contiguous from the beginning of a binding on.
fn whole(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let shape = x.shape().to_vec();
    fitted(x, &shape)
}

fn fitted(x: Tensor, shape: &[usize]) -> Result<Tensor> {
    if shape == x.shape() && x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x);
    }
    let copy = Tensor::uninit(x.gpu(), shape, DType::F32)?;
    ops::copy(&x, &copy)?;
    Ok(copy)
}
