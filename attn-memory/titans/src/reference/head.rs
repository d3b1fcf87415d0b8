//! One head's part of a call.

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, s};

use crate::Config;

/// One head's tokens.
pub(super) struct Head<'a> {
    pub q: ArrayView2<'a, f64>,
    pub k: ArrayView2<'a, f64>,
    pub v: ArrayView2<'a, f64>,
    pub theta: ArrayView1<'a, f64>,
    pub eta: ArrayView1<'a, f64>,
    pub alpha: ArrayView1<'a, f64>,
}

impl<'a> Head<'a> {
    pub fn tokens(&self) -> usize {
        self.theta.len()
    }

    pub fn part(&self, tokens: Range<usize>) -> Head<'a> {
        let rows = |x: ArrayView2<'a, f64>| x.slice_move(s![tokens.clone(), ..]);
        let gate = |x: ArrayView1<'a, f64>| x.slice_move(s![tokens.clone()]);
        Head {
            q: rows(self.q),
            k: rows(self.k),
            v: rows(self.v),
            theta: gate(self.theta),
            eta: gate(self.eta),
            alpha: gate(self.alpha),
        }
    }
}

/// Derivatives by one head's tokens.
pub(super) struct HeadGrads {
    pub dq: Array2<f64>,
    pub dk: Array2<f64>,
    pub dv: Array2<f64>,
    pub d_theta: Array1<f64>,
    pub d_eta: Array1<f64>,
    pub d_alpha: Array1<f64>,
}

impl HeadGrads {
    pub fn zeros(head: &Head<'_>, config: &Config) -> Self {
        let tokens = head.tokens();
        let gate = Array1::zeros(tokens);
        HeadGrads {
            dq: Array2::zeros((tokens, config.dim_qk)),
            dk: Array2::zeros((tokens, config.dim_qk)),
            dv: Array2::zeros((tokens, config.dim_v)),
            d_theta: gate.clone(),
            d_eta: gate.clone(),
            d_alpha: gate,
        }
    }

    pub fn assign(&mut self, tokens: Range<usize>, part: &HeadGrads) {
        let rows = || s![tokens.clone(), ..];
        self.dq.slice_mut(rows()).assign(&part.dq);
        self.dk.slice_mut(rows()).assign(&part.dk);
        self.dv.slice_mut(rows()).assign(&part.dv);
        self.d_theta.slice_mut(s![tokens.clone()]).assign(&part.d_theta);
        self.d_eta.slice_mut(s![tokens.clone()]).assign(&part.d_eta);
        self.d_alpha.slice_mut(s![tokens.clone()]).assign(&part.d_alpha);
    }
}
