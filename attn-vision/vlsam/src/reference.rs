//! The method's equations in f64, sections 2.1 to 2.4, on stored probabilities.
//!
//! ```text
//! W[l,h] = mean_i max_j S[l,h,i,j]          A[l] = 1/H sum_h W[l,h] S[l,h]
//! T[0] = A[0]                               T[l] = (I + A[l]) (I + T[l-1])
//! map[p] = mean over object tokens q of T[L-1][q, i0 + p], then min-max
//! ```
//! With [`Regularisation::PerLayer`] every `T[l]` is multiplied by the column factor, with
//! [`Regularisation::Once`] the last one. [`flow_matrix`] computes `T[L-1]` as written, [`flow_rows`] some of
//! its rows by `L` products of vectors with matrices.

use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, ArrayView4, Axis, s};

use attn_core::{Error, Result};

use crate::config::check_rows;
use crate::{Config, Regularisation, TokenLayout, causal_counts, column_factor};

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// From 0 to 1, `[gh, gw]`.
    pub map: Array2<f64>,
    /// The same before scaling, `[gh, gw]`.
    pub raw: Array2<f64>,
    /// The object tokens' rows of the flow, `[rows, N]`.
    pub rows: Array2<f64>,
    /// `[L, H]`.
    pub head_weights: Array2<f64>,
}

/// The map of an object from probabilities `[L, H, N, N]`. `counts` are the entries that the mask leaves in each
/// column; none means those of a causal mask.
///
/// # Errors
/// [`Error::Shape`] for maps that are not square, [`Error::Config`] for no layer or no head and for a layout that
/// does not fit, [`Error::Shape`] and [`Error::Data`] for counts that do not.
pub fn forward(
    maps: ArrayView4<'_, f64>,
    layout: &TokenLayout,
    config: &Config,
    counts: Option<&[usize]>,
) -> Result<Output> {
    config.validate()?;
    let (layers, heads, tokens, columns) = maps.dim();
    if tokens != columns {
        return Err(Error::shape("maps", "[L, H, N, N], as many rows as columns", maps.shape()));
    }
    if layers * heads == 0 {
        return Err(Error::config("maps", "at least one layer and one head", 0));
    }
    layout.validate(tokens)?;
    let factor = match counts {
        Some(counts) if counts.len() != tokens => {
            return Err(Error::shape("column_counts", format!("[{tokens}]"), &[counts.len()]));
        }
        Some(counts) => column_factor(counts)?,
        None => column_factor(&causal_counts(tokens))?,
    };
    let factor = Array1::from(factor);
    let mut weights = Array2::ones((layers, heads));
    let mut aggregated = Array3::zeros((layers, tokens, tokens));
    for (layer, maps) in maps.outer_iter().enumerate() {
        if config.head_weights {
            weights.row_mut(layer).assign(&head_weights(maps));
        }
        aggregated.index_axis_mut(Axis(0), layer).assign(&aggregate(maps, weights.row(layer)));
    }
    let rows =
        flow_rows(aggregated.view(), &layout.object_rows, config.regularisation, factor.view())?;
    let raw = raw_map(rows.view(), layout)?;
    Ok(Output { map: min_max(raw.view()), raw, rows, head_weights: weights })
}

/// `W_h`, the mean over the rows of the largest probability of each: section 2.1. `maps` are `[H, N, N]`.
pub fn head_weights(maps: ArrayView3<'_, f64>) -> Array1<f64> {
    let largest = |row: ArrayView1<'_, f64>| row.iter().copied().fold(0.0, f64::max);
    maps.map_axis(Axis(2), largest)
        .mean_axis(Axis(1))
        .unwrap_or_else(|| Array1::zeros(maps.dim().0))
}

/// `A = 1/H sum_h W_h S_h` of maps `[H, N, N]`: section 2.1.
pub fn aggregate(maps: ArrayView3<'_, f64>, weights: ArrayView1<'_, f64>) -> Array2<f64> {
    let (heads, rows, columns) = maps.dim();
    let mut sum = Array2::zeros((rows, columns));
    for (map, weight) in maps.outer_iter().zip(weights) {
        sum.scaled_add(*weight, &map);
    }
    sum / heads.max(1) as f64
}

