//! Domination and conflict: how the gradients of search and pooling meet in tied tables.
//!
//! The gradient of a tied model is the sum of the two that a decoupled one would get
//! ([`Grads`](crate::Grads), [`reference::Grads`](crate::reference::Grads)). Where one is much longer, it
//! dominates; where their angle is above 90 degrees, they conflict.

use attn_core::{Error, Result};
use ndarray::ArrayView2;

/// How two gradients of one row meet.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Conflict {
    /// The row of the table.
    pub row: usize,
    /// Norm of the gradient by pooling, over that of the gradient by search; infinite where the latter is 0.
    pub ratio: f64,
    /// Cosine of their angle; 0 where either is 0. Below 0 they conflict.
    pub cosine: f64,
}

/// Ratio and cosine of each row in which any gradient is not 0, of gradients `[rows, width]` by the search
/// and by the pooling of one table (the paper looks at categories).
///
/// # Errors
/// [`Error::Shape`] where the shapes differ.
pub fn conflicts(
    attention: ArrayView2<'_, f64>,
    representation: ArrayView2<'_, f64>,
) -> Result<Vec<Conflict>> {
    if attention.dim() != representation.dim() {
        let expected = format!("{:?}", attention.shape());
        return Err(Error::shape("representation", expected, representation.shape()));
    }
    let mut found = Vec::new();
    for (row, (a, r)) in attention.rows().into_iter().zip(representation.rows()).enumerate() {
        let (by_search, by_pooling) = (a.dot(&a).sqrt(), r.dot(&r).sqrt());
        if by_search == 0.0 && by_pooling == 0.0 {
            continue;
        }
        let product = by_search * by_pooling;
        let cosine = if product > 0.0 { (a.dot(&r) / product).clamp(-1.0, 1.0) } else { 0.0 };
        found.push(Conflict { row, ratio: by_pooling / by_search, cosine });
    }
    Ok(found)
}

/// What [`conflicts`] of many rows or steps come to.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// Median of the ratios.
    pub ratio: f64,
    /// Share of the rows whose gradients conflict.
    pub opposed: f64,
    /// Rows.
    pub rows: usize,
}

/// Median ratio and share of conflicts; `None` for no row.
pub fn summary(found: &[Conflict]) -> Option<Summary> {
    let mut ratios: Vec<f64> = found.iter().map(|one| one.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = *ratios.get(found.len() / 2)?;
    let opposed = found.iter().filter(|one| one.cosine < 0.0).count();
    Some(Summary { ratio, opposed: opposed as f64 / found.len() as f64, rows: found.len() })
}
