//! What does not fit is refused with a message that names it.

use attn_core::Result;
use attn_lightning::reference::layer::{self, Weights};
use attn_lightning::reference::{
    Cotangents, Inputs, Sglu, State, backward, backward_chunked, decode, forward, forward_chunked,
    lrpe, lrpe_backward, prefill, sglu, sglu_backward, srmsnorm_backward,
};
use attn_lightning::{Config, Slopes};
use ndarray::{Array2, Array3, Array4};

fn zeros(heads: usize, tokens: usize, dim: usize) -> Array4<f64> {
    Array4::zeros((2, heads, tokens, dim))
}

fn says<T: std::fmt::Debug>(result: Result<T>, part: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(part), "{message:?} lacks {part:?}");
}

#[test]
fn parameters() {
    let given = |slopes: &[f64]| Config::new(2).with_slopes(Slopes::Given(slopes.to_vec()));
    let mut epsilon = Config::new(2);
    epsilon.epsilon = 0.0;
    for (config, part) in [
        (Config::new(0), "`heads` is 0, expected at least 1"),
        (Config::new(2).with_block(0), "`block` is 0, expected at least 1"),
        (Config::new(2).with_layer(0, 0), "`layers` is 0, expected at least 1"),
        (Config::new(2).with_layer(4, 4), "`layer` is 4, expected below 4"),
        (epsilon, "`epsilon` is 0, expected a positive number"),
        (given(&[1.0]), "`slopes` is 1 numbers, expected one for each of 2 heads"),
        (given(&[1.0, -0.5]), "`slopes` is -0.5, expected numbers of at least 0"),
        (given(&[f64::NAN, 0.0]), "`slopes` is NaN"),
        (given(&[f64::INFINITY, 0.0]), "`slopes` is inf"),
    ] {
        says(config.validate(), part);
        says(config.head_slopes(), part);
        says(config.decays(3), part);
        let x = zeros(2, 3, 4);
        says(forward(Inputs::new(x.view(), x.view(), x.view()), &config), part);
    }
    assert!(Config::default().validate().is_ok());
}

#[test]
fn attention() {
    let config = Config::new(4);
    let (q, k, v) = (zeros(4, 5, 3), zeros(2, 5, 3), zeros(2, 5, 6));
    for (q, k, v, part) in [
        (
            zeros(3, 5, 3),
            zeros(3, 5, 3),
            zeros(3, 5, 6),
            "`q` has shape [2, 3, 5, 3], expected 4 heads",
        ),
        (q.clone(), zeros(3, 5, 3), zeros(3, 5, 6), "`k` has shape"),
        (
            q.clone(),
            zeros(2, 4, 3),
            zeros(2, 4, 6),
            "`k` has shape [2, 2, 4, 3], expected 5 tokens, as q",
        ),
        (q.clone(), zeros(2, 5, 2), v.clone(), "`k` has shape"),
        (q.clone(), k.clone(), zeros(2, 4, 6), "`v` has shape"),
    ] {
        let inputs = Inputs::new(q.view(), k.view(), v.view());
        let d_out = zeros(4, 5, 6);
        let cotangents = Cotangents::new(d_out.view());
        says(forward(inputs, &config), part);
        says(forward_chunked(inputs, &config), part);
        says(backward(inputs, cotangents, &config), part);
        says(backward_chunked(inputs, cotangents, &config), part);
        says(prefill(inputs, &config), part);
        says(decode(&mut State::new(2, 4, 3, 6), inputs, &config), part);
    }
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    let (small, right) = (zeros(2, 3, 6), zeros(4, 3, 6));
    says(
        forward(inputs.with_state(small.view()), &config),
        "`kv` has shape [2, 2, 3, 6], expected [2, 4, 3, 6]",
    );
    let d_out = zeros(4, 5, 6);
    says(backward(inputs, Cotangents::new(small.view()), &config), "`d_out` has shape");
    let cotangents = Cotangents::new(d_out.view()).with_state(small.view());
    says(backward_chunked(inputs, cotangents, &config), "`d_kv` has shape");
    says(prefill(inputs.with_state(right.view()), &config), "`kv` is some, expected none");
    let mut state = State::new(2, 4, 4, 6);
    says(decode(&mut state, inputs, &config), "`kv` has shape");
    assert_eq!(state, State::new(2, 4, 4, 6));
}

