//! Calls that are empty, extreme or wrong, and padding.

use attn_core::Error;
use attn_flowformer::Config;
use attn_flowformer::reference::{Cotangents, Inputs, State, backward, forward, prefill};
use ndarray::{Array2, Array4, Axis, s};
use proptest::prelude::*;

use crate::support::{Data, Shape, array, clamp, close, config, shape, square};

fn kept(valid: &Option<Array2<bool>>, b: usize) -> Vec<usize> {
    let row = valid.as_ref().unwrap().row(b).to_vec();
    row.iter().enumerate().filter(|(_, valid)| **valid).map(|(token, _)| token).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Results are those without the padding, which may hold NaN, and 0 in its places.
    #[test]
    fn padding_might_as_well_not_be_there(
        shape in shape(0),
        causal in any::<bool>(),
        clamp in clamp(),
        seed in any::<u64>(),
    ) {
        let shape = if causal { Shape { queries: shape.keys, ..shape } } else { shape };
        let data = Data::new(shape, seed).padded(causal, seed);
        let config = config(causal, clamp);
        let mut d_out = array(seed, 7, (shape.batch, shape.heads, shape.queries, shape.dim_v));
        let mut damaged = data.clone();
        for b in 0..shape.batch {
            let (sinks, sources) = (kept(&data.valid_q, b), kept(&data.valid_k, b));
            for i in (0..shape.queries).filter(|i| !sinks.contains(i)) {
                damaged.q.slice_mut(s![b, .., i, ..]).fill(f64::NAN);
                d_out.slice_mut(s![b, .., i, ..]).fill(f64::NAN);
            }
            for j in (0..shape.keys).filter(|j| !sources.contains(j)) {
                damaged.k.slice_mut(s![b, .., j, ..]).fill(f64::NAN);
                damaged.v.slice_mut(s![b, .., j, ..]).fill(f64::INFINITY);
            }
        }
        let whole = damaged.run(&config);
        prop_assert_eq!(&whole, &data.run(&config));
        let grads = backward(damaged.inputs(), &config, Cotangents { out: d_out.view() }).unwrap();
        for b in 0..shape.batch {
            let (sinks, sources) = (kept(&data.valid_q, b), kept(&data.valid_k, b));
            let rows = |x: &Array4<f64>, rows: &[usize]| x.slice(s![b..=b, .., .., ..]).select(Axis(2), rows);
            let short = Data {
                q: rows(&data.q, &sinks),
                k: rows(&data.k, &sources),
                v: rows(&data.v, &sources),
                valid_q: None,
                valid_k: None,
            };
            let output = short.run(&config);
            prop_assert_eq!(&rows(&whole.out, &sinks), &output.out);
            let d_out = rows(&d_out, &sinks);
            let want = backward(short.inputs(), &config, Cotangents { out: d_out.view() }).unwrap();
            prop_assert_eq!(&rows(&grads.dq, &sinks), &want.dq);
            prop_assert_eq!(&rows(&grads.dk, &sources), &want.dk);
            prop_assert_eq!(&rows(&grads.dv, &sources), &want.dv);
            for i in (0..shape.queries).filter(|i| !sinks.contains(i)) {
                prop_assert!(whole.out.slice(s![b, .., i, ..]).iter().all(|x| x.to_bits() == 0));
                prop_assert!(grads.dq.slice(s![b, .., i, ..]).iter().all(|x| *x == 0.0));
            }
        }
    }

    /// Batch entries and heads alone, and other strides, change no bit.
    #[test]
    fn neighbours_change_no_bit(shape in square(0), causal in any::<bool>(), seed in any::<u64>()) {
        let data = Data::new(shape, seed);
        let config = config(causal, None);
        let all = data.run(&config);
        let (b, h, h_kv) = (shape.batch - 1, shape.heads - 1, shape.heads_kv - 1);
        let one = |x: &Array4<f64>, h: usize| x.slice(s![b..=b, h..=h, .., ..]).to_owned();
        let alone = Data { q: one(&data.q, h), k: one(&data.k, h_kv), v: one(&data.v, h_kv), ..data.clone() };
        prop_assert_eq!(&alone.run(&config).out, &one(&all.out, h));
        let strided = |x: &Array4<f64>| x.t().as_standard_layout().to_owned().reversed_axes();
        let strided = Data { q: strided(&data.q), k: strided(&data.k), v: strided(&data.v), ..data.clone() };
        prop_assert_eq!(&strided.run(&config), &all);
    }

    /// Sigmoids of 0 and 1, and flows far beyond what an exponential can hold.
    #[test]
    fn extreme_logits_are_finite(
        shape in square(1),
        causal in any::<bool>(),
        size in prop::sample::select(&[30.0, 200.0, 1e4][..]),
        clamp in clamp(),
        seed in any::<u64>(),
    ) {
        let mut data = Data::new(shape, seed);
        data.q *= size;
        data.k *= size;
        let config = config(causal, clamp);
        let output = data.run(&config);
        let flows = &output.flows;
        let all = [&flows.incoming, &flows.outgoing, &flows.conserved_sink, &flows.conserved_source];
        for flow in all {
            prop_assert!(flow.iter().all(|x| x.is_finite() && *x > 0.0));
        }
        prop_assert!(flows.competition.iter().chain(&flows.allocation).chain(&output.out).all(|x| x.is_finite()));
        let d_out = array(seed, 7, output.out.dim());
        let grads = backward(data.inputs(), &config, Cotangents { out: d_out.view() }).unwrap();
        prop_assert!(grads.dq.iter().chain(&grads.dk).chain(&grads.dv).all(|x| x.is_finite()));
        if causal {
            let (streamed, _) = prefill(data.inputs(), &config).unwrap();
            let largest = output.out.iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
            // Flows are exponents: their rounding, relative to their size, is that of the competition.
            let flow = flows.conserved_source.iter().fold(1.0, |largest: f64, x| largest.max(*x));
            close("streamed", &streamed.out, &output.out, 1e-13 * largest * flow);
        }
    }
}

