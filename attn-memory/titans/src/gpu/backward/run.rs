//! One run of chunks: computed once more, then walked back.
//!
//! ```text
//! once more       titans_network, titans_back, titans_bound, titans_read, titans_update, chunk by chunk
//! what was read   titans_pairs_back, titans_both_back, titans_read_back, for all chunks, layer by layer
//! then for each chunk from the last to the first:
//!   stores        titans_both_back, titans_store_back, titans_error_back, titans_update_back
//!   errors        titans_bound_back, titans_curve, titans_residual, titans_rows_back, titans_outer: the
//!                 second order, through the gradients that the chunk took
//! gates           titans_dots, titans_dot, titans_gates_columns, titans_gates_rows, for all chunks
//! ```

use attn_wgpu::{DType, Result, Tensor, ops};

use super::{Adjoint, Written};
use crate::gpu::kernels::{
    ACTIVE, BOUND_BACK, CURVE, DOT, DOTS, ERROR_BACK, GATES_COLUMNS, GATES_ROWS, PAIRS_BACK, READ,
    READ_BACK, RESIDUAL, ROWS_BACK, Run, STORE_BACK, TAIL, UPDATE_BACK,
};
use crate::gpu::walk::{Layer, Walk, whole};
use crate::gpu::{Inputs, State, Titans};

/// A run of chunks with all that the way back reads.
pub(super) struct Replay<'a> {
    pub(super) walk: Walk<'a>,
    /// Where the run begins in its chunk, and W* there if that is not the chunk's start.
    position: usize,
    start: Vec<Tensor>,
    /// Weights and momentum before each piece, by layer `[pieces, planes, in, out]`.
    pub(super) w: Vec<Tensor>,
    pub(super) s: Vec<Tensor>,
    /// What queries read from the first of two layers, before the activation.
    hidden: Option<Tensor>,
}

/// A layer's results, on the way back.
struct Read {
    /// Their cotangent `[planes, tokens, out]`.
    d: Tensor,
    /// `(D E^T) * C`.
    pairs: Tensor,
    /// `D W^T` and `D S^T`, `[planes, tokens, in]`.
    by_w: Tensor,
    by_s: Tensor,
}

/// A layer's stores, on the way back.
struct Store {
    /// Errors times the transposed cotangents of weights and of momentum, `[planes, tokens, in]`.
    by_w: Tensor,
    by_s: Tensor,
    /// Cotangents of what the layer gets of keys, at first without its way through W*, and of its errors before their steps: within the bound of
    /// norms, and before it.
    dx: Tensor,
    bounded: Tensor,
    free: Tensor,
}

/// Cotangents within the network at W*.
struct Inner {
    dz: Option<Tensor>,
    dp: Option<Tensor>,
    error: Tensor,
    dv: Tensor,
}

impl<'a> Replay<'a> {
    /// `state` is moved on in place.
    pub(super) fn new(titans: &'a Titans, inputs: Inputs<'_>, mut state: State) -> Result<Self> {
        let walk = Walk::new(titans, inputs, state.position)?;
        let (position, start) = (state.position, state.start.clone());
        let kept = |layer: &Tensor| {
            let [rows, columns] = [layer.shape()[2], layer.shape()[3]];
            let shape = [walk.pieces, walk.planes, rows, columns];
            Tensor::uninit(&titans.gpu, &shape, DType::F32)
        };
        let w: Vec<Tensor> = state.w.iter().map(kept).collect::<Result<_>>()?;
        let s: Vec<Tensor> = state.s.iter().map(kept).collect::<Result<_>>()?;
        let hidden = walk.z.as_ref().map(|z| Tensor::uninit(&titans.gpu, z.shape(), DType::F32));
        let replay = Replay { walk, position, start, w, s, hidden: hidden.transpose()? };
        for piece in 0..replay.walk.pieces {
            replay.piece(piece, &state)?;
            state.position = 0;
        }
        if replay.hidden.is_some() {
            replay.walk.pair(1, 0, replay.walk.pieces)?;
        }
        Ok(replay)
    }

