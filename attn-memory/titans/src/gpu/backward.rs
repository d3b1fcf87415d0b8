//! The derivative of the dual form, exact also where it goes through the inner gradients.
//!
//! A forward pass that is followed by a derivative keeps the state at the start of every run of about the
//! square root of all chunks. Runs are taken from the last to the first, each computed once more with the
//! state before each of its chunks, and then walked back.

mod record;
mod run;

use std::ops::Range;

use attn_core::Error;
use attn_wgpu::{DType, Result, Tensor, ops};

use self::run::Replay;
use super::parts::{Keep, Part, Plan, pieces};
use super::state::{check_layers, check_tensor, copied, padded_layers, unpadded};
use super::walk::aligned;
use super::{Inputs, Output, State, Titans};

/// What [`Titans::backward`] needs of a forward pass: its inputs, and the state before each run of chunks.
#[derive(Debug, Clone)]
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor,
    alpha: Tensor,
    runs: Vec<Range<usize>>,
    states: Vec<State>,
    /// Tokens since the start of the chunk that the last token is in; 0 behind a full one.
    position: usize,
}

impl Saved {
    /// The same for a backward pass that finds the inputs, with the numbers that they had, elsewhere.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] for inputs of other extents.
    pub fn with_inputs(&self, inputs: Inputs<'_>) -> Result<Saved> {
        let Inputs { q, k, v, theta, eta, alpha } = inputs;
        for (arg, old, new) in [
            ("q", &self.q, q),
            ("k", &self.k, k),
            ("v", &self.v, v),
            ("theta", &self.theta, theta),
            ("eta", &self.eta, eta),
            ("alpha", &self.alpha, alpha),
        ] {
            check_tensor(arg, new, old.gpu(), old.shape())?;
        }
        let [q, k, v] = [q, k, v].map(Tensor::clone);
        let [theta, eta, alpha] = [theta, eta, alpha].map(Tensor::clone);
        Ok(Saved { q, k, v, theta, eta, alpha, ..self.clone() })
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            theta: &self.theta,
            eta: &self.eta,
            alpha: &self.alpha,
        }
    }
}

/// Derivatives of a loss by what [`Titans::forward`] returned, where the loss uses it. Those by the state are
/// by layer `[batch, heads, in, out]`, f32.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cotangents<'a> {
    /// By what was read `[batch, heads, tokens, dim_v]`, in f32, f16 or bf16.
    pub y: Option<&'a Tensor>,
    /// By the last weights.
    pub w: Option<&'a [Tensor]>,
    /// By the last momentum.
    pub s: Option<&'a [Tensor]>,
    /// By the weights at the start of the last chunk.
    pub chunk_start: Option<&'a [Tensor]>,
}

impl<'a> Cotangents<'a> {
    /// Of a loss that uses what was read alone.
    pub fn new(y: &'a Tensor) -> Self {
        Cotangents { y: Some(y), ..Cotangents::default() }
    }

    /// The same with cotangents of the last weights and of the last momentum.
    pub fn with_state(self, w: &'a [Tensor], s: &'a [Tensor]) -> Self {
        Cotangents { w: Some(w), s: Some(s), ..self }
    }

    /// The same with the cotangents of the weights at the start of the last chunk.
    pub fn with_chunk_start(self, chunk_start: &'a [Tensor]) -> Self {
        Cotangents { chunk_start: Some(chunk_start), ..self }
    }
}

/// Derivatives of a loss by the inputs, of their types, and by the state before the first token, by layer
/// `[batch, heads, in, out]` in f32.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, tokens, dim_qk]`.
    pub dq: Tensor,
    /// By the keys `[batch, heads, tokens, dim_qk]`.
    pub dk: Tensor,
    /// By the values `[batch, heads, tokens, dim_v]`.
    pub dv: Tensor,
    /// By the steps `[batch, heads, tokens]`.
    pub d_theta: Tensor,
    /// By the momentum `[batch, heads, tokens]`.
    pub d_eta: Tensor,
    /// By what is forgotten `[batch, heads, tokens]`.
    pub d_alpha: Tensor,
    /// By the first weights.
    pub d_w: Vec<Tensor>,
    /// By the first momentum.
    pub d_s: Vec<Tensor>,
    /// By the weights at the start of the first chunk; 0 where the first token starts it, since they are
    /// the first weights then.
    pub d_chunk_start: Vec<Tensor>,
}

/// Cotangents of a state, padded as it is; walks change them in place.
struct Adjoint {
    w: Vec<Tensor>,
    s: Vec<Tensor>,
    /// Of W*, until the start of its chunk is reached.
    start: Option<Vec<Tensor>>,
}

