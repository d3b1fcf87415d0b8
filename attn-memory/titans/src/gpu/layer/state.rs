//! What a layer keeps between calls.

use std::path::Path;

use attn_core::{ArrayFile, Error};
use attn_wgpu::{Result, Tensor};
use ndarray::{Array1, ArrayD, IxDyn, Slice};

use super::attention::Pairs;
use super::parts::{repeated, upload};
use super::{Combination, Layer};
use crate::gpu;

/// What the file of a state says it is.
const KIND: &str = "attn-titans layer state";
const POSITION: &str = "position";

/// The memories, what convolutions and attention reach of the tokens before, and the number of tokens so
/// far. Its size does not grow with that number, once a window or segment is full.
///
/// Handles: a clone shares the numbers, which no call changes.
#[derive(Debug, Clone)]
pub struct State {
    pub(super) memory: gpu::State,
    /// Projections of the last tokens, which convolutions reach `[batch, kernel - 1, features]`.
    pub(super) tail: Tensor,
    /// Keys and values of attention, of the window or the segment.
    pub(super) seen: Option<Pairs>,
    pub(super) segment: Option<Segment>,
    pub(super) position: usize,
}

/// What memory as context keeps of a segment.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// As the state's tail, of the queries that tokens ask with before attention.
    pub(super) tail: Tensor,
    /// Keys and values of the memory's answers.
    pub(super) answers: Pairs,
    /// The memory's weights before the segment.
    pub(super) before: Vec<Tensor>,
}

/// A tensor of a state.
struct Part {
    name: String,
    shape: Vec<usize>,
    /// Whether rows and columns are filled up to multiples of four on a device.
    padded: bool,
}

impl Part {
    fn rows(name: &str, shape: impl Into<Vec<usize>>) -> Self {
        Part { name: name.to_owned(), shape: shape.into(), padded: false }
    }

    fn device_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.padded {
            shape.iter_mut().skip(2).for_each(|extent| *extent = extent.next_multiple_of(4));
        }
        shape
    }
}

impl State {
    /// The memories.
    pub fn memory(&self) -> &gpu::State {
        &self.memory
    }

