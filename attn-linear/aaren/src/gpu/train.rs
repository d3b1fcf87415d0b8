//! Derivatives on a device, by a linear recurrence from the last token to the first.

use attn_core::Error;
use attn_wgpu::scan::{
    self, Columns, Recurrence, RowDot, Scanned, column_sums, column_sums_into, recurrence, row_dot,
    row_dot_into, softmax_scan, softmax_scan_into,
};
use attn_wgpu::{DType, Result, Tensor, ops};

use super::kernels::{DECAY, Each, FIRST, SCORES, SPREAD};
use super::{Aaren, Call, Inputs, Output, State, whole};

/// What [`Aaren::backward`] needs of a call.
#[derive(Debug, Clone)]
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Option<Tensor>,
    state: Option<State>,
    /// f32 `[batch, heads, tokens]`.
    scores: Tensor,
    /// f32, whatever the result is stored as.
    out: Tensor,
    lse: Tensor,
    last: State,
}

impl Saved {
    fn new(inputs: Inputs<'_>, scores: Tensor, out: Tensor, lse: Tensor, last: State) -> Self {
        let (q, k, v) = (inputs.q.clone(), inputs.k.clone(), inputs.v.clone());
        let (valid, state) = (inputs.valid.cloned(), inputs.state.cloned());
        Saved { q, k, v, valid, state, scores, out, lse, last }
    }

    fn output(&self, out: Tensor) -> Output {
        Output { out, lse: self.lse.clone(), state: self.last.clone() }
    }

    /// The same with inputs at another place: a caller's allocator may have moved them.
    /// Their elements must be those of the forward pass.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors of another shape.
    pub fn with_inputs(self, inputs: Inputs<'_>) -> Result<Saved> {
        let pairs = [("q", &self.q, inputs.q), ("k", &self.k, inputs.k), ("v", &self.v, inputs.v)];
        for (arg, old, new) in pairs {
            if old.shape() != new.shape() {
                return Err(Error::shape(arg, format!("{:?}", old.shape()), new.shape()).into());
            }
        }
        Ok(Saved {
            q: inputs.q.clone(),
            k: inputs.k.clone(),
            v: inputs.v.clone(),
            valid: inputs.valid.cloned(),
            state: inputs.state.cloned(),
            ..self
        })
    }

    /// The same with the outputs at another place, with the elements of the forward pass. Half types make no
    /// difference: gradients need outputs in f32, which are then kept apart.
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor of another shape.
    pub fn with_out(self, out: &Tensor) -> Result<Saved> {
        if out.shape() != self.out.shape() {
            let expected = format!("{:?}", self.out.shape());
            return Err(Error::shape("out", expected, out.shape()).into());
        }
        let out = if out.dtype() == DType::F32 { out.clone() } else { self.out };
        Ok(Saved { out, ..self })
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            valid: self.valid.as_ref(),
            state: self.state.as_ref(),
        }
    }
}

/// Derivatives of a loss by what [`Aaren::forward`] returned.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By the outputs `[batch, heads, tokens, dim_v]`, f32 or a half type.
    pub out: &'a Tensor,
    /// By the log-sum-exps, f32 `[batch, heads, tokens]`, where the loss uses them.
    pub lse: Option<&'a Tensor>,
    /// By the output of the final state, f32 `[batch, heads, dim_v]`, as later parts of a stream give it.
    pub state_out: Option<&'a Tensor>,
    /// By the log-sum-exp of the final state, f32 `[batch, heads]`.
    pub state_lse: Option<&'a Tensor>,
}

impl<'a> Cotangents<'a> {
    /// Of a loss that uses the outputs alone.
    pub fn new(out: &'a Tensor) -> Self {
        Cotangents { out, lse: None, state_out: None, state_lse: None }
    }
}

/// Derivatives of a loss by the inputs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries, of their shape and type: a query that the batch shares gets the sum over the batch.
    pub dq: Tensor,
    /// By the keys `[batch, heads_kv, tokens, dim_qk]`, of their type.
    pub dk: Tensor,
    /// By the values `[batch, heads_kv, tokens, dim_v]`, of their type.
    pub dv: Tensor,
    /// By the output f32 `[batch, heads, dim_v]` and the log-sum-exp f32 `[batch, heads]` of the state before
    /// the first token, where there is one.
    pub d_state: Option<(Tensor, Tensor)>,
}

