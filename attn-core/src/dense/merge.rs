use ndarray::{Array3, Array4, ArrayView3, ArrayView4, s};

use super::{Config, Inputs, Output, check_size, expect, logits::Row};
use crate::{Error, Result};

/// The result over the union of disjoint sets of keys, from the results over each: output
/// `[batch, heads, queries, dim_v]` and log-sum-exp `[batch, heads, queries]` of each part.
///
/// ```text
/// lse = ln sum_n exp(lse_n)
/// o   = sum_n exp(lse_n - lse) o_n
/// ```
///
/// Associative and commutative up to rounding. A row of a part with `lse <= -1e29` is empty: its
/// output is not read, and it changes no bit. A row that is empty in all parts has output 0 and
/// log-sum-exp -inf. At most one of the parts may have been computed with sinks.
///
/// # Errors
/// [`Error::Data`] where there is no part, [`Error::Shape`] where two parts, or output and
/// log-sum-exp of one, do not fit together.
pub fn merge(
    parts: &[(ArrayView4<'_, f64>, ArrayView3<'_, f64>)],
) -> Result<(Array4<f64>, Array3<f64>)> {
    let Some((first, _)) = parts.first() else {
        return Err(Error::data("parts", "at least one part", "none"));
    };
    for (out, lse) in parts {
        expect("parts.out", out.shape(), first.shape())?;
        expect("parts.lse", lse.shape(), &first.shape()[..3])?;
    }
    check_size("parts.out", first.shape())?;
    check_size("parts.lse", &first.shape()[..3])?;
    let mut out = Array4::zeros(first.dim());
    let (batch, heads, queries, _) = first.dim();
    let mut lse = Array3::from_elem((batch, heads, queries), f64::NEG_INFINITY);
    for ((b, h, i), lse) in lse.indexed_iter_mut() {
        let rows = parts.iter().map(|(out, lse)| (out.slice(s![b, h, i, ..]), lse[[b, h, i]]));
        let rows: Vec<_> = rows.filter(|(_, lse)| !is_empty(*lse)).collect();
        let mut out = out.slice_mut(s![b, h, i, ..]);
        match &rows[..] {
            [] => {}
            [(only, only_lse)] => {
                out.assign(only);
                *lse = *only_lse;
            }
            rows => {
                let max = rows.iter().fold(f64::NEG_INFINITY, |max, (_, lse)| max.max(*lse));
                let sum: f64 = rows.iter().map(|(_, lse)| (lse - max).exp()).sum();
                for (row, lse) in rows {
                    out.scaled_add((lse - max).exp() / sum, row);
                }
                *lse = max + sum.ln();
            }
        }
    }
    Ok((out, lse))
}

/// Whether a stored log-sum-exp, or the finite number that stands for it, is that of no key.
fn is_empty(lse: f64) -> bool {
    lse <= -1e29
}

/// What every key receives, `[batch, heads, keys]`: the sum of its probabilities over all queries.
/// `output` is what [`super::forward`] returned for the same inputs and configuration.
///
/// # Errors
/// As [`super::forward`], and [`Error::Shape`] where `output` has not the shape that the inputs
/// imply.
pub fn column_sums(inputs: Inputs<'_>, config: &Config, output: &Output) -> Result<Array3<f64>> {
    let shape = inputs.check()?;
    let lengths = shape.lengths();
    config.check(lengths)?;
    expect("output.lse", output.lse.shape(), &shape.lse())?;
    check_size("sums", &[shape.batch, shape.heads, shape.keys])?;
    let (q, k) = (inputs.q.as_standard_layout(), inputs.k.as_standard_layout());
    let mut sums = Array3::zeros((shape.batch, shape.heads, shape.keys));
    let mut members = Vec::new();
    for ((batch, head, query), lse) in output.lse.indexed_iter() {
        let row = Row::new(config, lengths, [batch, head, query]);
        let k = k.slice(s![batch, head / shape.group(), .., ..]);
        row.members(q.slice(s![batch, head, query, ..]), k, &mut members);
        for member in &members {
            sums[[batch, head, member.key]] += (member.logit - lse).exp();
        }
    }
    Ok(sums)
}
