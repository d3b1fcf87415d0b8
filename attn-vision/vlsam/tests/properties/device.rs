//! The device against the reference.

use attn_core::{Mask, dense};
use attn_vlsam::ndarray::{Array4, Axis};
use attn_vlsam::{
    AttentionFlow, Config, Gpu, LayerAttention, Layers, QueriesKeys, Tensor, TokenLayout, reference,
};
use attn_wgpu::DType;
use attn_wgpu::testing::{gpu, open};

use crate::support::{
    PLACEMENTS, below, bits, distance, numbers, probabilities, stack, upload, wide,
};

/// Of the specification, relative to the largest element.
const FLOW: f64 = 1e-5;
/// The specification's for head weights of stored maps; e^x of a device may be 4e-6 off.
const WEIGHTS: f64 = 1e-5;

/// Queries and keys of some layers, with the probabilities that follow from them.
struct Case {
    tokens: usize,
    layers: Vec<[Array4<f64>; 2]>,
    attention: dense::Config,
    maps: Array4<f64>,
}

impl Case {
    fn new(
        seed: u64,
        [layers, heads, heads_kv, tokens, dim]: [usize; 5],
        attention: dense::Config,
    ) -> Case {
        let mut maps = Array4::zeros((layers, heads, tokens, tokens));
        let mut all = Vec::new();
        for (layer, mut maps) in maps.outer_iter_mut().enumerate() {
            let stream = 2 * layer as u64;
            let q = numbers(seed, stream, [heads, tokens, dim]);
            let k = numbers(seed, stream + 1, [heads_kv, tokens, dim]);
            maps.assign(&probabilities(&q, &k, &attention));
            all.push([q, k]);
        }
        Case { tokens, layers: all, attention, maps }
    }

    fn causal(seed: u64, extents: [usize; 5]) -> Case {
        Case::new(seed, extents, dense::Config::new().with_mask(Mask::Causal))
    }

    fn source(&self, gpu: &Gpu) -> Layers {
        let layer = |[q, k]: &[Array4<f64>; 2]| {
            let own = QueriesKeys::new(&upload(gpu, q), &upload(gpu, k), self.attention.clone());
            LayerAttention::QueriesKeys(own)
        };
        Layers::new(self.tokens, self.layers.iter().map(layer).collect())
    }

    /// Holds rows and a map to the reference, of queries and keys and of stored maps.
    fn check(&self, gpu: &Gpu, rows: &[usize], config: &Config) {
        let layout = TokenLayout::text(0..self.tokens, rows);
        let want = reference::forward(self.maps.view(), &layout, config, None).unwrap();
        let stored = Layers::maps(&upload(gpu, &self.maps)).unwrap();
        let flow = AttentionFlow::new(gpu, config.clone()).unwrap();
        for (what, source) in [("queries and keys", self.source(gpu)), ("maps", stored)] {
            let got = flow.forward(&source, &layout).unwrap();
            let off =
                distance(&wide(&got.flow.head_weights), &want.head_weights.clone().into_dyn());
            assert!(off <= WEIGHTS, "{what}, weights {off:e}, {} tokens", self.tokens);
            let off = distance(&wide(&got.flow.rows), &want.rows.clone().into_dyn());
            assert!(off <= FLOW, "{what}, rows {off:e}, {} tokens, {rows:?}", self.tokens);
            // Min-max magnifies errors by the largest element over the range.
            let largest = want.raw.iter().copied().fold(0.0, f64::max);
            let least = want.raw.iter().copied().fold(f64::INFINITY, f64::min);
            let bound = 4.0 * FLOW * (largest / (largest - least).max(f64::MIN_POSITIVE)).max(1.0);
            let map = got.read().unwrap();
            let worst = map.values().iter().zip(&want.map).map(|(a, b)| (f64::from(*a) - b).abs());
            let worst = worst.fold(0.0, f64::max);
            assert!(worst <= bound, "{what}, map {worst:e}, {} tokens", self.tokens);
        }
    }
}

#[test]
fn smoke_flows_on_a_device() {
    let Some(gpu) = gpu() else { return };
    for placement in PLACEMENTS {
        let case = Case::causal(1, [3, 4, 2, 21, 8]);
        let config = Config::new().with_regularisation(placement);
        case.check(&gpu, &[20, 3, 11], &config);
        case.check(&gpu, &[19], &config.without_head_weights());
    }
}

/// Sizes at and around tiles, primes, one token and one row, rows in several passes.
#[test]
fn sizes() {
    let Some(gpu) = gpu() else { return };
    for (seed, tokens) in (0..).zip([1, 2, 3, 13, 31, 32, 33, 64, 65, 127, 130]) {
        let extents = [2, 2, 1, tokens, 16];
        let rows: Vec<usize> = (0..tokens).rev().take(1 + below(seed, 0, 0, 17)).collect();
        Case::causal(seed, extents).check(&gpu, &rows, &Config::new());
    }
    for count in 1..=17 {
        let rows: Vec<usize> = (0..count).map(|row| row + 5).collect();
        Case::causal(30, [2, 1, 1, 22, 4]).check(&gpu, &rows, &Config::new());
    }
    let many: Vec<usize> = (0..40).collect();
    Case::causal(31, [1, 3, 3, 40, 4]).check(&gpu, &many, &Config::new());
}

