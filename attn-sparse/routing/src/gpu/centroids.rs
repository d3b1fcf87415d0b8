//! Online k-means on a device.

use attn_core::Error;
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use ndarray::{ArrayD, Ix2, Ix3};

use super::clusters::listed_sums;
use super::kernels::{COUNTS, Each, FOLLOW};
use super::routes::{Slots, numbered};
use super::{Extents, aligned, normed, whole};
use crate::reference::{self, COUNT_EPSILON, DEAD};
use crate::{Config, UpdateRule};

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

/// Centroids, and the moving averages that they are made of. Cheap to clone; an update makes new ones.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Centroids {
    /// f32 `[heads, clusters, dim]`.
    pub means: Tensor,
    /// Moving sums of tokens, f32 `[heads, clusters, dim]`.
    pub sums: Tensor,
    /// Moving numbers of tokens, f32 `[heads, clusters]`.
    pub counts: Tensor,
    /// The means in rows of whole groups of four elements.
    pub(super) rows: Tensor,
}

impl Uninitialised {
    /// A layer of these extents.
    pub fn new(heads: usize, clusters: usize, dim: usize) -> Self {
        Uninitialised { heads, clusters, dim }
    }

    /// Centroids that were trained before, f32 `[heads, clusters, dim]`, with one token each.
    ///
    /// # Errors
    /// [`attn_core::Error`] for other extents or another type.
    pub fn with_means(self, means: &Tensor) -> Result<Centroids> {
        check("means", means, &[self.heads, self.clusters, self.dim])?;
        let counts = Tensor::full(means.gpu(), &[self.heads, self.clusters], 1f32)?;
        let means = means.contiguous()?;
        Ok(Centroids { rows: aligned(&means)?, sums: means.clone(), means, counts })
    }

    /// The paper's first centroids: `normals` from a normal distribution, f32 `[heads, clusters, dim]`,
    /// normalised as tokens are, with one token each.
    ///
    /// # Errors
    /// As [`Uninitialised::with_means`].
    pub fn with_normals(self, normals: &Tensor) -> Result<Centroids> {
        check("normals", normals, &[self.heads, self.clusters, self.dim])?;
        let first = normed(&normals.split(0, &[1, self.heads])?)?.narrow(3, 0, self.dim)?;
        self.with_means(&first.contiguous()?.reshape(normals.shape())?)
    }
}

impl Centroids {
    /// Copies centroids to a device.
    ///
    /// # Errors
    /// Allocation errors.
    pub fn upload(gpu: &Gpu, centroids: &reference::Centroids) -> Result<Centroids> {
        let upload = |x: ArrayD<f64>| Tensor::from_array(gpu, &x.mapv(|x| x as f32).view());
        let (heads, clusters, dim) = centroids.means.dim();
        let means = upload(centroids.means.clone().into_dyn())?;
        let sums = upload(centroids.sums.clone().into_dyn())?;
        let counts = upload(centroids.counts.clone().into_dyn())?;
        let fresh = Uninitialised::new(heads, clusters, dim).with_means(&means)?;
        fresh.with_averages(&sums, &counts)
    }

    /// Copies the centroids to the host. Waits for the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self) -> Result<reference::Centroids> {
        let misfit = |error| Error::data("centroids", "their elements", error);
        let wide = |x: &Tensor| -> Result<ArrayD<f64>> { Ok(x.to_array::<f32>()?.mapv(f64::from)) };
        Ok(reference::Centroids {
            means: wide(&self.means)?.into_dimensionality::<Ix3>().map_err(misfit)?,
            sums: wide(&self.sums)?.into_dimensionality::<Ix3>().map_err(misfit)?,
            counts: wide(&self.counts)?.into_dimensionality::<Ix2>().map_err(misfit)?,
        })
    }

    /// With moving averages of their own, f32 `[heads, clusters, dim]` and `[heads, clusters]`.
    ///
    /// # Errors
    /// [`attn_core::Error`] for sums or counts that do not fit the means.
    pub fn with_averages(self, sums: &Tensor, counts: &Tensor) -> Result<Centroids> {
        check("sums", sums, self.means.shape())?;
        check("counts", counts, &self.means.shape()[..2])?;
        Ok(Centroids { sums: sums.contiguous()?, counts: whole(counts)?, ..self })
    }

    /// That there are as many as a call needs.
    pub(super) fn check(&self, expected: [usize; 3]) -> Result<()> {
        check("centroids", &self.means, &expected)
    }

    /// After one step of training on normalised tokens: of queries, and of keys where these are not the
    /// queries.
    pub(super) fn updated(
        &self,
        config: &Config,
        extents: &Extents,
        sides: &[(&Tensor, Tensor)],
    ) -> Result<Centroids> {
        let (keep, take) = (config.decay as f32, (1.0 - config.decay) as f32);
        let mut next = self.clone();
        match config.rule {
            UpdateRule::Ema => {
                for (x, assigned) in sides {
                    let found = Assigned::new(x, assigned, extents)?;
                    next.counts = found.counts(&next.counts, extents, [keep, take])?;
                    let (sums, rows) = (fresh(&next.sums)?, fresh(&next.rows)?);
                    let means = Some((&next.counts, &rows));
                    found.follow(&sums, extents, [keep, take], means)?;
                    (next.sums, next.rows) = (narrowed(&sums, extents.dim)?, rows);
                }
                next.means = narrowed(&next.rows, extents.dim)?;
            }
            UpdateRule::Paper => {
                let rows = fresh(&next.rows)?;
                let mut keep = keep;
                // Half for queries and half for keys, also where these are the same.
                let take = take / sides.len() as f32;
                for (x, assigned) in sides {
                    let found = Assigned::new(x, assigned, extents)?;
                    found.follow(&rows, extents, [keep, take], None)?;
                    keep = 1.0;
                }
                (next.means, next.rows) = (narrowed(&rows, extents.dim)?, rows);
            }
        }
        Ok(next)
    }
}

