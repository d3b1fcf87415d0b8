//! The forward pass.

use super::call::{Call, check_state, is_empty, kv_shape};
use super::sweep::{Limits, Part, Plan, Rows, States, Sweep};
use super::{Inputs, LinearAttention, Output, Saved};
use crate::error::Result;
use crate::rows::{check_device, check_form};
use crate::target::Target;
use crate::tensor::{DType, Tensor};

impl Saved {
    /// The same with inputs at another place: a caller's allocator may have moved them. Their elements must
    /// be those of the forward pass.
    ///
    /// # Errors
    /// [`attn_core::Error`] for tensors of other shapes, types or devices.
    pub fn with_inputs(&self, inputs: Inputs<'_>) -> Result<Saved> {
        let call = Call::new(self.call.q.gpu(), self.call.shape.heads, inputs)?;
        let (old, new) = (&self.call, &call);
        if old.shape != new.shape {
            let expected = format!("extents of the forward pass, {:?}", old.shape);
            return Err(
                attn_core::Error::config("inputs", expected, format!("{:?}", new.shape)).into()
            );
        }
        check_form("q", inputs.q, &old.shape.q(), old.dtype())?;
        Ok(Saved { call, states: self.states.clone() })
    }
}

impl LinearAttention {
    /// Records output and last state.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output> {
        let call = Call::new(&self.gpu, self.slopes.len(), inputs)?;
        let out = Target::new(&self.gpu, call.shape.out(), call.dtype())?;
        let kv = Target::state(&self.gpu, kv_shape(&call.shape))?;
        self.run(&call, inputs.kv, out, kv, None)
    }

    /// [`LinearAttention::forward`] into callers' tensors. `kv` may be the state of the inputs itself, and
    /// is then updated in place; `out` must not overlap anything.
    ///
    /// # Errors
    /// As [`LinearAttention::forward`], and [`attn_core::Error`] for targets of another shape or type.
    pub fn forward_into(&self, inputs: Inputs<'_>, out: &Tensor, kv: &Tensor) -> Result<()> {
        let call = self.call_into(inputs, out, kv)?;
        let [out, kv] = targets(inputs, out, kv)?;
        self.run(&call, inputs.kv, out, kv, None)?;
        Ok(())
    }

    /// [`LinearAttention::forward`], and what [`LinearAttention::backward`] needs: beside the inputs a
    /// state for each block.
    ///
    /// # Errors
    /// As [`LinearAttention::forward`].
    pub fn forward_saved(&self, inputs: Inputs<'_>) -> Result<(Output, Saved)> {
        let call = Call::new(&self.gpu, self.slopes.len(), inputs)?;
        let states = self.kept(&call)?;
        let out = Target::new(&self.gpu, call.shape.out(), call.dtype())?;
        let kv = Target::state(&self.gpu, kv_shape(&call.shape))?;
        let output = self.run(&call, inputs.kv, out, kv, states.as_ref())?;
        Ok((output, Saved { call, states }))
    }

    /// [`LinearAttention::forward_saved`] into callers' tensors, as [`LinearAttention::forward_into`].
    ///
    /// # Errors
    /// As [`LinearAttention::forward_into`].
    pub fn forward_saved_into(
        &self,
        inputs: Inputs<'_>,
        out: &Tensor,
        kv: &Tensor,
    ) -> Result<Saved> {
        let call = self.call_into(inputs, out, kv)?;
        let states = self.kept(&call)?;
        let [out, kv] = targets(inputs, out, kv)?;
        self.run(&call, inputs.kv, out, kv, states.as_ref())?;
        Ok(Saved { call, states })
    }

    fn call_into(&self, inputs: Inputs<'_>, out: &Tensor, kv: &Tensor) -> Result<Call> {
        let call = Call::new(&self.gpu, self.slopes.len(), inputs)?;
        check_device("out", out, &self.gpu)?;
        check_form("out", out, &call.shape.out(), call.dtype())?;
        check_state("kv", &self.gpu, kv, &call.shape)?;
        Ok(call)
    }

    /// Room for the states of all blocks, which gradients need.
    fn kept(&self, call: &Call) -> Result<Option<Tensor>> {
        match is_empty(&call.shape) {
            true => Ok(None),
            false => call.states(call.shape.queries.div_ceil(self.block)).map(Some),
        }
    }

    fn run(
        &self,
        call: &Call,
        first: Option<&Tensor>,
        out: Target,
        kv: Target,
        keep: Option<&Tensor>,
    ) -> Result<Output> {
        if is_empty(&call.shape) {
            return nothing(first, out, kv);
        }
        let tensors = Tensors { heads: &[&call.q, &out.written], keys: &[&call.k, &call.v] };
        let plan = self.plan(call, &tensors, keep)?;
        for part in &plan.parts {
            self.part(call, &plan, part, [&out.written, &kv.written], keep)?;
        }
        Ok(Output { out: out.finish()?, kv: kv.finish()? })
    }

    fn part(
        &self,
        call: &Call,
        plan: &Plan,
        part: &Part,
        [out, end]: [&Tensor; 2],
        keep: Option<&Tensor>,
    ) -> Result<()> {
        let sweep = self.sweep(call, part);
        let [q, k, v] = [part.of_heads(&call.q)?, part.of_keys(&call.k)?, part.of_keys(&call.v)?];
        let [out, end] = [part.of_heads(out)?, part.of_heads(end)?];
        let mut first = call.kv.as_ref().map(|kv| part.of_heads(kv)).transpose()?;
        for run in plan.runs() {
            let states = match keep {
                Some(states) => part.of_heads(states)?.narrow(2, run.start, run.len())?,
                None => self.states_like(&end, run.len())?,
            };
            let is_last = run.end == plan.blocks;
            let after = if is_last { end.clone() } else { self.states_like(&end, 1)? };
            let [q, out] = [plan.tokens_of(&q, &run)?, plan.tokens_of(&out, &run)?];
            let [k, v] = [plan.tokens_of(&k, &run)?, plan.tokens_of(&v, &run)?];
            sweep.states(&States {
                a: &k,
                b: &v,
                group: part.group,
                first: first.as_ref(),
                states: &states,
                end: &after,
                reversed: false,
            })?;
            sweep.rows(&Rows {
                a: &q,
                b: &k,
                x: &v,
                states: &states,
                out: &out,
                upper: false,
                transposed: false,
            })?;
            first = Some(after);
        }
        Ok(())
    }

    /// A new tensor of `count` states for each head of `state`.
    pub(super) fn states_like(&self, state: &Tensor, count: usize) -> Result<Tensor> {
        let shape = state.shape();
        Tensor::uninit(&self.gpu, &[shape[0], shape[1], count, shape[3]], DType::F32)
    }

    pub(super) fn sweep(&self, call: &Call, part: &Part) -> Sweep<'_> {
        Sweep {
            gpu: &self.gpu,
            powers: &self.powers,
            block: self.block,
            group: part.group,
            dtype: call.dtype(),
            first_head: part.heads_kv.start * part.group,
        }
    }

    pub(super) fn plan(
        &self,
        call: &Call,
        tensors: &Tensors<'_>,
        keep: Option<&Tensor>,
    ) -> Result<Plan> {
        let shape = &call.shape;
        let [depth, width] = call.dims4().map(|chunks| 4 * chunks);
        let pairs = self.block.min(shape.queries) * (depth + width) + depth * width;
        let limits = Limits {
            capabilities: self.gpu.capabilities(),
            max_work: self.gpu.max_work_per_dispatch(),
            state_bytes: 4 * shape.batch * shape.heads * call.state_len(),
            keeps: keep.is_some(),
            block_work: 2.0 * (shape.group() * self.block.min(shape.queries) * pairs) as f64,
        };
        let bytes = |part: &Part, tokens: usize| -> Result<u64> {
            let mut largest = 0;
            for tensor in tensors.heads {
                let window = part.of_heads(tensor)?.narrow(2, 0, tokens)?;
                largest = largest.max(window.binding().0.bytes);
            }
            for tensor in tensors.keys {
                let window = part.of_keys(tensor)?.narrow(2, 0, tokens)?;
                largest = largest.max(window.binding().0.bytes);
            }
            if let Some(states) = keep {
                let window = part.of_heads(states)?.narrow(2, 0, tokens.div_ceil(self.block))?;
                largest = largest.max(window.binding().0.bytes);
            }
            Ok(largest)
        };
        let extents = [shape.batch, shape.heads_kv, shape.queries];
        Plan::new(extents, shape.group(), self.block, &limits, &bytes)
    }
}

/// Tensors `[batch, .., tokens, dim]` of a call, by query heads and by key heads.
pub(super) struct Tensors<'a> {
    pub(super) heads: &'a [&'a Tensor],
    pub(super) keys: &'a [&'a Tensor],
}

/// What a call writes of callers' tensors. A state that is that of the inputs, too, is not written before it
/// was read for the last time.
fn targets(inputs: Inputs<'_>, out: &Tensor, kv: &Tensor) -> Result<[Target; 2]> {
    let mut read = vec![inputs.k, inputs.v];
    read.extend(inputs.kv);
    Ok([Target::of("out", out, &[])?, Target::of_state("kv", kv, &read)?])
}

/// The results where nothing is summed.
fn nothing(first: Option<&Tensor>, out: Target, kv: Target) -> Result<Output> {
    for (target, from) in [(&out, None), (&kv, first)] {
        target.fill(from)?;
    }
    Ok(Output { out: out.finish()?, kv: kv.finish()? })
}
