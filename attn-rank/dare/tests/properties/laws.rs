//! Laws of the reference: those of the paper and of its definitions.

use attn_dare::reference::{Batch, Cotangents, Embeddings, Tables, backward, forward};
use attn_dare::{Config, Search};
use ndarray::{Array1, Array2, Axis, s};
use proptest::prelude::*;

use crate::support::{Rows, batch, config, embeddings, matrix, tables, worst};

const ROWS: Rows = [40, 7, 25];

fn problem() -> impl Strategy<Value = (Config, Batch, u64)> {
    let widths = prop::sample::select(&[[4, 4, 4], [3, 5, 2], [8, 1, 4]][..]);
    (widths, 1..=4_usize, 0..=24_usize, 1..=30_usize, any::<u64>()).prop_map(
        |(widths, requests, length, keep, seed)| {
            let config = config(widths, [2 * widths[0], 4, 3], keep);
            (config, batch(seed, requests, length, ROWS), seed >> 1)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Weights are a softmax over what was kept; what was kept has the highest scores; h lies among the
    /// embeddings that were kept; with room for all, both pools are one.
    #[test]
    fn what_is_kept((config, batch, seed) in problem()) {
        let tables = tables(seed % 5000, ROWS, &config);
        let out = forward(&tables, &batch, &config).unwrap();
        for (b, weights) in out.weights.axis_iter(Axis(0)).enumerate() {
            let counting = (0..weights.len()).filter(|&j| batch.counts(b, j)).count();
            let kept: Vec<usize> = out.index.row(b).iter().filter(|j| **j >= 0).map(|&j| j as usize).collect();
            prop_assert_eq!(kept.len(), counting.min(config.keep));
            prop_assert!(out.index.row(b).iter().skip(kept.len()).all(|&j| j == -1));
            prop_assert!(kept.iter().all(|&j| batch.counts(b, j)));
            let sum: f64 = weights.sum();
            let want = if kept.is_empty() { 0.0 } else { 1.0 };
            prop_assert!((sum - want).abs() < 1e-12 && weights.iter().all(|w| *w >= 0.0));
            let score = |j: usize| out.scores[[b, j]];
            let falls = kept.windows(2).all(|pair| {
                score(pair[0]) > score(pair[1]) || (score(pair[0]) == score(pair[1]) && pair[0] < pair[1])
            });
            prop_assert!(falls);
            for j in (0..weights.len()).filter(|j| !kept.contains(j)) {
                prop_assert_eq!(weights[j], 0.0);
                prop_assert!(kept.iter().all(|&i| !batch.counts(b, j) || score(i) >= score(j)));
            }
            if counting <= config.keep {
                prop_assert!(worst(out.h.row(b), out.h_full.row(b)) < 1e-14);
            }
            if kept.is_empty() {
                prop_assert!(out.h.row(b).iter().all(|x| *x == 0.0));
            }
        }
    }

    /// Tied tables are one model, and their gradient is the sum of both stages'.
    #[test]
    fn tied_tables_are_twin((config, batch, seed) in problem()) {
        let config = config.clone().with_widths(config.attention, config.attention);
        let own = embeddings(seed % 5000, ROWS, config.attention);
        let tied = Tables::tied(own.clone());
        let twice = Tables::new(own.clone(), own);
        let out = forward(&tied, &batch, &config).unwrap();
        prop_assert_eq!(&out, &forward(&twice, &batch, &config).unwrap());
        let dx = matrix(seed, 90, batch.item.len(), config.features());
        let grads = backward(&tied, &batch, &config, &out, Cotangents::new(dx.view())).unwrap();
        let sum = grads.attention.sum(&grads.representation);
        // The derivative along a direction, of the one set of tables.
        let way = embeddings(seed % 5000 + 1, ROWS, config.attention);
        let at = |step: f64| {
            let moved = |a: &Array2<f64>, w: &Array2<f64>| a + &(w * step);
            let Embeddings { item, category, time } = tied.attention.clone();
            let tables = Tables::tied(Embeddings {
                item: moved(&item, &way.item),
                category: moved(&category, &way.category),
                time: moved(&time, &way.time),
            });
            let moved = forward(&tables, &batch, &config).unwrap();
            (moved.index == out.index).then(|| (&moved.features * &dx).sum())
        };
        let dot = |a: &Array2<f64>, b: &Array2<f64>| (a * b).sum();
        let slope = dot(&sum.item, &way.item) + dot(&sum.category, &way.category) + dot(&sum.time, &way.time);
        if let (Some(up), Some(down)) = (at(1e-6), at(-1e-6)) {
            let difference = (up - down) / 2e-6;
            prop_assert!((difference - slope).abs() < 1e-4 * (1.0 + slope.abs()), "{difference} {slope}");
        }
    }

    /// Behaviours that change places together with their slots change the places of their weights alone.
    #[test]
    fn places_do_not_matter((config, batch, seed) in problem()) {
        let tables = tables(seed % 5000, ROWS, &config);
        let (requests, length) = batch.history_item.dim();
        let slots = Array2::from_shape_fn((requests, length), |(_, j)| (length - j) as u32);
        let batch = batch.with_times(Array1::zeros(requests), slots);
        let out = forward(&tables, &batch, &config).unwrap();
        let mut turned = batch.clone();
        turned.history_item.invert_axis(Axis(1));
        turned.history_category.invert_axis(Axis(1));
        turned.history_time.as_mut().unwrap().invert_axis(Axis(1));
        let mut other = forward(&tables, &turned, &config).unwrap();
        other.weights.invert_axis(Axis(1));
        prop_assert!(worst(&out.weights, &other.weights) < 1e-12);
        prop_assert!(worst(&out.h, &other.h) < 1e-12);
    }

    /// A vector added to all slots of the search changes neither what is kept nor its weights; a factor of what
    /// is pooled is one of h alone.
    #[test]
    fn what_scores_do_not_see((config, batch, seed) in problem()) {
        let tables = tables(seed % 5000, ROWS, &config);
        let out = forward(&tables, &batch, &config).unwrap();
        let mut moved = tables.clone();
        moved.attention.time.slice_mut(s![1.., ..]).mapv_inplace(|x| x + 0.75);
        let other = forward(&moved, &batch, &config).unwrap();
        prop_assert_eq!(&out.index, &other.index);
        prop_assert!(worst(&out.weights, &other.weights) < 1e-11);
        let mut longer = tables.clone();
        let own = longer.representation.as_mut().unwrap();
        own.item *= 4.0;
        own.category *= 4.0;
        own.time *= 4.0;
        let other = forward(&longer, &batch, &config).unwrap();
        prop_assert_eq!((&out.index, &out.weights), (&other.index, &other.weights));
        prop_assert!(worst(&(&out.h * 4.0), &other.h) < 1e-12);
    }

    /// Without scores the first behaviours are kept, and pooled evenly.
    #[test]
    fn equal_scores((config, batch, seed) in problem()) {
        let mut tables = tables(seed % 5000, ROWS, &config);
        tables.attention = Embeddings::zeros(ROWS, config.attention);
        let out = forward(&tables, &batch, &config).unwrap();
        for b in 0..batch.item.len() {
            let first: Vec<i64> = (0..batch.history_item.ncols())
                .filter(|&j| batch.counts(b, j))
                .take(config.keep)
                .map(|j| j as i64)
                .collect();
            prop_assert_eq!(&out.index.row(b).to_vec()[..first.len()], &first[..]);
            for &j in &first {
                prop_assert!((out.weights[[b, j as usize]] - 1.0 / first.len() as f64).abs() < 1e-14);
            }
        }
    }

    /// With one behaviour kept, and the main head alone, nothing flows into the search; and nothing ever flows
    /// from one stage to the other.
    #[test]
    fn stages_are_apart((config, batch, seed) in problem()) {
        let tables = tables(seed % 5000, ROWS, &config);
        let one = config.clone().with_keep(1);
        let dx = matrix(seed, 91, batch.item.len(), config.features());
        let out = forward(&tables, &batch, &one).unwrap();
        let grads = backward(&tables, &batch, &one, &out, Cotangents::new(dx.view())).unwrap();
        prop_assert_eq!(&grads.attention, &Embeddings::zeros(ROWS, config.attention));
        // The gradient by what is pooled knows the search by its weights alone.
        let out = forward(&tables, &batch, &config).unwrap();
        let before = backward(&tables, &batch, &config, &out, Cotangents::new(dx.view())).unwrap();
        let mut other = tables.clone();
        other.attention = embeddings(seed % 5000 + 7, ROWS, config.attention);
        let after = backward(&other, &batch, &config, &out, Cotangents::new(dx.view())).unwrap();
        prop_assert_eq!(before.representation, after.representation);
    }

    /// Search by category keeps the newest of the candidate's.
    #[test]
    fn the_newest_of_a_category((config, batch, seed) in problem()) {
        let config = config.with_search(Search::Category);
        let out = forward(&tables(seed % 5000, ROWS, &config), &batch, &config).unwrap();
        for b in 0..batch.item.len() {
            let newest: Vec<i64> = (0..batch.history_item.ncols())
                .rev()
                .filter(|&j| batch.counts(b, j) && batch.history_category[[b, j]] == batch.category[b])
                .take(config.keep)
                .map(|j| j as i64)
                .collect();
            prop_assert_eq!(&out.index.row(b).to_vec()[..newest.len()], &newest[..]);
            prop_assert!(out.index.row(b).iter().skip(newest.len()).all(|&j| j == -1));
        }
    }
}