#[test]
fn nothing_gives_zeros() {
    for [batch, heads, queries, keys, dim_v] in [
        [0, 2, 3, 3, 5],
        [2, 0, 3, 3, 5],
        [2, 2, 0, 0, 5],
        [2, 2, 3, 3, 0],
        [2, 2, 3, 0, 5],
        [2, 2, 0, 3, 5],
    ] {
        for causal in [false, true] {
            if causal && queries != keys {
                continue;
            }
            let shape = Shape { batch, heads, heads_kv: heads, queries, keys, dim_qk: 4, dim_v };
            let data = Data::new(shape, 0);
            let output = data.run(&config(causal, None));
            assert_eq!(output.out.dim(), (batch, heads, queries, dim_v));
            assert!(keys > 0 || output.out.iter().all(|x| x.to_bits() == 0));
            let d_out = Array4::ones(output.out.dim());
            let cotangents = Cotangents { out: d_out.view() };
            let grads = backward(data.inputs(), &config(causal, None), cotangents).unwrap();
            assert!(grads.dq.iter().chain(&grads.dk).chain(&grads.dv).all(|x| x.is_finite()));
        }
    }
    let shape = Shape { batch: 2, heads: 2, heads_kv: 1, queries: 5, keys: 5, dim_qk: 3, dim_v: 2 };
    let mut data = Data::new(shape, 0);
    data.v.fill(f64::NAN);
    data.valid_k = Some(Array2::from_elem((2, 5), false));
    let output = data.run(&Config::new());
    assert!(output.out.iter().chain(&output.flows.allocation).all(|x| x.to_bits() == 0));
}

#[test]
fn smoke_what_does_not_fit_is_refused() {
    let shape = Shape { batch: 2, heads: 4, heads_kv: 2, queries: 5, keys: 5, dim_qk: 3, dim_v: 2 };
    let data = Data::new(shape, 0);
    let causal = Config::causal();
    let run = |config: &Config, change: &dyn Fn(&mut Data)| {
        let mut data = data.clone();
        change(&mut data);
        forward(data.inputs(), config).unwrap_err().to_string()
    };
    let set = |config: Config| run(&config, &|_| {});
    let d_out = Array4::zeros((2, 4, 5, 3));
    let mut state = State::new(2, 4, 3, 3);
    let kept = state.clone();
    let mut decode = |config: &Config| state.decode(data.inputs(), config).unwrap_err().to_string();
    for (message, part) in [
        (run(&causal, &|data| data.q = Array4::zeros((2, 3, 5, 3))), "`k` has shape"),
        (run(&causal, &|data| data.v = Array4::zeros((2, 2, 4, 2))), "`v` has shape"),
        (
            run(&causal, &|data| data.q = Array4::zeros((2, 4, 4, 3))),
            "the causal form has no other",
        ),
        (
            run(&causal, &|data| {
                data.q = Array4::zeros((2, 4, 5, 0));
                data.k = Array4::zeros((2, 2, 5, 0));
            }),
            "`q` has shape",
        ),
        (
            run(&causal, &|data| data.valid_q = Some(Array2::from_elem((2, 4), true))),
            "`valid_q` has shape",
        ),
        (
            run(&causal, &|data| data.valid_k = Some(Array2::from_elem((2, 6), true))),
            "`valid_k` has shape",
        ),
        (
            run(&causal, &|data| data.valid_k = Some(Array2::from_elem((2, 5), true))),
            "`valid_k` holds others",
        ),
        (set(Config::new().with_clamp(0.0)), "`clamp` is 0"),
        (set(Config::new().with_clamp(f64::NAN)), "`clamp` is NaN"),
        (set(Config::new().with_epsilon(0.0)), "`epsilon` is 0"),
        (
            backward(data.inputs(), &causal, Cotangents { out: d_out.view() })
                .unwrap_err()
                .to_string(),
            "`cotangents.out` has shape",
        ),
        (decode(&Config::new()), "`causal` is false"),
        (decode(&causal), "`state` has shape [2, 4, 3, 3]"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert_eq!(state, kept);
    let inputs = Inputs::new(data.q.view(), data.k.view(), data.v.view());
    assert!(matches!(prefill(inputs, &Config::new()), Err(Error::Config { .. })));
}
