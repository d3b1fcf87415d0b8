//! Calls that are empty, extreme or wrong, and values that nobody may read.

use attn_aaren::Config;
use attn_aaren::reference::{
    Cotangents, Inputs, Layer, Order, State, backward, forward, forward_in,
};
use ndarray::{Array1, Array2, Array3, Array4, arr2, s};
use proptest::prelude::*;

use crate::support::{Data, Shape, array, bits, shape};

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// NaN in a masked token changes no bit, forward and backward, and that token gets no gradient.
    #[test]
    fn masked_tokens_are_not_read(shape in shape(), seed in any::<u64>()) {
        let data = Data::new(shape, true, true, seed);
        let config = Config::new();
        let d_out = array(seed, 7, (shape.batch, shape.heads, shape.tokens, shape.dim_v));
        let mut damaged = data.clone();
        for ((b, t), _) in data.valid.as_ref().unwrap().indexed_iter().filter(|(_, valid)| !**valid) {
            damaged.k.slice_mut(s![b, .., t, ..]).fill(f64::NAN);
            damaged.v.slice_mut(s![b, .., t, ..]).fill(f64::INFINITY);
        }
        prop_assert_eq!(&damaged.run(None, &config), &data.run(None, &config));
        let grads = |data: &Data| {
            let grads = backward(data.inputs(), None, &config, Cotangents::new(d_out.view())).unwrap();
            [bits(&grads.dk), bits(&grads.dv), bits(&grads.dq)]
        };
        prop_assert_eq!(grads(&damaged), grads(&data));
    }

    /// Without its masked tokens, a sequence has the same outputs where it has tokens.
    #[test]
    fn masked_tokens_might_as_well_not_be_there(shape in shape(), seed in any::<u64>()) {
        let data = Data::new(Shape { batch: 1, ..shape }, true, true, seed);
        let config = Config::new();
        let valid = data.valid.clone().unwrap();
        let kept: Vec<usize> = (0..shape.tokens).filter(|&t| valid[[0, t]]).collect();
        let (k, v) = (data.k.select(ndarray::Axis(2), &kept), data.v.select(ndarray::Axis(2), &kept));
        let short = forward(Inputs::new(data.q.view(), k.view(), v.view()), None, &config).unwrap();
        let long = data.run(None, &config);
        prop_assert_eq!(&long.out.select(ndarray::Axis(2), &kept), &short.out);
        prop_assert_eq!(&long.state, &short.state);
    }

    /// NaN in a token damages its own head from there on, and nothing before or beside it.
    #[test]
    fn damage_goes_forward_only(tokens in 1usize..20, at in 0.0..1.0_f64, key in any::<bool>(), seed in any::<u64>()) {
        let shape = Shape { batch: 2, heads: 2, heads_kv: 2, tokens, dim_qk: 3, dim_v: 2 };
        let data = Data::new(shape, true, false, seed);
        let at = (at * tokens as f64) as usize;
        let mut damaged = data.clone();
        let tensor = if key { &mut damaged.k } else { &mut damaged.v };
        tensor[[1, 0, at, 0]] = f64::NAN;
        let (got, want) = (damaged.run(None, &Config::new()).out, data.run(None, &Config::new()).out);
        for ((b, h, t, e), &out) in got.indexed_iter() {
            if (b, h) != (1, 0) || t < at {
                prop_assert_eq!(out, want[[b, h, t, e]]);
            } else if key || e == 0 {
                prop_assert!(out.is_nan());
            }
        }
    }
}

/// Only differences of scores matter, of whatever size.
#[test]
fn scores_of_ten_thousand() {
    let k = Array4::from_shape_vec((1, 1, 4, 1), vec![-1e4, 1e4, 1e4, -1e4]).unwrap();
    let v = Array4::from_shape_vec((1, 1, 4, 1), vec![1.0, 2.0, 4.0, 8.0]).unwrap();
    let q = arr2(&[[1.0]]);
    for (scale, want, lse) in [(1.0, [1.0, 2.0, 3.0, 3.0], 1e4), (-1.0, [1.0, 1.0, 1.0, 4.5], 1e4)]
    {
        let config = Config::new().with_scale(scale);
        let output = forward(Inputs::shared(q.view(), k.view(), v.view()), None, &config).unwrap();
        assert_eq!(output.out.iter().copied().collect::<Vec<_>>(), want);
        assert!((output.lse[[0, 0, 3]] - lse - 2f64.ln()).abs() < 1e-11);
    }
}

