//! Dense attention forward and backward: what a training step pays for.

use attn_core::AttentionShape;
use attn_core::dense::{self, Config};
use attn_core::plan::SparsePlan;
use attn_core::testing::{Budget, HostArrays, HostInputs, Values, simple_f32_backward};
use attn_wgpu::attention::{Attention, Cotangents, Inputs, Variant};
use attn_wgpu::bench::{Mechanism, Prepared, Reference, mask_of_rows, pick_rows};
use attn_wgpu::ndarray::{Array4, Axis};
use attn_wgpu::{Gpu, Result, Tensor};

use super::gate;

/// One forward pass that saves what the backward pass needs, and the gradients by q, k and v.
///
/// Cotangents are 0 except at the queries that the gate compares. So the reference has to look at these alone,
/// also for the gradients by keys and values, which are sums over queries. The device does not know: it computes
/// all rows.
pub struct DenseBackward;

/// Cotangents are random numbers of this seed and stream.
const SEED: u64 = 1 << 40;
const STREAM: u64 = 4;

struct PreparedBackward {
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
}

/// Cotangents `[batch, heads, rows, dim_v]` of the queries `rows`.
fn cotangents(shape: &AttentionShape, rows: &[usize]) -> Vec<f32> {
    let indices: Vec<u64> = (0..shape.out().iter().product::<usize>() as u64).collect();
    let indices = pick_rows(&indices, shape.out(), rows);
    indices.into_iter().map(|index| Values::Normal.at(SEED, STREAM, index)).collect()
}

/// The same with all queries, zeros elsewhere.
fn spread(shape: &AttentionShape, rows: &[usize]) -> Vec<f32> {
    let mut all = vec![0.0; shape.out().iter().product()];
    let values = cotangents(shape, rows);
    let targets = (0..shape.batch * shape.heads)
        .flat_map(|head| rows.iter().map(move |row| head * shape.queries + row));
    for (target, value) in targets.zip(values.chunks(shape.dim_v.max(1))) {
        all[target * shape.dim_v..][..shape.dim_v].copy_from_slice(value);
    }
    all
}

fn no_modifier(config: &Config) -> attn_core::Result<()> {
    match &config.modifier {
        None => Ok(()),
        // It asks for positions, which rows alone do not have.
        Some(own) => Err(attn_core::Error::config("modifier", "none", own.name())),
    }
}

