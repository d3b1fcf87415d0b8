//! Attention over sparse plans, run and judged.

use attn_core::Mask;
use attn_core::dense::Config;
use attn_core::plan::{self, Entries, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::{Budget, HostInputs, bits, compare, simple_plan_f32};
use attn_wgpu::plan::{DevicePlan, PlanAttention};
use attn_wgpu::{DType, Gpu};

use super::{Result32, Uploaded, download};

/// On a device, in f32.
pub fn run(gpu: &Gpu, inputs: &HostInputs, plan: &SparsePlan, config: &Config) -> Result32 {
    run_as(gpu, inputs, plan, config, DType::F32)
}

/// Rounded to a storage type.
pub fn run_as(
    gpu: &Gpu,
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &Config,
    dtype: DType,
) -> Result32 {
    let attention = PlanAttention::new(gpu, config.clone()).unwrap();
    run_with(&attention, gpu, inputs, plan, dtype)
}

pub fn run_with(
    attention: &PlanAttention,
    gpu: &Gpu,
    inputs: &HostInputs,
    plan: &SparsePlan,
    dtype: DType,
) -> Result32 {
    let uploaded = Uploaded::as_type(gpu, inputs, dtype).unwrap();
    let plan = DevicePlan::upload(gpu, plan).unwrap();
    let output = attention.forward(uploaded.view(), &plan).unwrap();
    assert_eq!(output.out.dtype(), dtype);
    Result32 { out: download(&output.out).unwrap(), lse: output.lse.to_vec().unwrap() }
}

/// Holds a result to the error budget.
pub fn judge(
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &Config,
    got: &Result32,
) -> Result<(), String> {
    let arrays = inputs.to_f64().map_err(|error| error.to_string())?;
    let want = plan::forward(arrays.view(), plan, config).map_err(|error| error.to_string())?;
    let simple = simple_plan_f32(inputs, plan, config).map_err(|error| error.to_string())?;
    let budget = Budget::for_output(&want);
    let out: Vec<f64> = want.out.iter().copied().collect();
    let lse: Vec<f64> = want.lse.iter().copied().collect();
    budget.check("out", &got.out, &simple.out, &out)?;
    budget.check("lse", &got.lse, &simple.lse, &lse)?;
    Ok(())
}

/// Holds a result of half storage to the error budget, and its output to one rounding more.
pub fn judge_half(
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &Config,
    got: &Result32,
    rounding: f64,
) {
    let want = plan::forward(inputs.to_f64().unwrap().view(), plan, config).unwrap();
    let simple = simple_plan_f32(inputs, plan, config).unwrap();
    let lse: Vec<f64> = want.lse.iter().copied().collect();
    Budget::for_output(&want).check("lse", &got.lse, &simple.lse, &lse).unwrap();
    let out: Vec<f64> = want.out.iter().copied().collect();
    let slack = 4.0 * compare(&simple.out, &out).max_abs + 1e-5;
    for (got, want) in got.out.iter().zip(&out) {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= rounding * want.abs() + slack, "{got} {want}");
    }
}

pub fn check(gpu: &Gpu, name: &str, inputs: &HostInputs, plan: &SparsePlan, config: &Config) {
    let got = run(gpu, inputs, plan, config);
    judge(inputs, plan, config, &got).unwrap_or_else(|message| panic!("{name}: {message}"));
}

/// The configuration whose mask says what the plan does.
pub fn config(plan: &SparsePlan) -> Config {
    Config::new().with_mask(if plan.causal { Mask::Causal } else { Mask::Full })
}

/// Blocks at random, about `percent` of them, in tiles of `bq` queries; the canonical form.
pub fn blocks(
    shape: PlanShape,
    share: Share,
    causal: bool,
    [bq, bk]: [u32; 2],
    percent: u64,
) -> SparsePlan {
    let empty = SparsePlan::new(shape, share, causal, Vec::new());
    let (mut row_ptr, mut col) = (vec![0], Vec::new());
    for group in 0..empty.planes() * shape.queries.div_ceil(bq as usize) {
        let all = 0..shape.keys.div_ceil(bk as usize) as u32;
        col.extend(all.filter(|&j| bits(5, group as u64, j.into()) % 100 < percent));
        row_ptr.push(col.len() as u32);
    }
    let part = Part::new(Rows::Tiled { bq }, Entries::Blocks { bk, origin: 0, row_ptr, col });
    SparsePlan::new(shape, share, causal, vec![part]).canonicalise().unwrap()
}
