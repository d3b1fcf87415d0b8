//! The layer on a device. The steps are those of [`crate::reference`].
//!
//! ```text
//! routing_norm               q^, k^                                            step 2
//! matmul                     scores of all centroids, [clusters, tokens]       step 3
//! routing_nearest            the centroid of each token                        updates, loss
//! top_k_rows                 the members of each centroid, rising              step 4
//! counting_sort              the way back: the slots of each token
//! routing_gather             q^, k^, v of the members, [clusters, window, dim]
//! Attention                  dense attention in each cluster                   step 5
//! routing_sum                the mean of a token's slots                       step 6
//! ```
//!
//! Nothing is read back. Where clusters may differ in length (padding), or where the queries and keys of
//! a causal layer are not the same tokens, step 5 is `routing_logits`, `routing_softmax` and
//! `routing_mix` with a number of visible keys for each query, see [`clusters`].

mod centroids;
mod clusters;
mod kernels;
mod routes;
mod stream;
mod train;

use attn_core::dense::Config as Dense;
use attn_core::{AttentionShape, Error, Mask};
use attn_wgpu::attention::{Attention, Inputs, MAX_DIM};
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

pub use self::centroids::{Centroids, Uninitialised};
#[cfg(feature = "bench")]
pub use self::kernels::kernels;
pub use self::routes::Routes;
pub use self::stream::State;
pub use self::train::{Commitment, Cotangents, Grads, Saved};

use self::clusters::{Clusters, Way};
use self::kernels::{NORM, Run};
use crate::Config;
use crate::reference::VARIANCE_EPSILON;

/// Bytes of probabilities at once, where they are stored.
const PART_BYTES: usize = 32 << 20;

/// The paper's layer on a device.
#[derive(Debug, Clone)]
pub struct Routing {
    gpu: Gpu,
    config: Config,
    dense: Attention,
    part_bytes: usize,
}

/// What [`Routing::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// `[batch, heads, tokens, dim_v]`, of the inputs' type; 0 for a token that no centroid took.
    pub out: Tensor,
    /// Who attended to whom.
    pub routes: Routes,
}

/// Extents of a call, keys repeated for the query heads that share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extents {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) tokens: usize,
    pub(crate) clusters: usize,
    /// Elements of a query and of a key.
    pub(crate) dim: usize,
}

impl Extents {
    fn planes(&self) -> usize {
        self.batch * self.heads
    }

    fn is_empty(&self) -> bool {
        self.planes() * self.tokens == 0
    }
}

/// What the steps work on: f32, rows of whole groups of four elements.
struct Tokens {
    extents: Extents,
    shape: AttentionShape,
    dtype: DType,
    /// Normalised queries `[batch, heads, tokens, dim]`.
    q: Tensor,
    /// Normalised keys, the queries where these are shared.
    k: Option<Tensor>,
    /// Values.
    v: Tensor,
}

impl Tokens {
    fn k(&self) -> &Tensor {
        self.k.as_ref().unwrap_or(&self.q)
    }
}