/// Head dims, grouped heads, windows, soft-caps, scales, deep stacks.
#[test]
fn forms_of_attention() {
    let Some(gpu) = gpu() else { return };
    let causal = || dense::Config::new().with_mask(Mask::Causal);
    let window = dense::Config::new().with_mask(Mask::Window { left: 6, right: 0 });
    for (seed, (heads, heads_kv, dim, attention)) in (0..).zip([
        (1, 1, 1, causal()),
        (3, 1, 5, causal()),
        (4, 4, 12, causal().with_scale(0.7)),
        (6, 2, 64, causal().with_soft_cap(3.0)),
        (2, 1, 33, window),
        (2, 1, 16, dense::Config::new().with_mask(Mask::Full)),
    ]) {
        let case = Case::new(seed, [3, heads, heads_kv, 47, dim], attention);
        case.check(&gpu, &[46, 45, 0], &Config::new());
    }
    for placement in PLACEMENTS {
        let config = Config::new().with_regularisation(placement);
        Case::causal(9, [30, 2, 1, 18, 8]).check(&gpu, &[17, 16], &config);
    }
}

#[test]
fn halves_are_storage() {
    let Some(gpu) = gpu() else { return };
    let case = Case::causal(4, [2, 2, 1, 35, 16]);
    let layout = TokenLayout::text(0..35, [34, 20]);
    for dtype in [DType::F16, DType::BF16] {
        let half = |x: &Array4<f64>| attn_wgpu::ops::convert(&upload(&gpu, x), dtype).unwrap();
        let mut exact = Case { layers: Vec::new(), ..Case::causal(4, [2, 2, 1, 35, 16]) };
        let mut layers = Vec::new();
        for (number, [q, k]) in case.layers.iter().enumerate() {
            let (q, k) = (half(q), half(k));
            let back = |x: &Tensor| -> Array4<f64> {
                let x = attn_wgpu::ops::convert(x, DType::F32).unwrap();
                wide(&x).into_dimensionality().unwrap()
            };
            let map = probabilities(&back(&q), &back(&k), &case.attention);
            exact.maps.index_axis_mut(Axis(0), number).assign(&map);
            layers.push(LayerAttention::QueriesKeys(QueriesKeys::new(
                &q,
                &k,
                case.attention.clone(),
            )));
        }
        let want = reference::forward(exact.maps.view(), &layout, &Config::new(), None).unwrap();
        let flow = AttentionFlow::new(&gpu, Config::new()).unwrap();
        let got = flow.forward(&Layers::new(35, layers), &layout).unwrap();
        let off = distance(&wide(&got.flow.rows), &want.rows.into_dyn());
        assert!(off <= FLOW, "{dtype:?}: {off:e}");
    }
}

/// Sinks take part in the sum of a row, and in no column.
#[test]
fn sinks_take_their_share() {
    let Some(gpu) = gpu() else { return };
    let case = Case::causal(6, [1, 2, 1, 25, 8]);
    let sinks: [f64; 2] = [0.5, -1.0];
    let mut maps = case.maps.clone();
    let [q, k] = &case.layers[0];
    for ((_, head, i, _), p) in maps.indexed_iter_mut() {
        let logit = |j: usize| {
            (0..8).map(|d| q[[0, head, i, d]] * k[[0, 0, j, d]]).sum::<f64>() / 8f64.sqrt()
        };
        let sum: f64 = (0..=i).map(|j| logit(j).exp()).sum();
        *p *= sum / (sum + sinks[head].exp());
    }
    let layout = TokenLayout::text(0..25, [24]);
    let want = reference::forward(maps.view(), &layout, &Config::new(), None).unwrap();
    let own = Tensor::from_slice(&gpu, &sinks.map(|x| x as f32), &[2]).unwrap();
    let layer = QueriesKeys::new(&upload(&gpu, q), &upload(&gpu, k), case.attention.clone());
    let source = Layers::new(25, vec![LayerAttention::QueriesKeys(layer.with_sinks(&own))]);
    let got = AttentionFlow::new(&gpu, Config::new()).unwrap().forward(&source, &layout).unwrap();
    assert!(distance(&wide(&got.flow.rows), &want.rows.into_dyn()) <= FLOW);
    assert!(distance(&wide(&got.flow.head_weights), &want.head_weights.into_dyn()) <= WEIGHTS);
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let Some(gpu) = gpu() else { return };
    let case = Case::causal(7, [4, 4, 2, 70, 16]);
    let flow = AttentionFlow::new(&gpu, Config::new()).unwrap();
    for source in [case.source(&gpu), Layers::maps(&upload(&gpu, &case.maps)).unwrap()] {
        let all: Vec<usize> = (30..70).collect();
        let together = flow.rows(&source, &all).unwrap();
        for row in [0, 15, 16, 39] {
            let alone = flow.rows(&source, &all[row..row + 1]).unwrap();
            let own = together.rows.narrow(0, row, 1).unwrap();
            assert_eq!(bits(&alone.rows), bits(&own), "{row}");
        }
        let again = flow.rows(&source, &all).unwrap();
        assert_eq!(bits(&again.rows), bits(&together.rows));

        // Several objects of an image share a walk.
        let layouts: Vec<_> = [vec![69, 68], vec![40], (41..60).collect()]
            .into_iter()
            .map(|rows| TokenLayout::new(3..27, (4, 6), rows))
            .collect();
        let outputs = flow.forward_all(&source, &layouts).unwrap();
        assert_eq!(outputs.len(), 3);
        for (output, layout) in outputs.iter().zip(&layouts) {
            let alone = flow.forward(&source, layout).unwrap();
            assert_eq!(output.map.shape(), [4, 6]);
            assert_eq!(bits(&output.map), bits(&alone.map));
            assert_eq!(bits(&output.raw), bits(&alone.raw));
        }
        assert!(flow.forward_all(&source, &[]).unwrap().is_empty());
    }
}

