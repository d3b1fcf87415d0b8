//! Calls that are too large for one walk: parts of the batch and heads, runs of whole chunks of the
//! sequence. Neither changes a bit of a result.

use std::ops::Range;

use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

use super::walk::Walk;
use super::{Inputs, Output, State, Titans};
use crate::Config;

/// Batch entries and heads that are computed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    batch: Range<usize>,
    heads: Range<usize>,
}

impl Part {
    fn planes(&self) -> usize {
        self.batch.len() * self.heads.len()
    }

    /// The window of a tensor `[batch, heads, ..]`.
    pub(super) fn of(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.narrow(0, self.batch.start, self.batch.len())?.narrow(
            1,
            self.heads.start,
            self.heads.len(),
        )
    }

    fn halves(&self) -> Option<[Part; 2]> {
        let split = |range: &Range<usize>| {
            let middle = range.start + range.len() / 2;
            (range.len() > 1).then_some([range.start..middle, middle..range.end])
        };
        if let Some(halves) = split(&self.batch) {
            return Some(halves.map(|batch| Part { batch, ..self.clone() }));
        }
        split(&self.heads).map(|halves| halves.map(|heads| Part { heads, ..self.clone() }))
    }
}

/// How a call is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) parts: Vec<Part>,
    /// Tokens of each run.
    pub(super) runs: Vec<Range<usize>>,
}

/// What is kept of the pieces of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Rows,
    /// Also the state before each piece, as backward does, which has more pieces in a dispatch.
    States,
}

/// The largest binding, and the operations of the largest dispatch, of some planes and pieces.
fn needs(config: &Config, planes: usize, tokens: usize, pieces: usize, keep: Keep) -> (f64, f64) {
    let [planes, tokens, pieces] = [planes, tokens, pieces].map(|count| count as f64);
    let layers = config.layers().into_iter();
    let layers: Vec<_> =
        layers.map(|layer| layer.map(|extent| extent.next_multiple_of(4) as f64)).collect();
    let chunk = (config.chunk as f64).min(tokens);
    let widest = layers.iter().flatten().fold(chunk + 3.0, |widest, &width| widest.max(width));
    let weights =
        layers.iter().fold(0.0_f64, |largest, [rows, columns]| largest.max(rows * columns));
    let (states, together) = match keep {
        Keep::Rows => (1.0, chunk),
        Keep::States => (pieces, tokens),
    };
    // Of each row of weights, backward has four sums.
    let sums = layers.iter().fold(0.0, |sum, [rows, _]| sum + 4.0 * rows);
    let bytes = 4.0 * planes * (tokens * widest).max(states * weights.max(sums));
    let work = 2.0 * planes * (tokens * chunk * widest).max(2.0 * together * weights);
    (bytes, work)
}

impl Plan {
    /// Splits a call of `extents` batch entries, heads and tokens, whose state is `position` tokens behind
    /// the start of a chunk, into runs of `pieces` chunks or fewer.
    pub(super) fn new(
        gpu: &Gpu,
        config: &Config,
        [batch, heads, tokens]: [usize; 3],
        position: usize,
        pieces: usize,
        keep: Keep,
    ) -> Plan {
        let available = gpu.capabilities().max_binding_bytes.min(1 << 32) as f64;
        let fits = |planes: usize, pieces: usize| {
            let tokens = pieces.saturating_mul(config.chunk).min(tokens);
            let (bytes, work) = needs(config, planes, tokens, pieces, keep);
            bytes <= available && work <= gpu.max_work_per_dispatch()
        };
        let (mut open, mut parts) =
            (vec![Part { batch: 0..batch, heads: 0..heads }], Vec::<Part>::new());
        while let Some(part) = open.pop() {
            match part.halves() {
                Some([first, second]) if !fits(part.planes(), 1) => open.extend([second, first]),
                _ => parts.push(part),
            }
        }
        let planes = parts.iter().map(Part::planes).max().unwrap_or(1);
        let mut pieces = pieces.max(1);
        while pieces > 1 && !fits(planes, pieces) {
            pieces = pieces.div_ceil(2);
        }
        let mut runs = Vec::new();
        let (mut from, mut room) =
            (0, pieces.saturating_mul(config.chunk).saturating_sub(position));
        while from < tokens {
            let to = tokens.min(from.saturating_add(room));
            runs.push(from..to);
            (from, room) = (to, pieces.saturating_mul(config.chunk));
        }
        Plan { parts, runs }
    }
}

/// Chunks that so many tokens touch.
pub(super) fn pieces(config: &Config, position: usize, tokens: usize) -> usize {
    (position.saturating_add(tokens)).div_ceil(config.chunk)
}

impl Titans {
    /// Through the runs of a plan; `states` gets the one before each run, or the only one there is.
    pub(super) fn walk(
        &self,
        inputs: Inputs<'_>,
        state: &State,
        [batch, heads, tokens]: [usize; 3],
        plan: &Plan,
        states: &mut Vec<State>,
    ) -> Result<Output> {
        let dtype = inputs.q.dtype();
        let shape = [batch, heads, tokens, self.config.dim_v];
        states.push(state.clone());
        if batch * heads * tokens == 0 {
            return Ok(Output {
                y: Tensor::zeros(&self.gpu, &shape, dtype)?,
                state: state.clone(),
            });
        }
        if let ([part], [_]) = (&plan.parts[..], &plan.runs[..]) {
            let (y, state) = self.once(inputs, state.of(part)?)?;
            return Ok(Output { y: ops::convert(&y, dtype)?, state });
        }
        let y = Tensor::uninit(&self.gpu, &shape, DType::F32)?;
        states.clear();
        let mut state = state.clone();
        for run in &plan.runs {
            states.push(state.clone());
            let mut next = state.empty()?;
            for part in &plan.parts {
                let window = |x: &Tensor| part.of(x)?.narrow(2, run.start, run.len());
                let [q, k, v] = [window(inputs.q)?, window(inputs.k)?, window(inputs.v)?];
                let [theta, eta, alpha] =
                    [window(inputs.theta)?, window(inputs.eta)?, window(inputs.alpha)?];
                let own = Inputs { q: &q, k: &k, v: &v, theta: &theta, eta: &eta, alpha: &alpha };
                let (read, moved) = self.once(own, state.of(part)?)?;
                ops::copy(&read, &window(&y)?)?;
                next.set(part, &moved)?;
            }
            state = next;
        }
        Ok(Output { y: ops::convert(&y, dtype)?, state })
    }

    /// One walk; the state is moved on in place.
    fn once(&self, inputs: Inputs<'_>, mut state: State) -> Result<(Tensor, State)> {
        let walk = Walk::new(self, inputs, state.position)?;
        let y = walk.run(&mut state)?.narrow(3, 0, self.config.dim_v)?;
        Ok((y, state))
    }
}
