//! The device against the reference: everything that a layer computes.

use attn_routing::{Config, UpdateRule};
use attn_wgpu::testing::gpu;

use crate::support::Case;

fn bidirectional(clusters: usize, window: usize) -> Config {
    Config::new(clusters, window).bidirectional().with_scale(0.5)
}

fn causal(clusters: usize, window: usize) -> Config {
    Config::new(clusters, window).with_scale(0.5)
}

/// Runs cases, most of which must have clear choices.
fn run(cases: Vec<Case>) {
    let Some(gpu) = gpu() else { return };
    let count = cases.len();
    let clear = cases.iter().filter(|case| case.check(&gpu)).count();
    assert!(2 * clear > count, "only {clear} of {count} cases had clear choices");
}

/// One case of each way: dense attention in clusters, limits by token, padding.
#[test]
fn smoke_the_device_computes_what_the_reference_computes() {
    let mut own_keys = causal(4, 6);
    own_keys.shared_qk = false;
    let mut shared = bidirectional(3, 7);
    (shared.shared_qk, shared.epsilon) = (true, 0.01);
    run(vec![
        Case { batch: 2, ..Case::new(1, 23, [6, 5], bidirectional(4, 5)) },
        Case::new(2, 37, [16, 8], causal(3, 16)),
        Case::new(3, 29, [12, 12], own_keys.clone()),
        Case { batch: 2, padding: Some(5), ..Case::new(4, 26, [8, 8], causal(4, 9)) },
        Case { batch: 2, strided: true, ..Case::new(5, 19, [8, 4], shared) },
    ]);
}

#[test]
fn sizes_around_tiles_and_of_few() {
    let mut cases = Vec::new();
    for (seed, tokens, clusters, window) in
        [(1, 1, 1, 1), (2, 2, 3, 1), (3, 3, 1, 9), (4, 64, 8, 8), (5, 65, 5, 13), (6, 31, 2, 16)]
    {
        let mut own = causal(clusters, window);
        own.shared_qk = false;
        for config in [bidirectional(clusters, window), causal(clusters, window), own] {
            let dims = if seed % 2 == 0 { [4, 4] } else { [8, 8] };
            cases.push(Case::new(seed, tokens, dims, config));
        }
    }
    run(cases);
}

/// Many tiles of everything, by both ways. Logits reach 64, as in the paper.
#[test]
fn one_long_text() {
    let mut own = causal(9, 61);
    own.shared_qk = false;
    run(vec![
        Case { strided: true, ..Case::new(1, 515, [64, 64], causal(9, 61).with_scale(1.0)) },
        Case::new(3, 515, [64, 48], own),
    ]);
}

#[test]
fn padding_strides_and_shared_heads() {
    let mut own = causal(3, 8);
    (own.shared_qk, own.epsilon) = (false, 0.1);
    let grouped = |case: Case, heads_kv| Case { heads: 4, heads_kv, strided: true, ..case };
    run(vec![
        Case { padding: Some(7), batch: 3, ..Case::new(1, 21, [8, 8], bidirectional(3, 6)) },
        // Fewer tokens than the window, and none at all.
        Case { padding: Some(17), batch: 2, ..Case::new(2, 21, [8, 8], own.clone()) },
        Case { padding: Some(17), batch: 2, ..Case::new(8, 21, [8, 8], bidirectional(3, 6)) },
        Case { padding: Some(21), batch: 2, ..Case::new(3, 21, [8, 8], causal(3, 6)) },
        Case { padding: Some(0), ..Case::new(4, 21, [8, 8], causal(3, 30)) },
        grouped(Case { batch: 2, ..Case::new(5, 18, [8, 4], bidirectional(3, 6)) }, 2),
        grouped(Case::new(6, 18, [7, 5], causal(3, 6)), 1),
        grouped(Case { padding: Some(3), ..Case::new(7, 18, [8, 8], own) }, 2),
    ]);
}

/// Beyond the largest head of dense attention, and updates by the paper's equation.
#[test]
fn wide_heads_and_the_papers_rule() {
    run(vec![
        Case {
            heads: 1,
            heads_kv: 1,
            ..Case::new(1, 12, [260, 260], causal(2, 5).with_scale(0.05))
        },
        Case { batch: 2, ..Case::new(2, 20, [8, 8], causal(4, 5).with_rule(UpdateRule::Paper)) },
        Case {
            batch: 2,
            ..Case::new(
                3,
                20,
                [8, 8],
                bidirectional(4, 5).with_rule(UpdateRule::Paper).with_decay(0.5),
            )
        },
        Case { batch: 2, ..Case::new(4, 33, [5, 5], bidirectional(9, 4).with_decay(0.0)) },
    ]);
}
