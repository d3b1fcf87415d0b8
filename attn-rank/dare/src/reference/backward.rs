//! Gradients of the tables.

use attn_core::{Error, Result};
use ndarray::{Array1, Array2, ArrayView2, s};

use super::tables::{Embeddings, Tables};
use super::{Batch, Output};
use crate::config::Config;

/// Derivatives of a loss by what [`forward`](super::forward) returned.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By the features.
    pub features: ArrayView2<'a, f64>,
    /// By the features of the auxiliary head, where the loss has one.
    pub auxiliary: Option<ArrayView2<'a, f64>>,
}

impl<'a> Cotangents<'a> {
    /// Of a loss of the main head alone.
    pub fn new(features: ArrayView2<'a, f64>) -> Self {
        Cotangents { features, auxiliary: None }
    }

    /// Of a loss of both heads.
    pub fn with_auxiliary(self, auxiliary: ArrayView2<'a, f64>) -> Self {
        Cotangents { auxiliary: Some(auxiliary), ..self }
    }
}

/// Derivatives of a loss by the tables. Those of tied tables are the [sum](Embeddings::sum) of both.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the tables that search: through scores alone.
    pub attention: Embeddings,
    /// By the tables that are pooled: through candidates and what is pooled.
    pub representation: Embeddings,
}

/// The vector-Jacobian product of [`forward`](super::forward); the selection carries no gradient.
///
/// With `(dv1, dh1, dp)` the parts of a head's cotangent: `dh = dh1 + v dp`, `dv = dv1 + h dp`,
/// `dw_j = <dh, e_j>`, `ds_j = w_j (dw_j - sum_i w_i dw_i)`, `de_j = w_j dh`, and `dq` and `dk_j` follow from
/// `ds` with the scales of the scores.
///
/// # Errors
/// [`Error`] for a configuration, tables or ids that do not fit, or cotangents of another shape.
pub fn backward(
    tables: &Tables,
    batch: &Batch,
    config: &Config,
    output: &Output,
    cotangents: Cotangents<'_>,
) -> Result<Grads> {
    let rows = tables.check(config)?;
    batch.check(rows)?;
    let mut grads = Grads {
        attention: Embeddings::zeros(rows, config.attention),
        representation: Embeddings::zeros(rows, config.representation),
    };
    let heads = [
        ("cotangents.features", Some(cotangents.features), &output.weights, &output.h),
        ("cotangents.auxiliary", cotangents.auxiliary, &output.weights_full, &output.h_full),
    ];
    let shape = [batch.item.len(), config.features()];
    for (arg, dx, weights, h) in heads {
        let Some(dx) = dx else { continue };
        if dx.shape() != shape {
            return Err(Error::shape(arg, format!("{shape:?}"), dx.shape()));
        }
        for b in 0..batch.item.len() {
            one(tables, batch, config, (b, dx, weights, h), &mut grads);
        }
    }
    Ok(grads)
}

type Row<'a> = (usize, ArrayView2<'a, f64>, &'a Array2<f64>, &'a Array2<f64>);

/// One request and one head.
fn one(
    tables: &Tables,
    batch: &Batch,
    config: &Config,
    (b, dx, weights, h): Row<'_>,
    grads: &mut Grads,
) {
    let width = config.representation.sum();
    let candidate = batch.candidate(b);
    let v = tables.pooled().row(candidate);
    let mut dv = dx.slice(s![b, ..width]).to_owned();
    let mut dh = dx.slice(s![b, width..2 * width]).to_owned();
    if config.target_aware {
        let by_product = dx.slice(s![b, 2 * width..]);
        dh += &(&v * &by_product);
        dv += &(&h.row(b) * &by_product);
    }
    grads.representation.add(candidate, [1.0; 2], &dv);

    let used: Vec<usize> = (0..weights.ncols()).filter(|&j| weights[[b, j]] != 0.0).collect();
    let dw: Vec<f64> =
        used.iter().map(|&j| dh.dot(&tables.pooled().row(batch.behaviour(b, j)))).collect();
    let mean: f64 = used.iter().zip(&dw).map(|(&j, dw)| weights[[b, j]] * dw).sum();
    let scales = config.scales();
    let q = tables.attention.row(candidate);
    let mut dq = Array1::zeros(q.len());
    for (&j, dw) in used.iter().zip(&dw) {
        let (weight, ids) = (weights[[b, j]], batch.behaviour(b, j));
        let ds = weight * (dw - mean);
        grads.representation.add(ids, [weight; 2], &dh);
        grads.attention.add(ids, scales.map(|scale| scale * ds), &q);
        dq.scaled_add(ds, &tables.attention.row(ids));
    }
    grads.attention.add(candidate, scales, &dq);
}
