//! The form in which every sink sees every source.

use attn_flowformer::Config;
use attn_flowformer::reference::{Inputs, forward};
use ndarray::{Array1, Array4, Axis, concatenate, s};
use proptest::prelude::*;

use crate::support::{Data, Shape, array, clamp, close, config, shape};

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn rotate(x: &Array4<f64>, by: usize) -> Array4<f64> {
    let tokens = x.dim().2;
    let order: Vec<usize> = (0..tokens).map(|token| (token + by) % tokens).collect();
    x.select(Axis(2), &order)
}

/// `A_ij = a_i . b_j / I_i`, pair by pair.
fn weights(data: &Data, incoming: f64, b: usize, [h, h_kv]: [usize; 2], i: usize) -> Array1<f64> {
    let a = data.q.slice(s![b, h, i, ..]).mapv(sigmoid);
    let keys = data.k.slice(s![b, h_kv, .., ..]);
    keys.rows().into_iter().map(|k| a.dot(&k.mapv(sigmoid)) / incoming).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// What leaves all sources is what enters all sinks, up to epsilon.
    #[test]
    fn flows_are_conserved(shape in shape(1), seed in any::<u64>(), clamp in clamp()) {
        let flows = Data::new(shape, seed).run(&config(false, clamp)).flows;
        let (queries, keys) = (shape.queries as f64, shape.keys as f64);
        for (sums, want) in [
            (flows.conserved_source.sum_axis(Axis(2)), queries),
            (flows.conserved_sink.sum_axis(Axis(2)), keys),
            (flows.conserved_sink.sum_axis(Axis(2)) * (queries / keys) / queries, 1.0),
        ] {
            // Epsilon is beside sums of tokens, each of which is a sigmoid of at least 0.01 here.
            prop_assert!(sums.iter().all(|sum| (sum - want).abs() <= 5e-4 * want), "{}", sums);
        }
        let competition = flows.competition.sum_axis(Axis(2));
        prop_assert!(competition.iter().all(|sum| (sum - keys).abs() <= 1e-12 * keys));
        prop_assert!(flows.allocation.iter().all(|alloc| (0.0..1.0).contains(alloc)));
    }

    /// With weights pair by pair: they sum to 1, and without competition and allocation the rest is plain
    /// normalised linear attention.
    #[test]
    fn outputs_are_weighted_sums(shape in shape(1), seed in any::<u64>(), clamp in clamp()) {
        let data = Data::new(shape, seed);
        let output = data.run(&config(false, clamp));
        let group = shape.heads / shape.heads_kv;
        for ((b, h, i), &incoming) in output.flows.incoming.indexed_iter() {
            let weights = weights(&data, incoming, b, [h, h / group], i);
            prop_assert!((weights.sum() - 1.0).abs() < 5e-4, "{}", weights.sum());
            let competition = output.flows.competition.slice(s![b, h, ..]);
            let allocation = output.flows.allocation[[b, h, i]];
            let values = data.v.slice(s![b, h / group, .., ..]);
            let want = (&weights * &competition).dot(&values) * allocation;
            for (got, want) in output.out.slice(s![b, h, i, ..]).iter().zip(&want) {
                prop_assert!((got - want).abs() < 1e-12, "{} {}", got, want);
            }
        }
        // Values divided by the competition take it away; one key head a query head.
        if group == 1 {
            let v = &data.v / &output.flows.competition.view().insert_axis(Axis(3));
            let plain = forward(Inputs { v: v.view(), ..data.inputs() }, &config(false, clamp)).unwrap();
            for ((b, h, i), &incoming) in plain.flows.incoming.indexed_iter() {
                let want = weights(&data, incoming, b, [h, h], i).dot(&data.v.slice(s![b, h, .., ..]));
                let allocation = plain.flows.allocation[[b, h, i]];
                for (got, want) in plain.out.slice(s![b, h, i, ..]).iter().zip(&want) {
                    prop_assert!((got / allocation - want).abs() < 1e-11);
                }
            }
        }
    }

    #[test]
    fn order_of_tokens(shape in shape(1), by in 0usize..40, seed in any::<u64>(), clamp in clamp()) {
        let data = Data::new(shape, seed);
        let config = config(false, clamp);
        let plain = data.run(&config).out;
        let sources = Data { k: rotate(&data.k, by), v: rotate(&data.v, by), ..data.clone() };
        close("sources", &sources.run(&config).out, &plain, 1e-12);
        let sinks = Data { q: rotate(&data.q, by), ..data.clone() };
        close("sinks", &sinks.run(&config).out, &rotate(&plain, by), 1e-12);
    }

    /// Every source twice: each gives half, and sinks get the same share.
    #[test]
    fn twice_the_sources(shape in shape(1), seed in any::<u64>()) {
        let data = Data::new(shape, seed);
        let twice = |x: &Array4<f64>| concatenate(Axis(2), &[x.view(), x.view()]).unwrap();
        let double = Data { k: twice(&data.k), v: twice(&data.v), ..data.clone() };
        let (one, two) = (data.run(&Config::new()).flows, double.run(&Config::new()).flows);
        close("allocation", &two.allocation, &one.allocation, 5e-4);
        let half = two.conserved_source.slice(s![.., .., ..shape.keys]).mapv(|flow| 2.0 * flow);
        let scale = one.conserved_source.iter().fold(1.0, |largest: f64, flow| largest.max(*flow));
        close("conserved source", &half, &one.conserved_source, 5e-4 * scale);
    }

    #[test]
    fn linear_in_the_values(shape in shape(1), seed in any::<u64>(), causal in any::<bool>(), clamp in clamp()) {
        let shape = if causal { Shape { queries: shape.keys, ..shape } } else { shape };
        let config = config(causal, clamp);
        let data = Data::new(shape, seed);
        let other = Data { v: array(seed, 9, data.v.dim()), ..data.clone() };
        let sum = Data { v: &data.v * 2.0 - &other.v, ..data.clone() };
        let want = data.run(&config).out * 2.0 - other.run(&config).out;
        close("sum", &sum.run(&config).out, &want, 1e-12);
    }
}