impl Routing {
    /// The layer with these parameters.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`], see [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Routing> {
        config.validate()?;
        let mask = if config.causal { Mask::Causal } else { Mask::Full };
        let dense = Dense::new().with_mask(mask).with_scale(config.scale);
        let dense = Attention::new(gpu, dense)?;
        Ok(Routing { gpu: gpu.clone(), config, dense, part_bytes: PART_BYTES })
    }

    /// The same with so many bytes of probabilities at once, where they are stored: for tests.
    #[doc(hidden)]
    pub fn with_part_bytes(self, part_bytes: usize) -> Routing {
        Routing { part_bytes, ..self }
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Steps 2 to 4: which tokens each centroid takes. `valid`, u32 `[batch, tokens]`, is 1 for a token
    /// and 0 for padding, which no centroid takes.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] for tensors or centroids that do not fit, [`attn_core::Error::Config`]
    /// for sinks; those of the device.
    pub fn route(
        &self,
        inputs: Inputs<'_>,
        valid: Option<&Tensor>,
        centroids: &Centroids,
    ) -> Result<Routes> {
        let tokens = self.tokens(inputs)?;
        self.route_tokens(&tokens, valid, centroids)
    }

    /// The whole layer without training. Inputs are all f32 or all of one half type; everything is
    /// computed in f32. Fewer heads of keys and values than of queries are repeated.
    ///
    /// Which tokens a centroid takes depends on all tokens, later ones included, also where `causal` is
    /// set: see the README.
    ///
    /// # Errors
    /// As [`Routing::route`].
    pub fn forward(
        &self,
        inputs: Inputs<'_>,
        valid: Option<&Tensor>,
        centroids: &Centroids,
    ) -> Result<Output> {
        Ok(self.forward_saved(inputs, valid, centroids)?.0)
    }

    /// [`Routing::forward`], and what [`Routing::backward`] needs of it.
    ///
    /// # Errors
    /// As [`Routing::forward`].
    pub fn forward_saved(
        &self,
        inputs: Inputs<'_>,
        valid: Option<&Tensor>,
        centroids: &Centroids,
    ) -> Result<(Output, Saved)> {
        let tokens = self.tokens(inputs)?;
        let routes = self.route_tokens(&tokens, valid, centroids)?;
        let (out, clusters) = self.attend_tokens(&tokens, &routes)?;
        let saved = Saved::new(inputs, tokens, routes.clone(), clusters);
        Ok((Output { out, routes }, saved))
    }

    /// Steps 5 and 6 with routes that are given: causal where the configuration is, whatever they are.
    ///
    /// # Errors
    /// As [`Routing::forward`], and [`attn_core::Error`] for routes of other extents, or with keys of
    /// their own where keys are the queries.
    pub fn attend(&self, inputs: Inputs<'_>, routes: &Routes) -> Result<Tensor> {
        let tokens = self.tokens(inputs)?;
        self.check_routes(&tokens, routes, inputs.q)?;
        Ok(self.attend_tokens(&tokens, routes)?.0)
    }

    /// That routes are of a call of the same extents.
    fn check_routes(&self, tokens: &Tokens, routes: &Routes, q: &Tensor) -> Result<()> {
        if tokens.extents != routes.extents {
            let expected = format!("{:?}, as the routes", routes.extents);
            return Err(Error::shape("q", expected, q.shape()).into());
        }
        if self.config.shared_qk != routes.shared {
            let got = if routes.shared { "shared" } else { "not shared" };
            return Err(Error::config("routes", "as `shared_qk` says", got).into());
        }
        Ok(())
    }

    fn route_tokens(
        &self,
        tokens: &Tokens,
        valid: Option<&Tensor>,
        centroids: &Centroids,
    ) -> Result<Routes> {
        let extents = tokens.extents;
        let expected = [extents.heads, extents.clusters, extents.dim];
        centroids.check(expected)?;
        let valid = match valid {
            None => None,
            Some(valid) => {
                let expected = [extents.batch, extents.tokens];
                if valid.shape() != expected {
                    let expected = format!("{expected:?}");
                    return Err(Error::shape("valid", expected, valid.shape()).into());
                }
                if valid.dtype() != DType::U32 {
                    let (expected, got) = ("u32".into(), valid.dtype().name().into());
                    return Err(Error::Dtype { arg: "valid", expected, got }.into());
                }
                Some(whole(valid)?)
            }
        };
        let normed = [&tokens.q, tokens.k()];
        Routes::new(normed, valid.as_ref(), &centroids.rows, extents, &self.config)
    }

    fn attend_tokens(
        &self,
        tokens: &Tokens,
        routes: &Routes,
    ) -> Result<(Tensor, Option<Clusters>)> {
        let shape = tokens.shape;
        if tokens.extents.is_empty() || shape.dim_v == 0 {
            return Ok((Tensor::zeros(&self.gpu, &shape.out(), DType::F32)?, None));
        }
        let clusters = Clusters::attend(tokens, routes, self.way(&shape, routes), self)?;
        let out = clusters.combine(routes, self.config.epsilon)?.narrow(3, 0, shape.dim_v)?;
        Ok((ops::convert(&out, tokens.dtype)?, Some(clusters)))
    }

    /// Dense attention where it computes the same: clusters of one length, in which a key's slot says
    /// whether it comes before a query's.
    fn way(&self, shape: &AttentionShape, routes: &Routes) -> Way {
        let causal = self.config.causal;
        let by_slot = !routes.padded && (routes.shared || !causal);
        match by_slot && shape.dim_qk.max(shape.dim_v) <= MAX_DIM {
            true => Way::Dense,
            false => Way::Limits { causal },
        }
    }

    /// Checks a call, and makes of its tensors what the steps work on.
    fn tokens(&self, inputs: Inputs<'_>) -> Result<Tokens> {
        if inputs.sinks.is_some() {
            return Err(Error::config("sinks", "none", "some").into());
        }
        let shape =
            AttentionShape::from_shapes(inputs.q.shape(), inputs.k.shape(), inputs.v.shape())?;
        if shape.queries != shape.keys {
            let expected = format!("{} tokens, as q", shape.queries);
            return Err(Error::shape("k", expected, inputs.k.shape()).into());
        }
        if shape.dim_qk == 0 {
            return Err(Error::shape("q", "at least one element a head", inputs.q.shape()).into());
        }
        let dtype = inputs.q.dtype();
        for (arg, tensor) in [("q", inputs.q), ("k", inputs.k), ("v", inputs.v)] {
            if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16)
                || tensor.dtype() != dtype
            {
                let got = tensor.dtype().name().into();
                let expected = "f32, f16 or bf16, as q".into();
                return Err(Error::Dtype { arg, expected, got }.into());
            }
            if !tensor.gpu().is_same(&self.gpu) {
                let got = "a tensor of another Gpu";
                return Err(Error::config(arg, &self.gpu.adapter().name, got).into());
            }
        }
        let extents = Extents {
            batch: shape.batch,
            heads: shape.heads,
            tokens: shape.queries,
            clusters: self.config.clusters,
            dim: shape.dim_qk,
        };
        let k = match self.config.shared_qk {
            true => None,
            false => Some(repeated(&normed(inputs.k)?, shape.heads)?),
        };
        let v = repeated(&aligned(inputs.v)?, shape.heads)?;
        Ok(Tokens { extents, shape, dtype, q: normed(inputs.q)?, k, v })
    }
}

