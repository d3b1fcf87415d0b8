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
mod rows;
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
pub use self::train::{Commitment, Cotangents, Grads, Saved, Targets};

use self::clusters::{Clusters, Way};
use self::rows::{aligned, normed, repeated, summed, summed_into, whole};
use crate::Config;

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
    fn new_out(&self) -> Result<Tensor> {
        Tensor::uninit(self.q.gpu(), &self.shape.out(), self.dtype)
    }

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

    /// [`Routing::forward`] into a caller's tensor `[batch, heads, tokens, dim_v]`, in its own type: directly where
    /// it is f32, contiguous from where a binding may begin, and of whole groups of four elements; else by a
    /// conversion or a copy on the device.
    ///
    /// # Errors
    /// As [`Routing::forward`], and [`attn_core::Error`] for a target of another shape or of integers.
    pub fn forward_into(
        &self,
        inputs: Inputs<'_>,
        valid: Option<&Tensor>,
        centroids: &Centroids,
        out: &Tensor,
    ) -> Result<Output> {
        Ok(self.forward_saved_into(inputs, valid, centroids, out)?.0)
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
        self.saved_into(inputs, valid, centroids, None)
    }

    /// [`Routing::forward_saved`] with the output in a caller's tensor, as [`Routing::forward_into`].
    ///
    /// # Errors
    /// As [`Routing::forward_into`].
    pub fn forward_saved_into(
        &self,
        inputs: Inputs<'_>,
        valid: Option<&Tensor>,
        centroids: &Centroids,
        out: &Tensor,
    ) -> Result<(Output, Saved)> {
        self.saved_into(inputs, valid, centroids, Some(out))
    }

    fn saved_into(
        &self,
        inputs: Inputs<'_>,
        valid: Option<&Tensor>,
        centroids: &Centroids,
        target: Option<&Tensor>,
    ) -> Result<(Output, Saved)> {
        let tokens = self.tokens(inputs)?;
        let out = match target {
            Some(out) => out.clone(),
            None => tokens.new_out()?,
        };
        ops::check_target("out", &out, &self.gpu, &tokens.shape.out())?;
        let routes = self.route_tokens(&tokens, valid, centroids)?;
        let clusters = self.attend_tokens(&tokens, &routes, &out)?;
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
        let out = tokens.new_out()?;
        self.attend_tokens(&tokens, routes, &out)?;
        Ok(out)
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
        out: &Tensor,
    ) -> Result<Option<Clusters>> {
        let shape = tokens.shape;
        if out.is_empty() {
            return Ok(None);
        }
        let clusters = Clusters::attend(tokens, routes, self.way(&shape, routes), self)?;
        clusters.combine_into(routes, self.config.epsilon, out)?;
        Ok(Some(clusters))
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