/// NaN in keys that no query sees, which there are none of under a causal mask, and in stored maps above the
/// diagonal in rows that nothing reaches.
#[test]
fn rows_of_weight_0_are_not_read() {
    let Some(gpu) = gpu() else { return };
    let mut maps = stack(2, [3, 2, 20]);
    let flow = AttentionFlow::new(&gpu, Config::new().without_head_weights()).unwrap();
    let run = |maps: &Array4<f64>| {
        let source = Layers::maps(&upload(&gpu, maps)).unwrap();
        bits(&flow.rows(&source, &[9]).unwrap().rows)
    };
    let want = run(&maps);
    for ((_, _, i, _), value) in maps.indexed_iter_mut() {
        if i > 9 {
            *value = f64::NAN;
        }
    }
    assert_eq!(run(&maps), want);
}

#[test]
fn counts_of_another_mask() {
    let Some(gpu) = gpu() else { return };
    let maps = stack(12, [3, 2, 15]);
    let counts: Vec<usize> = (0..15).map(|j| 1 + (j * 7) % 15).collect();
    let source = Layers::maps(&upload(&gpu, &maps)).unwrap().with_column_counts(counts.clone());
    let layout = TokenLayout::text(0..15, [14, 2]);
    for placement in PLACEMENTS {
        let config = Config::new().with_regularisation(placement);
        let want = reference::forward(maps.view(), &layout, &config, Some(&counts)).unwrap();
        let got = AttentionFlow::new(&gpu, config).unwrap().forward(&source, &layout).unwrap();
        assert!(distance(&wide(&got.flow.rows), &want.rows.into_dyn()) <= FLOW);
    }
}

#[test]
fn a_constant_map_is_zero() {
    let Some(gpu) = gpu() else { return };
    // Every patch gets the same from the last token, and nothing before.
    let mut maps = Array4::zeros((1, 1, 9, 9));
    maps.slice_mut(attn_vlsam::ndarray::s![0, 0, 8, 2..8]).fill(1.0 / 6.0);
    let source = Layers::maps(&upload(&gpu, &maps)).unwrap();
    let config = Config::new().with_regularisation(attn_vlsam::Regularisation::None);
    let layout = TokenLayout::new(2..8, (2, 3), [8]);
    let output = AttentionFlow::new(&gpu, config).unwrap().forward(&source, &layout).unwrap();
    let map = output.read().unwrap();
    assert_eq!((map.values(), map.grid()), (&[0.0; 6][..], (2, 3)));
    assert!(map.raw().iter().all(|raw| *raw > 0.0 && *raw == map.raw()[0]));
}

/// What the walk holds besides queries and keys is less than one map of one layer.
#[test]
fn no_map_is_stored() {
    let Some(gpu) = open() else { return };
    let (heads, tokens) = (4, 640);
    let case = Case::causal(1, [1, heads, 1, 1, 16]);
    let layers: Vec<_> = (0..3)
        .map(|seed| {
            let (q, k) = (numbers(seed, 0, [heads, tokens, 16]), numbers(seed, 1, [1, tokens, 16]));
            let own =
                QueriesKeys::new(&upload(&gpu, &q), &upload(&gpu, &k), case.attention.clone());
            LayerAttention::QueriesKeys(own)
        })
        .collect();
    let source = Layers::new(tokens, layers);
    let flow = AttentionFlow::new(&gpu, Config::new()).unwrap();
    gpu.sync().unwrap();
    gpu.reset_peak();
    let before = gpu.memory().in_use;
    let rows: Vec<usize> = (0..16).map(|row| tokens - 1 - row).collect();
    flow.rows(&source, &rows).unwrap().rows.to_vec::<f32>().unwrap();
    let held = gpu.memory().peak - before;
    let map = (tokens * tokens * 4) as u64;
    println!("{held} bytes held, a map of one head has {map}");
    assert!(held < map, "{held} bytes held, a map of one head has {map}");
}
