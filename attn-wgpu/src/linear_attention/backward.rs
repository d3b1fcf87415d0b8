//! The vector-Jacobian product.
//!
//! With the cotangent `Om` of the state behind a block, from the last block to the first:
//!
//! ```text
//! dQ = S K + F dO KV^T        dK = S^T Q + G V Om^T        dV = P^T dO + G K Om
//! S = (dO V^T) * M            P = (Q K^T) * M
//! Om <- l^m Om + (F Q)^T dO   F = l^(r+1), G = l^(m-1-r) of row r in a block of m
//! ```

use super::call::{Call, check_state, is_empty, kv_shape, padded_state};
use super::forward::Tensors;
use super::sweep::{Part, Plan, Rows, States};
use super::{Cotangents, Grads, LinearAttention, Saved, Targets};
use crate::error::Result;
use crate::rows::{check_device, check_form};
use crate::target::Target;
use crate::tensor::Tensor;
use crate::vec4::vec4;

/// Gradients as the kernels write them; none where nobody wants it.
struct Written<'a> {
    dq: Option<&'a Tensor>,
    dk: Option<&'a Tensor>,
    dv: Option<&'a Tensor>,
    /// The last step of what all others need, too.
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
        let shape = &saved.call.shape;
        let new = |shape| Target::new(&self.gpu, shape, saved.call.dtype());
        let (dq, dk, dv) = (new(shape.q())?, new(shape.k())?, new(shape.v())?);
        let d_kv = Target::state(&self.gpu, kv_shape(shape))?;
        self.write(saved, cotangents, [Some(&dq), Some(&dk), Some(&dv)], &d_kv)?;
        Ok(Grads { dq: dq.finish()?, dk: dk.finish()?, dv: dv.finish()?, d_kv: d_kv.finish()? })
    }

    /// [`LinearAttention::backward`] into callers' tensors of the shapes and types of [`Grads`]. They are
    /// written directly, unless the rows of one do not begin at multiples of four elements, or states are
    /// not contiguous or not of whole groups of four: a copy on the device then follows. They must not
    /// overlap each other.
    ///
    /// # Errors
    /// As [`LinearAttention::backward`], and [`attn_core::Error`] for targets of another shape or type.
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<()> {
        let call = &saved.call;
        let shape = &call.shape;
        let mut read = vec![&call.q, &call.k, &call.v, cotangents.out];
        read.extend(&saved.states);
        read.extend(cotangents.kv);
        let target = |arg, target: Option<&Tensor>, shape: [usize; 4]| {
            let Some(target) = target else { return Ok(None) };
            check_device(arg, target, &self.gpu)?;
            check_form(arg, target, &shape, call.dtype())?;
            Target::of(arg, target, &read).map(Some)
        };
        let grads = [
            target("dq", targets.dq, shape.q())?,
            target("dk", targets.dk, shape.k())?,
            target("dv", targets.dv, shape.v())?,
        ];
        let d_kv = match targets.d_kv {
            Some(d_kv) => {
                check_state("d_kv", &self.gpu, d_kv, shape)?;
                Target::of_state("d_kv", d_kv, &read)?
            }
            None => Target::state(&self.gpu, kv_shape(shape))?,
        };
        self.write(saved, cotangents, grads.each_ref().map(Option::as_ref), &d_kv)?;
        for target in grads.into_iter().flatten().chain([d_kv]) {
            target.finish()?;
        }
        Ok(())
    }

    fn write(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        grads: [Option<&Target>; 3],
        d_kv: &Target,
    ) -> Result<()> {
        let call = &saved.call;
        let shape = &call.shape;
        check_device("d_out", cotangents.out, &self.gpu)?;
        check_form("d_out", cotangents.out, &shape.out(), call.dtype())?;
        if let Some(kv) = cotangents.kv {
            check_state("d_kv", &self.gpu, kv, shape)?;
        }
        match &saved.states {
            Some(states) if !is_empty(shape) => {
                let [dq, dk, dv] = grads.map(|target| target.map(|target| &target.written));
                let written = Written { dq, dk, dv, d_kv: &d_kv.written };
                self.gradients(call, states, cotangents, &written)
            }
            _ => {
                for target in grads.into_iter().flatten() {
                    target.fill(None)?;
                }
                d_kv.fill(cotangents.kv)
            }
        }
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
        let mut heads = vec![&call.q, &d_out];
        heads.extend(written.dq);
        let mut keys = vec![&call.k, &call.v];
        keys.extend(written.dk.iter().chain(&written.dv).copied());
        let tensors = Tensors { heads: &heads, keys: &keys };
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
            let [q, d_out] = [by_head(&call.q)?, by_head(d_out)?];
            let [k, v] = [by_key(&call.k)?, by_key(&call.v)?];
            let dq = written.dq.map(by_head).transpose()?;
            let dk = written.dk.map(by_key).transpose()?;
            let dv = written.dv.map(by_key).transpose()?;
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
                let Some(out) = out else { continue };
                sweep.rows(&Rows { a, b, x, states, out, upper, transposed })?;
            }
        }
        Ok(())
    }
}
