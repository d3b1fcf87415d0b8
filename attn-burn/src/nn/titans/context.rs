//! The memory as context of attention, segment by segment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use attn_core::dense::Config as Dense;
use attn_core::{BitMask, Mask};
use attn_wgpu::Result;
use burn::tensor::Tensor;

use super::super::{Attention, join};
use super::{Titans, TitansGate};
use crate::ops::{self, Remembered};

/// Attention of the segments, by their lengths: no more than a segment has tokens.
#[derive(Debug, Clone, Default)]
pub struct Segments(Arc<Mutex<BTreeMap<usize, ops::Attention>>>);

impl Segments {
    /// Over persistent tokens, the memory's answers and the tokens, of which token i sees the first i + 1.
    fn attention(&self, tokens: usize, persistent: usize) -> Result<ops::Attention> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(attention) = made.get(&tokens) {
            return Ok(attention.clone());
        }
        let mask = BitMask::from_fn(tokens, persistent + 2 * tokens, |i, key| {
            key.checked_sub(persistent).is_none_or(|key| key % tokens <= i)
        });
        let attention = ops::Attention::new(Dense::new().with_mask(Mask::Bits(mask)))?;
        made.insert(tokens, attention.clone());
        Ok(attention)
    }
}

impl Titans {
    pub(super) fn in_context(
        &self,
        x: Tensor<3>,
        segment: usize,
        literal: bool,
        attention: &Attention,
        gate: &TitansGate,
    ) -> Result<(Tensor<3>, Tensor<3>)> {
        let [batch, tokens, _] = x.dims();
        let mut state = self.memory.first_state(batch)?;
        let persistent = self.persistent(batch);
        let count = persistent.as_ref().map_or(0, |rows| rows.dims()[1]);
        let memory = self.memory.memory();
        let asked = self.memory.queries(&x, 0);
        let (mut attended, mut answers) = (Vec::new(), Vec::new());
        // Convolutions run over the whole sequence: the rows before a segment that they reach.
        let mut earlier: Option<Tensor<3>> = None;
        for from in (0..tokens).step_by(segment) {
            let length = segment.min(tokens - from);
            let h = join(memory.read(asked.clone().narrow(2, from, length), &state)?);
            let own = x.clone().narrow(1, from, length);
            let others = persistent.clone().into_iter().chain([h, own.clone()]).collect();
            let others = Tensor::cat(others, 1);
            let y = match literal {
                // The last token is the last key: each sees all answers, and tokens up to itself.
                true => attention.forward_cross(own, others)?,
                false => {
                    let by = self.segments.attention(length, count)?;
                    attention.forward_by(&by, own, others)?
                }
            };
            let skip = earlier.as_ref().map_or(0, |rows| rows.dims()[1]);
            let rows = Tensor::cat(earlier.into_iter().chain([y.clone()]).collect(), 1);
            let inputs = self.memory.inputs(&rows, skip);
            let q = inputs.q.clone();
            let Remembered { y: m, state: after } = memory.forward_with_state(inputs, state)?;
            state = after;
            let m = if literal { memory.read(q, &state)? } else { m };
            attended.push(y);
            answers.push(join(m));
            let reach = (self.memory.kernel() - 1).min(skip + length);
            earlier = (reach > 0).then(|| rows.narrow(1, skip + length - reach, reach));
        }
        let out = gate.forward(Tensor::cat(attended, 1), Tensor::cat(answers, 1));
        Ok((out, state))
    }
}
