//! Acceptance (b) of the specification: centroids find planted clusters, by the kernels.

use attn_core::testing::Values;
use attn_core::testing::fill;
use attn_routing::{Config, Gpu, Inputs, Routing, Tensor, Uninitialised};
use attn_wgpu::testing::gpu;
use ndarray::{Array2, Array4, Axis};

use crate::support::{normed, upload};

const CENTRES: usize = 16;
const TOKENS: usize = 1024;
const DIM: usize = 32;

fn normals(seed: u64, stream: u64, rows: usize) -> Array4<f64> {
    let data = fill(seed, stream, Values::Normal, rows * DIM);
    let data = data.into_iter().map(f64::from).collect();
    Array4::from_shape_vec((1, 1, rows, DIM), data).unwrap()
}

/// A batch with balanced labels, token `n` of centre `n % 16`.
fn batch(centres: &Array4<f64>, seed: u64) -> Array4<f64> {
    let labels: Vec<usize> = (0..TOKENS).map(|token| token % CENTRES).collect();
    centres.select(Axis(2), &labels) + 0.6 * normals(seed, 1, TOKENS)
}

/// Share of the dense attention of every token (scale 1 / sqrt D) that `allowed` keeps, on average.
fn kept(x: &Array4<f64>, allowed: impl Fn(usize, usize) -> bool) -> f64 {
    let x = normed(x).into_shape_with_order((TOKENS, DIM)).unwrap();
    let logits: Array2<f64> = x.dot(&x.t()) / (DIM as f64).sqrt();
    let row = |(i, logits): (usize, ndarray::ArrayView1<'_, f64>)| {
        let weights = logits.mapv(f64::exp);
        let on: f64 = (0..TOKENS).filter(|&t| allowed(i, t)).map(|t| weights[t]).sum();
        on / weights.sum()
    };
    logits.rows().into_iter().enumerate().map(row).sum::<f64>() / TOKENS as f64
}

fn run(gpu: &Gpu, seed: u64) -> (f64, f64, usize) {
    let centres = normed(&normals(seed, 0, CENTRES));
    let mut config = Config::new(CENTRES, TOKENS / CENTRES).with_decay(0.9).with_shared_qk(true);
    config.causal = false;
    let layer = Routing::new(gpu, config).unwrap();
    let first = fill(seed, 2, Values::Normal, CENTRES * DIM);
    let first = Tensor::from_slice(gpu, &first, &[1, CENTRES, DIM]).unwrap();
    let mut centroids = Uninitialised::new(1, CENTRES, DIM).with_normals(&first).unwrap();
    for step in 0..20 {
        let x = upload(gpu, &batch(&centres, 1000 * seed + step));
        let inputs = Inputs::new(&x, &x, &x);
        let routes = layer.route(inputs, None, &centroids).unwrap();
        centroids = layer.update(inputs, &routes, &centroids).unwrap();
    }
    let fresh = batch(&centres, 1000 * seed + 999);
    let x = upload(gpu, &fresh);
    let routes = layer.route(Inputs::new(&x, &x, &x), None, &centroids).unwrap();
    let mask = routes.plan().unwrap().to_dense_mask(0, 0).unwrap();
    let mass = kept(&fresh, |i, t| mask.get(i, t));
    // How often a token is with the centroid that most tokens of its centre are with, by centroid.
    let assigned = routes.read().unwrap().assigned_q;
    let mut table = Array2::<usize>::zeros((CENTRES, CENTRES));
    for (token, cluster) in assigned.iter().enumerate() {
        table[[cluster.unwrap(), token % CENTRES]] += 1;
    }
    let most = |row: ndarray::ArrayView1<'_, usize>| row.iter().copied().max().unwrap_or(0);
    let purity = table.rows().into_iter().map(most).sum::<usize>() as f64 / TOKENS as f64;
    let live = table.rows().into_iter().filter(|row| row.sum() > 0).count();
    (mass, purity, live)
}

/// K-means depends on where it starts, so the thresholds are held by the mean of a few starts.
#[test]
fn centroids_find_planted_clusters() {
    let Some(gpu) = gpu() else { return };
    let runs: Vec<_> = (1..=3).map(|seed| run(&gpu, seed)).collect();
    for (mass, purity, live) in &runs {
        println!("mass kept {mass:.3}, purity {purity:.3}, {live} centroids alive");
    }
    let mean = |of: fn(&(f64, f64, usize)) -> f64| runs.iter().map(of).sum::<f64>() / 3.0;
    let (mass, purity, live) = (mean(|run| run.0), mean(|run| run.1), mean(|run| run.2 as f64));
    assert!(mass >= 0.55, "mass kept {mass}");
    assert!(purity >= 0.80, "purity {purity}");
    assert!(live >= 13.0, "{live} centroids alive");
}
