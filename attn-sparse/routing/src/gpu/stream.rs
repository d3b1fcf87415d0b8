//! Token by token on a device: what each centroid holds.
//!
//! ```text
//! routing_enter      which lists the token enters, and in whose place
//! routing_place      its normalised key and its value go there
//! routing_logits, routing_softmax, routing_mix
//!                    attention over the lists that it entered
//! routing_average    the mean over them
//! ```

use attn_core::Error;
use attn_wgpu::attention::Inputs;
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

use super::clusters::Limited;
use super::kernels::{AVERAGE, ENTER, Each, PLACE};
use super::routes::scores;
use super::{Centroids, Extents, Routing, Tokens};

/// Tokens that the centroids hold, at most `window` each, with their keys and values: all that decoding
/// needs of the past.
///
/// A token's output is that of the last row of [`Routing::forward`] on the tokens up to it. It differs
/// from the token's row in a longer text: there, later tokens may push earlier ones out.
///
/// Decoding changes the state, so there is no `Clone` that would share it: [`State::fork`] copies.
#[derive(Debug)]
pub struct State {
    batch: usize,
    heads: usize,
    /// Elements of a query and of a value.
    dims: [usize; 2],
    /// Tokens so far.
    tokens: usize,
    /// Queries that the centroids hold.
    queries: List,
    /// Keys, where these are not the queries.
    keys: Option<List>,
    /// Normalised keys `[batch * heads, clusters, window, dim]`, rows of whole groups of four.
    k: Tensor,
    /// Values.
    v: Tensor,
}

/// Scores and numbers of the tokens that centroids hold, u32 `[batch * heads, clusters, window]`.
#[derive(Debug)]
struct List {
    scores: Tensor,
    tokens: Tensor,
}

impl List {
    fn new(gpu: &Gpu, shape: &[usize]) -> Result<List> {
        let new = || Tensor::uninit(gpu, shape, DType::U32);
        Ok(List { scores: new()?, tokens: new()? })
    }

    fn fork(&self) -> Result<List> {
        Ok(List { scores: copied(&self.scores)?, tokens: copied(&self.tokens)? })
    }
}

/// What happens to the lists: the slot of the new token in each, and how many entries it sees.
struct Entered {
    slots: Tensor,
    limits: Tensor,
}

impl State {
    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Bytes on the device. They do not grow.
    pub fn bytes(&self) -> usize {
        let lists = |list: &List| list.scores.len() + list.tokens.len();
        let lists = lists(&self.queries) + self.keys.as_ref().map_or(0, lists);
        4 * (lists + self.k.len() + self.v.len())
    }

    /// A copy that goes its own way.
    ///
    /// # Errors
    /// Allocation errors.
    pub fn fork(&self) -> Result<State> {
        let keys = self.keys.as_ref().map(List::fork).transpose()?;
        let (queries, k, v) = (self.queries.fork()?, copied(&self.k)?, copied(&self.v)?);
        Ok(State { queries, keys, k, v, ..*self })
    }
}

impl Routing {
    /// The state before the first token of `batch` sequences, for `heads` query heads with `dim`
    /// elements of a query and `dim_v` of a value.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] where attention is not causal; allocation errors.
    pub fn state(&self, batch: usize, heads: usize, dim: usize, dim_v: usize) -> Result<State> {
        if !self.config.causal {
            return Err(Error::config("causal", "true", "false").into());
        }
        let lists = [batch * heads, self.config.clusters, self.config.window];
        let held = |dim: usize| {
            let [planes, clusters, window] = lists;
            let shape = [planes, clusters, window, dim.next_multiple_of(4)];
            Tensor::uninit(&self.gpu, &shape, DType::F32)
        };
        let keys = match self.config.shared_qk {
            true => None,
            false => Some(List::new(&self.gpu, &lists)?),
        };
        let queries = List::new(&self.gpu, &lists)?;
        let (k, v) = (held(dim)?, held(dim_v)?);
        Ok(State { batch, heads, dims: [dim, dim_v], tokens: 0, queries, keys, k, v })
    }

