//! What the equations imply.

use attn_core::testing::Values;
use attn_lightning::reference::{
    Inputs, forward, forward_chunked, initial_theta, lrpe, srmsnorm, srmsnorm_backward,
};
use attn_lightning::{Config, Slopes};
use ndarray::{Array1, Array4, Axis, concatenate, s};
use proptest::prelude::*;

use crate::support::{Case, case, close, dense, distance, filled, matrix, tensor};

/// A case without a state, in which everything is linear in each of q, k and v.
fn stateless() -> impl Strategy<Value = Case> {
    case().prop_map(|case| Case { kv: None, ..case })
}

fn out(case: &Case) -> Array4<f64> {
    forward_chunked(case.inputs(), &case.config()).unwrap().out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn linear_in_each_input(case in stateless(), which in 0..3_usize, factor in -3.0..3.0_f64) {
        let with = |x: Array4<f64>| {
            let mut case = case.clone();
            *[&mut case.q, &mut case.k, &mut case.v][which] = x;
            case
        };
        let one = [&case.q, &case.k, &case.v][which].clone();
        let two = tensor(case.seed, 7, one.dim());
        let sum = with(&one + &(&two * factor));
        let abs = with(one.mapv(f64::abs) + (&two * factor).mapv(f64::abs)).magnitude();
        let want = out(&case) + out(&with(two)) * factor;
        close("out", &out(&sum), &want, &dense(&abs)[0]);
    }

    #[test]
    fn features_are_summed_up(case in stateless(), cut in 0.0..=1.0_f64) {
        let cut = (cut * case.q.dim().3 as f64) as usize;
        let parts = [s![.., .., .., ..cut], s![.., .., .., cut..]].map(|part| {
            let [q, k] = [&case.q, &case.k].map(|x| x.slice(part).to_owned());
            out(&Case { q, k, ..case.clone() })
        });
        close("out", &(&parts[0] + &parts[1]), &out(&case), &dense(&case.magnitude())[0]);
    }

    /// Also where the later token is not a number.
    #[test]
    fn a_token_never_changes_earlier_ones(case in case(), at in 0.0..1.0_f64, nan in any::<bool>()) {
        let tokens = case.q.dim().2;
        prop_assume!(tokens > 0);
        let at = (at * tokens as f64) as usize;
        let mut other = case.clone();
        for x in [&mut other.q, &mut other.k, &mut other.v] {
            x.slice_mut(s![.., .., at.., ..]).fill(if nan { f64::NAN } else { 3.5 });
        }
        let early = |x: &Array4<f64>| x.slice(s![.., .., ..at, ..]).to_owned();
        for run in [forward, forward_chunked] {
            let [plain, moved] = [&case, &other].map(|case| {
                run(case.inputs(), &case.config()).unwrap().out
            });
            prop_assert_eq!(early(&plain), early(&moved));
        }
    }

    #[test]
    fn heads_and_batch_entries_are_alone(case in case()) {
        let whole = forward_chunked(case.inputs(), &case.config()).unwrap();
        let (batch, heads, ..) = case.q.dim();
        let group = heads / case.k.dim().1;
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let one = |x: &Array4<f64>, h: usize| x.slice(s![b..b + 1, h..h + 1, .., ..]).to_owned();
            let alone = Case {
                q: one(&case.q, h),
                k: one(&case.k, h / group),
                v: one(&case.v, h / group),
                kv: case.kv.as_ref().map(|kv| one(kv, h)),
                slopes: vec![case.slopes[h]],
                ..case
            };
            let alone = forward_chunked(alone.inputs(), &alone.config()).unwrap();
            prop_assert_eq!(alone.out, one(&whole.out, h));
            prop_assert_eq!(alone.kv, one(&whole.kv, h));
        }
    }

    #[test]
    fn outputs_are_bounded(case in stateless()) {
        let out = out(&case);
        let (heads, group) = (case.slopes.len(), case.slopes.len() / case.k.dim().1);
        let largest = |x: f64, y: &f64| x.max(y.abs());
        for (b, h) in (0..out.dim().0).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let q = case.q.slice(s![b, h, .., ..]);
            let k = case.k.slice(s![b, h / group, .., ..]);
            let product = q.dot(&k.t()).iter().fold(0.0, largest);
            let value = case.v.slice(s![b, h / group, .., ..]).iter().fold(0.0, largest);
            for (t, row) in out.slice(s![b, h, .., ..]).rows().into_iter().enumerate() {
                let weight: f64 = (0..=t).map(|n| (-case.slopes[h] * n as f64).exp()).sum();
                let bound = product * value * weight * (1.0 + 1e-9);
                // What cancels in a product is not below the bound of its rounding.
                let slack = 1e-12 * value * weight * q.fold(0.0, largest) * k.fold(0.0, largest);
                prop_assert!(row.fold(0.0, largest) <= bound + 10.0 * slack);
            }
        }
    }

    #[test]
    fn without_memory_a_token_sees_itself(case in stateless()) {
        let case = Case { slopes: vec![1e4; case.slopes.len()], ..case };
        let group = case.slopes.len() / case.k.dim().1;
        let out = out(&case);
        let size = &dense(&case.magnitude())[0];
        let want = Array4::from_shape_fn(out.dim(), |(b, h, t, e)| {
            let product = case.q.slice(s![b, h, t, ..]).dot(&case.k.slice(s![b, h / group, t, ..]));
            product * case.v[[b, h / group, t, e]]
        });
        close("out", &out, &want, size);
    }

    #[test]
    fn shared_keys_are_repeated_keys(case in case()) {
        let group = case.slopes.len() / case.k.dim().1;
        let heads: Vec<usize> = (0..case.slopes.len()).map(|h| h / group).collect();
        let [k, v] = [&case.k, &case.v].map(|x| x.select(Axis(1), &heads));
        let repeated = Case { k, v, ..case.clone() };
        prop_assert_eq!(out(&case), out(&repeated));
    }

    #[test]
    fn embedded_products_depend_on_distances(seed in any::<u64>(), first in 0..1000_usize) {
        let (q, k) = (tensor(seed, 0, (2, 3, 9, 4)), tensor(seed, 1, (2, 3, 9, 4)));
        let theta = initial_theta(3, 4);
        let [a, b] = [&q, &k].map(|x| lrpe(x.view(), theta.view(), first).unwrap());
        for i in 0..2 * 3 * 81_usize {
            let (entry, h, n, m) = (i / 243, i / 81 % 3, i / 9 % 9, i % 9);
            let got = a.slice(s![entry, h, n, ..]).dot(&b.slice(s![entry, h, m, ..]));
            let apart = n as f64 - m as f64;
            let of = |d| q[[entry, h, n, d]] * k[[entry, h, m, d]] * (apart * theta[[h, d]]).cos();
            let want: f64 = (0..4).map(of).sum();
            // Angles of up to 1000 radians are rounded.
            prop_assert!((got - want).abs() < 1e-11, "{} {}", got, want);
        }
        // So that outputs do not depend on where the sequence starts.
        let v = tensor(seed, 2, (2, 3, 9, 5));
        let config = Config::new(3);
        let [here, there] = [0, first].map(|first| {
            let [a, b] = [&q, &k].map(|x| lrpe(x.view(), theta.view(), first).unwrap());
            forward(Inputs::new(a.view(), b.view(), v.view()), &config).unwrap().out
        });
        prop_assert!(distance(&there, &here) < 1e-11);
    }

    #[test]
    fn norms_know_no_scale(seed in any::<u64>(), dim in 1..20_usize, factor in 0.1..100.0_f64) {
        let (x, d_y) = (matrix(seed, 0, 7, dim), matrix(seed, 1, 7, dim));
        let tiny = 1e-30;
        let y = srmsnorm(x.view(), tiny);
        for row in y.rows() {
            prop_assert!((row.dot(&row) / dim as f64 - 1.0).abs() < 1e-12);
        }
        for factor in [factor, -factor] {
            let scaled = srmsnorm((&x * factor).view(), tiny);
            prop_assert!(distance(&scaled, &(&y * factor.signum())) < 1e-13);
        }
        let dx = srmsnorm_backward(x.view(), tiny, d_y.view()).unwrap();
        for ((dx, x), d_y) in dx.rows().into_iter().zip(x.rows()).zip(d_y.rows()) {
            let size = d_y.fold(0.0, |max: f64, y| max.max(y.abs()));
            prop_assert!(dx.dot(&x).abs() <= 1e-12 * size * dim as f64);
        }
    }
}

