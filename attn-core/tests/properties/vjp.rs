//! The vector-Jacobian product against finite differences.

use attn_core::dense::{self, Config, Cotangents, Grads};
use attn_core::ndarray::{Array3, Array4, s};
use attn_core::testing::strategies::case;
use attn_core::testing::{HostArrays, Values, fill};
use attn_core::{BitMask, Error, Mask, Modifier, alibi_slopes};
use proptest::prelude::*;

use super::{config, full_case, normal};

/// A random linear loss of output and log-sum-exp.
struct Loss {
    out: Array4<f64>,
    lse: Option<Array3<f64>>,
}

impl Loss {
    fn new(arrays: &HostArrays, with_lse: bool) -> Self {
        let shape = arrays.view().check().unwrap();
        Loss {
            out: random(shape.out(), 10),
            lse: with_lse.then(|| {
                let [batch, heads, queries] = shape.lse();
                random([batch, heads, queries, 1], 11).remove_axis(attn_core::ndarray::Axis(3))
            }),
        }
    }

    fn at(&self, arrays: &HostArrays, config: &Config) -> f64 {
        let output = dense::forward(arrays.view(), config).unwrap();
        // Rows without keys have a constant log-sum-exp; their -inf is no part of the loss.
        let lse = self.lse.iter().flat_map(|d_lse| d_lse.iter().zip(&output.lse));
        let lse = lse.filter(|(_, lse)| lse.is_finite()).map(|(d_lse, lse)| d_lse * lse);
        (&output.out * &self.out).sum() + lse.sum::<f64>()
    }

    fn grads(&self, arrays: &HostArrays, config: &Config) -> Grads {
        let output = dense::forward(arrays.view(), config).unwrap();
        let lse = self.lse.as_ref().map(|lse| lse.view());
        dense::backward(arrays.view(), config, &output, Cotangents { out: self.out.view(), lse })
            .unwrap()
    }
}

fn random(shape: [usize; 4], stream: u64) -> Array4<f64> {
    let data = fill(5, stream, Values::Normal, shape.iter().product());
    Array4::from_shape_vec(shape, data.into_iter().map(f64::from).collect()).unwrap()
}

fn moved(arrays: &HostArrays, direction: &HostArrays, step: f64) -> HostArrays {
    let go = |from: &Array4<f64>, along: &Array4<f64>| from + &(along * step);
    let sinks = arrays.sinks.as_ref().zip(direction.sinks.as_ref());
    HostArrays {
        q: go(&arrays.q, &direction.q),
        k: go(&arrays.k, &direction.k),
        v: go(&arrays.v, &direction.v),
        sinks: sinks.map(|(from, along)| from + &(along * step)),
    }
}

/// A random direction for `arrays`, a tenth as long as they are: third derivatives grow with the
/// number of dimensions.
fn direction(arrays: &HostArrays) -> HostArrays {
    let shape = arrays.view().check().unwrap();
    let direction = HostArrays {
        q: random(shape.q(), 20),
        k: random(shape.k(), 21),
        v: random(shape.v(), 22),
        sinks: arrays
            .sinks
            .as_ref()
            .map(|s| random([1, 1, 1, s.len()], 23).into_shape_with_order(s.len()).unwrap()),
    };
    moved(&direction, &direction, -0.9)
}

