//! The memory as context of attention, segment by segment: the equations are those of
//! [`crate::reference::layer`].

use attn_core::Error;
use attn_wgpu::{DType, Result, Tensor, ops};

use super::attention::Pairs;
use super::parts::{gate, merge};
use super::state::{Segment, State};
use super::{Beside, Combination, Layer, Rows};

/// What is projected of all tokens at once, as it does not depend on the memory.
struct Asked {
    /// Queries to the memory, and of attention, `[batch, heads, tokens, dim]`.
    memory: Tensor,
    attention: Tensor,
    own: Pairs,
}

impl Layer {
    /// Tokens `x` `[batch, tokens, d_model]`, one at least, in segments of `length`.
    pub(super) fn context(&self, x: &Tensor, length: usize, state: &mut State) -> Result<Rows> {
        let gpu = self.gpu();
        let (batch, tokens, d_model) = (x.shape()[0], x.shape()[1], x.shape()[2]);
        let missing = || Error::config("state", "of memory as context", "another");
        let (Some(beside), Some(norms)) = (&self.beside, &self.norms) else {
            return Err(missing().into());
        };
        let (attention, own) = beside.attend.project(x)?;
        let segment = state.segment.as_mut().ok_or_else(missing)?;
        let memory = self.project.queries(x, &mut segment.tail)?;
        let asked = Asked { memory, attention, own };
        let rows = || Tensor::uninit(gpu, &[batch, tokens, d_model], DType::F32);
        let (h, y, m) = (rows()?, rows()?, rows()?);
        let mut from = 0;
        while from < tokens {
            let count = (length - (state.position + from) % length).min(tokens - from);
            let part = |x: &Tensor| x.narrow(1, from, count);
            let targets = [part(&h)?, part(&y)?, part(&m)?];
            self.segment_part(beside, &asked, from, state, targets)?;
            from += count;
            if (state.position + from).is_multiple_of(length) {
                self.close(beside, batch, state)?;
            }
        }
        let out = gate(&y, &m, norms, self.rms_epsilon())?;
        Ok(Rows { out, memory: h, attention: Some(y) })
    }

    /// Some tokens from `from` on, of one segment: the memory's answers before attention, attention, and the
    /// memory's answers behind it, into `targets`.
    fn segment_part(
        &self,
        beside: &Beside,
        asked: &Asked,
        from: usize,
        state: &mut State,
        [h, y, m]: [Tensor; 3],
    ) -> Result<()> {
        let count = h.shape()[1];
        let missing = || Error::config("state", "of memory as context", "another");
        let (Some(segment), Some(seen)) = (&mut state.segment, &mut state.seen) else {
            return Err(missing().into());
        };
        let answer =
            self.titans.read_from(&asked.memory.narrow(2, from, count)?, &segment.before)?;
        let answer = merge(&answer)?;
        ops::copy(&answer, &h)?;

        let answers = Pairs::concat(&[&segment.answers, &beside.attend.pairs(&answer)?])?;
        let own = asked.own.narrow(from, count)?;
        let tokens = Pairs::concat(&[seen, &own])?;
        let keys = Pairs::concat(&[&beside.persistent, &tokens])?;
        let q = asked.attention.narrow(2, from, count)?;
        let sets = [(&beside.tokens, &keys), (&beside.answers, &answers)];
        let attended = beside.attend.over_both(&q, sets)?;
        ops::copy(&attended, &y)?;
        *seen = tokens.last(tokens.tokens())?;
        segment.answers = answers.last(answers.tokens())?;

        let given = self.project.all(&attended, &mut state.tail)?;
        let output = self.titans.forward(given.inputs(), &state.memory)?;
        state.memory = output.state;
        let read = match self.config.combination {
            Combination::LiteralContext { .. } => {
                self.titans.read_from(given.queries(), &state.memory.w)?
            }
            _ => output.y,
        };
        ops::copy(&merge(&read)?, &m)
    }

    /// The end of a segment, and the start of the next one.
    fn close(&self, beside: &Beside, batch: usize, state: &mut State) -> Result<()> {
        state.memory.restart()?;
        state.seen = Some(beside.attend.none(batch)?);
        if let Some(Segment { answers, before, .. }) = &mut state.segment {
            *answers = beside.attend.none(batch)?;
            before.clone_from(&state.memory.w);
        }
        Ok(())
    }
}
