//! The memory as context of attention, segment by segment:
//!
//! ```text
//! h   = M(W before the segment; q(x))
//! y_i = attention of x_i over persistent tokens, h and x
//! store y, whose chunks begin with the segment
//! m_i = M(W_i; q(y_i))                 literally: of W behind the segment
//! o_i = y_i gated by m_i
//! ```
//!
//! `y_i` sees every persistent token, `h_j` with j <= i, literally all of them, and `x_j` with j <= i.
//! Convolutions run over the whole sequence, across segments.

use std::ops::Range;

use attn_core::{BitMask, Mask, Result};
use ndarray::{Array2, Array4, ArrayView2, s};

use super::attention::Attended;
use super::gate::{gate, gate_backward};
use super::parts::{merge, split, stack};
use super::project::{Projected, QUERIES, Side};
use super::weights::Weights;
use super::{Sequence, first_state};
use crate::reference::{Cotangents, State, backward_chunked, forward_chunked, read, read_backward};
use crate::{Combination, LayerConfig};

/// What was on the way through one segment.
struct Segment {
    tokens: Range<usize>,
    /// The tokens with those before that convolutions reach.
    reach: Range<usize>,
    asked: Side,
    before: State,
    h: Array2<f64>,
    /// Persistent tokens, `h` and the tokens.
    others: Array2<f64>,
    attended: Attended,
    stored: Projected,
    after: State,
    m: Array2<f64>,
}

pub struct Context {
    segments: Vec<Segment>,
    /// Results of attention.
    y: Array2<f64>,
    literal: bool,
}

fn mask(tokens: usize, persistent: usize, literal: bool) -> Mask {
    Mask::Bits(BitMask::from_fn(tokens, persistent + 2 * tokens, |i, key| {
        match key.checked_sub(persistent) {
            None => true,
            Some(h) if h < tokens => literal || h <= i,
            Some(x) => x - tokens <= i,
        }
    }))
}

impl Context {
    pub fn new(x: ArrayView2<'_, f64>, weights: &Weights, config: &LayerConfig) -> Result<Self> {
        let (length, literal) = match config.combination {
            Combination::LiteralContext { segment } => (segment, true),
            Combination::Context { segment } => (segment, false),
            // Other combinations have no segments.
            _ => (x.nrows().max(1), false),
        };
        let mut context = Context { segments: Vec::new(), y: Array2::zeros(x.raw_dim()), literal };
        let mut state = first_state(weights, config)?;
        let mut from = 0;
        while from < x.nrows() {
            let to = x.nrows().min(from.saturating_add(length));
            let segment = context.segment(x, from..to, state, weights, config)?;
            state = segment.after.clone();
            context.segments.push(segment);
            from = to;
        }
        Ok(context)
    }

    fn segment(
        &mut self,
        x: ArrayView2<'_, f64>,
        tokens: Range<usize>,
        mut before: State,
        weights: &Weights,
        config: &LayerConfig,
    ) -> Result<Segment> {
        let kernel = weights.conv.as_ref().map_or(1, |conv| conv[0].nrows());
        let reach = tokens.start.saturating_sub(kernel - 1)..tokens.end;
        let skip = tokens.start - reach.start;
        before.restart();

        let asked = Side::new(QUERIES, x.slice(s![reach.clone(), ..]), skip, weights, config);
        let h = merge(read(asked.out.view(), &before, &config.memory)?.view());
        let own = x.slice(s![tokens.clone(), ..]);
        let others = stack(&[weights.persistent.view(), h.view(), own]);
        let mask = mask(tokens.len(), weights.persistent.nrows(), self.literal);
        let heads = config.memory.heads;
        let attended = Attended::new(own, others.view(), heads, mask, weights.attention()?)?;
        self.y.slice_mut(s![tokens.clone(), ..]).assign(&attended.out);

        let stored = Projected::new(self.y.slice(s![reach.clone(), ..]), skip, weights, config);
        let output = forward_chunked(stored.inputs(), &before, &config.memory)?;
        let after = output.state;
        let m = match self.literal {
            true => read(stored.inputs().q, &after, &config.memory)?,
            false => output.y,
        };
        let m = merge(m.view());
        Ok(Segment { tokens, reach, asked, before, h, others, attended, stored, after, m })
    }

