//! All ways to compute give the same.

use attn_core::testing::Values;
use attn_lightning::reference::{
    Cotangents, Inputs, State, backward, backward_chunked, decode, forward, forward_chunked,
    prefill,
};
use ndarray::{Array4, Axis, concatenate, s};
use proptest::prelude::*;

use crate::support::{Case, case, close, dense, filled};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_recurrence_and_blocks_are_the_definition(case in case()) {
        let (config, magnitude) = (case.config(), case.magnitude());
        let [out, kv] = dense(&case);
        let [out_size, kv_size] = dense(&magnitude);
        let outputs = [forward(case.inputs(), &config), forward_chunked(case.inputs(), &config)];
        for output in outputs {
            let output = output.unwrap();
            close("out", &output.out, &out, &out_size);
            close("kv", &output.kv, &kv, &kv_size);
        }
    }

    #[test]
    fn gradients_of_blocks_are_those_of_the_recurrence(case in case(), with_state in any::<bool>()) {
        let config = case.config();
        let [d_out, d_kv] = case.cotangents();
        let run = |case: &Case, d_out: &Array4<f64>, d_kv: &Array4<f64>| {
            let cotangents = Cotangents::new(d_out.view());
            let cotangents = if with_state { cotangents.with_state(d_kv.view()) } else { cotangents };
            let by_token = backward(case.inputs(), cotangents, &config).unwrap();
            (by_token, backward_chunked(case.inputs(), cotangents, &config).unwrap())
        };
        let (want, got) = run(&case, &d_out, &d_kv);
        let abs = |x: &Array4<f64>| x.mapv(f64::abs);
        let (size, _) = run(&case.magnitude(), &abs(&d_out), &abs(&d_kv));
        close("dq", &got.dq, &want.dq, &size.dq);
        close("dk", &got.dk, &want.dk, &size.dk);
        close("dv", &got.dv, &want.dv, &size.dv);
        close("d_kv", &got.d_kv, &want.d_kv, &size.d_kv);
    }

    #[test]
    fn a_sequence_may_be_cut_anywhere(case in case(), cut in 0.0..=1.0_f64) {
        let config = case.config();
        let tokens = case.q.dim().2;
        let cut = (cut * tokens as f64) as usize;
        let whole = forward(case.inputs(), &config).unwrap();
        let size = dense(&case.magnitude());
        let first = case.part(0, cut, &case.first_state());
        let head = forward_chunked(first.inputs(), &config).unwrap();
        let rest = case.part(cut, tokens, &head.kv);
        let tail = forward_chunked(rest.inputs(), &config).unwrap();
        let out = concatenate(Axis(2), &[head.out.view(), tail.out.view()]).unwrap();
        close("out", &out, &whole.out, &size[0]);
        close("kv", &tail.kv, &whole.kv, &size[1]);

        // The cotangent of the state between the parts carries the gradient across the cut.
        let [d_out, d_kv] = case.cotangents();
        let d_part = |from, to| d_out.slice(s![.., .., from..to, ..]);
        let all = Cotangents::new(d_out.view()).with_state(d_kv.view());
        let all = backward(case.inputs(), all, &config).unwrap();
        let late = Cotangents::new(d_part(cut, tokens)).with_state(d_kv.view());
        let late = backward_chunked(rest.inputs(), late, &config).unwrap();
        let early = Cotangents::new(d_part(0, cut)).with_state(late.d_kv.view());
        let early = backward_chunked(first.inputs(), early, &config).unwrap();
        let magnitude = case.magnitude();
        let (d_out, d_kv) = (d_out.mapv(f64::abs), d_kv.mapv(f64::abs));
        let size = Cotangents::new(d_out.view()).with_state(d_kv.view());
        let size = backward(magnitude.inputs(), size, &config).unwrap();
        for (what, early, late, whole, size) in [
            ("dq", early.dq, late.dq, all.dq, size.dq),
            ("dk", early.dk, late.dk, all.dk, size.dk),
            ("dv", early.dv, late.dv, all.dv, size.dv),
        ] {
            let both = concatenate(Axis(2), &[early.view(), late.view()]).unwrap();
            close(what, &both, &whole, &size);
        }
        close("d_kv", &early.d_kv, &all.d_kv, &size.d_kv);
    }

    #[test]
    fn streams_are_prefixes(case in case(), steps in prop::collection::vec(0..5_usize, 1..8)) {
        let config = case.config();
        let case = Case { kv: None, ..case };
        let tokens = case.q.dim().2;
        let whole = forward(case.inputs(), &config).unwrap();
        let [out_size, kv_size] = dense(&case.magnitude());
        let part = |from: usize, to: usize| Case { kv: None, ..case.part(from, to, &case.first_state()) };
        let mut at = tokens.saturating_sub(steps.iter().sum());
        let (mut out, mut state) = prefill(part(0, at).inputs(), &config).unwrap();
        let bytes = state.bytes();
        for step in steps {
            let next = (at + step).min(tokens);
            let new = decode(&mut state, part(at, next).inputs(), &config).unwrap();
            out = concatenate(Axis(2), &[out.view(), new.view()]).unwrap();
            at = next;
            prop_assert_eq!((state.position(), state.bytes()), (at, bytes));
        }
        close("out", &out, &whole.out, &out_size);
        close("kv", &state.kv().to_owned(), &whole.kv, &kv_size);
    }

    /// Rows may lie apart, as `[batch, tokens, heads, dim]`.
    #[test]
    fn any_strides_do(case in case()) {
        let config = case.config();
        let moved = |x: &Array4<f64>| {
            x.view().permuted_axes([0, 2, 1, 3]).as_standard_layout().to_owned()
        };
        let [q, k, v] = [&case.q, &case.k, &case.v].map(moved);
        let [q, k, v] = [&q, &k, &v].map(|x| x.view().permuted_axes([0, 2, 1, 3]));
        let inputs = Inputs { kv: case.kv.as_ref().map(|kv| kv.view()), ..Inputs::new(q, k, v) };
        let [out_size, kv_size] = dense(&case.magnitude());
        let want = forward_chunked(case.inputs(), &config).unwrap();
        let got = forward_chunked(inputs, &config).unwrap();
        close("out", &got.out, &want.out, &out_size);
        close("kv", &got.kv, &want.kv, &kv_size);
    }
}

