//! The layer as benchmarks see it (feature `bench`).

use attn_core::dense::{self, Config as Dense};
use attn_core::plan::SparsePlan;
use attn_core::testing::{HostArrays, HostInputs, Values, fill};
use attn_core::{AttentionShape, Error, Mask};
use attn_wgpu::attention::Inputs;
use attn_wgpu::bench::{
    DenseAttention, Mechanism, Prepared, Reference, Stage, reference_on_plan, upload,
};
use attn_wgpu::{DType, Gpu, Result, Tensor};
use ndarray::{Array3, Array4, Axis, Slice};

use crate::reference::{self, normalise};
use crate::{Centroids, Config, Routes, Routing};

/// Routing of captured or random tokens, with about as many centroids as each takes tokens: both ways with
/// keys of their own, and causal with keys that are the queries.
///
/// No model was trained with this layer. Its centroids are those of 20 updates on these very tokens, of at
/// most [`TRAINED`] of them, and logits have the scale of the problem instead of the paper's 1.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark;

/// Tokens that centroids are trained on, at most.
pub const TRAINED: usize = 1024;
const UPDATES: usize = 20;
/// The paper's 0.999 is for thousands of updates.
const DECAY: f64 = 0.9;
const SEED: u64 = 7;

fn config(shape: &AttentionShape, dense: &Dense) -> attn_core::Result<Config> {
    if let Some(cap) = dense.soft_cap {
        return Err(Error::config("soft_cap", "none", cap));
    }
    if let Some(modifier) = &dense.modifier {
        return Err(Error::config("modifier", "none", modifier.name()));
    }
    let clusters = (shape.keys as f64).sqrt().round().max(1.0) as usize;
    let config = Config::new(clusters, shape.keys.div_ceil(clusters).max(1))
        .with_scale(dense.scale_for(shape.dim_qk))
        .with_decay(DECAY);
    Ok(if dense.mask == Mask::Causal { config } else { config.bidirectional() })
}

/// Keys and values of each query head, as the paper has them.
fn repeated(inputs: &HostArrays) -> attn_core::Result<HostArrays> {
    let shape = inputs.view().check()?;
    let group = shape.heads / shape.heads_kv.max(1);
    let heads: Vec<_> = (0..shape.heads).map(|head| head / group.max(1)).collect();
    let repeat = |x: &Array4<f64>| x.select(Axis(1), &heads);
    Ok(HostArrays {
        q: inputs.q.clone(),
        k: repeat(&inputs.k),
        v: repeat(&inputs.v),
        sinks: inputs.sinks.clone(),
    })
}

/// What attention within clusters, and dense attention in its place, is given: step 2.
fn normalised(inputs: &HostArrays, config: &Config) -> attn_core::Result<HostArrays> {
    let all = repeated(inputs)?;
    let q = normalise(all.q.view()).x;
    let k = if config.shared_qk { q.clone() } else { normalise(all.k.view()).x };
    Ok(HostArrays { q, k, ..all })
}

/// Centroids that have followed the tokens.
fn train(all: &HostArrays, config: &Config) -> attn_core::Result<reference::Centroids> {
    let (_, heads, tokens, dim) = all.q.dim();
    let step = tokens.div_ceil(TRAINED).max(1) as isize;
    let some = |x: &Array4<f64>| x.slice_axis(Axis(2), Slice::new(0, None, step)).to_owned();
    let (q, k, v) = (some(&all.q), some(&all.k), some(&all.v));
    let normals = fill(SEED, 0, Values::Normal, heads * config.clusters * dim);
    let means = Array3::from_shape_vec(
        (heads, config.clusters, dim),
        normals.into_iter().map(f64::from).collect(),
    )
    .map_err(|error| Error::data("centroids", "their extents", error))?;
    let means = normalise(means.insert_axis(Axis(0)).view()).x.index_axis_move(Axis(0), 0);
    let mut centroids =
        reference::Uninitialised::new(heads, config.clusters, dim).with_means(means.view())?;
    let inputs = dense::Inputs::new(q.view(), k.view(), v.view());
    for _ in 0..UPDATES {
        let routes = reference::route(inputs, None, &centroids, config)?;
        centroids = reference::update(inputs, &routes, &centroids, config)?;
    }
    Ok(centroids)
}

struct PreparedLayer {
    layer: Routing,
    centroids: Centroids,
    routes: Routes,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Mechanism for Benchmark {
    fn name(&self) -> &'static str {
        "routing"
    }

    fn is_for(&self, shape: &AttentionShape, config: &Dense) -> bool {
        let square = shape.queries == shape.keys && shape.queries > 1;
        square && matches!(config.mask, Mask::Full | Mask::Causal)
    }

    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, dense: &Dense) -> Result<Box<dyn Prepared>> {
        let shape = inputs.shape;
        let config = config(&shape, dense)?;
        let trained = train(&repeated(&inputs.to_f64()?)?, &config)?;
        let q = upload(gpu, DType::F32, &inputs.q, &shape.q())?;
        let k = upload(gpu, DType::F32, &inputs.k, &shape.k())?;
        let v = upload(gpu, DType::F32, &inputs.v, &shape.v())?;
        let centroids = Centroids::upload(gpu, &trained)?;
        let layer = Routing::new(gpu, config)?;
        let routes = layer.route(Inputs::new(&q, &k, &v), None, &centroids)?;
        Ok(Box::new(PreparedLayer { layer, centroids, routes, q, k, v }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        dense: &Dense,
        rows: &[usize],
        chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        let (own, config) = self.dense(inputs, dense)?;
        match chosen {
            Some(plan) => reference_on_plan(&own, &config, rows, plan),
            None => reference_on_plan(&own, &config, rows, &choose(inputs, dense)?),
        }
    }

    fn choice(&self, inputs: &HostArrays, dense: &Dense) -> attn_core::Result<Option<SparsePlan>> {
        choose(inputs, dense).map(Some)
    }

    fn dense(&self, inputs: &HostArrays, dense: &Dense) -> attn_core::Result<(HostArrays, Dense)> {
        let config = config(&inputs.view().check()?, dense)?;
        Ok((normalised(inputs, &config)?, dense.clone().with_scale(config.scale)))
    }

    fn flops(&self, shape: &AttentionShape, dense: &Dense) -> f64 {
        shape.flops(&dense.mask)
    }

    fn bytes(&self, shape: &AttentionShape, dense: &Dense) -> f64 {
        DenseAttention::F32.bytes(shape, dense)
    }
}

fn choose(inputs: &HostArrays, dense: &Dense) -> attn_core::Result<SparsePlan> {
    let all = repeated(inputs)?;
    let config = config(&all.view().check()?, dense)?;
    let centroids = train(&all, &config)?;
    let routes = reference::route(all.view(), None, &centroids, &config)?;
    routes.plan(config.causal)
}

impl PreparedLayer {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::new(&self.q, &self.k, &self.v)
    }
}

impl Prepared for PreparedLayer {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        Ok(vec![("out", self.layer.forward(self.inputs(), None, &self.centroids)?.out)])
    }

    fn variant(&self) -> String {
        let Config { clusters, window, .. } = self.layer.config();
        format!("{clusters} centroids of {window} tokens")
    }

    fn chosen(&self) -> Result<Option<SparsePlan>> {
        self.routes.plan().map(Some)
    }

    fn stage(&self, stage: Stage) -> Result<bool> {
        match stage {
            Stage::Select => {
                self.layer.route(self.inputs(), None, &self.centroids).map(drop)?;
            }
            Stage::Attend => self.layer.attend(self.inputs(), &self.routes).map(drop)?,
        }
        Ok(true)
    }
}