    /// The output of some new tokens, `[batch, heads, new, dim_v]`, one after the other; centroids stay
    /// as they are. Nothing waits for the device.
    ///
    /// # Errors
    /// As [`Routing::forward`], and [`attn_core::Error::Shape`] for other extents than the state's.
    pub fn decode(
        &self,
        state: &mut State,
        inputs: Inputs<'_>,
        centroids: &Centroids,
    ) -> Result<Tensor> {
        let tokens = self.tokens(inputs)?;
        let Extents { batch, heads, tokens: new, clusters, dim } = tokens.extents;
        let dim_v = tokens.shape.dim_v;
        if (batch, heads, [dim, dim_v]) != (state.batch, state.heads, state.dims) {
            let State { batch, heads, dims, .. } = state;
            let expected = format!("batch {batch}, {heads} heads, dims {dims:?}, as the state");
            return Err(Error::shape("q", expected, inputs.q.shape()).into());
        }
        if state.keys.is_some() == self.config.shared_qk
            || state.k.shape()[1..3] != [clusters, self.config.window]
        {
            return Err(Error::config("state", "one of this layer", "another one's").into());
        }
        centroids.check([heads, clusters, dim])?;
        let out = [batch, heads, new, tokens.v.shape()[3]];
        let out = Tensor::uninit(&self.gpu, &out, DType::F32)?;
        if !out.is_empty() {
            let score = |x: &Tensor| scores(x, &centroids.rows, &tokens.extents);
            let queries = score(&tokens.q)?;
            let keys = tokens.k.as_ref().map(score).transpose()?;
            for at in 0..new {
                self.step(state, &tokens, (&queries, keys.as_ref()), at, &out)?;
                state.tokens += 1;
            }
        }
        ops::convert(&out.narrow(3, 0, dim_v)?, tokens.dtype)
    }

    /// Row `at` of the new tokens.
    fn step(
        &self,
        state: &State,
        tokens: &Tokens,
        (queries, keys): (&Tensor, Option<&Tensor>),
        at: usize,
        out: &Tensor,
    ) -> Result<()> {
        let own;
        let as_query = self.enter(&state.queries, state.tokens, queries, at)?;
        let slots = match (&state.keys, keys) {
            (Some(list), Some(keys)) => {
                own = self.enter(list, state.tokens, keys, at)?;
                &own.slots
            }
            _ => &as_query.slots,
        };
        self.place(tokens.k(), at, slots, &state.k)?;
        self.place(&tokens.v, at, slots, &state.v)?;
        let &[batch, heads, _, dim] = tokens.q.shape() else { return Ok(()) };
        let (planes, clusters) = (batch * heads, self.config.clusters);
        let q = tokens.q.narrow(2, at, 1)?.expand(&[batch, heads, clusters, dim])?;
        let q = q.contiguous()?.reshape(&[planes, clusters, 1, dim])?;
        let limited = Limited::new(&as_query.limits, &q, &state.k, self);
        let found = limited.forward(&q, &state.k, &state.v)?;
        self.average(&found, &as_query.limits, at, out)
    }

    fn enter(&self, list: &List, token: usize, scores: &Tensor, at: usize) -> Result<Entered> {
        let &[_, _, window] = list.scores.shape() else {
            return Err(Error::shape("state", "three dimensions", list.scores.shape()).into());
        };
        let lists = list.scores.len() / window;
        let new = || Tensor::uninit(&self.gpu, &[lists], DType::U32);
        let entered = Entered { slots: new()?, limits: new()? };
        let run = Each {
            source: &ENTER,
            flags: &[],
            tensors: &[scores, &list.scores, &list.tokens, &entered.slots, &entered.limits],
            count: lists,
            params: &[window as u32, token as u32, scores.shape()[3] as u32, at as u32],
            steps: window,
            work: 8 * window,
        };
        run.record(&self.gpu)?;
        Ok(entered)
    }

    fn place(&self, x: &Tensor, at: usize, slots: &Tensor, held: &Tensor) -> Result<()> {
        let &[_, clusters, window, dim] = held.shape() else { return Ok(()) };
        let run = Each {
            source: &PLACE,
            flags: &[],
            tensors: &[x, slots, held],
            count: slots.len() * dim / 4,
            params: &[
                window as u32,
                clusters as u32,
                (dim / 4) as u32,
                x.shape()[2] as u32,
                at as u32,
            ],
            steps: 1,
            work: 4,
        };
        run.record(&self.gpu)
    }

    fn average(&self, x: &Tensor, limits: &Tensor, at: usize, out: &Tensor) -> Result<()> {
        let &[planes, clusters, _, dim] = x.shape() else { return Ok(()) };
        let run = Each {
            source: &AVERAGE,
            flags: &[],
            tensors: &[x, limits, out],
            count: planes * dim / 4,
            params: &[
                clusters as u32,
                (dim / 4) as u32,
                (self.config.epsilon as f32).to_bits(),
                out.shape()[2] as u32,
                at as u32,
            ],
            steps: clusters,
            work: 8 * clusters,
        };
        run.record(&self.gpu)
    }
}

fn copied(x: &Tensor) -> Result<Tensor> {
    let copy = Tensor::uninit(x.gpu(), x.shape(), x.dtype())?;
    ops::copy(x, &copy)?;
    Ok(copy)
}
