//! The steps of a forward pass.

use attn_core::AttentionShape;
use attn_wgpu::linear_attention::{self, Saved as SavedLinear};
use attn_wgpu::matmul::matmul;
use attn_wgpu::scan::{Recurrence, RowDot, SoftmaxState, recurrence, row_dot, softmax_scan};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops, softmax};

use super::kernels::{Each, MARKS, NUMBERS, SCALE, SIGMOID};
use super::state::Sums;
use super::sums::{Totals, padded_rows, product};
use super::{Flowformer, Flows, Inputs, Output, State};
use crate::Config;

/// Sinks or sources.
pub(super) struct Side {
    pub(super) tokens: usize,
    dim: usize,
    /// a or b, f32 `[batch, heads, padded tokens, padded dim]`; 0 for padding of any kind.
    pub(super) sigmoids: Tensor,
    /// (valid, t, n, ratio) of each token, f32 `[batch, tokens, 4]`.
    pub(super) marks: Tensor,
}

impl Side {
    /// `[batch, heads, tokens, dim]`.
    pub(super) fn rows(&self) -> Result<Tensor> {
        self.sigmoids.narrow(2, 0, self.tokens)?.narrow(3, 0, self.dim)
    }
}

/// A formula of `flow_numbers`, with what it reads beside `x`.
#[derive(Default)]
pub(super) struct Formula<'a> {
    pub(super) flags: &'a [&'a str],
    pub(super) y: Option<&'a Tensor>,
    pub(super) z: Option<&'a Tensor>,
    pub(super) w: Option<&'a Tensor>,
    /// Numbers from token to token and from head to head, of a sum that is not of each token.
    pub(super) steps: [usize; 2],
    pub(super) clamp: Option<f64>,
}

impl Formula<'_> {
    /// Results for numbers `x` `[batch, heads, tokens]` of a side; the second one only where there are two.
    pub(super) fn of(&self, x: &Tensor, side: &Side) -> Result<[Tensor; 2]> {
        let (gpu, heads) = (x.gpu(), x.shape()[1]);
        let out = Tensor::uninit(gpu, x.shape(), DType::F32)?;
        let two = self.flags.iter().any(|flag| flag.ends_with("SINK"));
        let more = if two { Tensor::uninit(gpu, x.shape(), DType::F32)? } else { out.clone() };
        let mut tensors = vec![&side.marks, x, &out];
        tensors.extend(self.y);
        tensors.extend(self.z);
        tensors.extend(self.w);
        if two {
            tensors.push(&more);
        }
        let clamp = self.clamp.map_or(f32::MAX, |clamp| clamp as f32);
        let [step, plane] = self.steps.map(|step| step as u32);
        let params = [heads as u32, side.tokens as u32, step, plane, clamp.to_bits()];
        let run = Each {
            source: &NUMBERS,
            flags: self.flags,
            tensors: &tensors,
            count: x.len(),
            params: &params,
            steps: 1,
            work: 16,
        };
        run.record(gpu)?;
        Ok([out, more])
    }
}

/// Log-sum-exps of logits, with their steps from token to token and from head to head.
pub(super) struct Lse {
    pub(super) numbers: Tensor,
    pub(super) steps: [usize; 2],
}

/// All that a forward pass computes; tensors of tokens have the padding that kernels like.
pub(super) struct Pass {
    pub(super) shape: AttentionShape,
    pub(super) sinks: Side,
    pub(super) sources: Side,
    pub(super) flows: Flows,
    /// 1 / I and 1 / O, or t / I and t / O.
    pub(super) rates: [Tensor; 2],
    /// K, Q, K^ and Q^: `[batch, heads, 1 or tokens, dim_qk]`.
    pub(super) sums: [Tensor; 4],
    pub(super) lse: Lse,
    /// comp v, f32 `[batch, heads, padded keys, padded dim]`.
    pub(super) weighted: Tensor,
    /// alloc / I.
    pub(super) scale: Tensor,
    /// f32 `[batch * heads, padded dim_qk, padded dim_v]`.
    pub(super) memory: Tensor,
    pub(super) linear: Option<SavedLinear>,
    pub(super) state: Option<State>,
}

impl Pass {
    /// With the output `out`.
    pub(super) fn output(&self, out: Tensor) -> Result<Output> {
        let AttentionShape { batch, heads, dim_qk, dim_v, .. } = self.shape;
        let memory = self.memory.split(0, &[batch, heads])?;
        Ok(Output {
            out,
            flows: Some(self.flows.clone()),
            memory: memory.narrow(2, 0, dim_qk)?.narrow(3, 0, dim_v)?,
            state: self.state.clone(),
        })
    }
}