    fn piece(&self, piece: usize, state: &State) -> Result<()> {
        let walk = &self.walk;
        for (layers, kept) in [(&state.w, &self.w), (&state.s, &self.s)] {
            for (layer, kept) in layers.iter().zip(kept) {
                let slot = kept.narrow(0, piece, 1)?;
                ops::copy(&layer.reshape(slot.shape())?, &slot)?;
            }
        }
        walk.errors(piece, if state.position > 0 { &self.start } else { &state.w })?;
        if let (Some(hidden), [first, second]) = (&self.hidden, &walk.layers[..]) {
            let Layer { r, g, pairs, depth, chunks, .. } = first;
            let tensors = [r, &state.w[0], &state.s[0], pairs, g, &walk.ends, hidden];
            let cost = [depth + walk.chunk, 64 * depth + 8 * walk.chunk];
            walk.rows(&READ, None, &tensors, piece, 1, [*depth, *chunks], cost)?;
            let size = [*depth, *chunks];
            self.each(
                &ACTIVE,
                walk.activation(),
                &[hidden, &second.r],
                piece..piece + 1,
                size,
                &[],
            )?;
        }
        if piece + 1 < walk.pieces {
            for (i, layer) in walk.layers.iter().enumerate() {
                walk.update(piece, layer, [&state.w[i], &state.s[i]])?;
            }
        }
        Ok(())
    }

    /// Gradients of the run; `adjoint` goes from the state behind it to that before.
    pub(super) fn back(
        self,
        inputs: Inputs<'_>,
        d_y: Tensor,
        adjoint: &mut Adjoint,
    ) -> Result<Written> {
        let walk = &self.walk;
        let d_shares = self.rows(walk.width())?;
        let (reads, dq) = self.reads(d_y, &d_shares)?;
        let (eta, alpha) = (whole(inputs.eta)?, whole(inputs.alpha)?);
        let tail = self.rows(4)?;
        let tensors = [&eta, &alpha, &walk.shares, &walk.ends, &tail];
        self.each(&TAIL, None, &tensors, 0..walk.pieces, [0, 1], &[])?;
        let stores =
            walk.layers.iter().map(|layer| self.store(layer)).collect::<Result<Vec<_>>>()?;
        let inner = self.inner()?;
        let rows: usize = walk.layers.iter().map(|layer| 4 * layer.depth).sum();
        let state =
            Tensor::uninit(&walk.titans.gpu, &[walk.pieces, walk.planes, rows, 4], DType::F32)?;
        for piece in (0..walk.pieces).rev() {
            for i in 0..walk.layers.len() {
                self.stored(i, piece, &reads[i], &stores[i], adjoint, &tail, &state)?;
            }
            self.second_order(piece, &stores, &inner, adjoint)?;
        }
        let gates = self.gates(&reads, &stores, [&tail, &d_shares, &state])?;
        let dk = stores[0].dx.clone();
        Ok(Written { rows: [dq, dk, inner.dv], gates })
    }

    fn store(&self, layer: &Layer) -> Result<Store> {
        let [x, e] = [4 * layer.depth, 4 * layer.chunks];
        let bounded = self.rows(e)?;
        let free = match self.walk.titans.config.max_grad_norm {
            Some(_) => self.rows(e)?,
            None => bounded.clone(),
        };
        let [by_w, by_s, dx] = [self.rows(x)?, self.rows(x)?, self.rows(x)?];
        Ok(Store { by_w, by_s, dx, bounded, free })
    }

    fn inner(&self) -> Result<Inner> {
        let (first, last) = (&self.walk.layers[0], &self.walk.layers[self.walk.layers.len() - 1]);
        let hidden = || match &self.hidden {
            Some(_) => self.rows(4 * first.chunks).map(Some),
            None => Ok(None),
        };
        Ok(Inner {
            dz: hidden()?,
            dp: hidden()?,
            error: self.rows(4 * last.chunks)?,
            dv: self.rows(4 * last.chunks)?,
        })
    }