    /// Tokens so far, without persistent ones.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.tail.shape()[0]
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.tensors().iter().map(|tensor| 4 * tensor.len()).sum()
    }

    /// Writes a safetensors file. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Shape`] for a state of another layer, [`Error::File`] where the file cannot be written;
    /// errors of the device.
    pub fn save(&self, path: impl AsRef<Path>, layer: &Layer) -> Result<()> {
        self.check(layer, self.batch())?;
        let position = Array1::from_elem(1, self.position as f64);
        let mut file = ArrayFile::new(KIND).with(POSITION, position.view());
        for (part, tensor) in parts(layer, self.batch(), self.position).iter().zip(self.tensors()) {
            let array = tensor.to_array::<f32>()?;
            let inside =
                array.slice_each_axis(|axis| Slice::from(..part.shape[axis.axis.index()] as isize));
            file = file.with(&part.name, inside.mapv(f64::from).view());
        }
        Ok(file.write(path)?)
    }

    /// Reads what [`State::save`] wrote, for a layer of the same configuration.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be read, is damaged, or holds something else or the state of
    /// a layer of other extents; errors of the device.
    pub fn load(path: impl AsRef<Path>, layer: &Layer) -> Result<Self> {
        let path = path.as_ref();
        let file = ArrayFile::read(path, KIND)?;
        let position: Array1<f64> = file.get(POSITION)?;
        let position = match position.as_slice() {
            // Whole numbers far below 2^53, which f64 holds exactly.
            Some(&[x]) if x >= 0.0 && x.fract() == 0.0 && x < 1e15 => x as usize,
            _ => {
                let reason = format!("`{POSITION}` is not one whole number");
                return Err(Error::file(path, reason).into());
            }
        };
        let first: ArrayD<f64> = file.get("w0")?;
        let batch = first.shape().first().copied().unwrap_or(0);
        let mut tensors = Vec::new();
        for part in parts(layer, batch, position) {
            let array: ArrayD<f64> = file.get(&part.name)?;
            if array.shape() != part.shape {
                let (name, got) = (&part.name, array.shape());
                let reason = format!("`{name}` has shape {got:?}, expected {:?}", part.shape);
                return Err(Error::file(path, reason).into());
            }
            let mut wide = ArrayD::zeros(IxDyn(&part.device_shape()));
            wide.slice_each_axis_mut(|axis| Slice::from(..part.shape[axis.axis.index()] as isize))
                .assign(&array);
            tensors.push(upload(layer.gpu(), &wide)?);
        }
        let mut state = layer.first.with(&mut tensors.into_iter());
        state.position = position;
        state.memory.position = layer.chunk_position(position);
        Ok(state)
    }

    /// That of one sequence, for `batch` of them.
    pub(super) fn repeated(&self, batch: usize) -> Result<Self> {
        let all: Result<Vec<_>> =
            self.tensors().into_iter().map(|tensor| repeated(tensor, batch)).collect();
        Ok(self.with(&mut all?.into_iter()))
    }

    /// Checks that it is one of the layer's, for `batch` sequences.
    pub(super) fn check(&self, layer: &Layer, batch: usize) -> Result<()> {
        let (expected, tensors) = (parts(layer, batch, self.position), self.tensors());
        if tensors.len() != expected.len() {
            let count = format!("{} tensors, of a layer of this combination", expected.len());
            return Err(Error::config("state", count, tensors.len()).into());
        }
        for (part, tensor) in expected.iter().zip(tensors) {
            if tensor.shape() != part.device_shape() {
                let expected = format!("`{}` of {:?}", part.name, part.device_shape());
                return Err(Error::shape("state", expected, tensor.shape()).into());
            }
            if !tensor.gpu().is_same(layer.gpu()) {
                let (expected, got) = (layer.gpu().adapter().name.as_str(), "another Gpu's");
                return Err(Error::config("state", expected, got).into());
            }
        }
        let chunk_position = layer.chunk_position(self.position);
        if self.memory.position != chunk_position {
            let expected = format!("a memory {chunk_position} tokens into a chunk");
            return Err(Error::data("state", expected, self.memory.position).into());
        }
        Ok(())
    }

    /// All tensors, in the order of [`parts`].
    fn tensors(&self) -> Vec<&Tensor> {
        let memory = &self.memory;
        let mut all: Vec<_> = memory.w.iter().chain(&memory.s).chain(&memory.start).collect();
        all.push(&self.tail);
        all.extend(self.seen.iter().flat_map(|seen| [&seen.k, &seen.v]));
        if let Some(Segment { tail, answers, before }) = &self.segment {
            all.extend([tail, &answers.k, &answers.v]);
            all.extend(before);
        }
        all
    }

    /// The same with other tensors, as many and in the same order.
    fn with(&self, tensors: &mut impl Iterator<Item = Tensor>) -> Self {
        let mut next = self.clone();
        let memory = &mut next.memory;
        let mut all: Vec<_> =
            memory.w.iter_mut().chain(&mut memory.s).chain(&mut memory.start).collect();
        all.push(&mut next.tail);
        all.extend(next.seen.iter_mut().flat_map(|seen| [&mut seen.k, &mut seen.v]));
        if let Some(Segment { tail, answers, before }) = &mut next.segment {
            all.extend([tail, &mut answers.k, &mut answers.v]);
            all.extend(before);
        }
        all.into_iter().zip(tensors).for_each(|(own, other)| *own = other);
        next
    }
}

/// Names and extents of a state's tensors behind `position` tokens.
fn parts(layer: &Layer, batch: usize, position: usize) -> Vec<Part> {
    let memory = &layer.config.memory;
    let weights = |name: &'static str| {
        let layers = memory.layers().into_iter().enumerate();
        layers.map(move |(i, [rows, columns])| Part {
            name: format!("{name}{i}"),
            shape: vec![batch, memory.heads, rows, columns],
            padded: true,
        })
    };
    let mut all: Vec<_> = ["w", "s", "start"].into_iter().flat_map(weights).collect();
    let [queries, features] = layer.project.tails(batch);
    all.push(Part::rows("tail", features));
    let persistent = layer.persistent();
    let window = |window: usize, tokens: usize| Some(tokens.min(window - 1));
    let seen = match layer.config.combination {
        Combination::Alone => None,
        Combination::Gate { window: size } => window(size, position),
        Combination::Layer { window: size } => window(size, persistent.saturating_add(position)),
        Combination::Context { segment } | Combination::LiteralContext { segment } => {
            Some(position % segment)
        }
    };
    let (Some(seen), Some(beside)) = (seen, &layer.beside) else { return all };
    let [heads, dim] = beside.attend.heads();
    let pairs = [batch, heads, seen, dim];
    all.extend(["seen_k", "seen_v"].map(|name| Part::rows(name, pairs)));
    if layer.segment().is_some() {
        all.push(Part::rows("asked", queries));
        all.extend(["answers_k", "answers_v"].map(|name| Part::rows(name, pairs)));
        all.extend(weights("before"));
    }
    all
}
