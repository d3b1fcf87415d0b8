use ndarray::{Array3, Array4, ArrayView1, ArrayView2, ArrayViewMut1, s};

use super::{Config, Inputs, Output, check_size};
use crate::{Error, Result, RowKeys};

/// Attention of every query.
///
/// # Errors
/// [`Error::Shape`] where the inputs do not fit together, [`Error::Config`] and [`Error::Data`]
/// where the scale or the mask is not usable.
pub fn forward(inputs: Inputs<'_>, config: &Config) -> Result<Output> {
    let queries = inputs.check()?.queries;
    run(inputs, config, queries, |i| i, false)
}

/// [`forward`] that also returns the probabilities: `batch * heads * queries * keys` numbers.
///
/// # Errors
/// As [`forward`].
pub fn forward_with_probs(inputs: Inputs<'_>, config: &Config) -> Result<Output> {
    let queries = inputs.check()?.queries;
    run(inputs, config, queries, |i| i, true)
}

/// [`forward`] of the queries `rows` only, in this order, for samples of a long sequence. Each row
/// has the bits that [`forward`] gives it.
///
/// # Errors
/// As [`forward`], and [`Error::Data`] where a row is not below the number of queries.
pub fn forward_rows(inputs: Inputs<'_>, config: &Config, rows: &[usize]) -> Result<Output> {
    let queries = inputs.check()?.queries;
    if let Some(row) = rows.iter().find(|&&row| row >= queries) {
        return Err(Error::data("rows", format!("indices below {queries} queries"), row));
    }
    run(inputs, config, rows.len(), |i| rows[i], false)
}

/// The rows `row_at(0..rows)` of all batch entries and heads.
fn run(
    inputs: Inputs<'_>,
    config: &Config,
    rows: usize,
    row_at: impl Fn(usize) -> usize,
    with_probs: bool,
) -> Result<Output> {
    let shape = inputs.check()?;
    config.check(shape.lengths())?;
    let (batch, heads) = (shape.batch, shape.heads);
    let scale = config.scale_for(shape.dim_qk);

    check_size("out", &[batch, heads, rows, shape.dim_v])?;
    check_size("lse", &[batch, heads, rows])?;
    let mut output = Output {
        out: Array4::zeros((batch, heads, rows, shape.dim_v)),
        lse: Array3::zeros((batch, heads, rows)),
        row_max: Array3::zeros((batch, heads, rows)),
        argmax: Array3::default((batch, heads, rows)),
        probs: None,
    };
    if with_probs {
        check_size("probs", &[batch, heads, rows, shape.keys])?;
        output.probs = Some(Array4::zeros((batch, heads, rows, shape.keys)));
    }

    // Rows without gaps: products of them are fast, and rounded alike whatever the strides were.
    let q = inputs.q.as_standard_layout();
    let k = inputs.k.as_standard_layout();
    let v = inputs.v.as_standard_layout();
    let mut p = Vec::new();
    for b in 0..batch {
        for h in 0..heads {
            let h_kv = h / shape.group();
            let (k, v) = (k.slice(s![b, h_kv, .., ..]), v.slice(s![b, h_kv, .., ..]));
            for i in 0..rows {
                let keys = config.mask.row(shape.lengths(), row_at(i));
                let q = q.slice(s![b, h, row_at(i), ..]);
                let out = output.out.slice_mut(s![b, h, i, ..]);
                let stats = attend(q, k, v, keys, scale, &mut p, out);
                output.lse[[b, h, i]] = stats.lse;
                output.row_max[[b, h, i]] = stats.max;
                output.argmax[[b, h, i]] = stats.argmax;
                if let Some(probs) = &mut output.probs {
                    keys.iter().zip(&p).for_each(|(t, &p)| probs[[b, h, i, t]] = p);
                }
            }
        }
    }
    Ok(output)
}

struct RowStats {
    lse: f64,
    max: f64,
    argmax: Option<usize>,
}

/// One query over the keys that it sees. Adds to `out`, and leaves the probabilities in `p` in the
/// order of the keys.
fn attend(
    q: ArrayView1<'_, f64>,
    k: ArrayView2<'_, f64>,
    v: ArrayView2<'_, f64>,
    keys: RowKeys,
    scale: f64,
    p: &mut Vec<f64>,
    mut out: ArrayViewMut1<'_, f64>,
) -> RowStats {
    logits(q, k, keys, scale, p);
    let mut stats = RowStats { lse: f64::NEG_INFINITY, max: f64::NEG_INFINITY, argmax: None };
    for (t, &s) in keys.iter().zip(p.iter()) {
        if stats.argmax.is_none() || s > stats.max {
            (stats.max, stats.argmax) = (s, Some(t));
        }
    }
    if stats.argmax.is_none() {
        return stats;
    }

    // exp(s - max) / sum is exp(s - lse) with less rounding, and needs no second exponential.
    let mut sum = 0.0;
    for s in p.iter_mut() {
        *s = (*s - stats.max).exp();
        sum += *s;
    }
    stats.lse = stats.max + sum.ln();
    for (t, p) in keys.iter().zip(p.iter_mut()) {
        *p /= sum;
        out.scaled_add(*p, &v.row(t));
    }
    stats
}

/// The logits of one query over the keys that it sees, in the order of the keys.
pub(super) fn logits(
    q: ArrayView1<'_, f64>,
    k: ArrayView2<'_, f64>,
    keys: RowKeys,
    scale: f64,
    into: &mut Vec<f64>,
) {
    into.clear();
    into.extend(keys.iter().map(|t| scale * q.dot(&k.row(t))));
}