/// Tokens by the centroid that each is assigned to.
struct Assigned {
    slots: Slots,
    /// Their sums, `[batch, heads, clusters, dim]`.
    sums: Tensor,
}

impl Assigned {
    fn new(x: &Tensor, assigned: &Tensor, extents: &Extents) -> Result<Assigned> {
        let Extents { batch, heads, tokens, clusters, .. } = *extents;
        let planes = extents.planes();
        let slots = Slots::new(&numbered(assigned, planes, clusters)?, planes * clusters)?;
        let shape = [batch, heads, clusters, x.shape()[3]];
        let sums = listed_sums(x, &slots, &shape, tokens)?;
        Ok(Assigned { slots, sums })
    }

    /// `keep * counts + take * tokens`, `[heads, clusters]`.
    fn counts(&self, counts: &Tensor, extents: &Extents, by: [f32; 2]) -> Result<Tensor> {
        let gpu = counts.gpu();
        let out = Tensor::uninit(gpu, counts.shape(), DType::F32)?;
        let run = Each {
            source: &COUNTS,
            flags: &[],
            tensors: &[counts, &self.slots.offsets, &out],
            count: counts.len(),
            params: &[extents.batch as u32, by[0].to_bits(), by[1].to_bits()],
            steps: extents.batch,
            work: 4 * extents.batch,
        };
        run.record(gpu)?;
        Ok(out)
    }

    /// `keep * sums + take * tokens` in place, and the means that follow with these counts.
    fn follow(
        &self,
        sums: &Tensor,
        extents: &Extents,
        by: [f32; 2],
        means: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        let mut tensors = vec![&self.sums, sums];
        if let Some((counts, means)) = means {
            tensors.extend([counts, means]);
        }
        let run = Each {
            source: &FOLLOW,
            flags: if means.is_some() { &["MEANS"] } else { &[] },
            tensors: &tensors,
            count: sums.len() / 4,
            params: &[
                extents.batch as u32,
                (sums.shape()[2] / 4) as u32,
                extents.clusters as u32,
                by[0].to_bits(),
                by[1].to_bits(),
                (COUNT_EPSILON as f32).to_bits(),
                (DEAD as f32).to_bits(),
            ],
            steps: extents.batch + extents.clusters,
            work: 4 * (extents.batch + extents.clusters),
        };
        run.record(sums.gpu())
    }
}

/// A copy to write to, rows of whole groups of four elements.
fn fresh(x: &Tensor) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    shape[2] = shape[2].next_multiple_of(4);
    let copy = Tensor::uninit(x.gpu(), &shape, DType::F32)?;
    ops::copy(x, &copy)?;
    Ok(copy)
}

/// The first elements of rows, contiguous.
fn narrowed(x: &Tensor, dim: usize) -> Result<Tensor> {
    x.narrow(2, 0, dim)?.contiguous()
}

fn check(arg: &'static str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.shape() != expected {
        return Err(Error::shape(arg, format!("{expected:?}"), tensor.shape()).into());
    }
    if tensor.dtype() != DType::F32 {
        let (expected, got) = ("f32".into(), tensor.dtype().name().into());
        return Err(Error::Dtype { arg, expected, got }.into());
    }
    Ok(())
}
