//! The causal form token by token: what is kept between tokens.

use std::path::Path;

use attn_core::{ArrayFile, Error, Result};
use ndarray::{Array1, Array2, Array3, Array4, ArrayView1, Dimension, Ix1, Ix2, Ix3, Ix4, s};

use super::{Inputs, Output, Plane, PlaneOutput, check, expect, sigmoid};
use crate::Config;

/// What the file of a state says it is.
pub(crate) const STATE_KIND: &str = "attn-flowformer state";

/// What a causal stream keeps: for each head four sums of `dim_qk` elements, the matrix M, and the largest
/// flow with the sum of exponentials; and how many tokens there were, which padding does not add to.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    tokens: Array1<usize>,
    heads: Array2<Head>,
    dims: [usize; 2],
}

/// Of one head of one batch entry.
#[derive(Debug, Clone, PartialEq)]
struct Head {
    k: Array1<f64>,
    q: Array1<f64>,
    k_hat: Array1<f64>,
    q_hat: Array1<f64>,
    /// Without a clamp, exponentials of flows may overflow: the sum is relative to the largest flow.
    max: f64,
    sum: f64,
    memory: Array2<f64>,
}

impl State {
    /// Before the first token.
    pub fn new(batch: usize, heads: usize, dim_qk: usize, dim_v: usize) -> Self {
        let zeros = || Array1::zeros(dim_qk);
        let head = Head {
            k: zeros(),
            q: zeros(),
            k_hat: zeros(),
            q_hat: zeros(),
            max: f64::NEG_INFINITY,
            sum: 0.0,
            memory: Array2::zeros((dim_qk, dim_v)),
        };
        State {
            tokens: Array1::zeros(batch),
            heads: Array2::from_elem((batch, heads), head),
            dims: [dim_qk, dim_v],
        }
    }

    /// Tokens so far that were not padding `[batch]`.
    pub fn tokens(&self) -> &Array1<usize> {
        &self.tokens
    }

    /// Sum of `sigmoid(k)`, K `[batch, heads, dim_qk]`.
    pub fn k(&self) -> Array3<f64> {
        self.rows(|head| &head.k)
    }

    /// Sum of `sigmoid(q)`, Q `[batch, heads, dim_qk]`.
    pub fn q(&self) -> Array3<f64> {
        self.rows(|head| &head.q)
    }

    /// K^ `[batch, heads, dim_qk]`.
    pub fn k_hat(&self) -> Array3<f64> {
        self.rows(|head| &head.k_hat)
    }

    /// Q^ `[batch, heads, dim_qk]`.
    pub fn q_hat(&self) -> Array3<f64> {
        self.rows(|head| &head.q_hat)
    }

    /// Largest clamped flow of a source `[batch, heads]`; -inf before the first token.
    pub fn max(&self) -> Array2<f64> {
        self.heads.map(|head| head.max)
    }

    /// Sum of the exponentials of these flows, relative to the largest `[batch, heads]`.
    pub fn sum(&self) -> Array2<f64> {
        self.heads.map(|head| head.sum)
    }

    /// M `[batch, heads, dim_qk, dim_v]`.
    pub fn memory(&self) -> Array4<f64> {
        let [(batch, heads), (dim_qk, dim_v)] = [self.heads.dim(), self.dims.into()];
        let element = |(b, h, d, e)| self.heads[[b, h]].memory[[d, e]];
        Array4::from_shape_fn((batch, heads, dim_qk, dim_v), element)
    }

    /// Bytes that the numbers take: independent of the number of tokens.
    pub fn bytes(&self) -> usize {
        let [dim_qk, dim_v] = self.dims;
        let numbers = self.heads.len() * (4 * dim_qk + dim_qk * dim_v + 2);
        numbers * size_of::<f64>() + self.tokens.len() * size_of::<usize>()
    }

    /// Outputs of some new tokens, one after the other: those of [`super::forward`] on the whole text.
    ///
    /// # Errors
    /// As [`super::forward`], [`Error::Config`] where the configuration is not causal, and [`Error::Shape`]
    /// where the state has other extents; the state is then unchanged.
    pub fn decode(&mut self, inputs: Inputs<'_>, config: &Config) -> Result<Output> {
        let shape = check(inputs, config)?;
        if !config.causal {
            return Err(Error::config("causal", "true", "false"));
        }
        let (batch, heads) = self.heads.dim();
        let [dim_qk, dim_v] = self.dims;
        let called = [shape.batch, shape.heads, shape.dim_qk, shape.dim_v];
        expect("state", &[batch, heads, dim_qk, dim_v], &called)?;
        let mut output = Output::new(shape);
        for b in 0..batch {
            let mut new = 0;
            for h in 0..heads {
                let plane = inputs.plane(b, h, shape.group());
                let head = &mut self.heads[[b, h]];
                let own = head.decode(&plane, self.tokens[b], config);
                output.set(b, h, &plane, &own);
                new = plane.sinks.len();
            }
            self.tokens[b] += new;
        }
        Ok(output)
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        ArrayFile::new(STATE_KIND)
            .with("tokens", self.tokens.mapv(|tokens| tokens as f64).view())
            .with("k", self.k().view())
            .with("q", self.q().view())
            .with("k_hat", self.k_hat().view())
            .with("q_hat", self.q_hat().view())
            .with("max", self.max().view())
            .with("sum", self.sum().view())
            .with("memory", self.memory().view())
            .write(path)
    }