/// Derivative along `direction` by central differences, against the gradient.
fn check(
    loss: &Loss,
    arrays: &HostArrays,
    config: &Config,
    direction: &HostArrays,
) -> Result<(), String> {
    let step = 1e-5;
    let at = |step| loss.at(&moved(arrays, direction, step), config);
    let want = (at(step) - at(-step)) / (2.0 * step);
    let grads = loss.grads(arrays, config);
    let mut terms =
        vec![&grads.dq * &direction.q, &grads.dk * &direction.k, &grads.dv * &direction.v];
    if let (Some(d_sinks), Some(sinks)) = (&grads.d_sinks, &direction.sinks) {
        let term = d_sinks * sinks;
        terms.push(term.into_shape_with_order((1, 1, 1, sinks.len())).unwrap());
    }
    let got: f64 = terms.iter().map(|term| term.sum()).sum();
    let size: f64 = terms.iter().map(|term| term.mapv(f64::abs).sum()).sum();
    match (got - want).abs() <= 1e-6 * (1.0 + size) {
        true => Ok(()),
        false => Err(format!("{got}, by differences {want}")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn is_the_derivative_along_random_directions(case in case(100_000), with_lse in any::<bool>()) {
        let arrays = super::HostInputs::random(case.shape, case.seed, Values::Normal).to_f64().unwrap();
        let loss = Loss::new(&arrays, with_lse);
        check(&loss, &arrays, &case.config, &direction(&arrays)).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn is_the_derivative_of_every_configuration((case, inputs) in full_case(100_000), with_lse in any::<bool>()) {
        let normal = super::HostInputs::random(case.shape, case.seed, Values::Normal);
        let arrays = super::HostInputs { sinks: inputs.sinks, ..normal }.to_f64().unwrap();
        let loss = Loss::new(&arrays, with_lse);
        check(&loss, &arrays, &case.config, &direction(&arrays)).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn keys_that_nobody_sees_are_not_read_and_get_0(case in case(100_000)) {
        let arrays = case.inputs().to_f64().unwrap();
        let lengths = case.shape.lengths();
        let unseen: Vec<usize> = (0..case.shape.keys)
            .filter(|&t| (0..case.shape.queries).all(|i| !case.config.mask.allows(lengths, i, t)))
            .collect();
        let loss = Loss::new(&arrays, true);
        let clean = loss.grads(&arrays, &case.config);
        let mut poisoned = arrays.clone();
        for &t in &unseen {
            poisoned.k.slice_mut(s![.., .., t, ..]).fill(f64::NAN);
            poisoned.v.slice_mut(s![.., .., t, ..]).fill(f64::INFINITY);
            prop_assert!(clean.dk.slice(s![.., .., t, ..]).iter().all(|&x| x == 0.0));
            prop_assert!(clean.dv.slice(s![.., .., t, ..]).iter().all(|&x| x == 0.0));
        }
        let grads = loss.grads(&poisoned, &case.config);
        prop_assert!(grads == clean);
        prop_assert!(clean.dq.iter().chain(&clean.dk).chain(&clean.dv).all(|x| x.is_finite()));
    }
}

#[test]
fn every_element_of_a_grouped_call_with_empty_rows() {
    let mut arrays = normal([2, 6, 2, 5, 4, 3, 2]);
    arrays.sinks = Some((0..6).map(|h| 0.3 * f64::from(h) - 1.0).collect());
    let zeros = moved(&arrays, &arrays, -1.0);
    let bits = BitMask::from_fn(5, 4, |i, t| i != 2 && (i * t) % 3 != 1);
    let alibi = Modifier::alibi(&alibi_slopes(6));
    let temperature = Modifier::temperature(&[0.7, 1.3, 2.0]);
    for (config, with_lse) in [
        (config(Mask::Causal), true),
        (config(Mask::Causal), false),
        (config(Mask::GlobalWindow { window: 1, global: 1 }), true),
        (config(Mask::SinkWindow { left: 0, sinks: 1 }), true),
        (config(Mask::Bits(bits.clone())), true),
        (config(Mask::Causal).with_soft_cap(1.5), true),
        (config(Mask::Causal).with_modifier(alibi), false),
        (
            config(Mask::Bits(bits)).with_soft_cap(2.0).with_scale(1.1).with_modifier(temperature),
            true,
        ),
    ] {
        let loss = Loss::new(&arrays, with_lse);
        let unit = |pick: fn(&mut HostArrays) -> &mut Array4<f64>, index: usize| {
            let mut direction = zeros.clone();
            *pick(&mut direction).iter_mut().nth(index).unwrap() = 1.0;
            check(&loss, &arrays, &config, &direction).unwrap();
        };
        (0..arrays.q.len()).for_each(|index| unit(|a| &mut a.q, index));
        (0..arrays.k.len()).for_each(|index| unit(|a| &mut a.k, index));
        (0..arrays.v.len()).for_each(|index| unit(|a| &mut a.v, index));
        for h in 0..6 {
            let mut direction = zeros.clone();
            direction.sinks.as_mut().unwrap()[h] = 1.0;
            check(&loss, &arrays, &config, &direction).unwrap();
        }
    }
}

#[test]
fn cotangents_of_empty_rows_do_not_matter() {
    let arrays = normal([1, 4, 2, 7, 4, 3, 5]);
    let config = config(Mask::Causal);
    let mut loss = Loss::new(&arrays, true);
    let clean = loss.grads(&arrays, &config);
    loss.out.slice_mut(s![.., .., ..3, ..]).fill(f64::NAN);
    loss.lse.as_mut().unwrap().slice_mut(s![.., .., ..3]).fill(f64::INFINITY);
    assert_eq!(loss.grads(&arrays, &config), clean);
    assert!(clean.dq.slice(s![.., .., ..3, ..]).iter().all(|&x| x == 0.0));

    // With a sink, the log-sum-exp of an empty row is the sink; its output still reads nothing.
    let mut arrays = arrays;
    arrays.sinks = Some((0..4).map(f64::from).collect());
    loss.lse.as_mut().unwrap().slice_mut(s![.., .., ..3]).fill(2.0);
    let grads = loss.grads(&arrays, &config);
    loss.lse.as_mut().unwrap().slice_mut(s![.., .., ..3]).fill(0.0);
    let d_sinks = grads.d_sinks.unwrap() - loss.grads(&arrays, &config).d_sinks.unwrap();
    assert!(d_sinks.iter().all(|x| (x - 6.0).abs() < 1e-12), "{d_sinks}");
}

/// The rows of softmax sum to 1, so a loss that asks for their sum does not change.
#[test]
fn constant_values_leave_no_gradient_in_queries_and_keys() {
    let mut arrays = normal([1, 3, 1, 9, 9, 8, 4]);
    arrays.v.fill(2.0);
    let grads = Loss::new(&arrays, false).grads(&arrays, &config(Mask::Causal));
    assert!(grads.dq.iter().chain(&grads.dk).all(|x| x.abs() < 1e-13));
    assert!(grads.dv.iter().any(|x| x.abs() > 0.1));
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let arrays = normal([1, 2, 1, 3, 4, 5, 6]);
    let config = Config::new();
    let output = dense::forward(arrays.view(), &config).unwrap();
    let some = dense::forward_rows(arrays.view(), &config, &[0]).unwrap();
    let (right, wrong) = (Array4::zeros((1, 2, 3, 6)), Array4::zeros((1, 2, 3, 5)));
    let lse = Array3::zeros((1, 2, 4));
    let error = |output, out: &Array4<f64>, lse: Option<&Array3<f64>>| {
        let cotangents = Cotangents { out: out.view(), lse: lse.map(|lse| lse.view()) };
        match dense::backward(arrays.view(), &config, output, cotangents) {
            Err(Error::Shape { arg, .. }) => arg,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error(&some, &right, None), "output.out");
    assert_eq!(error(&output, &wrong, None), "cotangents.out");
    assert_eq!(error(&output, &right, Some(&lse)), "cotangents.lse");
}
