//! What a memory keeps between calls.

use std::path::Path;

use attn_core::{ArrayFile, Error, Result};
use ndarray::{Array1, Array2, Array4, ArrayView3, s};

use super::expect;
use super::network::Weights;
use crate::Config;

/// What the file of a state says it is.
const KIND: &str = "attn-titans state";
const POSITION: &str = "position";
const DEPTH: &str = "depth";

/// The memories of all heads and how they move: three times their weights, whatever the number of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    w: Vec<Array4<f64>>,
    s: Vec<Array4<f64>>,
    chunk_start: Vec<Array4<f64>>,
    position: usize,
}

impl State {
    /// Before the first token: the learned weights `[heads, in, out]` of every layer for each of `batch`
    /// sequences, at rest.
    ///
    /// # Errors
    /// As [`State::from_parts`]. Weights of depth 2 should not all be 0: their gradients would be, for ever.
    pub fn new(learned: &[ArrayView3<'_, f64>], batch: usize, config: &Config) -> Result<Self> {
        let repeated = |layer: &ArrayView3<'_, f64>| {
            let (heads, rows, columns) = layer.dim();
            let shape = (batch, heads, rows, columns);
            layer.broadcast(shape).map(|all| all.to_owned()).unwrap_or_default()
        };
        let w: Vec<_> = learned.iter().map(repeated).collect();
        let s = w.iter().map(|w| Array4::zeros(w.raw_dim())).collect();
        State::from_parts(w, s, config)
    }

    /// At the start of a chunk: weights W and momentum S of every layer, `[batch, heads, in, out]`.
    ///
    /// # Errors
    /// [`Error::Config`] for parameters out of range and another number of layers, [`Error::Shape`] where
    /// extents are not those of the configuration.
    pub fn from_parts(w: Vec<Array4<f64>>, s: Vec<Array4<f64>>, config: &Config) -> Result<Self> {
        let state = State { chunk_start: w.clone(), w, s, position: 0 };
        let batch = state.batch();
        state.check(batch, config)?;
        Ok(state)
    }

    pub(crate) fn joined(
        w: Vec<Array4<f64>>,
        s: Vec<Array4<f64>>,
        chunk_start: Vec<Array4<f64>>,
        position: usize,
    ) -> Self {
        State { w, s, chunk_start, position }
    }

    /// The memories, by layer `[batch, heads, in, out]`.
    pub fn w(&self) -> &[Array4<f64>] {
        &self.w
    }

    /// Their momentum.
    pub fn s(&self) -> &[Array4<f64>] {
        &self.s
    }

    /// The weights at the start of the chunk, W*, at which gradients are taken; between two chunks, the
    /// weights.
    pub fn chunk_start(&self) -> &[Array4<f64>] {
        &self.chunk_start
    }

    /// Tokens since the start of the chunk, below `config.chunk`.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Starts a new chunk here, though the last one may not be full.
    pub fn restart(&mut self) {
        self.position = 0;
        self.chunk_start.clone_from(&self.w);
    }

    /// Bytes that the numbers take.
    pub fn bytes(&self) -> usize {
        let all = self.w.iter().chain(&self.s).chain(&self.chunk_start);
        all.map(Array4::len).sum::<usize>() * size_of::<f64>()
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let number = |number: usize| Array1::from_elem(1, number as f64);
        let mut file = ArrayFile::new(KIND)
            .with(POSITION, number(self.position).view())
            .with(DEPTH, number(self.w.len()).view());
        for (part, layers) in [("w", &self.w), ("s", &self.s), ("start", &self.chunk_start)] {
            for (i, layer) in layers.iter().enumerate() {
                file = file.with(&format!("{part}{i}"), layer.view());
            }
        }
        file.write(path)
    }

