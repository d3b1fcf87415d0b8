//! The vector-Jacobian product.
//!
//! With the cotangent `Om` of the state behind a block, from the last block to the first:
//!
//! ```text
//! dQ = S K + F dO KV^T        dK = S^T Q + G V Om^T        dV = P^T dO + G K Om
//! S = (dO V^T) * M            P = (Q K^T) * M
//! Om <- l^m Om + (F Q)^T dO   F = l^(r+1), G = l^(m-1-r) of row r in a block of m
//! ```

use super::call::{Call, Target, check_state, is_empty, kv_shape, padded_state};
use super::forward::Tensors;
use super::sweep::{Part, Plan, Rows, States};
use super::{Cotangents, Grads, LinearAttention, Saved};
use crate::error::Result;
use crate::rows::{check_device, check_form};
use crate::tensor::Tensor;
use crate::vec4::vec4;

/// Gradients as the kernels write them.
struct Written<'a> {
    dq: &'a Tensor,
    dk: &'a Tensor,
    dv: &'a Tensor,
    d_kv: &'a Tensor,
}

impl LinearAttention {
    /// Records the gradients by all inputs. Slopes get none.
    ///
    /// Deterministic: heads that share keys are added in order.
    ///
    /// # Errors
    /// As [`LinearAttention::forward`].
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let call = &saved.call;
        let shape = &call.shape;
        check_device("d_out", cotangents.out, &self.gpu)?;
        check_form("d_out", cotangents.out, &shape.out(), call.dtype())?;
        if let Some(kv) = cotangents.kv {
            check_state("d_kv", &self.gpu, kv, shape)?;
        }
        let dq = Target::new(&self.gpu, shape.q(), call.dtype())?;
        let dk = Target::new(&self.gpu, shape.k(), call.dtype())?;
        let dv = Target::new(&self.gpu, shape.v(), call.dtype())?;
        let d_kv = Target::state(&self.gpu, kv_shape(shape))?;
        match &saved.states {
            Some(states) if !is_empty(shape) => {
                let written = Written {
                    dq: &dq.written,
                    dk: &dk.written,
                    dv: &dv.written,
                    d_kv: &d_kv.written,
                };
                self.gradients(call, states, cotangents, &written)?;
            }
            _ => {
                for (target, from) in
                    [(&dq, None), (&dk, None), (&dv, None), (&d_kv, cotangents.kv)]
                {
                    target.fill(from)?;
                }
            }
        }
        Ok(Grads { dq: dq.finish()?, dk: dk.finish()?, dv: dv.finish()?, d_kv: d_kv.finish()? })
    }

    fn gradients(
        &self,
        call: &Call,
        states: &Tensor,
        cotangents: Cotangents<'_>,
        written: &Written<'_>,
    ) -> Result<()> {
        let d_out = vec4(cotangents.out)?;
        let last = cotangents.kv.map(padded_state).transpose()?;
        let tensors = Tensors {
            heads: &[&call.q, &d_out, written.dq],
            keys: &[&call.k, &call.v, written.dk, written.dv],
        };
        let plan = self.plan(call, &tensors, Some(states))?;
        for part in &plan.parts {
            let last = last.as_ref().map(|last| part.of_heads(last)).transpose()?;
            self.part_gradients(call, &plan, part, (states, &d_out), last, written)?;
        }
        Ok(())
    }

    fn part_gradients(
        &self,
        call: &Call,
        plan: &Plan,
        part: &Part,
        (states, d_out): (&Tensor, &Tensor),
        mut after: Option<Tensor>,
        written: &Written<'_>,
    ) -> Result<()> {
        let sweep = self.sweep(call, part);
        let d_kv = part.of_heads(written.d_kv)?;
        for run in plan.runs().into_iter().rev() {
            let by_head = |tensor: &Tensor| plan.tokens_of(&part.of_heads(tensor)?, &run);
            let by_key = |tensor: &Tensor| plan.tokens_of(&part.of_keys(tensor)?, &run);
            let [q, d_out, dq] = [by_head(&call.q)?, by_head(d_out)?, by_head(written.dq)?];
            let [k, v] = [by_key(&call.k)?, by_key(&call.v)?];
            let [dk, dv] = [by_key(written.dk)?, by_key(written.dv)?];
            let states = &part.of_heads(states)?.narrow(2, run.start, run.len())?;
            let later = &self.states_like(&d_kv, run.len())?;
            let before = if run.start == 0 { d_kv.clone() } else { self.states_like(&d_kv, 1)? };
            sweep.states(&States {
                a: &q,
                b: &d_out,
                group: 1,
                first: after.as_ref(),
                states: later,
                end: &before,
                reversed: true,
            })?;
            after = Some(before);
            for (a, b, x, states, out, upper, transposed) in [
                (&d_out, &v, &k, states, &dq, false, true),
                (&v, &d_out, &q, later, &dk, true, true),
                (&k, &q, &d_out, later, &dv, true, false),
            ] {
                sweep.rows(&Rows { a, b, x, states, out, upper, transposed })?;
            }
        }
        Ok(())
    }
}