    /// From the cotangent of what was read to that of the queries, through the layers; what pairs and the
    /// state before each piece get on the way.
    fn reads(&self, d_y: Tensor, d_shares: &Tensor) -> Result<(Vec<Read>, Tensor)> {
        let walk = &self.walk;
        let all = || 0..walk.pieces;
        let mut reads = Vec::new();
        let mut d = d_y;
        for (i, layer) in walk.layers.iter().enumerate().rev() {
            let Layer { x, r, g, depth, chunks, .. } = layer;
            let add = i + 1 < walk.layers.len();
            let pairs = self.rows(walk.width())?;
            let tensors = [r, x, &d, g, &walk.shares, &pairs, d_shares];
            let (size, extra) = ([*depth, walk.width() / 4], [*chunks as u32, add.into()]);
            let cost = [depth + chunks, 32 * (depth + chunks)];
            self.product(&PAIRS_BACK, None, &tensors, all(), size, &extra, cost)?;
            let [by_w, by_s, out] =
                [self.rows(4 * depth)?, self.rows(4 * depth)?, self.rows(4 * depth)?];
            let weights = [&self.w[i], &self.s[i]];
            self.both(&d, weights, [&by_w, &by_s], all(), layer, walk.planes)?;
            let mut tensors = vec![&by_w, &by_s, &pairs, x, &walk.ends, &out];
            let hidden = self.hidden.as_ref().filter(|_| i > 0);
            tensors.extend(hidden);
            let activation = hidden.and(walk.activation());
            let cost = [walk.chunk, 8 * walk.chunk];
            self.product(&READ_BACK, activation, &tensors, all(), [0, *depth], &[], cost)?;
            reads.push(Read { d, pairs, by_w, by_s });
            d = out;
        }
        reads.reverse();
        Ok((reads, d))
    }

    /// A layer's stores in one piece, and its state before the piece.
    #[expect(clippy::too_many_arguments, reason = "what a layer's step of the walk reads")]
    fn stored(
        &self,
        i: usize,
        piece: usize,
        read: &Read,
        store: &Store,
        adjoint: &Adjoint,
        tail: &Tensor,
        state: &Tensor,
    ) -> Result<()> {
        let walk = &self.walk;
        let Layer { x, r, g, error, pairs, depth, chunks } = &walk.layers[i];
        let Store { by_w, by_s, dx, bounded, free } = store;
        let (w, s) = (&adjoint.w[i], &adjoint.s[i]);
        let one = || piece..piece + 1;
        let pair_cost = [walk.chunk, 8 * walk.chunk];
        self.both(g, [w, s], [by_w, by_s], one(), &walk.layers[i], 0)?;
        let tensors = [r, by_w, by_s, &read.pairs, &walk.ends, tail, dx];
        self.product(&STORE_BACK, None, &tensors, one(), [0, *depth], &[], pair_cost)?;
        let tensors = [x, w, s, pairs, &read.d, tail, bounded];
        let cost = [depth + walk.chunk, 64 * depth + 8 * walk.chunk];
        self.product(&ERROR_BACK, None, &tensors, one(), [*depth, *chunks], &[], cost)?;
        self.state_dots(i, piece, [w, s], state)?;
        let tensors = [r, &read.d, &walk.ends, &walk.momentum, w, s];
        self.weights(&UPDATE_BACK, &tensors, piece, [*depth, *chunks], 16)?;
        if let Some(bound) = walk.titans.config.max_grad_norm {
            let coefficient = walk.titans.config.coefficient as f32;
            let extra = [*chunks as u32, coefficient.to_bits(), (bound as f32).to_bits()];
            let tensors = [x, error, bounded, &walk.ends, free, dx];
            self.each(&BOUND_BACK, None, &tensors, one(), [*depth, 1], &extra)?;
        }
        Ok(())
    }

