//! What the test files share.
#![allow(dead_code, missing_docs)]

use std::sync::OnceLock;

use attn_core::dense::{self, Config};
use attn_core::testing::{Budget, HostInputs, Values, simple_f32};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::attention::{Attention, Inputs};
use attn_wgpu::{Error, Gpu, GpuBuilder, Result, Tensor};

/// The device that most tests share, from many threads. `None`, with a printed notice, where there
/// is no adapter at all.
pub fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| open(Gpu::builder())).clone()
}

/// A device of one's own. Skips only if nothing was asked for and nothing is there.
pub fn open(builder: GpuBuilder) -> Option<Gpu> {
    match builder.build() {
        Ok(gpu) => Some(gpu),
        Err(Error::NoAdapter { wanted: None, tried }) if tried.is_empty() => {
            println!("skipped: no adapter on this machine");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Extents in the order batch, heads, heads_kv, queries, keys, dim_qk, dim_v.
pub fn shape(extents: [usize; 7]) -> AttentionShape {
    let [batch, heads, heads_kv, queries, keys, dim_qk, dim_v] = extents;
    AttentionShape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v }
}

pub fn masked(mask: Mask) -> Config {
    Config::new().with_mask(mask)
}

pub struct Uploaded {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

impl Uploaded {
    pub fn new(gpu: &Gpu, inputs: &HostInputs) -> Result<Uploaded> {
        let shape = &inputs.shape;
        Ok(Uploaded {
            q: Tensor::from_slice(gpu, &inputs.q, &shape.q())?,
            k: Tensor::from_slice(gpu, &inputs.k, &shape.k())?,
            v: Tensor::from_slice(gpu, &inputs.v, &shape.v())?,
        })
    }

    pub fn view(&self) -> Inputs<'_> {
        Inputs { q: &self.q, k: &self.k, v: &self.v }
    }
}

/// Output and log-sum-exp on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Result32 {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
}

impl Result32 {
    /// Bits, since NaN differs from itself.
    pub fn bits(&self) -> Vec<u32> {
        self.out.iter().chain(&self.lse).map(|x| x.to_bits()).collect()
    }
}

pub fn attend(gpu: &Gpu, inputs: &HostInputs, config: &Config) -> Result<Result32> {
    let uploaded = Uploaded::new(gpu, inputs)?;
    let output = Attention::new(gpu, config.clone())?.forward(uploaded.view())?;
    Ok(Result32 { out: output.out.to_vec()?, lse: output.lse.to_vec()? })
}

/// Holds a result to the error budget.
pub fn judge(
    case: &str,
    inputs: &HostInputs,
    config: &Config,
    got: &Result32,
) -> Result<(), String> {
    let arrays = inputs.to_f64().map_err(|error| error.to_string())?;
    let want = dense::forward(arrays.view(), config).map_err(|error| error.to_string())?;
    let simple = simple_f32(inputs, config).map_err(|error| error.to_string())?;
    let budget = Budget::for_output(&want);
    let out: Vec<f64> = want.out.iter().copied().collect();
    let lse: Vec<f64> = want.lse.iter().copied().collect();
    budget.check(&format!("{case} out"), &got.out, &simple.out, &out)?;
    budget.check(&format!("{case} lse"), &got.lse, &simple.lse, &lse)?;
    Ok(())
}

/// Runs a case on the shared device and judges it.
pub fn check(gpu: &Gpu, inputs: &HostInputs, config: &Config) {
    let s = inputs.shape;
    let case = format!(
        "b{}-h{}k{}-m{}n{}-d{}v{} {}",
        s.batch,
        s.heads,
        s.heads_kv,
        s.queries,
        s.keys,
        s.dim_qk,
        s.dim_v,
        config.mask.name()
    );
    let got = attend(gpu, inputs, config).unwrap_or_else(|error| panic!("{case}: {error}"));
    judge(&case, inputs, config, &got).unwrap_or_else(|message| panic!("{message}"));
}

pub fn normal(shape: AttentionShape, seed: u64) -> HostInputs {
    HostInputs::random(shape, seed, Values::Normal)
}
