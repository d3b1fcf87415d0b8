//! Derivatives against what they are derivatives of.

use attn_lightning::reference::{
    Cotangents, Inputs, Sglu, backward, backward_chunked, forward, initial_theta, lrpe,
    lrpe_backward, sglu, sglu_backward, srmsnorm, srmsnorm_backward,
};
use ndarray::{Array, Array3, Array4, Dimension};
use proptest::prelude::*;

use crate::support::{Case, case, matrix, tensor};

/// Compares `grad` with differences of `loss` at some elements of `x`.
pub fn differences<D: Dimension>(
    what: &str,
    x: &Array<f64, D>,
    grad: &Array<f64, D>,
    loss: impl Fn(&Array<f64, D>) -> f64,
) {
    assert_eq!(x.shape(), grad.shape(), "{what}");
    let step = 1e-5;
    let size = grad.iter().fold(1e-3, |max: f64, x| max.max(x.abs()));
    for at in (0..x.len()).step_by(1 + x.len() / 12) {
        let moved = |by: f64| {
            let mut x = x.as_standard_layout().to_owned();
            x.as_slice_mut().unwrap()[at] += by;
            loss(&x)
        };
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        let grad = grad.iter().nth(at).unwrap();
        // Third derivatives times the step's square, and roundings over the step.
        assert!((slope - grad).abs() <= 1e-6 * size, "{what} {at}: {grad} for {slope}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// The output is linear in q, and output and state in (k, kv) and (v, kv), so that a gradient times a
    /// direction is the cotangent times the result of that direction, without any step.
    #[test]
    fn attention_and_its_gradient_are_adjoint(case in case()) {
        let config = case.config();
        let [d_out, d_kv] = case.cotangents();
        let first = case.first_state();
        let case = Case { kv: Some(first), ..case };
        let abs = |x: &Array4<f64>| x.mapv(f64::abs);
        let product = |a: &Array4<f64>, b: &Array4<f64>| (a * b).sum();
        let along = |stream: u64, x: &Array4<f64>| tensor(case.seed, stream, x.dim());
        let kv = along(9, &d_kv);
        let none = Array4::zeros(d_kv.dim());
        for (which, d_kv) in [(0, &none), (1, &d_kv), (2, &d_kv)] {
            let mut moved = Case { kv: Some(kv.clone()), ..case.clone() };
            let x = along(8, [&case.q, &case.k, &case.v][which]);
            *[&mut moved.q, &mut moved.k, &mut moved.v][which] = x.clone();
            if which == 0 {
                moved.kv = case.kv.clone();
            }
            let output = forward(moved.inputs(), &config).unwrap();
            let want = product(&output.out, &d_out) + product(&output.kv, d_kv);
            let sizes = forward(moved.magnitude().inputs(), &config).unwrap();
            let size = product(&sizes.out, &abs(&d_out)) + product(&sizes.kv, &abs(d_kv));
            let cotangents = Cotangents::new(d_out.view()).with_state(d_kv.view());
            for run in [backward, backward_chunked] {
                let grads = run(case.inputs(), cotangents, &config).unwrap();
                let grad = [&grads.dq, &grads.dk, &grads.dv][which];
                let mut got = product(grad, &x);
                if which > 0 {
                    got += product(&grads.d_kv, &kv);
                }
                prop_assert!((got - want).abs() <= 1e-11 * size + 1e-290, "{}: {} {}", which, got, want);
            }
        }
    }

    #[test]
    fn attention_by_differences(seed in any::<u64>(), tokens in 1..20_usize) {
        let case = Case {
            q: tensor(seed, 0, (2, 4, tokens, 3)),
            k: tensor(seed, 1, (2, 2, tokens, 3)),
            v: tensor(seed, 2, (2, 2, tokens, 5)),
            kv: Some(tensor(seed, 3, (2, 4, 3, 5))),
            slopes: vec![0.0, 0.01, 0.3, 2.0],
            block: 6,
            seed,
        };
        let (config, [d_out, d_kv]) = (case.config(), case.cotangents());
        let cotangents = Cotangents::new(d_out.view()).with_state(d_kv.view());
        let grads = backward_chunked(case.inputs(), cotangents, &config).unwrap();
        let loss = |inputs: Inputs<'_>| {
            let output = forward(inputs, &config).unwrap();
            (&output.out * &d_out).sum() + (&output.kv * &d_kv).sum()
        };
        let inputs = case.inputs();
        differences("dq", &case.q, &grads.dq, |q| {
            loss(Inputs::new(q.view(), case.k.view(), case.v.view()).with_state(case.first_state().view()))
        });
        differences("dk", &case.k, &grads.dk, |k| {
            loss(Inputs::new(case.q.view(), k.view(), case.v.view()).with_state(case.first_state().view()))
        });
        differences("dv", &case.v, &grads.dv, |v| {
            loss(Inputs::new(case.q.view(), case.k.view(), v.view()).with_state(case.first_state().view()))
        });
        differences("d_kv", &case.first_state(), &grads.d_kv, |kv| {
            loss(Inputs::new(inputs.q.view(), inputs.k.view(), inputs.v.view()).with_state(kv.view()))
        });
    }

    #[test]
    fn positions_by_differences(seed in any::<u64>(), first in 0..9_usize) {
        let (x, d_y) = (tensor(seed, 0, (2, 3, 7, 4)), tensor(seed, 1, (2, 3, 7, 8)));
        let theta = initial_theta(3, 4);
        let (dx, d_theta) = lrpe_backward(x.view(), theta.view(), first, d_y.view()).unwrap();
        differences("dx", &x, &dx, |x| {
            (&lrpe(x.view(), theta.view(), first).unwrap() * &d_y).sum()
        });
        differences("d_theta", &theta, &d_theta, |theta| {
            (&lrpe(x.view(), theta.view(), first).unwrap() * &d_y).sum()
        });
    }

    #[test]
    fn norm_and_unit_by_differences(seed in any::<u64>()) {
        let [x, d_y] = [0, 1].map(|stream| -> Array3<f64> {
            tensor(seed, stream, (1, 2, 3, 6)).remove_axis(ndarray::Axis(0))
        });
        let epsilon = 0.3;
        let dx = srmsnorm_backward(x.view(), epsilon, d_y.view()).unwrap();
        differences("norm", &x, &dx, |x| (&srmsnorm(x.view(), epsilon) * &d_y).sum());

        let (w_v, w_u, w_o) = (matrix(seed, 2, 5, 6), matrix(seed, 3, 5, 6), matrix(seed, 4, 6, 5));
        let weights = Sglu { w_v: w_v.view(), w_u: w_u.view(), w_o: w_o.view() };
        let (dx, [d_w_v, d_w_u, d_w_o]) = sglu_backward(x.view(), weights, d_y.view()).unwrap();
        let loss = |x: &Array3<f64>, weights: Sglu<'_>| (&sglu(x.view(), weights).unwrap() * &d_y).sum();
        differences("unit", &x, &dx, |x| loss(x, weights));
        differences("w_v", &w_v, &d_w_v, |w| {
            loss(&x, Sglu { w_v: w.view(), w_u: w_u.view(), w_o: w_o.view() })
        });
        differences("w_u", &w_u, &d_w_u, |w| {
            loss(&x, Sglu { w_v: w_v.view(), w_u: w.view(), w_o: w_o.view() })
        });
        differences("w_o", &w_o, &d_w_o, |w| {
            loss(&x, Sglu { w_v: w_v.view(), w_u: w_u.view(), w_o: w.view() })
        });
    }
}