impl Flowformer {
    /// Writes the output into `target`, and returns it in f32, too.
    pub(super) fn pass(
        &self,
        inputs: Inputs<'_>,
        shape: &AttentionShape,
        target: &Tensor,
    ) -> Result<(Pass, Tensor)> {
        let shape = *shape;
        let before = inputs.state.map(State::sums);
        let (sinks, sources, tokens) = self.sides(inputs, &shape)?;
        let totals = Totals { causal: self.config.causal };
        let (a, b) = (sinks.rows()?, sources.rows()?);
        let shift = self.config.epsilon as f32;
        let flow = |x: &Tensor, sum: &Tensor| row_dot(RowDot::new(x, sum).with_shift(shift));
        let rate = |x: &Tensor, side: &Side| -> Result<Tensor> {
            let [rate, _] = Formula { flags: &["RATE"], ..Formula::default() }.of(x, side)?;
            Ok(rate)
        };

        let k = totals.plain(&b, before.map(|sums| &sums.k))?;
        let q = totals.plain(&a, before.map(|sums| &sums.q))?;
        let (incoming, outgoing) = (flow(&a, &k.rows)?, flow(&b, &q.rows)?);
        let rates = [rate(&incoming, &sinks)?, rate(&outgoing, &sources)?];
        let k_hat = totals.weighted(&b, &rates[1], 0.0, before.map(|sums| &sums.k_hat))?;
        let q_hat = totals.weighted(&a, &rates[0], 0.0, before.map(|sums| &sums.q_hat))?;
        // Both hold t times the flow until the formulas have run.
        let (conserved_sink, conserved_source) = (flow(&a, &k_hat.rows)?, flow(&b, &q_hat.rows)?);

        let sink = Formula { flags: &["SINK", "HAS_Y"], y: Some(&incoming), ..Formula::default() };
        let [allocation, scale] = sink.of(&conserved_sink, &sinks)?;
        let source = Formula { flags: &["SOURCE"], clamp: self.config.clamp, ..Formula::default() };
        let [logits, _] = source.of(&conserved_source, &sources)?;
        let (lse, element) = self.log_sum_exp(&logits, before.map(|sums| &sums.element))?;
        let comp = Formula {
            flags: &["COMP", "HAS_Y"],
            y: Some(&lse.numbers),
            steps: lse.steps,
            ..Formula::default()
        };
        let [competition, _] = comp.of(&logits, &sources)?;
        let padded = sources.sigmoids.shape()[2];
        let weighted = scale_rows(&whole(inputs.v)?, &competition, 0.0, padded)?;

        let (r, memory, linear) =
            self.core(&sinks, &sources, &weighted, before.map(|sums| &sums.memory))?;
        let out =
            ops::write_rows(target, &[&r, &scale], |out| scale_rows_into(&r, &scale, 0.0, out))?;
        let state = match (element, tokens) {
            (Some(element), Some(tokens)) => Some(State::new(
                Sums {
                    k: k.last,
                    q: q.last,
                    k_hat: k_hat.last,
                    q_hat: q_hat.last,
                    element,
                    memory: memory.clone(),
                    tokens,
                },
                [shape.batch, shape.heads, shape.dim_qk, shape.dim_v],
            )),
            _ => None,
        };
        let flows =
            Flows { incoming, outgoing, conserved_sink, conserved_source, allocation, competition };
        let sums = [k.rows, q.rows, k_hat.rows, q_hat.rows];
        let pass = Pass {
            shape,
            sinks,
            sources,
            flows,
            rates,
            sums,
            lse,
            weighted,
            scale,
            memory,
            linear,
            state,
        };
        Ok((pass, out))
    }