impl Adjoint {
    /// At the start of a chunk, where W* is W.
    fn fold(&mut self) -> Result<()> {
        let Some(start) = self.start.take() else { return Ok(()) };
        for (w, start) in self.w.iter_mut().zip(&start) {
            *w = ops::add(w, start)?;
        }
        Ok(())
    }

    /// Where cotangents of W* are added up within a chunk.
    fn started(&mut self) -> Result<&[Tensor]> {
        let zeros = match self.start.take() {
            Some(start) => start,
            None => zeros(&self.w)?,
        };
        Ok(self.start.insert(zeros))
    }

    fn of(&self, part: &Part) -> Result<Adjoint> {
        let own = |layers: &[Tensor]| -> Result<Vec<Tensor>> {
            let parts: Result<Vec<Tensor>> = layers.iter().map(|layer| part.of(layer)).collect();
            copied(&parts?)
        };
        let start = self.start.as_ref().map(|start| own(start)).transpose()?;
        Ok(Adjoint { w: own(&self.w)?, s: own(&self.s)?, start })
    }
}

fn zeros(layers: &[Tensor]) -> Result<Vec<Tensor>> {
    layers.iter().map(|layer| Tensor::zeros(layer.gpu(), layer.shape(), DType::F32)).collect()
}

impl Titans {
    /// [`Titans::forward`], and what [`Titans::backward`] needs. It keeps the inputs, which must not change
    /// until then, and about `sqrt(tokens / chunk)` states.
    ///
    /// # Errors
    /// As [`Titans::forward`].
    pub fn forward_saved(&self, inputs: Inputs<'_>, state: &State) -> Result<(Output, Saved)> {
        let extents = self.check(inputs, state)?;
        let all = pieces(&self.config, state.position, extents[2]);
        let wanted = (all as f64).sqrt().ceil() as usize;
        let plan =
            Plan::new(&self.gpu, &self.config, extents, state.position, wanted, Keep::States);
        let mut states = Vec::new();
        let output = self.walk(inputs, state, extents, &plan, &mut states)?;
        let saved = Saved {
            q: inputs.q.clone(),
            k: inputs.k.clone(),
            v: inputs.v.clone(),
            theta: inputs.theta.clone(),
            eta: inputs.eta.clone(),
            alpha: inputs.alpha.clone(),
            runs: plan.runs,
            states,
            position: output.state.position,
        };
        Ok((output, saved))
    }