/// Where [`Aaren::backward_into`] writes gradients, of the shapes of [`Grads`], each in its own type; what has no
/// target is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Targets<'a> {
    /// By the queries.
    pub dq: Option<&'a Tensor>,
    /// By the keys.
    pub dk: Option<&'a Tensor>,
    /// By the values.
    pub dv: Option<&'a Tensor>,
}

/// R, rho and lambda of all tokens, in rows of the padded outputs and four numbers more.
struct Carry {
    scanned: Scanned,
    /// Where rho is in a row; lambda is behind it.
    rho: usize,
}

impl Aaren {
    /// [`Aaren::forward`], and what [`Aaren::backward`] needs of it.
    ///
    /// # Errors
    /// As [`Aaren::forward`].
    pub fn forward_saved(&self, inputs: Inputs<'_>) -> Result<(Output, Saved)> {
        let out = Tensor::uninit(&self.gpu, &self.shape(&inputs)?.out(), inputs.v.dtype())?;
        self.forward_saved_into(inputs, &out)
    }

    /// [`Aaren::forward_saved`] with the outputs `[batch, heads, tokens, dim_v]` in a caller's tensor, in its own
    /// type. Outputs in f32 are not kept a second time, see [`Saved::with_out`].
    ///
    /// # Errors
    /// As [`Aaren::forward`], and [`attn_core::Error`] for a target of another shape or type.
    pub fn forward_saved_into(&self, inputs: Inputs<'_>, out: &Tensor) -> Result<(Output, Saved)> {
        let call = self.call(inputs)?;
        let scores = call.scores()?;
        let saved = if out.dtype() == DType::F32 {
            let lse = Tensor::uninit(&self.gpu, &call.shape.lse(), DType::F32)?;
            let last = softmax_scan_into(&scores, inputs.v, call.first(), out, &lse)?;
            Saved::new(inputs, scores, out.clone(), lse, State::new(last))
        } else {
            let scan = softmax_scan(&scores, inputs.v, call.first(), DType::F32)?;
            ops::convert_into(&scan.out, out)?;
            Saved::new(inputs, scores, scan.out, scan.lse, State::new(scan.last))
        };
        Ok((saved.output(out.clone()), saved))
    }