    /// Both sides, and the number of tokens so far in the causal form.
    fn sides(
        &self,
        inputs: Inputs<'_>,
        shape: &AttentionShape,
    ) -> Result<(Side, Side, Option<Tensor>)> {
        let heads = shape.heads;
        let [valid_q, valid_k] = [(inputs.valid_q, shape.queries), (inputs.valid_k, shape.keys)]
            .map(|(valid, tokens)| valid_numbers(&self.gpu, valid, [shape.batch, tokens]));
        let (valid_q, valid_k) = (valid_q?, valid_k?);
        let side = |x: &Tensor, valid: Option<&Tensor>, marks: Tensor| -> Result<Side> {
            let sigmoids = sigmoids(x, valid, heads, self.config.causal)?;
            Ok(Side { tokens: x.shape()[2], dim: shape.dim_qk, sigmoids, marks })
        };
        let (q, k) = (inputs.q, inputs.k);
        if !self.config.causal {
            let counts = [count(&valid_q)?, count(&valid_k)?];
            let marks = |valid: &Tensor| marks(valid, &[], &[&counts[0], &counts[1]]);
            let sinks = side(q, inputs.valid_q, marks(&valid_q)?)?;
            return Ok((sinks, side(k, inputs.valid_k, marks(&valid_k)?)?, None));
        }
        // Counted by a scan, so that padding may be anywhere.
        let by_token = valid_q.split(2, &[shape.queries, 1])?;
        let call = Recurrence::new(&by_token);
        let scanned = recurrence(call.with_first(inputs.state.map(|state| &state.sums().tokens)))?;
        let marks = marks(&valid_q, &["CAUSAL"], &[&scanned.h])?;
        let sinks = side(q, inputs.valid_q, marks.clone())?;
        Ok((sinks, side(k, inputs.valid_k, marks)?, Some(scanned.last)))
    }

    fn log_sum_exp(
        &self,
        logits: &Tensor,
        before: Option<&SoftmaxState>,
    ) -> Result<(Lse, Option<SoftmaxState>)> {
        if !self.config.causal {
            return Ok((Lse { numbers: softmax::log_sum_exp(logits)?, steps: [0, 1] }, None));
        }
        let &[batch, heads, tokens] = logits.shape() else {
            return Ok((Lse { numbers: logits.clone(), steps: [1, 0] }, None));
        };
        let none = Tensor::uninit(&self.gpu, &[batch, heads, tokens, 0], DType::F32)?;
        let scan = softmax_scan(logits, &none, before, DType::F32)?;
        Ok((Lse { numbers: scan.lse, steps: [1, tokens] }, Some(scan.last)))
    }

    /// `a M` `[batch, heads, padded queries, padded dim_v]`, M `[batch * heads, ..]`, and what a backward pass
    /// of the causal form needs.
    fn core(
        &self,
        sinks: &Side,
        sources: &Side,
        weighted: &Tensor,
        before: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor, Option<SavedLinear>)> {
        let &[batch, heads, rows, _] = sinks.sigmoids.shape() else {
            return Ok((weighted.clone(), weighted.clone(), None));
        };
        let width = weighted.shape()[3];
        let out = [batch, heads, rows, width];
        if !self.config.causal {
            let memory = product(&sources.sigmoids, weighted)?;
            let r = matmul(&planes(&sinks.sigmoids)?, &memory)?.reshape(&out)?;
            return Ok((r, memory, None));
        }
        let [q, k, v] = [&sinks.sigmoids, &sources.sigmoids, weighted].map(single_heads);
        let (q, k, v) = (q?, k?, v?);
        let mut inputs = linear_attention::Inputs::new(&q, &k, &v);
        let before = before.map(|kv| kv.split(0, &[batch * heads, 1])).transpose()?;
        inputs.kv = before.as_ref();
        let (output, saved) = self.linear.forward_saved(inputs)?;
        let kv = output.kv.reshape(&[batch * heads, sinks.sigmoids.shape()[3], width])?;
        Ok((output.out.reshape(&out)?, kv, Some(saved)))
    }
}

/// `[batch * heads, rows, width]` of `[batch, heads, rows, width]`, contiguous.
pub(super) fn planes(x: &Tensor) -> Result<Tensor> {
    let [planes, rows] = [x.shape()[..2].iter().product(), x.shape()[2]];
    x.reshape(&[planes, rows, x.shape()[3]])
}

/// `[batch * heads, 1, rows, width]`.
pub(super) fn single_heads(x: &Tensor) -> Result<Tensor> {
    planes(x)?.split(0, &[x.shape()[0] * x.shape()[1], 1])
}

/// The tensor in f32, rows filled up with zeros to whole groups of four elements, any strides of rows.
pub(super) fn whole(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let (strides, start) = (x.strides(), x.binding().1);
    let outer = strides[..3].iter().chain([&start]);
    let width = x.shape()[3];
    let direct = strides[3] == 1 && outer.copied().all(|stride| stride.is_multiple_of(4));
    if direct && width.is_multiple_of(4) {
        return Ok(x.clone());
    }
    let mut shape = x.shape().to_vec();
    shape[3] = width.next_multiple_of(4);
    let copied = Tensor::uninit(x.gpu(), &shape, DType::F32)?;
    ops::copy(&x, &copied)?;
    Ok(copied)
}