#[test]
fn parts_of_a_layer() {
    let x = zeros(4, 5, 3);
    let theta = Array2::zeros((4, 2));
    says(lrpe(x.view(), theta.view(), 0), "`theta` has shape [4, 2], expected [4, 3]");
    let theta = Array2::zeros((4, 3));
    says(lrpe_backward(x.view(), theta.view(), 0, x.view()), "`d_y` has shape");
    let rows = Array2::<f64>::zeros((5, 4));
    says(srmsnorm_backward(theta.view(), 1e-6, rows.view()), "`d_y` has shape");

    let x = Array3::zeros((2, 5, 4));
    let (w, wide) = (Array2::zeros((6, 4)), Array2::zeros((4, 6)));
    let weights = Sglu { w_v: w.view(), w_u: w.view(), w_o: wide.view() };
    says(sglu(x.view(), Sglu { w_v: wide.view(), ..weights }), "`w_v` has shape");
    says(sglu(x.view(), Sglu { w_u: rows.view(), ..weights }), "`w_u` has shape");
    says(sglu(x.view(), Sglu { w_o: w.view(), ..weights }), "`w_o` has shape");
    says(sglu_backward(x.view(), weights, Array3::zeros((2, 4, 4)).view()), "`d_y` has shape");
}

#[test]
fn layers() {
    let config = Config::new(3);
    let good = Weights {
        w_qkvu: Array2::zeros((24, 5)),
        w_out: Array2::zeros((5, 6)),
        w_v: Array2::zeros((7, 5)),
        w_u: Array2::zeros((7, 5)),
        w_o: Array2::zeros((5, 7)),
        theta: Some(Array2::zeros((3, 2))),
    };
    let x = Array3::zeros((2, 4, 5));
    assert!(layer::forward(x.view(), None, &good, &config).is_ok());
    let wrong = |change: fn(&mut Weights)| {
        let mut weights = good.clone();
        change(&mut weights);
        weights
    };
    for (weights, part) in [
        (wrong(|w| w.w_qkvu = Array2::zeros((20, 5))), "`w_qkvu` has shape [20, 5]"),
        (wrong(|w| w.w_qkvu = Array2::zeros((25, 5))), "`w_qkvu` has shape [25, 5]"),
        (wrong(|w| w.w_out = Array2::zeros((6, 5))), "`w_out` has shape"),
        (wrong(|w| w.w_v = Array2::zeros((7, 4))), "`w_v` has shape"),
        (wrong(|w| w.w_u = Array2::zeros((8, 5))), "`w_u` has shape"),
        (wrong(|w| w.w_o = Array2::zeros((5, 5))), "`w_o` has shape"),
        (wrong(|w| w.theta = Some(Array2::zeros((3, 4)))), "`theta` has shape"),
    ] {
        says(layer::forward(x.view(), None, &weights, &config), part);
        says(layer::backward(x.view(), None, &weights, x.view(), &config), part);
    }
    let narrow = Array3::zeros((2, 4, 6));
    says(layer::forward(narrow.view(), None, &good, &config), "`x` has shape [2, 4, 6]");
    says(layer::backward(x.view(), None, &good, narrow.view(), &config), "`d_out` has shape");
    // The embedding doubles the state.
    let mut state = State::new(2, 3, 2, 2);
    says(layer::decode(&mut state, x.view(), &good, &config), "`kv` has shape [2, 3, 2, 2]");
}
