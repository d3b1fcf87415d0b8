//! Derivatives, the commitment loss, and updates of centroids.

use attn_core::Error;
use attn_wgpu::attention::Inputs;
use attn_wgpu::matmul::matmul;
use attn_wgpu::{DType, Result, Tensor, ops};

use super::clusters::Clusters;
use super::kernels::{Each, NORM_BACK};
use super::{Centroids, Extents, Routes, Routing, Tokens, aligned, repeated, summed, summed_into};
use crate::reference::VARIANCE_EPSILON;

/// What the backward pass needs of the forward pass. Holds handles; the members of the clusters are
/// copies of queries, keys and values.
#[derive(Debug, Clone)]
pub struct Saved {
    q: Tensor,
    k: Tensor,
    dim_v: usize,
    dtype: DType,
    routes: Routes,
    /// None where there is nothing to attend to.
    clusters: Option<Clusters>,
}

/// Cotangents of the results.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// Of the output, `[batch, heads, tokens, dim_v]`, of the inputs' type.
    pub out: &'a Tensor,
}

/// Gradients, of the inputs' type.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries, `[batch, heads, tokens, dim]`.
    pub dq: Tensor,
    /// By the keys, `[batch, heads_kv, tokens, dim]`; 0 where keys are the queries.
    pub dk: Tensor,
    /// By the values, `[batch, heads_kv, tokens, dim_v]`.
    pub dv: Tensor,
}

/// The commitment loss and its gradients.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Commitment {
    /// The loss, f32 `[1]`, beta included.
    pub loss: Tensor,
    /// Its gradient by the queries, `[batch, heads, tokens, dim]`, of their type.
    pub dq: Tensor,
    /// By the keys, `[batch, heads_kv, tokens, dim]`; 0 where keys are the queries.
    pub dk: Tensor,
}

/// Where [`Routing::backward_into`] writes gradients, of the shapes of [`Grads`], each in its own type; what has
/// no target is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Targets<'a> {
    /// By the queries.
    pub dq: Option<&'a Tensor>,
    /// By the keys.
    pub dk: Option<&'a Tensor>,
    /// By the values.
    pub dv: Option<&'a Tensor>,
}

impl Saved {
    pub(super) fn new(
        inputs: Inputs<'_>,
        tokens: Tokens,
        routes: Routes,
        clusters: Option<Clusters>,
    ) -> Saved {
        let (q, k) = (inputs.q.clone(), inputs.k.clone());
        Saved { q, k, dim_v: tokens.shape.dim_v, dtype: tokens.dtype, routes, clusters }
    }

    fn v_shape(&self) -> [usize; 4] {
        let &[batch, heads_kv, tokens, _] = self.k.shape() else { return [0; 4] };
        [batch, heads_kv, tokens, self.dim_v]
    }

    /// The same with queries and keys at another place: a caller's allocator may have moved them. Their
    /// elements must be those of the forward pass.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] for tensors of another shape.
    pub fn with_inputs(self, inputs: Inputs<'_>) -> Result<Saved> {
        for (arg, old, new) in [("q", &self.q, inputs.q), ("k", &self.k, inputs.k)] {
            if old.shape() != new.shape() {
                return Err(Error::shape(arg, format!("{:?}", old.shape()), new.shape()).into());
            }
        }
        Ok(Saved { q: inputs.q.clone(), k: inputs.k.clone(), ..self })
    }
}

