use ndarray::{Array3, Array4, ArrayView1, ArrayView2, ArrayViewMut1, Axis, s};

use super::logits::{Member, Row};
use super::{Config, Inputs, Output, check_size};
use crate::{AttentionShape, Error, Result};

/// Attention of every query.
///
/// # Errors
/// [`Error::Shape`] where the inputs do not fit together, [`Error::Config`] and [`Error::Data`]
/// where the scale, the soft-cap, the modifier or the mask is not usable. A modifier has to have a
/// function on the host.
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

impl Output {
    /// `rows` rows for every batch entry and head, to be written.
    pub(crate) fn empty(shape: &AttentionShape, rows: usize) -> Result<Self> {
        let lse = [shape.batch, shape.heads, rows];
        let out = [shape.batch, shape.heads, rows, shape.dim_v];
        check_size("out", &out)?;
        check_size("lse", &lse)?;
        Ok(Output {
            out: Array4::zeros(out),
            lse: Array3::zeros(lse),
            row_max: Array3::zeros(lse),
            product_bound: Array3::zeros(lse),
            argmax: Array3::default(lse),
            probs: None,
        })
    }
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

    let mut output = Output::empty(&shape, rows)?;
    if with_probs {
        check_size("probs", &[batch, heads, rows, shape.keys])?;
        output.probs = Some(Array4::zeros((batch, heads, rows, shape.keys)));
    }

    // Rows without gaps: products of them are fast, and rounded alike whatever the strides were.
    let q = inputs.q.as_standard_layout();
    let k = inputs.k.as_standard_layout();
    let v = inputs.v.as_standard_layout();
    let bounds = ProductBounds::new(inputs, config);
    let (mut members, mut p) = (Vec::new(), Vec::new());
    for b in 0..batch {
        for h in 0..heads {
            let h_kv = h / shape.group();
            let (k, v) = (k.slice(s![b, h_kv, .., ..]), v.slice(s![b, h_kv, .., ..]));
            let sink = inputs.sinks.map(|sinks| sinks[h]);
            for i in 0..rows {
                let query = row_at(i);
                let row = Row::new(config, shape.lengths(), [b, h, query]);
                row.members(q.slice(s![b, h, query, ..]), k, &mut members);
                let out = output.out.slice_mut(s![b, h, i, ..]);
                let stats = attend(&members, sink, v, &mut p, out);
                output.lse[[b, h, i]] = stats.lse;
                output.row_max[[b, h, i]] = stats.max;
                let keys = members.iter().map(|member| member.key);
                output.product_bound[[b, h, i]] = bounds.largest([b, h, query], keys);
                output.argmax[[b, h, i]] = stats.argmax;
                if let Some(probs) = &mut output.probs {
                    members.iter().zip(&p).for_each(|(m, &p)| probs[[b, h, i, m.key]] = p);
                }
            }
        }
    }
    Ok(output)
}

/// Bounds of the products of queries and keys, by their lengths.
pub(crate) struct ProductBounds {
    /// `|scale| |q|`, `[batch, heads, queries]`.
    q: Array3<f64>,
    /// `|k|`, `[batch, heads_kv, keys]`.
    k: Array3<f64>,
}

impl ProductBounds {
    pub fn new(inputs: Inputs<'_>, config: &Config) -> Self {
        let length = |row: ArrayView1<'_, f64>| row.dot(&row).sqrt();
        let scale = config.scale_for(inputs.q.len_of(Axis(3))).abs();
        // Rounded alike whatever the strides were.
        let q = inputs.q.as_standard_layout().map_axis(Axis(3), |row| scale * length(row));
        ProductBounds { q, k: inputs.k.as_standard_layout().map_axis(Axis(3), length) }
    }

    /// The largest bound of a query's products with `keys`.
    pub fn largest(&self, [b, h, i]: [usize; 3], keys: impl Iterator<Item = usize>) -> f64 {
        let group = (self.q.len_of(Axis(1)) / self.k.len_of(Axis(1)).max(1)).max(1);
        let bounds = keys.map(|key| self.q[[b, h, i]] * self.k[[b, h / group, key]]);
        bounds.fold(f64::NEG_INFINITY, f64::max)
    }
}

pub(crate) struct RowStats {
    pub lse: f64,
    pub max: f64,
    pub argmax: Option<usize>,
}

/// One query over the keys that it sees. Adds to `out`, and leaves the probabilities in `p` in the
/// order of the keys.
pub(crate) fn attend(
    members: &[Member],
    sink: Option<f64>,
    v: ArrayView2<'_, f64>,
    p: &mut Vec<f64>,
    mut out: ArrayViewMut1<'_, f64>,
) -> RowStats {
    p.clear();
    let lse = sink.unwrap_or(f64::NEG_INFINITY);
    let mut stats = RowStats { lse, max: f64::NEG_INFINITY, argmax: None };
    for member in members {
        if stats.argmax.is_none() || member.logit > stats.max {
            (stats.max, stats.argmax) = (member.logit, Some(member.key));
        }
    }
    if stats.argmax.is_none() {
        return stats;
    }

    // exp(s - max) / sum is exp(s - lse) with less rounding, and needs no second exponential.
    let max = sink.map_or(stats.max, |sink| stats.max.max(sink));
    p.extend(members.iter().map(|member| (member.logit - max).exp()));
    let sum = sink.map_or(0.0, |sink| (sink - max).exp()) + p.iter().sum::<f64>();
    stats.lse = max + sum.ln();
    for (member, p) in members.iter().zip(p.iter_mut()) {
        *p /= sum;
        out.scaled_add(*p, &v.row(member.key));
    }
    stats
}