/// `f (x + shift)` for rows `x` `[batch, heads_x, rows, whole width]` and numbers `f` `[batch, heads, rows]`, with
/// zeros behind them to `padded` rows.
pub(super) fn scale_rows(x: &Tensor, f: &Tensor, shift: f32, padded: usize) -> Result<Tensor> {
    let &[batch, heads, _] = f.shape() else { return Ok(x.clone()) };
    let out = Tensor::uninit(x.gpu(), &[batch, heads, padded, x.shape()[3]], DType::F32)?;
    scale_rows_into(x, f, shift, &out)?;
    Ok(out)
}

/// [`scale_rows`] into a tensor that is contiguous from the beginning of a binding on.
pub(super) fn scale_rows_into(x: &Tensor, f: &Tensor, shift: f32, out: &Tensor) -> Result<()> {
    let &[_, heads, rows] = f.shape() else { return Ok(()) };
    let (width, padded) = (x.shape()[3], out.shape()[2]);
    let group = heads / x.shape()[1];
    let place = [x.binding().1, x.strides()[0], x.strides()[1], x.strides()[2]];
    let mut params = [heads, rows, padded, width / 4, group].map(|number| number as u32).to_vec();
    params.extend(place.map(|elements| (elements / 4) as u32));
    params.push(shift.to_bits());
    let run = Each {
        source: &SCALE,
        flags: &[],
        tensors: &[x, f, out],
        count: out.len() / 4,
        params: &params,
        steps: 1,
        work: 16,
    };
    run.record(x.gpu())
}

/// a or b: a copy for each query head, of as many rows as products like.
fn sigmoids(x: &Tensor, valid: Option<&Tensor>, heads: usize, causal: bool) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let x = if x.strides()[3] == 1 { x } else { x.contiguous()? };
    let &[batch, heads_x, rows, width] = x.shape() else { return Ok(x) };
    let padded = if causal { rows } else { padded_rows(rows) };
    let out = [batch, heads, padded, width.next_multiple_of(4)];
    let out = Tensor::uninit(x.gpu(), &out, DType::F32)?;
    let chunks = out.shape()[3] / 4;
    let place = [x.binding().1, x.strides()[0], x.strides()[1], x.strides()[2]];
    let mut params =
        [heads, rows, padded, width, chunks, heads / heads_x].map(|x| x as u32).to_vec();
    params.extend(place.map(|elements| elements as u32));
    let mut tensors = vec![&x, &out];
    let mut flags: &[&str] = &[];
    if let Some(valid) = valid {
        flags = &["VALID"];
        tensors.push(valid);
        let place = [valid.binding().1, valid.strides()[0], valid.strides()[1]];
        params.extend(place.map(|words| words as u32));
    } else {
        params.extend([0; 3]);
    }
    let count = out.len() / 4;
    Each { source: &SIGMOID, flags, tensors: &tensors, count, params: &params, steps: 1, work: 16 }
        .record(x.gpu())?;
    Ok(out)
}

/// 1 for tokens that count, f32 `[batch, 1, tokens]`.
fn valid_numbers(gpu: &Gpu, valid: Option<&Tensor>, [batch, tokens]: [usize; 2]) -> Result<Tensor> {
    let Some(valid) = valid else { return Tensor::full(gpu, &[batch, 1, tokens], 1f32) };
    // The product of two rows of 1.
    let half = Tensor::full(gpu, &[1, 1, 1, 4], 0.5f32)?;
    let rows = half.expand(&[batch, 1, tokens, 4])?;
    row_dot(RowDot::new(&rows, &rows).with_valid(Some(valid), 0.0))
}

/// How many count, f32 `[batch, 1, 1]`.
fn count(valid: &Tensor) -> Result<Tensor> {
    let rows = valid.split(1, &[1, 1])?;
    row_dot(RowDot::new(&rows, &rows))
}

/// What the tokens of a side are; see flow_marks.wgsl.
fn marks(valid: &Tensor, flags: &[&str], more: &[&Tensor]) -> Result<Tensor> {
    let (batch, tokens) = (valid.shape()[0], valid.shape()[2]);
    let marks = Tensor::uninit(valid.gpu(), &[batch, tokens, 4], DType::F32)?;
    let mut tensors = vec![valid, &marks];
    tensors.extend(more);
    let params = [tokens as u32];
    let count = batch * tokens;
    Each { source: &MARKS, flags, tensors: &tensors, count, params: &params, steps: 1, work: 16 }
        .record(valid.gpu())?;
    Ok(marks)
}

impl Config {
    /// The number added in inner products, as devices have it.
    pub(super) fn shift(&self) -> f32 {
        self.epsilon as f32
    }
}