    /// Through the gradients that a piece took at W*.
    fn second_order(
        &self,
        piece: usize,
        stores: &[Store],
        inner: &Inner,
        adjoint: &mut Adjoint,
    ) -> Result<()> {
        let walk = &self.walk;
        let within = piece == 0 && self.position > 0;
        let (start, planes) = if within { (&self.start, 0) } else { (&self.w, walk.planes) };
        let target: &[Tensor] = if within {
            adjoint.started()?
        } else {
            adjoint.fold()?;
            &adjoint.w
        };
        let one = || piece..piece + 1;
        let extra = [planes as u32];
        let product = |depth: usize| [depth, 32 * depth];
        let Inner { error: d_error, dv, .. } = inner;
        let last = &walk.layers[walk.layers.len() - 1];
        let free = &stores[stores.len() - 1].free;
        let first = &walk.layers[0];
        let dk = &stores[0].dx;
        let (Some(z), Some(dz), Some(dp)) = (&walk.z, &inner.dz, &inner.dp) else {
            let tensors = [free, &start[0], free, &walk.ends, d_error, dv];
            self.product(&RESIDUAL, None, &tensors, one(), [0, last.chunks], &extra, [0, 8])?;
            let (tensors, size) = ([d_error, &start[0], dk], [last.chunks, last.depth]);
            self.product(&ROWS_BACK, None, &tensors, one(), size, &extra, product(last.chunks))?;
            return self.outer([&first.x, d_error], &target[0], piece, [last.depth, last.chunks]);
        };
        let (active, hidden) = (walk.activation(), first.chunks);
        let tensors = [&last.error, &start[1], &stores[0].free, z, &walk.ends, dp, dz];
        let size = [last.chunks, hidden];
        self.product(&CURVE, active, &tensors, one(), size, &extra, product(last.chunks))?;
        let tensors = [dp, &start[1], free, &walk.ends, d_error, dv];
        let turned = [hidden, last.chunks];
        self.product(&RESIDUAL, None, &tensors, one(), turned, &extra, product(hidden))?;
        let tensors = [d_error, &start[1], &stores[1].dx, z, dz];
        self.product(&ROWS_BACK, active, &tensors, one(), size, &extra, product(last.chunks))?;
        let (tensors, size) = ([dz, &start[0], dk], [hidden, first.depth]);
        self.product(&ROWS_BACK, None, &tensors, one(), size, &extra, product(hidden))?;
        self.outer([dp, &last.error], &target[1], piece, turned)?;
        self.outer([&last.x, d_error], &target[1], piece, turned)?;
        self.outer([&first.x, dz], &target[0], piece, [first.depth, hidden])
    }

    /// Cotangents of theta, eta and alpha.
    fn gates(
        &self,
        reads: &[Read],
        stores: &[Store],
        [tail, d_shares, state]: [&Tensor; 3],
    ) -> Result<[Tensor; 3]> {
        let walk = &self.walk;
        let gate = || {
            let shape = &walk.shares.shape()[..3];
            Tensor::uninit(&walk.titans.gpu, shape, DType::F32)
        };
        let [theta, eta, alpha] = [gate()?, gate()?, gate()?];
        let coefficient = walk.titans.config.coefficient as f32;
        let d_ends = self.rows(4)?;
        for (i, (layer, store)) in walk.layers.iter().zip(stores).enumerate() {
            let (Layer { x, r, g, depth, .. }, Read { by_w, by_s, .. }) = (layer, &reads[i]);
            let tensors = [r, by_w, by_s, x, &store.by_w, &store.by_s, &d_ends];
            self.dots(&DOTS, &tensors, *depth, &[u32::from(i > 0)])?;
            let extra = [u32::from(i > 0), coefficient.to_bits()];
            self.dots(&DOT, &[g, &store.bounded, &theta], layer.chunks, &extra)?;
        }
        let moves = self.rows(walk.width())?;
        let tensors = [tail, &walk.shares, &walk.ends, &d_ends, state, d_shares, &moves];
        let rows = state.shape()[2];
        let numbers =
            [walk.tokens, walk.pieces, walk.chunk, walk.lead, walk.width(), rows, walk.planes];
        let run = Run {
            source: &GATES_COLUMNS,
            activation: None,
            tensors: &tensors,
            count: walk.planes * walk.pieces * (walk.chunk + 1),
            params: &numbers.map(|number| number as u32),
            steps: 2 * walk.chunk + rows,
            work: 16 * walk.chunk + 4 * rows,
        };
        run.record(&walk.titans.gpu)?;
        let tensors = [d_shares, &moves, &eta, &alpha];
        self.each(&GATES_ROWS, None, &tensors, 0..walk.pieces, [0, 1], &[])?;
        Ok([theta, eta, alpha])
    }
}
