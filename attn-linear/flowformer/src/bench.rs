//! The attention as benchmarks see it (feature `bench`).

use attn_core::dense::Config as Dense;
use attn_core::plan::SparsePlan;
use attn_core::testing::{HostArrays, HostInputs};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::bench::{Mechanism, Prepared, Reference, plain_logits, upload_inputs};
use attn_wgpu::{DType, Gpu, Result, Tensor};
use ndarray::Axis;

use crate::reference;
use crate::{Config, Flowformer, Inputs};

/// Flow-Attention of captured or random tokens, without a clamp, both ways or causal as the problem's mask says.
/// It is another function than softmax attention, which knows no conservation; scale and soft-cap have no part
/// in it.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark;

fn config(dense: &Dense) -> attn_core::Result<Config> {
    plain_logits(dense)?;
    Ok(if dense.mask == Mask::Causal { Config::causal() } else { Config::new() })
}

struct PreparedFlow {
    flowformer: Flowformer,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Mechanism for Benchmark {
    fn name(&self) -> &'static str {
        "flowformer"
    }

    fn is_for(&self, shape: &AttentionShape, config: &Dense) -> bool {
        let several = shape.queries > 1;
        match config.mask {
            Mask::Full => several,
            Mask::Causal => several && shape.queries == shape.keys,
            _ => false,
        }
    }

    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, dense: &Dense) -> Result<Box<dyn Prepared>> {
        let [q, k, v] = upload_inputs(gpu, DType::F32, inputs)?;
        let flowformer = Flowformer::new(gpu, config(dense)?)?;
        Ok(Box::new(PreparedFlow { flowformer, q, k, v }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        dense: &Dense,
        rows: &[usize],
        _: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        let config = config(dense)?;
        let host = reference::Inputs::new(inputs.q.view(), inputs.k.view(), inputs.v.view());
        // Token by token the causal form is linear, too.
        let output = match config.causal {
            true => reference::prefill(host, &config)?.0,
            false => reference::forward(host, &config)?,
        };
        let largest = |x: f64, flow: &f64| x.max(flow.abs());
        let logits = output.flows.conserved_source.iter().fold(0.0, largest);
        Ok(Reference { results: vec![output.out.select(Axis(2), rows)], logits })
    }

    fn flops(&self, shape: &AttentionShape, _: &Dense) -> f64 {
        let (dim, dim_v) = (shape.dim_qk as f64, shape.dim_v as f64);
        let tokens = (shape.batch * shape.heads * (shape.queries + shape.keys)) as f64;
        tokens * (2.0 * dim * dim_v + 10.0 * dim)
    }

    fn bytes(&self, shape: &AttentionShape, _: &Dense) -> f64 {
        let elements = |shape: [usize; 4]| shape.into_iter().product::<usize>();
        let all = [shape.q(), shape.k(), shape.v(), shape.out()].map(elements);
        4.0 * all.iter().sum::<usize>() as f64
    }
}

impl Prepared for PreparedFlow {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let inputs = Inputs::new(&self.q, &self.k, &self.v);
        Ok(vec![("out", self.flowformer.forward(inputs)?.out)])
    }

    fn variant(&self) -> String {
        let form = if self.flowformer.config().causal { "causal" } else { "both ways" };
        format!("{form}, no clamp")
    }
}
