//! The dual form is the recurrence, and calls may be cut anywhere.

use attn_titans::reference::{
    Cotangents, Grads, backward, backward_chunked, decode, forward, forward_chunked,
};
use ndarray::{Array4, s};
use proptest::prelude::*;

use crate::support::{Data, array, close, close_layers, close_states, config, tokens};

/// Rounding of sums of some hundred numbers, and what the memory makes of it.
const ROUNDING: f64 = 1e-12;

pub fn close_grads(got: &Grads, want: &Grads, bound: f64) {
    close("dq", &got.dq, &want.dq, bound);
    close("dk", &got.dk, &want.dk, bound);
    close("dv", &got.dv, &want.dv, bound);
    close("d_theta", &got.d_theta, &want.d_theta, bound);
    close("d_eta", &got.d_eta, &want.d_eta, bound);
    close("d_alpha", &got.d_alpha, &want.d_alpha, bound);
    close_layers("d_w", &got.d_w, &want.d_w, bound);
    close_layers("d_s", &got.d_s, &want.d_s, bound);
    close_layers("d_chunk_start", &got.d_chunk_start, &want.d_chunk_start, bound);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Values, states and all derivatives, also from within a chunk and with cotangents of all of a state.
    #[test]
    fn the_dual_form_is_the_recurrence(
        config in config(),
        batch in 1..=2_usize,
        before in 0..6_usize,
        tokens in tokens(),
        seed in any::<u64>(),
    ) {
        let first = Data::new(batch, before, &config, seed ^ 1);
        let data = Data::new(batch, tokens, &config, seed);
        let state = forward(first.inputs(), &first.state(&config), &config).unwrap().state;
        let token = forward(data.inputs(), &state, &config).unwrap();
        let dual = forward_chunked(data.inputs(), &state, &config).unwrap();
        close("y", &dual.y, &token.y, ROUNDING);
        close_states(&dual.state, &token.state, ROUNDING);

        let d_y = array(seed, 20, token.y.dim());
        let like = |layers: &[Array4<f64>], stream| -> Vec<Array4<f64>> {
            layers.iter().map(|layer| array(seed, stream, layer.dim())).collect()
        };
        let (d_w, d_s) = (like(state.w(), 21), like(state.s(), 22));
        let d_start = like(state.w(), 23);
        let cotangents =
            Cotangents::new(d_y.view()).with_state(&d_w, &d_s).with_chunk_start(&d_start);
        let token = backward(data.inputs(), &state, &config, cotangents).unwrap();
        let dual = backward_chunked(data.inputs(), &state, &config, cotangents).unwrap();
        close_grads(&dual, &token, ROUNDING);
    }

    /// Values, states and derivatives of a call that is cut at any token.
    #[test]
    fn a_call_may_be_cut(
        config in config(),
        tokens in tokens(),
        cut in 0.0..=1.0_f64,
        seed in any::<u64>(),
    ) {
        let data = Data::new(2, tokens, &config, seed);
        let first = data.state(&config);
        let whole = forward_chunked(data.inputs(), &first, &config).unwrap();
        let cut = (cut * tokens as f64) as usize;
        let (early, late) = (data.part(0, cut), data.part(cut, tokens));
        let mut state = first.clone();
        let y = decode(&mut state, early.inputs(), &config).unwrap();
        close("early", &y, &whole.y.slice(s![.., .., ..cut, ..]).to_owned(), ROUNDING);
        let middle = state.clone();
        let y = decode(&mut state, late.inputs(), &config).unwrap();
        close("late", &y, &whole.y.slice(s![.., .., cut.., ..]).to_owned(), ROUNDING);
        close_states(&state, &whole.state, ROUNDING);

        let d_y = array(seed, 20, whole.y.dim());
        let whole =
            backward(data.inputs(), &first, &config, Cotangents::new(d_y.view())).unwrap();
        let d_late = d_y.slice(s![.., .., cut.., ..]);
        let last =
            backward_chunked(late.inputs(), &middle, &config, Cotangents::new(d_late)).unwrap();
        let d_early = Cotangents::new(d_y.slice(s![.., .., ..cut, ..]))
            .with_state(&last.d_w, &last.d_s)
            .with_chunk_start(&last.d_chunk_start);
        let begin = backward_chunked(early.inputs(), &first, &config, d_early).unwrap();
        let rows = |from: usize, to: usize| s![.., .., from..to, ..];
        for (got, whole) in
            [(&begin.dq, &whole.dq), (&begin.dk, &whole.dk), (&begin.dv, &whole.dv)]
        {
            close("early", got, &whole.slice(rows(0, cut)).to_owned(), ROUNDING);
        }
        for (got, whole) in [(&last.dq, &whole.dq), (&last.dk, &whole.dk), (&last.dv, &whole.dv)] {
            close("late", got, &whole.slice(rows(cut, tokens)).to_owned(), ROUNDING);
        }
        for (got, whole) in [(&begin.d_theta, &whole.d_theta), (&begin.d_alpha, &whole.d_alpha)] {
            close("gates", got, &whole.slice(s![.., .., ..cut]).to_owned(), ROUNDING);
        }
        close_layers("d_w", &begin.d_w, &whole.d_w, ROUNDING);
        close_layers("d_s", &begin.d_s, &whole.d_s, ROUNDING);
    }

    /// A state that went through a file goes on as if it had not.
    #[test]
    fn a_state_may_go_through_a_file(config in config(), cut in 0..9_usize, seed in any::<u64>()) {
        let data = Data::new(2, 9, &config, seed);
        let (early, late) = (data.part(0, cut), data.part(cut, 9));
        let state = forward(early.inputs(), &data.state(&config), &config).unwrap().state;
        let path = std::env::temp_dir()
            .join(format!("attn-titans-{}-{seed}.safetensors", std::process::id()));
        state.save(&path).unwrap();
        let read = attn_titans::reference::State::load(&path, &config).unwrap();
        std::fs::remove_file(&path).unwrap();
        prop_assert_eq!(&read, &state);
        let [got, want] =
            [&read, &state].map(|state| forward(late.inputs(), state, &config).unwrap());
        prop_assert_eq!(got, want);
    }
}
