//! The mechanism as benchmarks see it (feature `bench`).

use attn_core::dense::Config as Dense;
use attn_core::plan::SparsePlan;
use attn_core::testing::{HostArrays, HostInputs, Values, fill};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::bench::{Mechanism, Prepared, Reference, plain_logits};
use attn_wgpu::{Gpu, Result, Tensor};
use ndarray::{Array, Array3, Array4, ArrayView4, Axis, Dimension};

use crate::{Config, Inputs, State, Titans, reference};

/// Forward passes in chunks of 64 tokens, with the problem's queries and keys at norm 1, a memory of random
/// weights, and gates that stay the same: small steps, momentum 0.5, of which 2 % is forgotten a token. Keys
/// and values of fewer heads than queries are repeated.
///
/// Operations are counted as [`flops_a_chunk`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Benchmark {
    name: &'static str,
    /// Elements between two layers for each of a query.
    hidden: Option<usize>,
}

impl Benchmark {
    /// Memories of depth 1.
    pub const LINEAR: Benchmark = Benchmark { name: "titans-linear", hidden: None };
    /// Memories of depth 2 with four times the queries' elements between the layers.
    pub const DEEP: Benchmark = Benchmark { name: "titans", hidden: Some(4) };

    fn config(&self, shape: &AttentionShape) -> Config {
        let mut config = Config::linear(shape.heads, shape.dim_qk).with_dim_v(shape.dim_v);
        config.hidden = self.hidden.map(|hidden| hidden * shape.dim_qk);
        config
    }
}

/// Floating-point operations of the memory for a chunk of one head, without those of later tokens' pairs: a layer
/// `[m, n]` multiplies `b` tokens for errors, twice to be read, and twice to be changed, and takes
/// `b (b + 1) (m + n)` for the pairs within the chunk; the errors of the first of two layers take `2 b m n` more.
pub fn flops_a_chunk(config: &Config) -> f64 {
    let b = config.chunk as f64;
    let layers = config.layers().into_iter().map(|[m, n]| {
        let (m, n) = (m as f64, n as f64);
        10.0 * b * m * n + b * (b + 1.0) * (m + n)
    });
    let back = config.hidden.map_or(0, |hidden| hidden * config.dim_v) as f64;
    layers.sum::<f64>() + 2.0 * b * back
}

/// What a memory gets of a problem.
struct Call {
    q: Array4<f64>,
    k: Array4<f64>,
    v: Array4<f64>,
    gates: [Array3<f64>; 3],
    state: reference::State,
}

impl Call {
    fn new(inputs: &HostArrays, config: &Config) -> attn_core::Result<Call> {
        let shape = inputs.view().check()?;
        let (batch, heads) = (shape.batch, shape.heads);
        let gate = |value: f64| Array3::from_elem((batch, heads, shape.queries), value);
        let learned = config.layers().into_iter().enumerate().map(|(i, [m, n])| {
            let numbers = fill(1, i as u64, Values::Normal, heads * m * n);
            let scale = (m as f64).powf(-0.5);
            Array3::from_shape_fn((heads, m, n), |(h, r, c)| {
                // What the device gets is exactly that.
                f64::from((scale * f64::from(numbers[(h * m + r) * n + c])) as f32)
            })
        });
        let learned: Vec<_> = learned.collect();
        let views: Vec<_> = learned.iter().map(|w| w.view()).collect();
        Ok(Call {
            q: unit(inputs.q.view()),
            k: unit(repeated(&inputs.k, heads).view()),
            v: repeated(&inputs.v, heads),
            gates: [0.2 / config.chunk as f64, 0.5, 0.02].map(|x| gate(f64::from(x as f32))),
            state: reference::State::new(&views, batch, config)?,
        })
    }
}

/// Each head of keys for all queries that share it.
fn repeated(x: &Array4<f64>, heads: usize) -> Array4<f64> {
    let group = heads / x.dim().1.max(1);
    let from: Vec<usize> = (0..heads).map(|head| head / group.max(1)).collect();
    x.select(Axis(1), &from)
}

/// Rows at norm 1, as numbers of f32.
fn unit(x: ArrayView4<'_, f64>) -> Array4<f64> {
    let mut x = x.to_owned();
    for mut row in x.rows_mut() {
        let norm = (row.dot(&row) + 1e-6).sqrt();
        row.mapv_inplace(|value| f64::from((value / norm) as f32));
    }
    x
}

fn upload<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Result<Tensor> {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn())
}

struct PreparedTitans {
    titans: Titans,
    rows: [Tensor; 3],
    gates: [Tensor; 3],
    state: State,
}

impl Mechanism for Benchmark {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_for(&self, shape: &AttentionShape, dense: &Dense) -> bool {
        let plain = plain_logits(dense).is_ok();
        plain && dense.mask == Mask::Causal && shape.queries == shape.keys && shape.queries > 0
    }

    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, _dense: &Dense) -> Result<Box<dyn Prepared>> {
        let config = self.config(&inputs.shape);
        let call = Call::new(&inputs.to_f64()?, &config)?;
        let [theta, eta, alpha] = &call.gates;
        Ok(Box::new(PreparedTitans {
            titans: Titans::new(gpu, config)?,
            rows: [upload(gpu, &call.q)?, upload(gpu, &call.k)?, upload(gpu, &call.v)?],
            gates: [upload(gpu, theta)?, upload(gpu, eta)?, upload(gpu, alpha)?],
            state: State::upload(gpu, &call.state)?,
        }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        _dense: &Dense,
        rows: &[usize],
        _chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        let config = self.config(&inputs.view().check()?);
        let call = Call::new(inputs, &config)?;
        let [theta, eta, alpha] = &call.gates;
        let given = reference::Inputs {
            q: call.q.view(),
            k: call.k.view(),
            v: call.v.view(),
            theta: theta.view(),
            eta: eta.view(),
            alpha: alpha.view(),
        };
        let y = reference::forward_chunked(given, &call.state, &config)?.y;
        Ok(Reference { results: vec![y.select(Axis(2), rows)], logits: 0.0 })
    }

    fn flops(&self, shape: &AttentionShape, _dense: &Dense) -> f64 {
        let config = self.config(shape);
        let tokens = (shape.batch * shape.heads * shape.queries) as f64;
        tokens * flops_a_chunk(&config) / config.chunk as f64
    }

    fn bytes(&self, shape: &AttentionShape, _dense: &Dense) -> f64 {
        let of = |extents: [usize; 4]| extents.iter().product::<usize>();
        let weights: usize = self.config(shape).layers().iter().map(|[m, n]| m * n).sum();
        // Weights and momentum in and out.
        let state = 4 * shape.batch * shape.heads * weights;
        4.0 * (of(shape.q()) + of(shape.k()) + of(shape.v()) + of(shape.out()) + state) as f64
    }
}

impl Prepared for PreparedTitans {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let ([q, k, v], [theta, eta, alpha]) = (&self.rows, &self.gates);
        let output = self.titans.forward(Inputs { q, k, v, theta, eta, alpha }, &self.state)?;
        Ok(vec![("out", output.y)])
    }

    fn variant(&self) -> String {
        let config = self.titans.config();
        format!("depth {}, chunks of {} tokens", config.depth(), config.chunk)
    }
}