    /// The vector-Jacobian product of [`Aaren::forward`]; see [`crate::reference::backward`].
    ///
    /// # Errors
    /// [`attn_core::Error`] for cotangents of other shapes or types; errors of the device.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let new = |x: &Tensor| Tensor::uninit(&self.gpu, x.shape(), x.dtype());
        let (dq, dk, dv) = (new(&saved.q)?, new(&saved.k)?, new(&saved.v)?);
        let targets = Targets { dq: Some(&dq), dk: Some(&dk), dv: Some(&dv) };
        let d_state = self.backward_into(saved, cotangents, targets)?;
        Ok(Grads { dq, dk, dv, d_state })
    }

    /// [`Aaren::backward`] into callers' tensors: directly where they are f32, contiguous from where a binding may
    /// begin, and of whole groups of four elements; else a conversion or a copy on the device follows. They must
    /// not overlap each other. Returns [`Grads::d_state`].
    ///
    /// # Errors
    /// As [`Aaren::backward`], and [`attn_core::Error`] for targets of another shape or of integers.
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let call = self.call(saved.inputs())?;
        check(&call, &cotangents)?;
        let Targets { dq, dk, dv } = targets;
        for (arg, target, like) in
            [("dq", dq, &saved.q), ("dk", dk, &saved.k), ("dv", dv, &saved.v)]
        {
            if let Some(target) = target {
                ops::check_target(arg, target, &self.gpu, like.shape())?;
            }
        }
        let shape = call.shape;
        if shape.batch * shape.heads * shape.queries == 0 {
            return self.nothing(saved, &call, cotangents, targets);
        }
        let carry = self.carry(saved, &call, cotangents)?;
        let r = carry.scanned.h.narrow(3, 0, shape.dim_v)?;
        let products = row_dot(RowDot::new(&saved.v, &r))?;
        let new = || Tensor::uninit(&self.gpu, &shape.lse(), DType::F32);
        let (p, ds) = (new()?, new()?);
        let width = carry.scanned.h.shape()[3];
        let run = Each {
            source: &SCORES,
            flags: &[],
            tensors: &[&saved.scores, &saved.lse, &products, &carry.scanned.h, &p, &ds],
            count: p.len(),
            params: &[width as u32, carry.rho as u32],
            steps: 1,
            work: 16,
        };
        run.record(&self.gpu)?;
        if let Some(dq) = dq {
            self.queries(saved, &call, &ds, dq)?;
        }
        if let Some(dk) = dk {
            self.spread(&call, &ds, &whole(&call.q)?, call.scale, dk)?;
        }
        if let Some(dv) = dv {
            self.spread(&call, &p, &r, 1.0, dv)?;
        }
        saved.state.as_ref().map(|state| self.first(saved, &carry, state)).transpose()
    }

    /// R, rho and lambda.
    fn carry(&self, saved: &Saved, call: &Call<'_>, cotangents: Cotangents<'_>) -> Result<Carry> {
        let [batch, heads, tokens, dim] = call.shape.out();
        let rho = dim.next_multiple_of(4);
        let x = Tensor::zeros(&self.gpu, &[batch, heads, tokens, rho + 4], DType::F32)?;
        if dim > 0 {
            ops::convert_into(cotangents.out, &x.narrow(3, 0, dim)?)?;
            row_dot_into(RowDot::new(cotangents.out, &saved.out), &scan::column(&x, rho)?)?;
        }
        if let Some(lse) = cotangents.lse {
            ops::copy(lse, &scan::column(&x, rho + 1)?)?;
        }
        let decay = Tensor::uninit(&self.gpu, &[batch, heads, tokens], DType::F32)?;
        let run = Each {
            source: &DECAY,
            flags: &[],
            tensors: &[&saved.lse, &decay],
            count: decay.len(),
            params: &[tokens as u32],
            steps: 1,
            work: 16,
        };
        run.record(&self.gpu)?;
        let last = self.last(saved, call, cotangents, rho)?;
        let call =
            Recurrence::new(&x).with_coefficients(&decay).with_first(last.as_ref()).reversed();
        Ok(Carry { scanned: recurrence(call)?, rho })
    }

    /// What flows back from behind the last token.
    fn last(
        &self,
        saved: &Saved,
        call: &Call<'_>,
        cotangents: Cotangents<'_>,
        rho: usize,
    ) -> Result<Option<Tensor>> {
        if cotangents.state_out.is_none() && cotangents.state_lse.is_none() {
            return Ok(None);
        }
        let [batch, heads, _, dim] = call.shape.out();
        let last = Tensor::zeros(&self.gpu, &[batch, heads, rho + 4], DType::F32)?;
        if let Some(state_out) = cotangents.state_out.filter(|_| dim > 0) {
            ops::copy(state_out, &last.narrow(2, 0, dim)?)?;
            let rows = |x: &Tensor| x.split(1, &[heads, 1]);
            let delta = scan::column(&last, rho)?;
            let product = row_dot(RowDot::new(&rows(state_out)?, &rows(&saved.last.out()?)?))?;
            ops::copy(&product.reshape(&[batch, heads])?, &delta)?;
        }
        if let Some(state_lse) = cotangents.state_lse {
            ops::copy(state_lse, &scan::column(&last, rho + 1)?)?;
        }
        Ok(Some(last))
    }

    /// `factor sum f y` over the heads that share a key, into `out` `[batch, heads_kv, tokens, dim]`.
    fn spread(
        &self,
        call: &Call<'_>,
        f: &Tensor,
        y: &Tensor,
        factor: f32,
        out: &Tensor,
    ) -> Result<()> {
        let shape = call.shape;
        let stride = |d: usize| if y.shape()[d] > 1 { y.strides()[d] / 4 } else { 0 };
        let start = y.binding().1 / 4;
        let record = |out: &Tensor| {
            let chunks = out.shape()[3] / 4;
            let numbers = [
                shape.heads_kv,
                shape.queries,
                chunks,
                shape.group(),
                start,
                stride(0),
                stride(1),
                stride(2),
            ];
            let mut params: Vec<u32> = numbers.iter().map(|&number| number as u32).collect();
            params.push(factor.to_bits());
            let run = Each {
                source: &SPREAD,
                flags: &[],
                tensors: &[f, y, out],
                count: out.len() / 4,
                params: &params,
                steps: shape.group(),
                work: 16 * (shape.group()),
            };
            run.record(&self.gpu)
        };
        ops::write_rows(out, &[f, y], record)?;
        Ok(())
    }

    /// By the queries, into a tensor of their shape.
    fn queries(&self, saved: &Saved, call: &Call<'_>, ds: &Tensor, out: &Tensor) -> Result<()> {
        let sums = Columns::new(&saved.k).with_weights(ds).with_factor(call.scale);
        if saved.q.shape().len() == 3 {
            return column_sums_into(sums, out);
        }
        // Over the batch, which then takes the place of the tokens.
        let heads = call.shape.heads;
        let by_head = column_sums(sums)?.permute(&[1, 0, 2])?.split(0, &[1, heads])?;
        column_sums_into(Columns::new(&by_head), &out.split(0, &[1, heads])?)
    }

    /// By the state before the first token.
    fn first(&self, saved: &Saved, carry: &Carry, state: &State) -> Result<(Tensor, Tensor)> {
        let [batch, heads, dim] = state.shape();
        let (out, lse) = state.element().read_out()?;
        let d_out = Tensor::uninit(&self.gpu, &[batch, heads, dim], DType::F32)?;
        let d_lse = Tensor::uninit(&self.gpu, &[batch, heads], DType::F32)?;
        let last = &carry.scanned.last;
        let (tokens, width) = (saved.lse.shape()[2], last.shape()[2]);
        let run = Each {
            source: &FIRST,
            flags: &[],
            tensors: &[last, &saved.lse, &lse, &out, &d_out, &d_lse],
            count: batch * heads,
            params: &[tokens as u32, dim as u32, width as u32, carry.rho as u32],
            steps: dim,
            work: 16 * (dim),
        };
        run.record(&self.gpu)?;
        Ok((d_out, d_lse))
    }

    /// Gradients of a call without tokens: those of the state are the cotangents.
    fn nothing(
        &self,
        saved: &Saved,
        call: &Call<'_>,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<Option<(Tensor, Tensor)>> {
        for target in [targets.dq, targets.dk, targets.dv].into_iter().flatten() {
            let zeros = Tensor::zeros(&self.gpu, target.shape(), target.dtype())?;
            ops::convert_into(&zeros, target)?;
        }
        if saved.state.is_none() {
            return Ok(None);
        }
        let [batch, heads, _, dim] = call.shape.out();
        let given = |x: Option<&Tensor>, shape: &[usize]| match x {
            Some(x) => Ok(x.clone()),
            None => Tensor::zeros(&self.gpu, shape, DType::F32),
        };
        let d_out = given(cotangents.state_out, &[batch, heads, dim])?;
        Ok(Some((d_out, given(cotangents.state_lse, &[batch, heads])?)))
    }
}

fn check(call: &Call<'_>, cotangents: &Cotangents<'_>) -> Result<()> {
    let [batch, heads, tokens, dim] = call.shape.out();
    let expect = |arg, x: Option<&Tensor>, shape: &[usize], exact: bool| -> Result<()> {
        let Some(x) = x else { return Ok(()) };
        if x.shape() != shape {
            return Err(Error::shape(arg, format!("{shape:?}"), x.shape()).into());
        }
        let float = matches!(x.dtype(), DType::F16 | DType::BF16) && !exact;
        if x.dtype() != DType::F32 && !float {
            let expected = if exact { "f32" } else { "f32, f16 or bf16" };
            let (expected, got) = (expected.into(), x.dtype().name().into());
            return Err(Error::Dtype { arg, expected, got }.into());
        }
        Ok(())
    };
    expect("cotangents.out", Some(cotangents.out), &call.shape.out(), false)?;
    expect("cotangents.lse", cotangents.lse, &[batch, heads, tokens], true)?;
    expect("cotangents.state_out", cotangents.state_out, &[batch, heads, dim], true)?;
    expect("cotangents.state_lse", cotangents.state_lse, &[batch, heads], true)
}
