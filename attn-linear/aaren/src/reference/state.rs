//! Streams: what is kept between tokens.

use std::path::Path;

use attn_core::{ArrayFile, Error, Result};
use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Ix2, Ix3, s};

use super::element::{Element, Sum};
use super::{Inputs, Order, Output, by_head, check, expect, forward_in};
use crate::Config;

/// What the file of a state says it is.
const KIND: &str = "attn-aaren state";

/// What a stream keeps: three numbers m, u and w for each head (w has `dim_v` elements), however many tokens
/// there were.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    elements: Array2<Element>,
    dim_v: usize,
}

impl State {
    /// Before the first token.
    pub fn new(batch: usize, heads: usize, dim_v: usize) -> Self {
        let elements = Array2::from_elem((batch, heads), Element::identity(dim_v));
        State { elements, dim_v }
    }

    /// From the largest scores `[batch, heads]`, the sums u `[batch, heads]` and w `[batch, heads, dim_v]`
    /// that belong to them. A largest score at or below -1e29 stands for -inf.
    ///
    /// # Errors
    /// [`Error::Shape`] where the extents differ; [`Error::Data`] where u is negative, or 0 and m is not
    /// -inf, or the other way round.
    pub fn from_parts(
        max: ArrayView2<'_, f64>,
        sum: ArrayView2<'_, f64>,
        weighted: ArrayView3<'_, f64>,
    ) -> Result<Self> {
        let (batch, heads, dim_v) = weighted.dim();
        expect("max", max.shape(), &[batch, heads])?;
        expect("sum", sum.shape(), &[batch, heads])?;
        let max = max.mapv(|max| if max <= -1e29 { f64::NEG_INFINITY } else { max });
        for (&max, &sum) in max.iter().zip(sum) {
            if sum < 0.0 || (sum == 0.0) != (max == f64::NEG_INFINITY) {
                let expected = "sums above 0, and 0 exactly where the largest score is -inf";
                return Err(Error::data("sum", expected, format!("{sum} beside {max}")));
            }
        }
        let element = |(b, h)| Element {
            max: max[[b, h]],
            sum: Sum { high: sum[[b, h]], low: 0.0 },
            weighted: weighted.slice(s![b, h, ..]).mapv(|high| Sum { high, low: 0.0 }).to_vec(),
        };
        Ok(State { elements: Array2::from_shape_fn((batch, heads), element), dim_v })
    }

    /// `[batch, heads, dim_v]`.
    pub fn shape(&self) -> [usize; 3] {
        let (batch, heads) = self.elements.dim();
        [batch, heads, self.dim_v]
    }

    /// Largest score so far, m `[batch, heads]`; -inf before the first token.
    pub fn max(&self) -> Array2<f64> {
        self.elements.map(|element| element.max)
    }

    /// `sum exp(s - m)`, u `[batch, heads]`.
    pub fn sum(&self) -> Array2<f64> {
        self.elements.map(|element| element.sum.value())
    }

    /// `sum exp(s - m) v`, w `[batch, heads, dim_v]`.
    pub fn weighted(&self) -> Array3<f64> {
        self.rows(|element, e| element.weighted[e].value())
    }

    /// Natural log-sum-exp of the scores so far `[batch, heads]`; -inf before the first token.
    pub fn lse(&self) -> Array2<f64> {
        self.elements.map(Element::lse)
    }

    /// Attention over the tokens so far `[batch, heads, dim_v]`; 0 before the first one.
    pub fn out(&self) -> Array3<f64> {
        let mut out = Array3::zeros(self.shape());
        for ((b, h), element) in self.elements.indexed_iter() {
            out.slice_mut(s![b, h, ..]).assign(&element.out());
        }
        out
    }

    /// Bytes that the numbers take: independent of the number of tokens.
    pub fn bytes(&self) -> usize {
        // m, u and w, the sums in two parts.
        self.elements.len() * (3 + 2 * self.dim_v) * size_of::<f64>()
    }

    /// Outputs of some new tokens, one after the other.
    ///
    /// # Errors
    /// As [`super::forward`]; the state is then unchanged.
    pub fn decode(&mut self, inputs: Inputs<'_>, config: &Config) -> Result<Output> {
        let output = forward_in(Order::Sequential, inputs, Some(self), config)?;
        self.clone_from(&output.state);
        Ok(output)
    }

    /// Takes in some new tokens at once: they are combined on their own before they meet the state. The
    /// output after the last one is [`State::out`].
    ///
    /// # Errors
    /// As [`super::forward`]; the state is then unchanged.
    pub fn fold(&mut self, inputs: Inputs<'_>, config: &Config) -> Result<()> {
        let shape = check(inputs, Some(self), config)?;
        let scale = config.scale_for(shape.dim_qk);
        for ((b, h), element) in self.elements.indexed_iter_mut() {
            let tokens = inputs.elements(scale, b, h, shape.group());
            let mut block = Element::identity(shape.dim_v);
            for token in &tokens {
                block = block.combine(token);
            }
            *element = element.combine(&block);
        }
        Ok(())
    }

    /// The state after these tokens and then those of `later`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the extents differ.
    pub fn merge(&self, later: &State) -> Result<State> {
        expect("later", &later.shape(), &self.shape())?;
        let merged = |(b, h)| self.elements[[b, h]].combine(&later.elements[[b, h]]);
        let elements = Array2::from_shape_fn(self.elements.dim(), merged);
        Ok(State { elements, dim_v: self.dim_v })
    }

    pub(super) fn at(&self, b: usize, h: usize) -> Element {
        self.elements[[b, h]].clone()
    }

    pub(super) fn set(&mut self, b: usize, h: usize, element: Element) {
        self.elements[[b, h]] = element;
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let shape = self.shape();
        let sum = |part: fn(Sum) -> f64| by_head(shape, |b, h| part(self.elements[[b, h]].sum));
        let weighted = |part: fn(Sum) -> f64| self.rows(|element, e| part(element.weighted[e]));
        ArrayFile::new(KIND)
            .with("max", self.max().view())
            .with("sum", sum(|sum| sum.high).view())
            .with("sum_low", sum(|sum| sum.low).view())
            .with("weighted", weighted(|sum| sum.high).view())
            .with("weighted_low", weighted(|sum| sum.low).view())
            .write(path)
    }

    /// Reads what [`State::save`] wrote.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be read or holds something else.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = ArrayFile::read(path, KIND)?;
        let high = file.get::<Ix3>("weighted")?;
        let (batch, heads, dim_v) = high.dim();
        let mut state = State::from_parts(
            file.get::<Ix2>("max")?.view(),
            file.get::<Ix2>("sum")?.view(),
            high.view(),
        )
        .map_err(|error| Error::file(path, error))?;
        let (sum, weighted) = (file.get::<Ix2>("sum_low")?, file.get::<Ix3>("weighted_low")?);
        let fit = sum.dim() == (batch, heads) && weighted.dim() == (batch, heads, dim_v);
        if !fit {
            return Err(Error::file(path, "its arrays have different extents"));
        }
        for ((b, h), element) in state.elements.indexed_iter_mut() {
            element.sum.low = sum[[b, h]];
            for (e, sum) in element.weighted.iter_mut().enumerate() {
                sum.low = weighted[[b, h, e]];
            }
        }
        Ok(state)
    }

    fn rows(&self, number: impl Fn(&Element, usize) -> f64) -> Array3<f64> {
        let number = |(b, h, e)| number(&self.elements[[b, h]], e);
        Array3::from_shape_fn(self.shape(), number)
    }
}