impl Routing {
    /// The gradients by all inputs, with all routes fixed. Deterministic.
    ///
    /// # Errors
    /// [`attn_core::Error`] for a cotangent of another shape or type; those of the device.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let new = |shape: &[usize]| Tensor::uninit(&self.gpu, shape, saved.dtype);
        let (dq, dk) = (new(saved.q.shape())?, new(saved.k.shape())?);
        let dv = new(&saved.v_shape())?;
        let targets = Targets { dq: Some(&dq), dk: Some(&dk), dv: Some(&dv) };
        self.backward_into(saved, cotangents, targets)?;
        Ok(Grads { dq, dk, dv })
    }

    /// [`Routing::backward`] into callers' tensors, as [`Routing::forward_into`]. They must not overlap each other.
    ///
    /// # Errors
    /// As [`Routing::backward`], and [`attn_core::Error`] for targets of another shape or of integers.
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<()> {
        let Extents { batch, heads, tokens, .. } = saved.routes.extents;
        let (d_out, dtype) = (cotangents.out, saved.dtype);
        let expected = [batch, heads, tokens, saved.dim_v];
        if d_out.shape() != expected {
            return Err(Error::shape("d_out", format!("{expected:?}"), d_out.shape()).into());
        }
        if d_out.dtype() != dtype {
            let (expected, got) = (dtype.name().into(), d_out.dtype().name().into());
            return Err(Error::Dtype { arg: "d_out", expected, got }.into());
        }
        let Targets { dq, dk, dv } = targets;
        let v_shape = saved.v_shape();
        for (arg, target, shape) in
            [("dq", dq, saved.q.shape()), ("dk", dk, saved.k.shape()), ("dv", dv, &v_shape)]
        {
            if let Some(target) = target {
                ops::check_target(arg, target, &self.gpu, shape)?;
            }
        }
        let Some(clusters) = &saved.clusters else {
            return [dq, dk, dv].into_iter().flatten().try_for_each(|target| self.zero(target));
        };
        let epsilon = self.config.epsilon;
        let d = clusters.backward(&self.dense, &saved.routes, epsilon, &aligned(d_out)?)?;
        let (heads_kv, shared) = (saved.k.shape()[1], saved.routes.shared);
        if let Some(dq) = dq {
            let by_normed = if shared { ops::add(&d.q()?, &d.k()?)? } else { d.q()? };
            self.through_norm(&saved.q, &by_normed, dq)?;
        }
        match dk {
            Some(dk) if shared => self.zero(dk)?,
            Some(dk) => self.through_norm(&saved.k, &summed(&d.k()?, heads_kv)?, dk)?,
            None => {}
        }
        match dv {
            Some(dv) if heads == heads_kv => d.v_into(dv),
            Some(dv) => summed_into(&d.v()?, dv),
            None => Ok(()),
        }
    }

    /// The commitment loss, which draws tokens to their centroids, and its gradients:
    ///
    /// ```text
    /// beta mean (q^ - mu of q^)^2 + beta mean (k^ - mu of k^)^2
    /// ```
    ///
    /// Centroids get no gradient. Sums are in f32.
    ///
    /// # Errors
    /// As [`Routing::attend`].
    pub fn commitment_loss(
        &self,
        inputs: Inputs<'_>,
        routes: &Routes,
        centroids: &Centroids,
    ) -> Result<Commitment> {
        let tokens = self.tokens(inputs)?;
        self.check_routes(&tokens, routes, inputs.q)?;
        let Extents { heads, clusters, dim, .. } = tokens.extents;
        centroids.check([heads, clusters, dim])?;
        let (heads_kv, dtype) = (tokens.shape.heads_kv, tokens.dtype);
        let twice = if routes.shared { 2.0 } else { 1.0 };
        let (loss, dq) = self.commit(inputs.q, &routes.assigned_q()?, routes, centroids, twice)?;
        let dq = self.finish(&dq, dim, dtype)?;
        if routes.shared {
            let dk = Tensor::zeros(&self.gpu, inputs.k.shape(), dtype)?;
            return Ok(Commitment { loss, dq, dk });
        }
        let k = repeated(&aligned(inputs.k)?, heads)?.narrow(3, 0, dim)?;
        let (more, dk) = self.commit(&k, &routes.assigned_k()?, routes, centroids, 1.0)?;
        let dk = self.finish(&summed(&dk, heads_kv)?, dim, dtype)?;
        Ok(Commitment { loss: ops::add(&loss, &more)?, dq, dk })
    }

    /// Centroids after one step of training on tokens that were routed. The old ones stay as they are.
    ///
    /// # Errors
    /// As [`Routing::attend`].
    pub fn update(
        &self,
        inputs: Inputs<'_>,
        routes: &Routes,
        centroids: &Centroids,
    ) -> Result<Centroids> {
        let tokens = self.tokens(inputs)?;
        self.check_routes(&tokens, routes, inputs.q)?;
        let Extents { heads, clusters, dim, .. } = tokens.extents;
        centroids.check([heads, clusters, dim])?;
        let mut sides = vec![(&tokens.q, routes.assigned_q()?)];
        if let Some(k) = &tokens.k {
            sides.push((k, routes.assigned_k()?));
        }
        centroids.updated(&self.config, &tokens.extents, &sides)
    }

    /// Loss `[1]` and gradient, rows filled up, of one side that counts `times` times.
    fn commit(
        &self,
        x: &Tensor,
        assigned: &Tensor,
        routes: &Routes,
        centroids: &Centroids,
        times: f64,
    ) -> Result<(Tensor, Tensor)> {
        let Extents { heads, tokens, clusters, dim, .. } = routes.extents;
        if x.is_empty() {
            return Ok((Tensor::zeros(&self.gpu, &[1], DType::F32)?, aligned(x)?));
        }
        let each = times * self.config.commitment / x.len() as f64;
        let losses = Tensor::uninit(&self.gpu, &[assigned.len(), 1], DType::F32)?;
        let own = [tokens as u32, heads as u32, clusters as u32, (2.0 * each as f32).to_bits()];
        let x = aligned(x)?;
        let d = Tensor::uninit(&self.gpu, x.shape(), DType::F32)?;
        let others = [&centroids.rows, assigned, &losses];
        self.norm_back(&x, dim, &["COMMIT"], &others, own, &d)?;
        let weights = Tensor::full(&self.gpu, &[1, losses.len()], each as f32)?;
        Ok((matmul(&weights, &losses)?.reshape(&[1])?, d))
    }

    /// From derivatives by normalised rows, filled up, to those by the rows `x`.
    fn through_norm(&self, x: &Tensor, d: &Tensor, out: &Tensor) -> Result<()> {
        let dim = x.shape()[3];
        let x = aligned(x)?;
        ops::write_rows(out, &[&x, d], |out| self.norm_back(&x, dim, &[], &[d], [0; 4], out))?;
        Ok(())
    }

    /// For rows `x` of `dim` elements that are filled up, as `out`'s are.
    fn norm_back(
        &self,
        x: &Tensor,
        dim: usize,
        flags: &[&str],
        others: &[&Tensor],
        own: [u32; 4],
        out: &Tensor,
    ) -> Result<()> {
        let chunks = x.shape()[3] / 4;
        let mut tensors = vec![x, out];
        tensors.extend(others);
        let epsilon = VARIANCE_EPSILON as f32;
        let mut params = vec![dim as u32, chunks as u32, epsilon.to_bits()];
        params.extend(own);
        let run = Each {
            source: &NORM_BACK,
            flags,
            tensors: &tensors,
            count: x.len() / x.shape()[3],
            params: &params,
            steps: 4 * chunks,
            work: 16 * dim,
        };
        run.record(&self.gpu)
    }

    /// The first elements of rows, in the inputs' type.
    fn finish(&self, x: &Tensor, dim: usize, dtype: DType) -> Result<Tensor> {
        ops::convert(&x.narrow(3, 0, dim)?, dtype)
    }

    fn zero(&self, out: &Tensor) -> Result<()> {
        ops::convert_into(&Tensor::zeros(&self.gpu, out.shape(), out.dtype())?, out)
    }
}