/// A marked source wins the competition, unless a clamp of 1 takes that away.
#[test]
fn a_marked_source_stands_out() {
    const TOKENS: usize = 64;
    const DIM: usize = 16;
    let shape = Shape {
        batch: 1,
        heads: 8,
        heads_kv: 8,
        queries: TOKENS,
        keys: TOKENS,
        dim_qk: DIM,
        dim_v: 4,
    };
    let mut data = Data::new(shape, 11);
    data.k.slice_mut(s![.., .., 17, ..DIM / 2]).mapv_inplace(|x| x + 4.0);
    data.q.slice_mut(s![.., .., .., ..DIM / 2]).mapv_inplace(|x| x + 1.0);
    let competition = |config: &Config| data.run(config).flows.competition;
    let (free, bound) = (competition(&Config::new()), competition(&Config::new().with_clamp(1.0)));
    for h in 0..8 {
        let largest = |x: ndarray::ArrayView1<'_, f64>| {
            let others = x.iter().enumerate().filter(|(j, _)| *j != 17).map(|(_, x)| *x);
            (x[17], others.fold(0.0, f64::max))
        };
        let (marked, others) = largest(free.slice(s![0, h, ..]));
        assert!(marked > others && marked > 1.2, "{marked} {others}");
        let (marked, others) = largest(bound.slice(s![0, h, ..]));
        assert_eq!(marked, others);
    }
}

/// Conservation at length: epsilon alone keeps the sums from being exact.
#[test]
fn long_sequences_conserve_flows() {
    let (queries, keys) = (8192, 4001);
    let shape = Shape { batch: 1, heads: 1, heads_kv: 1, queries, keys, dim_qk: 64, dim_v: 2 };
    let flows = Data::new(shape, 4).run(&Config::new()).flows;
    let sums = [flows.conserved_source.sum() / 8192.0, flows.conserved_sink.sum() / 4001.0];
    assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-4), "{sums:?}");
    let hovering = flows.allocation.mean().unwrap();
    assert!((hovering - sigmoid(1.0)).abs() < 0.01, "{hovering}");
}