impl Mechanism for DenseBackward {
    fn name(&self) -> &'static str {
        "dense-backward"
    }

    /// Text is not trained token by token.
    fn is_for(&self, shape: &AttentionShape, _: &Config) -> bool {
        shape.queries > 1
    }

    fn prepare(
        &self,
        gpu: &Gpu,
        inputs: &HostInputs,
        config: &Config,
    ) -> Result<Box<dyn Prepared>> {
        no_modifier(config)?;
        let shape = inputs.shape;
        let upload = |data: &[f32], shape: [usize; 4]| Tensor::from_slice(gpu, data, &shape);
        Ok(Box::new(PreparedBackward {
            attention: Attention::new(gpu, config.clone())?,
            q: upload(&inputs.q, shape.q())?,
            k: upload(&inputs.k, shape.k())?,
            v: upload(&inputs.v, shape.v())?,
            d_out: upload(&spread(&shape, &gate::rows(&shape)), shape.out())?,
        }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        config: &Config,
        rows: &[usize],
        _: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        no_modifier(config)?;
        let shape = inputs.view().check()?;
        let config = config.clone().with_mask(mask_of_rows(&shape, &config.mask, rows));
        let q = inputs.q.select(Axis(2), rows);
        let some = dense::Inputs { q: q.view(), ..inputs.view() };
        let values = cotangents(&shape, rows).into_iter().map(f64::from).collect();
        let extents = (shape.batch, shape.heads, rows.len(), shape.dim_v);
        let d_out = Array4::from_shape_vec(extents, values)
            .map_err(|error| attn_core::Error::data("rows", "queries of the inputs", error))?;
        let output = dense::forward(some, &config)?;
        let cotangents = dense::Cotangents { out: d_out.view(), lse: None };
        let grads = dense::backward(some, &config, &output, cotangents)?;
        Ok(Reference {
            results: vec![grads.dq, grads.dk, grads.dv],
            logits: Budget::for_output(&output).logits,
        })
    }

    fn simple(
        &self,
        inputs: &HostInputs,
        config: &Config,
        rows: &[usize],
        _: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        no_modifier(config)?;
        let shape = inputs.shape;
        let config = config.clone().with_mask(mask_of_rows(&shape, &config.mask, rows));
        let some = HostInputs {
            shape: AttentionShape { queries: rows.len(), ..shape },
            q: pick_rows(&inputs.q, shape.q(), rows),
            ..inputs.clone()
        };
        let grads = simple_f32_backward(&some, &config, &cotangents(&shape, rows), None)?;
        Ok(Some(vec![grads.dq, grads.dk, grads.dv]))
    }

    /// Two products forward and five backward, one of which repeats the scores; what a kernel computes twice
    /// does not count.
    fn flops(&self, shape: &AttentionShape, config: &Config) -> f64 {
        let (qk, v) = (shape.dim_qk as f64, shape.dim_v as f64);
        if qk + v == 0.0 {
            return 0.0;
        }
        shape.flops(&config.mask) * (4.0 * qk + 3.0 * v) / (qk + v)
    }

    fn bytes(&self, shape: &AttentionShape, _config: &Config) -> f64 {
        let elements = |shape: [usize; 4]| shape.into_iter().product::<usize>();
        let inputs = elements(shape.q()) + elements(shape.k()) + elements(shape.v());
        let lse = shape.batch * shape.heads * shape.queries;
        // Inputs and their gradients, the output and its cotangent.
        4.0 * (2 * inputs + 2 * elements(shape.out()) + lse) as f64
    }
}

impl Prepared for PreparedBackward {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let inputs = Inputs::new(&self.q, &self.k, &self.v);
        let (_, saved) = self.attention.forward_saved(inputs)?;
        let cotangents = Cotangents { out: &self.d_out, lse: None };
        let grads = self.attention.backward(&saved, cotangents)?;
        Ok(vec![("dq", grads.dq), ("dk", grads.dk), ("dv", grads.dv)])
    }

    fn variant(&self) -> String {
        let (dim_qk, dim_v) = (self.q.shape()[3], self.v.shape()[3]);
        let capabilities = self.q.gpu().capabilities();
        format!(
            "forward: {}; backward: {}",
            Variant::forward(dim_qk, dim_v, capabilities),
            Variant::backward(dim_qk, dim_v, capabilities)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases::tests::shape;
    use super::*;
    use attn_core::Mask;

    #[test]
    fn rows_alone_have_the_gradients_of_the_whole() {
        let shape = AttentionShape { heads_kv: 1, ..shape(2, 13, 17) };
        let inputs = HostInputs::random(shape, 3, Values::Normal);
        let config = Config::new().with_mask(Mask::Causal);
        let rows = [2, 5, 12];
        let arrays = inputs.to_f64().unwrap();
        let some = DenseBackward.reference(&arrays, &config, &rows, None).unwrap();
        let whole = dense::forward(arrays.view(), &config).unwrap();
        let values = spread(&shape, &rows).into_iter().map(f64::from).collect();
        let d_out = Array4::from_shape_vec((1, 2, 13, 4), values).unwrap();
        let cotangents = dense::Cotangents { out: d_out.view(), lse: None };
        let grads = dense::backward(arrays.view(), &config, &whole, cotangents).unwrap();
        let simple = DenseBackward.simple(&inputs, &config, &rows, None).unwrap().unwrap();
        let whole = [grads.dq.select(Axis(2), &rows), grads.dk, grads.dv];
        for ((whole, some), simple) in whole.iter().zip(&some.results).zip(simple) {
            assert_eq!(whole.shape(), some.shape());
            assert!(whole.iter().zip(some).all(|(a, b)| (a - b).abs() < 1e-12));
            assert!(whole.iter().zip(simple).all(|(a, b)| (a - f64::from(b)).abs() < 1e-5));
        }
        assert!(grads.dq.index_axis(Axis(2), 3).iter().all(|x| *x == 0.0));
    }

    #[test]
    fn operations_of_equal_dimensions() {
        let shape = AttentionShape { dim_v: 8, ..shape(2, 16, 16) };
        let config = Config::new();
        assert_eq!(DenseBackward.flops(&shape, &config), 3.5 * shape.flops(&config.mask));
    }
}