/// `T[L-1]` `[N, N]` of aggregated maps `[L, N, N]`, by products of matrices: sections 2.2 and 2.3. All zero
/// without layers.
///
/// # Errors
/// [`Error::Shape`] for maps that are not square and another number of factors.
pub fn flow_matrix(
    aggregated: ArrayView3<'_, f64>,
    regularisation: Regularisation,
    factor: ArrayView1<'_, f64>,
) -> Result<Array2<f64>> {
    let tokens = check_flow(&aggregated, &factor)?;
    let identity = Array2::<f64>::eye(tokens);
    let mut flow = Array2::zeros((tokens, tokens));
    for (layer, a) in aggregated.outer_iter().enumerate() {
        flow = match layer {
            0 => a.to_owned(),
            _ => (&identity + &a).dot(&(&identity + &flow)),
        };
        if regularisation == Regularisation::PerLayer {
            flow *= &factor;
        }
    }
    if regularisation == Regularisation::Once {
        flow *= &factor;
    }
    Ok(flow)
}

/// The rows `rows` of [`flow_matrix`], `[rows, N]`, by the row form of section 2.4: with `r` the factor of every
/// layer,
///
/// ```text
/// f_0(u) = (u A[0]) * r        f_l(u) = (w + f_{l-1}(w)) * r,  w = u + u A[l]        row q = f_{L-1}(e_q)
/// ```
///
/// # Errors
/// As [`flow_matrix`], and [`Error::Config`] for a row that there is not.
pub fn flow_rows(
    aggregated: ArrayView3<'_, f64>,
    rows: &[usize],
    regularisation: Regularisation,
    factor: ArrayView1<'_, f64>,
) -> Result<Array2<f64>> {
    let tokens = check_flow(&aggregated, &factor)?;
    check_rows(rows, tokens)?;
    let per_layer = match regularisation {
        Regularisation::PerLayer => factor.to_owned(),
        _ => Array1::ones(tokens),
    };
    let mut flows = Array2::zeros((rows.len(), tokens));
    for (row, mut flow) in rows.iter().zip(flows.outer_iter_mut()) {
        let mut unit = Array1::zeros(tokens);
        unit[*row] = 1.0;
        flow.assign(&flow_from(aggregated, &unit, &per_layer));
        if regularisation == Regularisation::Once {
            flow *= &factor;
        }
    }
    Ok(flows)
}

/// `f_{L-1}(u)`.
fn flow_from(aggregated: ArrayView3<'_, f64>, u: &Array1<f64>, r: &Array1<f64>) -> Array1<f64> {
    match aggregated.len_of(Axis(0)) {
        0 => Array1::zeros(u.len()),
        1 => u.dot(&aggregated.index_axis(Axis(0), 0)) * r,
        layers => {
            let w = u + &u.dot(&aggregated.index_axis(Axis(0), layers - 1));
            let earlier = flow_from(aggregated.slice(s![..layers - 1, .., ..]), &w, r);
            (w + earlier) * r
        }
    }
}

fn check_flow(aggregated: &ArrayView3<'_, f64>, factor: &ArrayView1<'_, f64>) -> Result<usize> {
    let (_, tokens, columns) = aggregated.dim();
    if tokens != columns {
        let expected = "[L, N, N], as many rows as columns";
        return Err(Error::shape("aggregated", expected, aggregated.shape()));
    }
    if factor.len() != tokens {
        return Err(Error::shape("factor", format!("[{tokens}]"), factor.shape()));
    }
    Ok(tokens)
}

/// Mean of the rows at the image's tokens, `[gh, gw]`: section 2.4 without min-max.
///
/// # Errors
/// [`Error::Config`] for a layout that does not fit.
pub fn raw_map(rows: ArrayView2<'_, f64>, layout: &TokenLayout) -> Result<Array2<f64>> {
    let tokens = rows.ncols();
    layout.validate(tokens)?;
    let image = rows.slice(s![.., layout.image.clone()]);
    let mean = image.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(layout.image.len()));
    let misfit =
        |_| Error::config("grid", "the patches of the image", format!("{:?}", layout.grid));
    mean.into_shape_with_order(layout.grid).map_err(misfit)
}

/// `(a - min) / (max - min)`; all zeros where all are equal.
pub fn min_max(raw: ArrayView2<'_, f64>) -> Array2<f64> {
    let low = raw.iter().copied().fold(f64::INFINITY, f64::min);
    let high = raw.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match high > low {
        true => raw.mapv(|value| (value - low) / (high - low)),
        false => Array2::zeros(raw.dim()),
    }
}
