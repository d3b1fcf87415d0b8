//! Section 5 of the method, on the reference.

use attn_core::{Lengths, Mask};
use attn_vlsam::ndarray::{Array1, Array2, Array3, Array4, Axis, s};
use attn_vlsam::reference::{aggregate, flow_matrix, flow_rows, forward, head_weights, min_max};
use attn_vlsam::{Config, Regularisation, TokenLayout, causal_counts, column_factor};
use proptest::prelude::*;

use crate::support::{PLACEMENTS, aggregated, causal_softmax, stack};

fn rho(tokens: usize) -> Array1<f64> {
    Array1::from(column_factor(&causal_counts(tokens)).unwrap())
}

fn near<'a>(a: impl IntoIterator<Item = &'a f64>, b: impl IntoIterator<Item = &'a f64>) -> bool {
    a.into_iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-12 * (1.0 + b.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_row_form_is_the_matrix_form(
        seed in any::<u64>(), layers in 0usize..7, heads in 1usize..4, tokens in 1usize..14,
    ) {
        let maps = aggregated(&stack(seed, [layers, heads, tokens]));
        let rows: Vec<usize> = (0..tokens).rev().collect();
        for placement in PLACEMENTS {
            let whole = flow_matrix(maps.view(), placement, rho(tokens).view()).unwrap();
            let some = flow_rows(maps.view(), &rows, placement, rho(tokens).view()).unwrap();
            prop_assert!(near(&some, &whole.select(Axis(0), &rows)), "{placement:?}");
            for ((i, j), value) in whole.indexed_iter() {
                let is_right = if j > i { *value == 0.0 } else { *value >= 0.0 };
                prop_assert!(is_right, "row {i}, column {j}: {value}");
            }
        }
        let none = flow_matrix(maps.view(), Regularisation::None, rho(tokens).view()).unwrap();
        let once = flow_matrix(maps.view(), Regularisation::Once, rho(tokens).view()).unwrap();
        prop_assert_eq!(once, none * rho(tokens));
    }

    #[test]
    fn heads_weigh_from_one_nth_to_one(
        seed in any::<u64>(), heads in 1usize..5, tokens in 1usize..20,
    ) {
        let maps = stack(seed, [1, heads, tokens]);
        let weights = head_weights(maps.index_axis(Axis(0), 0));
        let least = 1.0 / tokens as f64;
        prop_assert!(weights.iter().all(|w| (least - 1e-12..=1.0 + 1e-12).contains(w)));
    }

    #[test]
    fn the_order_of_heads_is_nothing(seed in any::<u64>(), tokens in 1usize..12) {
        let maps = stack(seed, [3, 4, tokens]);
        let other = maps.select(Axis(1), &[2, 0, 3, 1]);
        let layout = TokenLayout::text(0..tokens, [tokens - 1]);
        let run = |maps: &Array4<f64>| forward(maps.view(), &layout, &Config::new(), None).unwrap();
        prop_assert!(near(&run(&maps).rows, &run(&other).rows));
        // And equal heads are one of them.
        let first = maps.slice(s![.., ..1, .., ..]).to_owned();
        let alike = maps.select(Axis(1), &[0, 0, 0]);
        let alike = Array4::from_shape_fn(alike.dim(), |(l, _, i, j)| first[[l, 0, i, j]]);
        prop_assert!(near(&run(&alike).rows, &run(&first).rows));
    }
}

#[test]
fn one_layer_is_its_aggregation_and_one_head_its_weight() {
    let maps = stack(3, [1, 1, 9]);
    let own = maps.index_axis(Axis(0), 0);
    let weight = head_weights(own)[0];
    let a = aggregate(own, Array1::from_elem(1, weight).view());
    assert!(near(&a, &(&own.index_axis(Axis(0), 0) * weight)));
    let flow =
        |placement| flow_matrix(a.view().insert_axis(Axis(0)), placement, rho(9).view()).unwrap();
    assert_eq!(flow(Regularisation::None), a);
    assert_eq!(flow(Regularisation::Once), &a * &rho(9));
    assert_eq!(flow(Regularisation::PerLayer), &a * &rho(9));
}

