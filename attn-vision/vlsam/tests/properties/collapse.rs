//! Acceptance 2: on synthetic stacks whose early columns collect the mass, the regularised flow finds the target.

use attn_core::testing::{normal, uniform};
use attn_vlsam::ndarray::{Array2, Array4, Axis, s};
use attn_vlsam::reference::{forward, raw_map};
use attn_vlsam::{AttentionFlow, Config, Layers, Regularisation, TokenLayout};
use attn_wgpu::testing::gpu;

use crate::support::{below, causal_softmax, upload};

const LAYERS: usize = 8;
const HEADS: usize = 8;
const GRID: usize = 6;
/// BOS, the image, 12 tokens of text.
const TOKENS: usize = 1 + GRID * GRID + 12;
const STACKS: u64 = 100;

struct Case {
    maps: Array4<f64>,
    layout: TokenLayout,
    /// Patches of the target, two by two.
    target: [usize; 4],
}

/// Normal logits, of which those of the first four columns are 3 higher, and in the second-last row of a quarter of
/// the heads those of a target 4 higher.
fn case(seed: u64) -> Case {
    // Not in the first row: three of its patches are sinks, which collapse alone would find.
    let (y, x) = (1 + below(seed, 9000, 0, GRID - 2), below(seed, 9000, 1, GRID - 1));
    let target = [0, 1, GRID, GRID + 1].map(|step| y * GRID + x + step);
    let row = TOKENS - 2;
    let mut maps = Array4::zeros((LAYERS, HEADS, TOKENS, TOKENS));
    for layer in 0..LAYERS {
        for head in 0..HEADS {
            let stream = (layer * HEADS + head) as u64;
            let looks = uniform(seed, 9001, stream) < 0.25;
            let logit = |(i, j): (usize, usize)| {
                let sink = if j < 4 { 3.0 } else { 0.0 };
                let wanted = looks && i == row && j > 0 && target.contains(&(j - 1));
                normal(seed, stream, (i * TOKENS + j) as u64)
                    + sink
                    + if wanted { 4.0 } else { 0.0 }
            };
            let map = causal_softmax(&Array2::from_shape_fn((TOKENS, TOKENS), logit));
            maps.slice_mut(s![layer, head, .., ..]).assign(&map);
        }
    }
    let layout = TokenLayout::new(1..1 + GRID * GRID, (GRID, GRID), [row]);
    Case { maps, layout, target }
}

fn peak(map: &Array2<f64>) -> usize {
    let mut best = 0;
    let values: Vec<f64> = map.iter().copied().collect();
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

impl Case {
    fn flow(&self, regularisation: Regularisation) -> usize {
        let config = Config::new().with_regularisation(regularisation);
        peak(&forward(self.maps.view(), &self.layout, &config, None).unwrap().map)
    }

    /// The plain mean of the last layer's heads.
    fn naive(&self) -> usize {
        let last = self.maps.index_axis(Axis(0), LAYERS - 1);
        let mean = last.mean_axis(Axis(0)).unwrap();
        let rows = mean.select(Axis(0), &self.layout.object_rows);
        peak(&raw_map(rows.view(), &self.layout).unwrap())
    }
}

/// The patch at which a case's map is the largest.
type Peak = fn(&Case) -> usize;

#[test]
fn regularisation_undoes_the_collapse() {
    let kinds: [(&str, Peak); 4] = [
        ("once", |case| case.flow(Regularisation::Once)),
        ("per layer", |case| case.flow(Regularisation::PerLayer)),
        ("none", |case| case.flow(Regularisation::None)),
        ("naive", |case| case.naive()),
    ];
    let mut hits = [0usize; 4];
    let device = gpu();
    for seed in 0..STACKS {
        let case = case(seed);
        for (hits, (_, peak)) in hits.iter_mut().zip(&kinds) {
            *hits += usize::from(case.target.contains(&peak(&case)));
        }
        // The device finds the same peaks.
        if let Some(gpu) = device.as_ref().filter(|_| seed < 8) {
            let source = Layers::maps(&upload(gpu, &case.maps)).unwrap();
            let flow = AttentionFlow::new(gpu, Config::new()).unwrap();
            let (y, x) = flow.forward(&source, &case.layout).unwrap().read().unwrap().peak();
            assert_eq!(y * GRID + x, case.flow(Regularisation::Once), "{seed}");
        }
    }
    for (hits, (name, _)) in hits.iter().zip(&kinds) {
        println!("{name}: {hits} of {STACKS} peaks in the target");
    }
    let [once, per_layer, none, naive] = hits;
    assert!(once >= 50 && once >= 8 * none, "{hits:?}");
    assert!(none < naive && naive < per_layer.min(once), "{hits:?}");
}