    /// Reads what [`State::save`] wrote, for a memory of this configuration.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read or is damaged or holds something else, otherwise as
    /// [`State::from_parts`].
    pub fn load(path: impl AsRef<Path>, config: &Config) -> Result<Self> {
        let path = path.as_ref();
        let file = ArrayFile::read(path, KIND)?;
        let count = |name: &str| -> Result<usize> {
            let numbers: Array1<f64> = file.get(name)?;
            match numbers.as_slice() {
                // Whole numbers far below 2^53, which f64 holds exactly.
                Some(&[x]) if x >= 0.0 && x.fract() == 0.0 && x < 1e15 => Ok(x as usize),
                _ => Err(Error::file(path, format!("`{name}` is not one whole number"))),
            }
        };
        let depth = count(DEPTH)?;
        if depth != config.depth() {
            return Err(Error::config(
                "config.depth",
                format!("{depth}, as the file"),
                config.depth(),
            ));
        }
        let layers = |part: &str| -> Result<Vec<Array4<f64>>> {
            (0..depth).map(|i| file.get(&format!("{part}{i}"))).collect()
        };
        let (w, s, chunk_start) = (layers("w")?, layers("s")?, layers("start")?);
        let mut state = State { w, s, chunk_start, position: count(POSITION)? };
        state.check(state.batch(), config)?;
        if state.position == 0 {
            state.restart();
        }
        Ok(state)
    }

    pub(crate) fn batch(&self) -> usize {
        self.w.first().map_or(0, |w| w.dim().0)
    }

    pub(crate) fn check(&self, batch: usize, config: &Config) -> Result<()> {
        config.validate()?;
        check_layers("state.w", &self.w, batch, config)?;
        check_layers("state.s", &self.s, batch, config)?;
        check_layers("state.chunk_start", &self.chunk_start, batch, config)?;
        if self.position >= config.chunk {
            let expected = format!("below the chunk of {} tokens", config.chunk);
            return Err(Error::data("state.position", expected, self.position));
        }
        Ok(())
    }

    /// One head.
    pub(super) fn head(&self, b: usize, h: usize) -> Memory {
        let part = |layers: &[Array4<f64>]| {
            layers.iter().map(|layer| layer.slice(s![b, h, .., ..]).to_owned()).collect()
        };
        Memory {
            w: part(&self.w),
            s: part(&self.s),
            start: part(&self.chunk_start),
            position: self.position,
        }
    }

    pub(super) fn set(&mut self, b: usize, h: usize, memory: &Memory) {
        for (layers, head) in [
            (&mut self.w, &memory.w),
            (&mut self.s, &memory.s),
            (&mut self.chunk_start, &memory.start),
        ] {
            for (layer, head) in layers.iter_mut().zip(head) {
                layer.slice_mut(s![b, h, .., ..]).assign(head);
            }
        }
    }

    /// The position after `tokens` more.
    pub(super) fn advance(&mut self, tokens: usize, config: &Config) {
        self.position = (self.position + tokens % config.chunk) % config.chunk;
    }
}

pub(super) fn check_layers(
    arg: &'static str,
    layers: &[Array4<f64>],
    batch: usize,
    config: &Config,
) -> Result<()> {
    let expected = config.layers();
    if layers.len() != expected.len() {
        return Err(Error::config(arg, format!("{} layers", expected.len()), layers.len()));
    }
    for (layer, [rows, columns]) in layers.iter().zip(expected) {
        expect(arg, layer.shape(), &[batch, config.heads, rows, columns])?;
    }
    Ok(())
}

/// One head's memory on its way through the tokens.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub w: Weights,
    pub s: Weights,
    pub start: Weights,
    pub position: usize,
}

impl Memory {
    /// Takes note of `tokens` more, and starts a new chunk where the last one is full.
    pub fn advance(&mut self, tokens: usize, config: &Config) {
        self.position = (self.position + tokens) % config.chunk;
        if self.position == 0 {
            self.start.clone_from(&self.w);
        }
    }
}

/// Cotangents of one head's memory.
#[derive(Debug, Clone)]
pub(super) struct Adjoint {
    pub w: Weights,
    pub s: Weights,
    pub start: Weights,
}

impl Adjoint {
    /// At a boundary of chunks, where the weights at which gradients are taken are the weights.
    pub fn fold_start(&mut self) {
        for (w, start) in self.w.iter_mut().zip(&mut self.start) {
            *w += &*start;
            *start = Array2::zeros(start.raw_dim());
        }
    }
}