    /// Reads what [`State::save`] wrote.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be read or holds something else.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = ArrayFile::read(path, STATE_KIND)?;
        let memory = file.get::<Ix4>("memory")?;
        let (batch, heads, dim_qk, dim_v) = memory.dim();
        let sums = |name| array::<Ix3>(&file, path, name, &[batch, heads, dim_qk]);
        let (k, q, k_hat, q_hat) = (sums("k")?, sums("q")?, sums("k_hat")?, sums("q_hat")?);
        let numbers = |name| array::<Ix2>(&file, path, name, &[batch, heads]);
        let (max, sum) = (numbers("max")?, numbers("sum")?);
        let tokens = array::<Ix1>(&file, path, "tokens", &[batch])?;
        if tokens.iter().any(|&tokens| tokens < 0.0 || tokens.fract() != 0.0) {
            return Err(Error::file(path, "`tokens` holds something else than numbers of tokens"));
        }
        let row = |x: &Array3<f64>, b, h| x.slice(s![b, h, ..]).to_owned();
        let head = |(b, h)| Head {
            k: row(&k, b, h),
            q: row(&q, b, h),
            k_hat: row(&k_hat, b, h),
            q_hat: row(&q_hat, b, h),
            max: max[[b, h]],
            sum: sum[[b, h]],
            memory: memory.slice(s![b, h, .., ..]).to_owned(),
        };
        Ok(State {
            tokens: tokens.mapv(|tokens| tokens as usize),
            heads: Array2::from_shape_fn((batch, heads), head),
            dims: [dim_qk, dim_v],
        })
    }

    fn rows(&self, row: impl Fn(&Head) -> &Array1<f64>) -> Array3<f64> {
        let (batch, heads) = self.heads.dim();
        let shape = (batch, heads, self.dims[0]);
        Array3::from_shape_fn(shape, |(b, h, d)| row(&self.heads[[b, h]])[d])
    }
}

fn array<D: Dimension>(
    file: &ArrayFile,
    path: &Path,
    name: &str,
    shape: &[usize],
) -> Result<ndarray::Array<f64, D>> {
    let array = file.get::<D>(name)?;
    match array.shape() == shape {
        true => Ok(array),
        false => {
            let reason = format!("`{name}` has shape {:?}, expected {shape:?}", array.shape());
            Err(Error::file(path, reason))
        }
    }
}

impl Head {
    fn decode(&mut self, plane: &Plane, before: usize, config: &Config) -> PlaneOutput {
        let tokens = plane.sinks.len();
        let zeros = || Array1::zeros(tokens);
        let mut output = PlaneOutput {
            out: Array2::zeros((tokens, plane.v.ncols())),
            incoming: zeros(),
            outgoing: zeros(),
            conserved_sink: zeros(),
            conserved_source: zeros(),
            allocation: zeros(),
            competition: zeros(),
            memory: Array2::zeros((0, 0)),
        };
        for row in 0..tokens {
            self.step(plane, row, (before + row + 1) as f64, config, &mut output);
        }
        output.memory = self.memory.clone();
        output
    }

    /// Takes in token t, counted from 1.
    fn step(
        &mut self,
        plane: &Plane,
        row: usize,
        t: f64,
        config: &Config,
        output: &mut PlaneOutput,
    ) {
        let (a, b, v) = (plane.a.row(row), plane.b.row(row), plane.v.row(row));
        let eps = config.epsilon;
        let flow = |x: ArrayView1<'_, f64>, sum: &Array1<f64>| {
            x.iter().zip(sum).map(|(x, sum)| (x + eps) * (sum + eps)).sum::<f64>()
        };
        self.k += &b;
        self.q += &a;
        let (incoming, outgoing) = (flow(a, &self.k), flow(b, &self.q));
        self.k_hat.scaled_add(t / outgoing, &b);
        self.q_hat.scaled_add(t / incoming, &a);
        let (sink, source) = (flow(a, &self.k_hat) / t, flow(b, &self.q_hat) / t);

        let logit = config.clamped(source);
        let max = self.max.max(logit);
        self.sum = self.sum * (self.max - max).exp() + (logit - max).exp();
        self.max = max;
        let competition = t * (logit - max).exp() / self.sum;
        for (mut row, b) in self.memory.rows_mut().into_iter().zip(b) {
            row.scaled_add(b * competition, &v);
        }

        let allocation = sigmoid(sink);
        let out = a.dot(&self.memory) * (allocation / incoming);
        output.out.row_mut(row).assign(&out);
        output.incoming[row] = incoming;
        output.outgoing[row] = outgoing;
        output.conserved_sink[row] = sink;
        output.conserved_source[row] = source;
        output.allocation[row] = allocation;
        output.competition[row] = competition;
    }
}