#[test]
fn smoke_blocks_of_any_size_give_the_same() {
    for tokens in [0, 1, 31, 32, 33, 97] {
        let shape = |heads, dim| (2, heads, tokens, dim);
        let case = Case {
            q: filled(1, 0, Values::Normal, shape(4, 5)),
            k: filled(1, 1, Values::Normal, shape(2, 5)),
            v: filled(1, 2, Values::Normal, shape(2, 3)),
            kv: Some(filled(1, 3, Values::Normal, (2, 4, 5, 3))),
            slopes: vec![0.0, 0.004, 0.25, 2.0],
            block: 0,
            seed: 1,
        };
        let [out, kv] = dense(&case);
        let [out_size, kv_size] = dense(&case.magnitude());
        for block in [1, 7, 16, 32, 64, 97, 200] {
            let config = case.config().with_block(block);
            let output = forward_chunked(case.inputs(), &config).unwrap();
            close("out", &output.out, &out, &out_size);
            close("kv", &output.kv, &kv, &kv_size);
        }
    }
}

#[test]
fn without_tokens_the_state_stays() {
    let kv = filled(3, 0, Values::Normal, (2, 3, 4, 5));
    let mut state = State::from_kv(kv.clone(), 17);
    let config = Case { kv: None, ..empty() }.config();
    let out = decode(&mut state, empty().inputs(), &config).unwrap();
    assert_eq!(out.dim(), (2, 3, 0, 5));
    assert_eq!(state, State::from_kv(kv.clone(), 17));
    let d_out = Array4::zeros((2, 3, 0, 5));
    let cotangents = Cotangents::new(d_out.view()).with_state(kv.view());
    for grads in [
        backward(empty().inputs(), cotangents, &config).unwrap(),
        backward_chunked(empty().inputs(), cotangents, &config).unwrap(),
    ] {
        assert_eq!(grads.d_kv, kv);
    }
}

fn empty() -> Case {
    Case {
        q: Array4::zeros((2, 3, 0, 4)),
        k: Array4::zeros((2, 1, 0, 4)),
        v: Array4::zeros((2, 1, 0, 5)),
        kv: None,
        slopes: vec![0.1; 3],
        block: 16,
        seed: 0,
    }
}
