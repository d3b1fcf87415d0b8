//! Online k-means: the centroids of a layer, and how training moves them.

use attn_core::{Error, Result};
use ndarray::{Array2, Array3, ArrayView3, Axis, s};

use super::{Inputs, Routes, check, normalise, rows_of};
use crate::{Config, UpdateRule};

/// Keeps the counts of the moving averages away from 0.
pub(crate) const COUNT_EPSILON: f64 = 1e-5;
/// A centroid with fewer tokens than this share of the mean keeps its place.
pub(crate) const DEAD: f64 = 1e-3;

/// Extents of a layer whose centroids are not there yet: attention asks for [`Centroids`], which only
/// come from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uninitialised {
    /// Query heads.
    pub heads: usize,
    /// Centroids of a head.
    pub clusters: usize,
    /// Elements of a head.
    pub dim: usize,
}

impl Uninitialised {
    /// A layer of these extents.
    pub fn new(heads: usize, clusters: usize, dim: usize) -> Self {
        Uninitialised { heads, clusters, dim }
    }

    /// Centroids that were trained before, `[heads, clusters, dim]`, with one token each.
    ///
    /// # Errors
    /// [`Error::Shape`] for other extents.
    pub fn with_means(self, means: ArrayView3<'_, f64>) -> Result<Centroids> {
        let expected = [self.heads, self.clusters, self.dim];
        if means.shape() != expected {
            return Err(Error::shape("means", format!("{expected:?}"), means.shape()));
        }
        let counts = Array2::ones((self.heads, self.clusters));
        Ok(Centroids { means: means.to_owned(), sums: means.to_owned(), counts })
    }
}

/// Centroids, and the moving averages that they are made of.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Centroids {
    /// `[heads, clusters, dim]`.
    pub means: Array3<f64>,
    /// Moving sums of tokens `[heads, clusters, dim]`.
    pub sums: Array3<f64>,
    /// Moving numbers of tokens `[heads, clusters]`.
    pub counts: Array2<f64>,
}

impl Centroids {
    /// With moving averages of their own.
    ///
    /// # Errors
    /// [`Error::Shape`] for sums or counts that do not fit the means.
    pub fn with_averages(
        self,
        sums: ArrayView3<'_, f64>,
        counts: ndarray::ArrayView2<'_, f64>,
    ) -> Result<Self> {
        let expected = self.means.shape();
        if sums.shape() != expected {
            return Err(Error::shape("sums", format!("{expected:?}"), sums.shape()));
        }
        if counts.shape() != &expected[..2] {
            return Err(Error::shape("counts", format!("{:?}", &expected[..2]), counts.shape()));
        }
        Ok(Centroids { sums: sums.to_owned(), counts: counts.to_owned(), ..self })
    }
}

/// Centroids after one step of training on tokens that were routed.
///
/// # Errors
/// As [`super::forward`].
pub fn update(
    inputs: Inputs<'_>,
    routes: &Routes,
    centroids: &Centroids,
    config: &Config,
) -> Result<Centroids> {
    check(inputs, centroids, config)?;
    let q = normalise(inputs.q).x;
    let k = if config.shared_qk { q.clone() } else { normalise(inputs.k).x };
    let mut next = centroids.clone();
    match config.rule {
        UpdateRule::Paper => {
            next.means *= config.decay;
            for (x, assigned) in [(&q, &routes.assigned_q), (&k, &routes.assigned_k)] {
                for head in 0..next.means.len_of(Axis(0)) {
                    for (cluster, row) in rows_of(x, assigned, head) {
                        let mut mean = next.means.slice_mut(s![head, cluster, ..]);
                        mean.scaled_add((1.0 - config.decay) / 2.0, &row);
                    }
                }
            }
        }
        UpdateRule::Ema => {
            follow(&mut next, &q, &routes.assigned_q, config);
            if !config.shared_qk {
                follow(&mut next, &k, &routes.assigned_k, config);
            }
        }
    }
    Ok(next)
}

/// One step of the moving averages.
fn follow(
    next: &mut Centroids,
    x: &ndarray::Array4<f64>,
    assigned: &Array3<Option<usize>>,
    config: &Config,
) {
    next.sums *= config.decay;
    next.counts *= config.decay;
    let (heads, clusters) = next.counts.dim();
    for head in 0..heads {
        for (cluster, row) in rows_of(x, assigned, head) {
            next.counts[[head, cluster]] += 1.0 - config.decay;
            let mut sum = next.sums.slice_mut(s![head, cluster, ..]);
            sum.scaled_add(1.0 - config.decay, &row);
        }
        let total = next.counts.row(head).sum();
        let share = total / (total + clusters as f64 * COUNT_EPSILON);
        for cluster in 0..clusters {
            let smoothed = (next.counts[[head, cluster]] + COUNT_EPSILON) * share;
            if smoothed >= DEAD * total / clusters as f64 {
                let mean = next.sums.slice(s![head, cluster, ..]).mapv(|sum| sum / smoothed);
                next.means.slice_mut(s![head, cluster, ..]).assign(&mean);
            }
        }
    }
}
