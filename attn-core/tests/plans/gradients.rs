//! The vector-Jacobian product with the sets of keys fixed.

use attn_core::dense::{self, Config, Cotangents};
use attn_core::ndarray::{Array3, Array4};
use attn_core::plan::{self, Combine, Grads, SparsePlan};
use attn_core::testing::plans::plan_case;
use attn_core::testing::{HostArrays, HostInputs, Values, fill};
use attn_core::{AttentionShape, Error, Mask, Modifier, alibi_slopes};
use proptest::prelude::*;

fn random(shape: [usize; 4], stream: u64) -> Array4<f64> {
    let data = fill(7, stream, Values::Normal, shape.iter().product());
    Array4::from_shape_vec(shape, data.into_iter().map(f64::from).collect()).unwrap()
}

/// A random linear loss of output and log-sum-exp.
struct Loss {
    out: Array4<f64>,
    lse: Array3<f64>,
}

impl Loss {
    fn new(shape: &AttentionShape) -> Self {
        let [batch, heads, queries] = shape.lse();
        let lse = random([batch, heads, queries, 1], 2).remove_axis(attn_core::ndarray::Axis(3));
        Loss { out: random(shape.out(), 1), lse }
    }

    fn at(&self, arrays: &HostArrays, plan: &SparsePlan, config: &Config) -> f64 {
        let output = plan::forward(arrays.view(), plan, config).unwrap();
        let lse = self.lse.iter().zip(&output.lse).filter(|(_, lse)| lse.is_finite());
        (&output.out * &self.out).sum() + lse.map(|(d, lse)| d * lse).sum::<f64>()
    }

    fn grads(&self, arrays: &HostArrays, plan: &SparsePlan, config: &Config) -> Grads {
        let cotangents = Cotangents { out: self.out.view(), lse: Some(self.lse.view()) };
        plan::backward(arrays.view(), plan, config, cotangents).unwrap()
    }
}