#[test]
fn nothing_gives_zeros() {
    let config = Config::new();
    for [batch, heads, tokens, dim_qk, dim_v] in
        [[0, 2, 3, 4, 5], [2, 0, 3, 4, 5], [2, 2, 0, 4, 5], [2, 2, 3, 0, 5], [2, 2, 3, 4, 0]]
    {
        let shape = Shape { batch, heads, heads_kv: heads, tokens, dim_qk, dim_v };
        let data = Data::new(shape, true, false, 0);
        let output = data.run(None, &config);
        assert_eq!(output.out.dim(), (batch, heads, tokens, dim_v));
        assert!(output.out.iter().all(|x| x.is_finite()));
        let d_out = Array4::ones((batch, heads, tokens, dim_v));
        let cotangents = Cotangents::new(d_out.view());
        let grads = backward(data.inputs(), None, &config, cotangents).unwrap();
        assert!(grads.dq.iter().chain(&grads.dk).chain(&grads.dv).all(|x| x.is_finite()));
    }
    let shape = Shape { batch: 2, heads: 2, heads_kv: 1, tokens: 5, dim_qk: 3, dim_v: 2 };
    let mut data = Data::new(shape, true, true, 0);
    data.valid = Some(Array2::from_elem((2, 5), false));
    data.v.fill(f64::NAN);
    let output = data.run(None, &config);
    assert!(output.out.iter().all(|x| x.to_bits() == 0));
    assert!(output.lse.iter().all(|x| *x == f64::NEG_INFINITY));
    assert_eq!(output.state, State::new(2, 2, 2));
}

#[test]
fn smoke_what_does_not_fit_is_refused() {
    let shape = Shape { batch: 2, heads: 4, heads_kv: 2, tokens: 5, dim_qk: 3, dim_v: 2 };
    let data = Data::new(shape, false, false, 0);
    let config = Config::new();
    let run = |change: &dyn Fn(&mut Data)| {
        let mut data = data.clone();
        change(&mut data);
        forward(data.inputs(), None, &config).unwrap_err().to_string()
    };
    let with =
        |state: State| forward(data.inputs(), Some(&state), &config).unwrap_err().to_string();
    let bad_scale = config.clone().with_scale(f64::NAN);
    let d_out = Array4::zeros((2, 4, 5, 3));
    let cotangents = Cotangents::new(d_out.view());
    for (message, part) in [
        (run(&|data| data.q = Array3::zeros((3, 4, 3))), "`q` has shape [3, 4, 3]"),
        (run(&|data| data.q = Array3::zeros((1, 3, 3))), "`k` has shape"),
        (run(&|data| data.q = Array3::zeros((1, 4, 2))), "`k` has shape"),
        (run(&|data| data.v = Array4::zeros((2, 2, 4, 2))), "`v` has shape"),
        (run(&|data| data.valid = Some(Array2::from_elem((2, 4), true))), "`valid` has shape"),
        (with(State::new(2, 4, 3)), "`state` has shape [2, 4, 3]"),
        (forward(data.inputs(), None, &bad_scale).unwrap_err().to_string(), "`scale` is NaN"),
        (
            forward_in(Order::Tiles(0), data.inputs(), None, &config).unwrap_err().to_string(),
            "`order` is tiles of 0",
        ),
        (
            backward(data.inputs(), None, &config, cotangents).unwrap_err().to_string(),
            "`cotangents.out` has shape",
        ),
        (State::new(1, 2, 3).merge(&State::new(1, 2, 4)).unwrap_err().to_string(), "`later`"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let parts = |max: f64, sum: f64| {
        let (max, sum) = (arr2(&[[max]]), arr2(&[[sum]]));
        State::from_parts(max.view(), sum.view(), Array3::zeros((1, 1, 2)).view())
    };
    assert!(parts(-3e38, 0.0).is_ok() && parts(1.0, 1.5).is_ok());
    for (max, sum) in [(0.0, 0.0), (f64::NEG_INFINITY, 1.0), (0.0, -1.0)] {
        let message = parts(max, sum).unwrap_err().to_string();
        assert!(message.contains("`sum` holds"), "{message}");
    }
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let x = Array3::<f64>::zeros((2, 3, 6));
    let query = Array1::<f64>::zeros(5);
    let shapes = [(8, 5), (4, 6), (6, 6), (7, 12)];
    let run = |heads: usize, shapes: [(usize, usize); 4]| {
        let [w_q, w_k, w_v, w_o] = shapes.map(Array2::<f64>::zeros);
        let (w_q, w_k, w_v, w_o) = (w_q.view(), w_k.view(), w_v.view(), w_o.view());
        let layer = Layer { heads, heads_kv: 2, query: query.view(), w_q, w_k, w_v, w_o };
        layer.forward(x.view(), None, &Config::new()).map(|y| y.dim())
    };
    assert_eq!(run(4, shapes), Ok((2, 3, 7)));
    for (heads, at, wrong, part) in [
        (4, 0, (7, 5), "`w_q` has shape"),
        (4, 0, (8, 6), "`w_q` has shape"),
        (4, 1, (6, 6), "`w_k` has shape"),
        (4, 2, (6, 5), "`w_v` has shape"),
        (4, 2, (5, 6), "`w_v` has shape"),
        (4, 3, (7, 11), "`w_o` has shape"),
        (0, 3, (7, 12), "`heads` is 0"),
        (3, 0, (6, 5), "`k` has shape"),
    ] {
        let mut changed = shapes;
        changed[at] = wrong;
        if heads == 3 {
            changed[3] = (7, 9);
        }
        let message = run(heads, changed).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}
