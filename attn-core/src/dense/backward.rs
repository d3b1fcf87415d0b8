use ndarray::{Array1, Array4, s};

use super::logits::Row;
use super::{Config, Cotangents, Grads, Inputs, Output, expect};
use crate::Result;

/// Vector-Jacobian product of [`super::forward`]: the derivatives of a loss by `q`, `k`, `v` and
/// the sinks, from its derivatives by the output and, optionally, by the log-sum-exp. `output` is
/// what `forward` returned for the same inputs and configuration. Key heads get the sum over the
/// query heads that share them. A row without any allowed key contributes nothing, except the
/// derivative of its log-sum-exp by a sink.
///
/// # Errors
/// As [`super::forward`], [`crate::Error::Shape`] where `output` or a cotangent has not the shape
/// that the inputs imply, and [`crate::Error::Config`] for a score modifier without a derivative on
/// the host.
pub fn backward(
    inputs: Inputs<'_>,
    config: &Config,
    output: &Output,
    cotangents: Cotangents<'_>,
) -> Result<Grads> {
    let shape = inputs.check()?;
    config.check(shape.lengths())?;
    config.check_derivative()?;
    expect("output.out", output.out.shape(), &shape.out())?;
    expect("output.lse", output.lse.shape(), &shape.lse())?;
    expect("cotangents.out", cotangents.out.shape(), &shape.out())?;
    if let Some(dlse) = cotangents.lse {
        expect("cotangents.lse", dlse.shape(), &shape.lse())?;
    }
    let scale = config.scale_for(shape.dim_qk);

    let q = inputs.q.as_standard_layout();
    let k = inputs.k.as_standard_layout();
    let v = inputs.v.as_standard_layout();
    let d_out = cotangents.out.as_standard_layout();
    let mut grads = Grads {
        dq: Array4::zeros(shape.q()),
        dk: Array4::zeros(shape.k()),
        dv: Array4::zeros(shape.v()),
        d_sinks: inputs.sinks.map(|sinks| Array1::zeros(sinks.len())),
    };
    let mut members = Vec::new();
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            let h_kv = h / shape.group();
            let (k, v) = (k.slice(s![b, h_kv, .., ..]), v.slice(s![b, h_kv, .., ..]));
            let mut dk = grads.dk.slice_mut(s![b, h_kv, .., ..]);
            let mut dv = grads.dv.slice_mut(s![b, h_kv, .., ..]);
            let mut d_sink = 0.0;
            for i in 0..shape.queries {
                let row = Row::new(config, shape.lengths(), [b, h, i]);
                let (q, d_out) = (q.slice(s![b, h, i, ..]), d_out.slice(s![b, h, i, ..]));
                let mut dq = grads.dq.slice_mut(s![b, h, i, ..]);
                let lse = output.lse[[b, h, i]];
                let d_lse = cotangents.lse.map_or(0.0, |d_lse| d_lse[[b, h, i]]);
                row.members(q, k, &mut members);
                let delta = match members.is_empty() {
                    true => 0.0,
                    false => d_out.dot(&output.out.slice(s![b, h, i, ..])),
                };
                for member in &members {
                    let t = member.key;
                    let p = (member.logit - lse).exp();
                    let ds = p * (d_out.dot(&v.row(t)) - delta + d_lse) * row.slope(member);
                    dq.scaled_add(scale * ds, &k.row(t));
                    dk.row_mut(t).scaled_add(scale * ds, &q);
                    dv.row_mut(t).scaled_add(p, &d_out);
                }
                // A sink of -inf takes no part, whatever else there is.
                if let Some(sink) = inputs.sinks.map(|sinks| sinks[h])
                    && sink != f64::NEG_INFINITY
                {
                    d_sink += (sink - lse).exp() * (d_lse - delta);
                }
            }
            if let Some(d_sinks) = &mut grads.d_sinks {
                d_sinks[h] += d_sink;
            }
        }
    }
    Ok(grads)
}
