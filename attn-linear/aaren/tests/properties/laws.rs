//! What is true of attention over prefixes, whatever computes it.

use attn_aaren::Config;
use attn_aaren::reference::{Inputs, Order, forward, forward_in};
use ndarray::{Array3, Array4, Axis, s};
use proptest::prelude::*;

use crate::support::{Data, close, close_outputs, shape};

fn rotate(x: &Array4<f64>, by: usize) -> Array4<f64> {
    let tokens = x.dim().2;
    let order: Vec<usize> = (0..tokens).map(|token| (token + by) % tokens.max(1)).collect();
    x.select(Axis(2), &order)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn orders_of_combining_make_no_difference(
        shape in shape(),
        masked in any::<bool>(),
        tile in 1usize..9,
        seed in any::<u64>(),
    ) {
        let data = Data::new(shape, true, masked, seed);
        let config = Config::new().with_scale(4.0);
        let plain = data.run(None, &config);
        for order in [Order::Doubling, Order::Tiles(tile), Order::Tiles(1000)] {
            let output = forward_in(order, data.inputs(), None, &config).unwrap();
            close_outputs(&output, &plain, 1e-13);
        }
    }

    #[test]
    fn outputs_are_between_the_values(shape in shape(), masked in any::<bool>(), seed in any::<u64>()) {
        let data = Data::new(shape, false, masked, seed);
        let output = data.run(None, &Config::new().with_scale(3.0));
        let group = shape.heads / shape.heads_kv;
        for ((b, h, t, e), &out) in output.out.indexed_iter() {
            let counts = |&i: &usize| data.valid.as_ref().is_none_or(|valid| valid[[b, i]]);
            let seen = (0..=t).filter(counts).map(|i| data.v[[b, h / group, i, e]]);
            let seen: Vec<f64> = seen.collect();
            let (low, high) = (seen.iter().copied().fold(f64::INFINITY, f64::min),
                seen.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            match seen.is_empty() {
                true => prop_assert_eq!(out, 0.0),
                false => prop_assert!(low - 1e-12 <= out && out <= high + 1e-12),
            }
            let sum = output.sum[[b, h, t]];
            prop_assert!(sum <= seen.len() as f64 + 1e-12 && (seen.is_empty() || sum >= 1.0));
            if t > 0 {
                prop_assert!(output.lse[[b, h, t]] >= output.lse[[b, h, t - 1]]);
                prop_assert!(output.max[[b, h, t]] >= output.max[[b, h, t - 1]]);
            }
        }
        // A value that is the same everywhere comes out where anything counts.
        let ones = Array4::from_elem(data.v.dim(), 0.75);
        let inputs = Inputs { v: ones.view(), ..data.inputs() };
        let constant = forward(inputs, None, &Config::new()).unwrap();
        for ((b, h, t, _), &out) in constant.out.indexed_iter() {
            let expected = if constant.lse[[b, h, t]].is_finite() { 0.75 } else { 0.0 };
            prop_assert!((out - expected).abs() < 1e-14);
        }
    }

    /// A constant added to all scores cancels; a query of 0 gives the running mean.
    #[test]
    fn only_differences_of_scores_matter(shape in shape(), shift in -300.0..300.0_f64, seed in any::<u64>()) {
        let data = Data::new(shape, false, false, seed);
        let config = Config::new().with_scale(1.0);
        let plain = data.run(None, &config);
        // One more element of the keys is 1, and the query's is the shift.
        let mut wide = data.clone();
        let (batch, heads_kv, tokens, _) = data.k.dim();
        let ones = Array4::ones((batch, heads_kv, tokens, 1));
        wide.k = ndarray::concatenate(Axis(3), &[data.k.view(), ones.view()]).unwrap();
        let last = Array3::from_elem((data.q.dim().0, data.q.dim().1, 1), shift);
        wide.q = ndarray::concatenate(Axis(2), &[data.q.view(), last.view()]).unwrap();
        let moved = wide.run(None, &config);
        close("out", &moved.out, &plain.out, 1e-11);
        close("lse", &moved.lse, &(&plain.lse + shift), 1e-11);

        let zero = data.q.mapv(|_| 0.0);
        let inputs = Inputs { q: zero.view(), ..data.inputs() };
        let mean = forward(inputs, None, &config).unwrap().out;
        let group = shape.heads / shape.heads_kv;
        for ((b, h, t, e), &out) in mean.indexed_iter() {
            let sum: f64 = (0..=t).map(|i| data.v[[b, h / group, i, e]]).sum();
            prop_assert!((out - sum / (t + 1) as f64).abs() < 1e-13);
        }
    }

    #[test]
    fn the_last_output_does_not_know_the_order_of_tokens(shape in shape(), by in 0usize..40, seed in any::<u64>()) {
        let data = Data::new(shape, false, false, seed);
        let config = Config::new().with_scale(2.0);
        let (k, v) = (rotate(&data.k, by), rotate(&data.v, by));
        let moved = Inputs::new(data.q.view(), k.view(), v.view());
        let moved = forward(moved, None, &config).unwrap().state;
        close("out", &moved.out(), &data.run(None, &config).state.out(), 1e-13);
    }

    /// Batch entries and heads alone, prefixes alone, and other strides change no bit.
    #[test]
    fn what_a_row_does_not_read_changes_no_bit(shape in shape(), masked in any::<bool>(), seed in any::<u64>()) {
        let data = Data::new(shape, false, masked, seed);
        let config = Config::new();
        let all = data.run(None, &config);
        let (b, h) = (shape.batch - 1, shape.heads - 1);
        let h_kv = shape.heads_kv - 1;
        let alone = Data {
            q: data.q.slice(s![b..=b, h..=h, ..]).to_owned(),
            k: data.k.slice(s![b..=b, h_kv..=h_kv, .., ..]).to_owned(),
            v: data.v.slice(s![b..=b, h_kv..=h_kv, .., ..]).to_owned(),
            valid: data.valid.as_ref().map(|valid| valid.slice(s![b..=b, ..]).to_owned()),
        };
        let alone = alone.run(None, &config);
        prop_assert_eq!(&alone.out, &all.out.slice(s![b..=b, h..=h, .., ..]));

        let cut = shape.tokens / 2;
        let early = data.part(0, cut).run(None, &config);
        prop_assert_eq!(&early.out, &all.out.slice(s![.., .., ..cut, ..]));

        let strided = |x: &Array4<f64>| {
            let own = x.view().permuted_axes([0, 2, 1, 3]).as_standard_layout().to_owned();
            own.permuted_axes([0, 2, 1, 3])
        };
        let (k, v) = (strided(&data.k), strided(&data.v));
        let inputs = Inputs { k: k.view(), v: v.view(), ..data.inputs() };
        prop_assert_eq!(&forward(inputs, None, &config).unwrap(), &all);
    }
}