    /// Records the gradients by all inputs and by the state before them, exact also through the gradients
    /// that the memory takes. Deterministic: all sums have a fixed order.
    ///
    /// # Errors
    /// [`attn_core::Error`] for cotangents that do not fit; those of the device.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let inputs = saved.inputs();
        let (&[batch, heads, tokens, _], Some(first)) = (inputs.q.shape(), saved.states.first())
        else {
            return Err(Error::config("saved", "of `forward_saved`", "nothing").into());
        };
        self.check_cotangents([batch, heads, tokens], cotangents)?;
        let mut adjoint = self.adjoint(cotangents, [batch, heads])?;
        if saved.position == 0 {
            adjoint.fold()?;
        }
        let rows = |dim: usize| {
            Tensor::uninit(&self.gpu, &[batch, heads, tokens, dim.next_multiple_of(4)], DType::F32)
        };
        let gates = || Tensor::uninit(&self.gpu, &[batch, heads, tokens], DType::F32);
        let written = Written {
            rows: [rows(self.config.dim_qk)?, rows(self.config.dim_qk)?, rows(self.config.dim_v)?],
            gates: [gates()?, gates()?, gates()?],
        };
        if batch * heads * tokens > 0 {
            let extents = [batch, heads, tokens];
            let plan = Plan::new(&self.gpu, &self.config, extents, first.position, 1, Keep::States);
            match &plan.parts[..] {
                [part] => self.walk_back(saved, cotangents, part, &mut adjoint, &written)?,
                parts => adjoint = self.parts_back(saved, cotangents, parts, adjoint, &written)?,
            }
        }
        self.grads(inputs, written, adjoint)
    }

    /// Each part by itself.
    fn parts_back(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        parts: &[Part],
        adjoint: Adjoint,
        written: &Written,
    ) -> Result<Adjoint> {
        let (all_w, all_s) = (copied(&adjoint.w)?, copied(&adjoint.s)?);
        let all_start = zeros(&all_w)?;
        for part in parts {
            let mut own = adjoint.of(part)?;
            self.walk_back(saved, cotangents, part, &mut own, written)?;
            let start = own.start.unwrap_or_default();
            for (layers, all) in [(&own.w, &all_w), (&own.s, &all_s), (&start, &all_start)] {
                for (layer, all) in layers.iter().zip(all) {
                    ops::copy(layer, &part.of(all)?)?;
                }
            }
        }
        Ok(Adjoint { w: all_w, s: all_s, start: Some(all_start) })
    }

    /// Through the runs of a part, from the last to the first.
    fn walk_back(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        part: &Part,
        adjoint: &mut Adjoint,
        written: &Written,
    ) -> Result<()> {
        for (run, state) in saved.runs.iter().zip(&saved.states).rev() {
            let window = |x: &Tensor| part.of(x)?.narrow(2, run.start, run.len());
            let inputs = saved.inputs();
            let [q, k, v] = [window(inputs.q)?, window(inputs.k)?, window(inputs.v)?];
            let [theta, eta, alpha] =
                [window(inputs.theta)?, window(inputs.eta)?, window(inputs.alpha)?];
            let inputs = Inputs { q: &q, k: &k, v: &v, theta: &theta, eta: &eta, alpha: &alpha };
            let d_y = match cotangents.y {
                Some(y) => aligned(&window(y)?)?,
                None => {
                    let mut shape = v.shape().to_vec();
                    shape[3] = self.config.dim_v.next_multiple_of(4);
                    Tensor::zeros(&self.gpu, &shape, DType::F32)?
                }
            };
            let own = Replay::new(self, inputs, state.of(part)?)?.back(inputs, d_y, adjoint)?;
            for (from, to) in own.rows.iter().chain(&own.gates).zip(written.all()) {
                ops::copy(from, &window(to)?)?;
            }
        }
        Ok(())
    }

    fn grads(&self, inputs: Inputs<'_>, written: Written, adjoint: Adjoint) -> Result<Grads> {
        let rows = |x: &Tensor, like: &Tensor| -> Result<Tensor> {
            ops::convert(&x.narrow(3, 0, like.shape()[3])?, like.dtype())
        };
        let start = match adjoint.start {
            Some(start) => start,
            None => zeros(&adjoint.w)?,
        };
        let [dq, dk, dv] = &written.rows;
        let [d_theta, d_eta, d_alpha] = &written.gates;
        Ok(Grads {
            dq: rows(dq, inputs.q)?,
            dk: rows(dk, inputs.k)?,
            dv: rows(dv, inputs.v)?,
            d_theta: ops::convert(d_theta, inputs.theta.dtype())?,
            d_eta: ops::convert(d_eta, inputs.eta.dtype())?,
            d_alpha: ops::convert(d_alpha, inputs.alpha.dtype())?,
            d_w: unpadded(&adjoint.w, &self.config)?,
            d_s: unpadded(&adjoint.s, &self.config)?,
            d_chunk_start: unpadded(&start, &self.config)?,
        })
    }

    fn check_cotangents(
        &self,
        [batch, heads, tokens]: [usize; 3],
        cotangents: Cotangents<'_>,
    ) -> Result<()> {
        if let Some(y) = cotangents.y {
            let expected = [batch, heads, tokens, self.config.dim_v];
            self.check_float("cotangents.y", y, &expected)?;
        }
        for (arg, layers) in [
            ("cotangents.w", cotangents.w),
            ("cotangents.s", cotangents.s),
            ("cotangents.chunk_start", cotangents.chunk_start),
        ] {
            if let Some(layers) = layers {
                check_layers(arg, layers, &self.gpu, [batch, heads], &self.config)?;
            }
        }
        Ok(())
    }

    fn adjoint(&self, cotangents: Cotangents<'_>, extents: [usize; 2]) -> Result<Adjoint> {
        let part = |layers: Option<&[Tensor]>| {
            padded_layers(&self.gpu, &self.config, extents, layers.unwrap_or_default())
        };
        let start = cotangents.chunk_start.map(|start| part(Some(start))).transpose()?;
        Ok(Adjoint { w: part(cotangents.w)?, s: part(cotangents.s)?, start })
    }
}

/// Gradients in f32, rows filled up to whole groups of four elements.
struct Written {
    /// By queries, keys and values.
    rows: [Tensor; 3],
    /// By theta, eta and alpha.
    gates: [Tensor; 3],
}

impl Written {
    fn all(&self) -> impl Iterator<Item = &Tensor> {
        self.rows.iter().chain(&self.gates)
    }
}