/// Slope of the loss along a direction, by differences and by the gradient.
fn check(
    shape: &AttentionShape,
    arrays: &HostArrays,
    plan: &SparsePlan,
    config: &Config,
) -> Result<(), String> {
    let loss = Loss::new(shape);
    let directions =
        [random(shape.q(), 3), random(shape.k(), 4), random(shape.v(), 5)].map(|d| d * 0.1);
    let sinks = arrays.sinks.as_ref().map(|sinks| sinks.mapv(|x| 0.3 + x.sin()));
    let at = |step: f64| {
        let moved = HostArrays {
            q: &arrays.q + &(&directions[0] * step),
            k: &arrays.k + &(&directions[1] * step),
            v: &arrays.v + &(&directions[2] * step),
            sinks: arrays.sinks.as_ref().zip(sinks.as_ref()).map(|(x, d)| x + &(d * step)),
        };
        loss.at(&moved, plan, config)
    };
    let step = 1e-5;
    let want = (at(step) - at(-step)) / (2.0 * step);
    let grads = loss.grads(arrays, plan, config);
    let terms =
        [&grads.dq * &directions[0], &grads.dk * &directions[1], &grads.dv * &directions[2]];
    let of_sinks = grads.d_sinks.as_ref().zip(sinks.as_ref()).map_or(0.0, |(g, d)| (g * d).sum());
    let got = terms.iter().map(|term| term.sum()).sum::<f64>() + of_sinks;
    let size: f64 = terms.iter().map(|term| term.mapv(f64::abs).sum()).sum();
    if (got - want).abs() <= 1e-6 * (1.0 + size) {
        return Ok(());
    }
    Err(format!("{got}, by differences {want}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn is_the_derivative_along_random_directions(case in plan_case(40_000)) {
        let mut inputs = HostInputs::random(case.shape, case.seed, Values::Normal);
        if matches!(case.plan.combine, Combine::Single | Combine::Lse) && case.seed % 2 == 0 {
            inputs = inputs.with_random_sinks(case.seed);
        }
        let arrays = inputs.to_f64().unwrap();
        check(&case.shape, &arrays, &case.plan, &case.config).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn gates_get_their_derivatives(case in plan_case(20_000)) {
        prop_assume!(matches!(case.plan.combine, Combine::Gate(_)));
        let arrays = HostInputs::random(case.shape, case.seed, Values::Normal).to_f64().unwrap();
        let loss = Loss::new(&case.shape);
        let grads = loss.grads(&arrays, &case.plan, &case.config);
        // Gates are stored in f32: steps that it holds.
        let at = |part: usize, gate: usize, step: f32| {
            let mut plan = case.plan.clone();
            let Combine::Gate(gates) = &mut plan.combine else { panic!() };
            let gates = gates[part].as_mut().unwrap();
            gates[gate] += step;
            let moved = f64::from(gates[gate]);
            (loss.at(&arrays, &plan, &case.config), moved)
        };
        for (part, of_part) in grads.d_gates.iter().enumerate() {
            let Some(of_part) = of_part else { continue };
            for gate in (0..of_part.len()).step_by(1 + of_part.len() / 5) {
                let ((high, to), (low, from)) = (at(part, gate, 1e-3), at(part, gate, -1e-3));
                let want = if to > from { (high - low) / (to - from) } else { 0.0 };
                let got = of_part[gate];
                prop_assert!((got - want).abs() <= 1e-4 * (1.0 + want.abs()), "{got}, by differences {want}");
            }
        }
    }
}

#[test]
fn of_a_full_plan_are_those_of_dense_attention() {
    let shape = AttentionShape {
        batch: 2,
        heads: 6,
        heads_kv: 2,
        queries: 9,
        keys: 13,
        dim_qk: 5,
        dim_v: 4,
    };
    let inputs = HostInputs::random(shape, 1, Values::Normal).with_random_sinks(2);
    let arrays = inputs.to_f64().unwrap();
    let loss = Loss::new(&shape);
    let alibi = Modifier::alibi(&alibi_slopes(6));
    for mask in [Mask::Causal, Mask::Full] {
        let config =
            Config::new().with_mask(mask.clone()).with_soft_cap(2.0).with_modifier(alibi.clone());
        let plan = SparsePlan::full((&shape).into(), mask == Mask::Causal, 4).unwrap();
        let got = loss.grads(&arrays, &plan, &config);
        let output = dense::forward(arrays.view(), &config).unwrap();
        let cotangents = Cotangents { out: loss.out.view(), lse: Some(loss.lse.view()) };
        let want = dense::backward(arrays.view(), &config, &output, cotangents).unwrap();
        for (got, want) in [(got.dq, want.dq), (got.dk, want.dk), (got.dv, want.dv)] {
            assert!((got - want).iter().all(|x| x.abs() < 1e-13));
        }
        let d_sinks = got.d_sinks.unwrap() - want.d_sinks.unwrap();
        assert!(d_sinks.iter().all(|x| x.abs() < 1e-13));
    }
}

#[test]
fn calls_that_do_not_fit() {
    let shape = AttentionShape {
        batch: 1,
        heads: 1,
        heads_kv: 1,
        queries: 3,
        keys: 3,
        dim_qk: 2,
        dim_v: 2,
    };
    let arrays = HostInputs::random(shape, 1, Values::Normal).to_f64().unwrap();
    let plan = SparsePlan::full((&shape).into(), false, 2).unwrap();
    let backward = |out: &Array4<f64>, lse: Option<&Array3<f64>>, config: &Config| {
        let cotangents = Cotangents { out: out.view(), lse: lse.map(|lse| lse.view()) };
        plan::backward(arrays.view(), &plan, config, cotangents)
    };
    let (out, lse) = (Array4::zeros(shape.out()), Array3::zeros((1, 1, 4)));
    assert!(backward(&out, None, &Config::new()).is_ok());
    let wrong = backward(&Array4::zeros((1, 1, 3, 3)), None, &Config::new());
    assert!(matches!(wrong, Err(Error::Shape { arg: "cotangents.out", .. })));
    let wrong = backward(&out, Some(&lse), &Config::new());
    assert!(matches!(wrong, Err(Error::Shape { arg: "cotangents.lse", .. })));
    let wrong = backward(&out, None, &Config::new().with_mask(Mask::Causal));
    assert!(matches!(wrong, Err(Error::Config { arg: "mask", .. })));
}
