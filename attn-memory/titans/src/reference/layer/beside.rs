//! The memory alone, as gate and as layer: one pass over persistent tokens and the sequence.

use attn_core::{BitMask, Mask, Result};
use ndarray::{Array2, ArrayView2, s};

use super::attention::Attended;
use super::gate::{gate, gate_backward};
use super::lmm::Lmm;
use super::parts::stack;
use super::weights::Weights;
use super::{Sequence, first_state};
use crate::{Combination, LayerConfig};

/// A window in which persistent tokens stay visible.
fn window_of_gate(tokens: usize, persistent: usize, window: usize) -> Mask {
    let allows = |i: usize, j: usize| j <= i && (i - j < window || j < persistent);
    Mask::Bits(BitMask::from_fn(tokens, tokens, allows))
}

fn window_of_layer(window: usize) -> Mask {
    Mask::Window { left: window - 1, right: 0 }
}

pub struct Beside {
    /// Persistent tokens and the sequence.
    rows: Array2<f64>,
    persistent: usize,
    lmm: Lmm,
    attended: Option<Attended>,
}

impl Beside {
    pub fn new(x: ArrayView2<'_, f64>, weights: &Weights, config: &LayerConfig) -> Result<Self> {
        let rows = stack(&[weights.persistent.view(), x]);
        let persistent = weights.persistent.nrows();
        let lmm = Lmm::new(rows.view(), first_state(weights, config)?, weights, config)?;
        let heads = config.memory.heads;
        let attended = match config.combination {
            Combination::Gate { window } => {
                let mask = window_of_gate(rows.nrows(), persistent, window);
                Some(Attended::new(rows.view(), rows.view(), heads, mask, weights.attention()?)?)
            }
            Combination::Layer { window } => {
                let (m, mask) = (lmm.out.view(), window_of_layer(window));
                Some(Attended::new(m, m, heads, mask, weights.attention()?)?)
            }
            _ => None,
        };
        Ok(Beside { rows, persistent, lmm, attended })
    }

    /// Rows of the sequence.
    fn own<'a>(&self, all: &'a Array2<f64>) -> ArrayView2<'a, f64> {
        all.slice(s![self.persistent.., ..])
    }

    pub fn output(&self, weights: &Weights, config: &LayerConfig) -> Result<Sequence> {
        let m = self.own(&self.lmm.out);
        let attention = self.attended.as_ref().map(|attended| self.own(&attended.out));
        let out = match (attention, &config.combination) {
            (None, _) => m.to_owned(),
            (Some(y), Combination::Gate { .. }) => gate(y, m, weights.norms()?, config.rms_epsilon),
            (Some(y), _) => y.to_owned(),
        };
        Ok(Sequence {
            out,
            memory: m.to_owned(),
            attention: attention.map(|y| y.to_owned()),
            state: self.lmm.last.clone(),
        })
    }

    /// Adds to `grads`, and returns the cotangent of the sequence.
    pub fn backward(
        &self,
        d_out: ArrayView2<'_, f64>,
        weights: &Weights,
        grads: &mut Weights,
        config: &LayerConfig,
    ) -> Result<Array2<f64>> {
        let own = s![self.persistent.., ..];
        let mut d_m = Array2::zeros(self.lmm.out.raw_dim());
        let mut d_rows = Array2::zeros(self.rows.raw_dim());
        match (&self.attended, &config.combination) {
            (None, _) => d_m.slice_mut(own).assign(&d_out),
            (Some(attended), Combination::Gate { .. }) => {
                let (y, m) = (self.own(&attended.out), self.own(&self.lmm.out));
                let gains = weights.norms()?;
                let [by_y, by_m] =
                    gate_backward(y, m, gains, config.rms_epsilon, d_out, grads.norms_mut()?);
                d_m.slice_mut(own).assign(&by_m);
                let mut d_y = Array2::zeros(attended.out.raw_dim());
                d_y.slice_mut(own).assign(&by_y);
                let rows = self.rows.view();
                let by = attended.backward(
                    rows,
                    rows,
                    &d_y,
                    weights.attention()?,
                    grads.attention_mut()?,
                )?;
                by.iter().for_each(|by| d_rows += by);
            }
            (Some(attended), _) => {
                let mut d_y = Array2::zeros(attended.out.raw_dim());
                d_y.slice_mut(own).assign(&d_out);
                let m = self.lmm.out.view();
                let by =
                    attended.backward(m, m, &d_y, weights.attention()?, grads.attention_mut()?)?;
                by.iter().for_each(|by| d_m += by);
            }
        }
        d_rows += &self.lmm.backward(self.rows.view(), &d_m, weights, grads, config)?;
        grads.persistent += &d_rows.slice(s![..self.persistent, ..]);
        Ok(d_rows.slice_move(own))
    }
}