    pub fn output(&self, weights: &Weights, config: &LayerConfig) -> Result<Sequence> {
        let pick = |part: fn(&Segment) -> ArrayView2<'_, f64>| {
            stack(&self.segments.iter().map(part).collect::<Vec<_>>())
        };
        let (m, h) = match self.segments.is_empty() {
            true => (self.y.clone(), self.y.clone()),
            false => (pick(|segment| segment.m.view()), pick(|segment| segment.h.view())),
        };
        let out = gate(self.y.view(), m.view(), weights.norms()?, config.rms_epsilon);
        let state = match self.segments.last() {
            Some(segment) => segment.after.clone(),
            None => first_state(weights, config)?,
        };
        Ok(Sequence { out, memory: h, attention: Some(self.y.clone()), state })
    }

    /// Adds to `grads`, and returns the cotangent of the sequence.
    pub fn backward(
        &self,
        x: ArrayView2<'_, f64>,
        d_out: ArrayView2<'_, f64>,
        weights: &Weights,
        grads: &mut Weights,
        config: &LayerConfig,
    ) -> Result<Array2<f64>> {
        let mut d_x = Array2::zeros(x.raw_dim());
        let mut d_y = Array2::zeros(x.raw_dim());
        let zeros = || -> Vec<Array4<f64>> {
            let heads = config.memory.heads;
            let layers = config.memory.layers();
            layers.iter().map(|&[m, n]| Array4::zeros((1, heads, m, n))).collect()
        };
        let (mut d_w, mut d_s) = (zeros(), zeros());
        for segment in self.segments.iter().rev() {
            let tokens = s![segment.tokens.clone(), ..];
            let reach = s![segment.reach.clone(), ..];
            let y = self.y.slice(tokens);
            let gains = weights.norms()?;
            let (m, epsilon) = (segment.m.view(), config.rms_epsilon);
            let [by_y, d_m] =
                gate_backward(y, m, gains, epsilon, d_out.slice(tokens), grads.norms_mut()?);
            d_y.slice_mut(tokens).scaled_add(1.0, &by_y);
            let by_stored = self.store_backward(segment, &d_m, &mut d_w, &mut d_s, config)?;
            let rows = self.y.slice(reach);
            let by_stored = segment.stored.backward(rows, &by_stored, weights, grads, config);
            d_y.slice_mut(reach).scaled_add(1.0, &by_stored);

            let own = x.slice(tokens);
            let d_y = d_y.slice(tokens).to_owned();
            let others = segment.others.view();
            let (attention, by) = (weights.attention()?, grads.attention_mut()?);
            let [by_rows, by_others] =
                segment.attended.backward(own, others, &d_y, attention, by)?;
            let (persistent, count) = (weights.persistent.nrows(), segment.tokens.len());
            grads.persistent += &by_others.slice(s![..persistent, ..]);
            let d_h = by_others.slice(s![persistent..persistent + count, ..]);
            d_x.slice_mut(tokens).scaled_add(1.0, &by_rows);
            let by_own = by_others.slice(s![persistent + count.., ..]);
            d_x.slice_mut(tokens).scaled_add(1.0, &by_own);

            let d_h = split(d_h, config.memory.heads);
            let asked = segment.asked.out.view();
            let (d_q, by_w) = read_backward(asked, &segment.before, &config.memory, d_h.view())?;
            d_w.iter_mut().zip(&by_w).for_each(|(d_w, by)| *d_w += by);
            let rows = x.slice(reach);
            let by_asked = segment.asked.backward(rows, d_q.view(), weights, grads, config);
            d_x.slice_mut(reach).scaled_add(1.0, &by_asked);
        }
        for (all, d_w) in grads.memory.iter_mut().zip(&d_w) {
            *all += &d_w.index_axis(ndarray::Axis(0), 0);
        }
        Ok(d_x)
    }

    /// From the cotangents of what a segment read last and of the memory behind it to those of what it
    /// stored and of the memory before.
    fn store_backward(
        &self,
        segment: &Segment,
        d_m: &Array2<f64>,
        d_w: &mut Vec<Array4<f64>>,
        d_s: &mut Vec<Array4<f64>>,
        config: &LayerConfig,
    ) -> Result<crate::reference::Grads> {
        let (inputs, memory) = (segment.stored.inputs(), &config.memory);
        let mut d_m = split(d_m.view(), memory.heads);
        let mut d_q = None;
        if self.literal {
            let (by_q, by_w) = read_backward(inputs.q, &segment.after, memory, d_m.view())?;
            d_w.iter_mut().zip(&by_w).for_each(|(d_w, by)| *d_w += by);
            d_q = Some(by_q);
            d_m.fill(0.0);
        }
        let cotangents = Cotangents::new(d_m.view()).with_state(d_w, d_s);
        let mut by = backward_chunked(inputs, &segment.before, memory, cotangents)?;
        (*d_w, *d_s) = (std::mem::take(&mut by.d_w), std::mem::take(&mut by.d_s));
        if let Some(d_q) = d_q {
            by.dq += &d_q;
        }
        Ok(by)
    }
}