/// Two layers by hand: `T = (I + A1) (I + A0)`, and the factor at every layer or at the end.
#[test]
fn two_layers_by_hand() {
    let maps = aggregated(&stack(5, [2, 2, 6]));
    let (a0, a1) = (maps.index_axis(Axis(0), 0), maps.index_axis(Axis(0), 1));
    let eye = Array2::<f64>::eye(6);
    let flow = |placement| flow_matrix(maps.view(), placement, rho(6).view()).unwrap();
    let plain = (&eye + &a1).dot(&(&eye + &a0));
    assert!(near(&flow(Regularisation::None), &plain));
    let inner = &a0 * &rho(6);
    let each = (&eye + &a1).dot(&(&eye + &inner)) * rho(6);
    assert!(near(&flow(Regularisation::PerLayer), &each));
}

#[test]
fn one_hot_and_uniform_rows() {
    for tokens in [1, 2, 7, 30] {
        let hot =
            Array3::from_shape_fn((1, tokens, tokens), |(_, i, j)| f64::from(u8::from(j == i / 2)));
        assert_eq!(head_weights(hot.view())[0], 1.0);
        let even = causal_softmax(&Array2::zeros((tokens, tokens))).insert_axis(Axis(0));
        let harmonic: f64 = (1..=tokens).map(|i| 1.0 / i as f64).sum();
        assert!((head_weights(even.view())[0] - harmonic / tokens as f64).abs() < 1e-12);
    }
}

#[test]
fn a_factor_of_all_maps_scales_nothing() {
    let maps = stack(8, [1, 3, 13]);
    let layout = TokenLayout::new(1..13, (3, 4), [12, 11]);
    let plain = forward(maps.view(), &layout, &Config::new(), None).unwrap();
    let scaled = forward((&maps * 0.37).view(), &layout, &Config::new(), None).unwrap();
    assert!(near(&scaled.map, &plain.map));
    assert!(!near(&scaled.raw, &plain.raw));
}

#[test]
fn the_column_factor_grows_to_one() {
    for tokens in [1, 2, 3, 50] {
        let rho = column_factor(&causal_counts(tokens)).unwrap();
        assert!((rho[0] - 1.0 / tokens as f64).abs() < 1e-15 && rho[tokens - 1] == 1.0);
        assert!(rho.windows(2).all(|pair| pair[0] < pair[1]));
        for (j, rho) in rho.iter().enumerate() {
            assert!((rho - (j + 1) as f64 / tokens as f64).abs() < 1e-15);
        }
    }
    // From the counts of any mask: of a window, and of one that hides nothing.
    let counts = |mask: Mask| -> Vec<usize> {
        let lengths = Lengths::new(9, 9);
        (0..9).map(|j| (0..9).filter(|&i| mask.allows(lengths, i, j)).count()).collect()
    };
    assert_eq!(counts(Mask::Causal), causal_counts(9));
    let window = column_factor(&counts(Mask::Window { left: 2, right: 0 })).unwrap();
    assert!(window[..7].iter().all(|rho| (rho - (1.0 - 2.0 / 9.0)).abs() < 1e-15));
    assert_eq!(window[8], 1.0);
    let all = column_factor(&counts(Mask::Full)).unwrap();
    assert!(all.iter().all(|rho| (rho - 1.0 / 9.0).abs() < 1e-15));
    assert_eq!(column_factor(&[0, 1]).unwrap(), [1.0, 1.0]);
    assert!(column_factor(&[]).unwrap().is_empty());
    assert!(column_factor(&[3, 1]).unwrap_err().to_string().contains("at most 2"));
}

#[test]
fn a_constant_map_is_zero() {
    assert_eq!(min_max(Array2::from_elem((2, 3), 0.25).view()), Array2::<f64>::zeros((2, 3)));
    let map = min_max(Array2::from_shape_fn((1, 3), |(_, j)| j as f64).view());
    assert_eq!(map, Array2::from_shape_vec((1, 3), vec![0.0, 0.5, 1.0]).unwrap());
}
