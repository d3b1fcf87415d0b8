//! Gradients against finite differences, and their laws.

use attn_flowformer::Config;
use attn_flowformer::reference::{Cotangents, Grads, backward};
use ndarray::{Array4, s};
use proptest::prelude::*;

use crate::support::{Data, Shape, array, close, config, shape};

const STEP: f64 = 1e-5;

fn grads(data: &Data, config: &Config, d_out: &Array4<f64>) -> Grads {
    backward(data.inputs(), config, Cotangents { out: d_out.view() }).unwrap()
}

fn cotangent(shape: Shape, seed: u64) -> Array4<f64> {
    array(seed, 7, (shape.batch, shape.heads, shape.queries, shape.dim_v))
}

/// Whether no flow is so near to the clamp that a step might cross it.
fn differentiable(data: &Data, config: &Config) -> bool {
    let flows = data.run(config).flows.conserved_source;
    let Some(clamp) = config.clamp else { return true };
    flows.iter().all(|flow| (flow.abs() - clamp).abs() > 10.0 * STEP)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn gradients_are_finite_differences(
        shape in shape(0),
        causal in any::<bool>(),
        padded in any::<bool>(),
        // The first token of the causal form has a flow of 1, on a clamp of 1.
        clamp in prop::sample::select(&[None, Some(1.05), Some(0.9), Some(10.0)][..]),
        seed in any::<u64>(),
    ) {
        let shape = if causal { Shape { queries: shape.keys, ..shape } } else { shape };
        let mut data = Data::new(shape, seed);
        if padded {
            data = data.padded(causal, seed);
        }
        let config = config(causal, clamp);
        prop_assume!(differentiable(&data, &config));
        let d_out = cotangent(shape, seed);
        let grads = grads(&data, &config, &d_out);
        let slope = |move_by: &dyn Fn(&mut Data, f64)| {
            let loss = |by: f64| {
                let mut moved = data.clone();
                move_by(&mut moved, by);
                (&moved.run(&config).out * &d_out).sum()
            };
            (loss(STEP) - loss(-STEP)) / (2.0 * STEP)
        };
        let tensors: [fn(&mut Data) -> &mut Array4<f64>; 3] =
            [|data| &mut data.q, |data| &mut data.k, |data| &mut data.v];
        for (tensor, grad) in tensors.iter().zip([&grads.dq, &grads.dk, &grads.dv]) {
            let flat = grad.as_slice().unwrap();
            for at in (0..flat.len()).step_by(flat.len() / 9 + 1) {
                let slope = slope(&|data, by| tensor(data).as_slice_mut().unwrap()[at] += by);
                let bound = 2e-7 * (1.0 + flat[at].abs());
                prop_assert!((slope - flat[at]).abs() < bound, "{} {}", slope, flat[at]);
            }
            // All elements at once, in a random direction: the adjoint identity.
            let direction = array(seed, 8, grad.raw_dim());
            let slope = slope(&|data, by| tensor(data).scaled_add(by, &direction));
            let product = (grad * &direction).sum();
            prop_assert!((slope - product).abs() < 2e-6 * (1.0 + product.abs()), "{} {}", slope, product);
        }
    }

    /// Where all flows are beyond the clamp, all sources compete alike, and nothing flows back through that:
    /// the gradients are those of any other clamp below the flows.
    #[test]
    fn sources_beyond_the_clamp_get_no_gradient(shape in shape(1), causal in any::<bool>(), seed in any::<u64>()) {
        let shape = if causal { Shape { queries: shape.keys, ..shape } } else { shape };
        let data = Data::new(shape, seed);
        let d_out = cotangent(shape, seed);
        let [low, lower] = [1e-3, 1e-4].map(|clamp| config(causal, Some(clamp)));
        let flows = data.run(&low).flows;
        prop_assert!(flows.conserved_source.iter().all(|flow| *flow > 1e-3));
        prop_assert!(flows.competition.iter().all(|competition| (competition - 1.0).abs() < 1e-12));
        let (one, other) = (grads(&data, &low, &d_out), grads(&data, &lower, &d_out));
        close("dq", &one.dq, &other.dq, 1e-11);
        close("dk", &one.dk, &other.dk, 1e-11);
        let free = grads(&data, &config(causal, None), &d_out);
        // With one source there is no competition to begin with.
        prop_assert!(shape.keys == 1 || free.dk != one.dk);
    }

    /// Key heads that queries share get the sum of what each would get as its own.
    #[test]
    fn shared_heads_get_sums(tokens in 1usize..20, causal in any::<bool>(), seed in any::<u64>()) {
        let shape = Shape { batch: 2, heads: 4, heads_kv: 2, queries: tokens, keys: tokens, dim_qk: 3, dim_v: 2 };
        let data = Data::new(shape, seed);
        let repeated = |x: &Array4<f64>| x.select(ndarray::Axis(1), &[0, 0, 1, 1]);
        let own = Data { k: repeated(&data.k), v: repeated(&data.v), ..data.clone() };
        let config = config(causal, None);
        prop_assert_eq!(&data.run(&config), &own.run(&config));
        let d_out = cotangent(shape, seed);
        let (shared, own) = (grads(&data, &config, &d_out), grads(&own, &config, &d_out));
        let sum = |x: &Array4<f64>| {
            &x.slice(s![.., ..;2, .., ..]) + &x.slice(s![.., 1..;2, .., ..])
        };
        close("dq", &shared.dq, &own.dq, 0.0);
        close("dk", &shared.dk, &sum(&own.dk), 1e-12);
        close("dv", &shared.dv, &sum(&own.dv), 1e-12);
    }
}