/// Step 2 for `[batch, heads, tokens, dim]`, with rows filled up to whole groups of four elements.
fn normed(x: &Tensor) -> Result<Tensor> {
    let dim = x.shape()[3];
    let x = ops::convert(x, DType::F32)?;
    let (strides, start) = (x.strides(), x.binding().1);
    let outer = strides[..3].iter().chain([&start]);
    let direct = dim.is_multiple_of(4) && strides[3] == 1 && outer.copied().all(|s| s % 4 == 0);
    let x = if direct { x.clone() } else { aligned(&x)? };
    let mut shape = x.shape().to_vec();
    shape[3] = dim.next_multiple_of(4);
    let out = Tensor::uninit(x.gpu(), &shape, DType::F32)?;
    let chunks = shape[3] / 4;
    let place = [x.binding().1, x.strides()[0], x.strides()[1], x.strides()[2]];
    let mut params = vec![dim as u32, chunks as u32, (VARIANCE_EPSILON as f32).to_bits()];
    params.extend([shape[1] as u32, shape[2] as u32]);
    params.extend(place.map(|elements| (elements / 4) as u32));
    let run = Run {
        source: &NORM,
        flags: &[],
        tensors: &[&x, &out],
        count: out.len() / shape[3],
        params: &params,
        steps: 3 * chunks,
        work: 8.0 * dim as f64,
    };
    run.record(x.gpu())?;
    Ok(out)
}

/// The tensor in f32, contiguous from the beginning of a binding on, rows filled up with zeros to
/// whole groups of four elements.
fn aligned(x: &Tensor) -> Result<Tensor> {
    let x = ops::convert(x, DType::F32)?;
    let mut shape = x.shape().to_vec();
    let last = shape.len() - 1;
    shape[last] = shape[last].next_multiple_of(4);
    if shape == x.shape() && x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x);
    }
    let copy = Tensor::uninit(x.gpu(), &shape, DType::F32)?;
    ops::copy(&x, &copy)?;
    Ok(copy)
}

/// The tensor, contiguous from the beginning of a binding on.
fn whole(x: &Tensor) -> Result<Tensor> {
    if x.is_contiguous() && x.binding().1 == 0 {
        return Ok(x.clone());
    }
    let copy = Tensor::uninit(x.gpu(), x.shape(), x.dtype())?;
    ops::copy(x, &copy)?;
    Ok(copy)
}

/// Heads of a contiguous `[batch, heads_kv, tokens, dim]` as often as there are `heads`.
fn repeated(x: &Tensor, heads: usize) -> Result<Tensor> {
    let &[batch, heads_kv, tokens, dim] = x.shape() else { return Ok(x.clone()) };
    if heads == heads_kv || x.is_empty() {
        return Ok(x.clone());
    }
    let out = Tensor::uninit(x.gpu(), &[batch, heads, tokens, dim], DType::F32)?;
    let group = heads / heads_kv;
    let each = out.split(1, &[heads_kv, group])?;
    for copy in 0..group {
        ops::copy(&x.split(1, &[heads_kv, 1])?, &each.narrow(2, copy, 1)?)?;
    }
    Ok(out)
}

/// Sums over the heads that [`repeated`] made of one.
fn summed(x: &Tensor, heads_kv: usize) -> Result<Tensor> {
    let &[batch, heads, tokens, dim] = x.shape() else { return Ok(x.clone()) };
    if heads == heads_kv || x.is_empty() {
        return Ok(x.clone());
    }
    let each = x.split(1, &[heads_kv, heads / heads_kv])?;
    let part = |copy: usize| -> Result<Tensor> {
        let part = Tensor::uninit(x.gpu(), &[batch, heads_kv, tokens, dim], DType::F32)?;
        ops::copy(&each.narrow(2, copy, 1)?, &part.split(1, &[heads_kv, 1])?)?;
        Ok(part)
    };
    let first = part(0)?;
    (1..heads / heads_kv).try_fold(first, |sum, copy| ops::add(&sum, &part(copy)?))
}