#[test]
fn constant_tokens_give_geometric_sums() {
    let slopes = [0.01, 0.5, 2.0];
    let shape = (1, 3, 80, 4);
    let q = Array4::from_elem(shape, 0.5);
    let k = Array4::from_elem(shape, 2.0);
    let v = Array4::from_elem((1, 3, 80, 2), -1.5);
    let config = Config::new(3).with_slopes(Slopes::Given(slopes.to_vec())).with_block(9);
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    let out = forward_chunked(inputs, &config).unwrap().out;
    for ((_, h, t, _), got) in out.indexed_iter() {
        let lambda = (-slopes[h]).exp();
        let want = -6.0 * (1.0 - lambda.powi(t as i32 + 1)) / (1.0 - lambda);
        assert!((got - want).abs() < 1e-11, "{got} {want}");
    }
}

/// Values of 0 in padding on the left leave no trace; on the right, padding decays the state.
#[test]
fn padding_on_the_left_is_harmless() {
    let [q, k] = [0, 1].map(|stream| filled(5, stream, Values::Normal, (1, 2, 13, 4)));
    let v = filled(5, 2, Values::Normal, (1, 2, 13, 3));
    let config = Config::new(2).with_block(4);
    let run = |q: &Array4<f64>, k: &Array4<f64>, v: &Array4<f64>| {
        forward_chunked(Inputs::new(q.view(), k.view(), v.view()), &config).unwrap()
    };
    let plain = run(&q, &k, &v);
    let junk = filled(5, 3, Values::Normal, (1, 2, 6, 4));
    let pad = |x: &Array4<f64>| concatenate(Axis(2), &[junk.view(), x.view()]).unwrap();
    let zeros = Array4::zeros((1, 2, 6, 3));
    let padded = run(&pad(&q), &pad(&k), &concatenate(Axis(2), &[zeros.view(), v.view()]).unwrap());
    assert!(distance(&padded.out.slice(s![.., .., 6.., ..]).to_owned(), &plain.out) < 1e-13);
    assert!(distance(&padded.kv, &plain.kv) < 1e-13);

    let append = |x: &Array4<f64>| concatenate(Axis(2), &[x.view(), junk.view()]).unwrap();
    let right =
        run(&append(&q), &append(&k), &concatenate(Axis(2), &[v.view(), zeros.view()]).unwrap());
    let decay = Array1::from(config.head_slopes().unwrap()).mapv(|slope| (-6.0 * slope).exp());
    let decayed = plain.kv * decay.to_shape((1, 2, 1, 1)).unwrap();
    assert!(distance(&right.kv, &decayed) < 1e-13);
}

#[test]
fn norms_add_their_epsilon_to_the_mean_square() {
    let y = srmsnorm(ndarray::arr1(&[3.0, 4.0]).view(), 3.5);
    assert_eq!(y, ndarray::arr1(&[0.75, 1.0]));
}
