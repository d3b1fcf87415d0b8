//! Attention over sparse plans, run and judged.

use attn_core::Mask;
use attn_core::dense::{self, Config};
use attn_core::ndarray::Array;
use attn_core::plan::{self, Entries, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::{
    Budget, HostInputs, bits, compare, simple_plan_f32, simple_plan_f32_backward,
};
use attn_wgpu::attention::Cotangents;
use attn_wgpu::plan::{DevicePlan, PlanAttention};
use attn_wgpu::{DType, Gpu, Tensor};

use super::{Result32, Uploaded, download, exact_within};

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

/// Blocks for ranges of queries, `[start, length]`, the same in every plane, and a last part for all queries.
pub fn ranges(
    extents: PlanShape,
    share: Share,
    causal: bool,
    each: &[[u32; 2]],
    percent: u64,
) -> SparsePlan {
    let blocks = |bq: usize| blocks(extents, share, causal, [bq as u32, 4], percent);
    let mut plan = blocks(extents.queries);
    let planes = plan.planes();
    let column = |i: usize| each.iter().map(|range| range[i]).collect::<Vec<u32>>().repeat(planes);
    let rows = Rows::Ranges {
        plane_ptr: (0..=planes).map(|plane| (plane * each.len()) as u32).collect(),
        q_start: column(0),
        q_len: column(1),
    };
    let groups = blocks(extents.queries.div_ceil(each.len()));
    plan.parts.insert(0, Part::new(rows, groups.parts[0].entries.clone()));
    plan
}

/// Gradients on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanGrads {
    pub dq: Vec<f32>,
    pub dk: Vec<f32>,
    pub dv: Vec<f32>,
    pub d_gates: Vec<Option<Vec<f32>>>,
}

/// Gradients on a device, in f32.
pub fn gradients(
    gpu: &Gpu,
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &Config,
    (d_out, d_lse): (&[f32], Option<&[f32]>),
) -> PlanGrads {
    let attention = PlanAttention::new(gpu, config.clone()).unwrap();
    let plan = DevicePlan::upload(gpu, plan).unwrap();
    gradients_with(&attention, gpu, inputs, &plan, (d_out, d_lse))
}

pub fn gradients_with(
    attention: &PlanAttention,
    gpu: &Gpu,
    inputs: &HostInputs,
    plan: &DevicePlan,
    (d_out, d_lse): (&[f32], Option<&[f32]>),
) -> PlanGrads {
    let uploaded = Uploaded::new(gpu, inputs).unwrap();
    let (_, saved) = attention.forward_saved(uploaded.view(), plan).unwrap();
    let out = Tensor::from_slice(gpu, d_out, &inputs.shape.out()).unwrap();
    let lse = d_lse.map(|d| Tensor::from_slice(gpu, d, &inputs.shape.lse()).unwrap());
    let cotangents = Cotangents { out: &out, lse: lse.as_ref() };
    let grads = attention.backward(&saved, cotangents).unwrap();
    PlanGrads {
        dq: grads.dq.to_vec().unwrap(),
        dk: grads.dk.to_vec().unwrap(),
        dv: grads.dv.to_vec().unwrap(),
        d_gates: grads
            .d_gates
            .iter()
            .map(|gates| gates.as_ref().map(|gates| gates.to_vec().unwrap()))
            .collect(),
    }
}

/// Holds gradients to the error budget.
pub fn judge_gradients(
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &Config,
    (d_out, d_lse): (&[f32], Option<&[f32]>),
    got: &PlanGrads,
) -> Result<(), String> {
    let text = |error: attn_core::Error| error.to_string();
    let arrays = inputs.to_f64().map_err(text)?;
    let output = plan::forward(arrays.view(), plan, config).map_err(text)?;
    let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let out = Array::from_shape_vec(inputs.shape.out(), wide(d_out)).unwrap();
    let lse = d_lse.map(|d| Array::from_shape_vec(inputs.shape.lse(), wide(d)).unwrap());
    let cotangents = dense::Cotangents { out: out.view(), lse: lse.as_ref().map(|lse| lse.view()) };
    let want = plan::backward(arrays.view(), plan, config, cotangents).map_err(text)?;
    let simple = simple_plan_f32_backward(inputs, plan, config, d_out, d_lse).map_err(text)?;
    let budget = Budget::for_output(&output);
    // Rounding of dim_v products, times what a gradient multiplies it with.
    let largest = |data: &[f32]| data.iter().fold(0_f32, |most, x| most.max(x.abs()));
    let others = largest(&inputs.q).max(largest(&inputs.k));
    let products = inputs.shape.dim_v as f32 * largest(d_out) * largest(&inputs.v);
    let rounding = f32::EPSILON * products * others;
    let check = |name: &str, got: &[f32], simple: &[f32], want: Vec<f64>| {
        // A budget relative to 0 admits nothing, but `d_out . v - delta` only rounds to 0.
        let is_zero = want.iter().all(|&x| x.abs() <= 1e-9 * f64::from(rounding));
        if is_zero && got.iter().all(|x| x.abs() <= rounding) {
            return Ok(());
        }
        budget.check(name, got, simple, &want).map(|_| ())
    };
    // In rows of few keys the products cancel to nothing but their rounding.
    let cancelled = config.scale_for(inputs.shape.dim_qk) * f64::from(rounding);
    let check_scores = |name: &str, got: &[f32], simple: &[f32], want: Vec<f64>| {
        check(name, got, simple, want.clone()).or_else(|_| {
            let got = exact_within(&vec![cancelled; got.len()], got, &want);
            check(name, &got, simple, want)
        })
    };
    check_scores("dq", &got.dq, &simple.dq, want.dq.iter().copied().collect())?;
    check_scores("dk", &got.dk, &simple.dk, want.dk.iter().copied().collect())?;
    check("dv", &got.dv, &simple.dv, want.dv.iter().copied().collect())?;
    if got.d_gates.len() != want.d_gates.len() {
        return Err(format!("{} parts with gates", got.d_gates.len()));
    }
    for (got, want) in got.d_gates.iter().zip(&want.d_gates) {
        let (got, want) = match (got, want) {
            (Some(got), Some(want)) => (got, want),
            (None, None) => continue,
            other => return Err(format!("gates {other:?}")),
        };
        // A difference of sums of dim_v products, to which a few roundings each are allowed.
        let size = want.iter().fold(1.0_f64, |most, x| most.max(x.abs()));
        let bound = 64.0 * f64::from(f32::EPSILON) * size * (1.0 + budget.logits);
        let error = compare(got, want).max_abs;
        if error > bound {
            return Err(format!("gates: {error} above {bound}"));
        }
    }
    Ok(())
}
