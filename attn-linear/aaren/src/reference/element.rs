//! What is kept of some tokens, and how two such are combined.

use ndarray::{Array1, ArrayView1};

use super::weight;

/// A sum with what rounding took from it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Sum {
    pub(super) high: f64,
    pub(super) low: f64,
}

impl Sum {
    pub(super) fn value(self) -> f64 {
        self.high + self.low
    }

    fn scaled(self, factor: f64) -> Sum {
        Sum { high: self.high * factor, low: self.low * factor }
    }

    /// The rounding error of a sum of two numbers is itself a number, and goes to `low`.
    fn plus(self, other: Sum) -> Sum {
        let high = self.high + other.high;
        let added = high - self.high;
        let error = (self.high - (high - added)) + (other.high - added);
        Sum { high, low: self.low + other.low + error }
    }
}

/// Largest score, sum of exponentials and weighted sum of values of some tokens of one head.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Element {
    pub(super) max: f64,
    pub(super) sum: Sum,
    pub(super) weighted: Vec<Sum>,
}

impl Element {
    /// Of no token.
    pub(super) fn identity(dim_v: usize) -> Self {
        let weighted = vec![Sum::default(); dim_v];
        Element { max: f64::NEG_INFINITY, sum: Sum::default(), weighted }
    }

    /// Of one token.
    pub(super) fn token(score: f64, value: ArrayView1<'_, f64>) -> Self {
        let sum = |&high: &f64| Sum { high, low: 0.0 };
        Element { max: score, sum: sum(&1.0), weighted: value.iter().map(sum).collect() }
    }

    /// Of the tokens of both; both are of one head.
    pub(super) fn combine(&self, later: &Element) -> Element {
        let max = self.max.max(later.max);
        let (a, b) = (weight(self.max, max), weight(later.max, max));
        let add = |x: Sum, y: Sum| x.scaled(a).plus(y.scaled(b));
        let weighted = self.weighted.iter().zip(&later.weighted);
        Element {
            max,
            sum: add(self.sum, later.sum),
            weighted: weighted.map(|(&x, &y)| add(x, y)).collect(),
        }
    }

    /// The weighted mean of the values, 0 of no token.
    pub(super) fn out(&self) -> Array1<f64> {
        match self.sum.value() {
            0.0 => Array1::zeros(self.weighted.len()),
            sum => self.weighted() / sum,
        }
    }

    pub(super) fn lse(&self) -> f64 {
        self.max + self.sum.value().ln()
    }

    pub(super) fn weighted(&self) -> Array1<f64> {
        self.weighted.iter().map(|sum| sum.value()).collect()
    }
}
