//! Vectors from the authors' code and from the paper's equations. `ATTN_GOLDEN_DIR` adds a folder of
//! more.

use std::path::PathBuf;

use attn_core::Result;
use attn_core::testing::golden::{self, GoldenFile};
use attn_routing::reference::{
    self, Inputs, Uninitialised, backward, commitment_loss, forward, update,
};
use attn_routing::{Centroids, Config, Cotangents, Routing, Tensor, UpdateRule};
use attn_wgpu::testing::gpu;
use ndarray::{Array, Array3, Array4, Dimension, Ix1, Ix2, Ix3, Ix4};

/// Tolerances of the specification in f32 (absolute): indices and counts exact. The files were made in
/// f64 and rounded, so that an f64 reference has to do as well.
const OUT: f64 = 1e-5;
const CENTROIDS: f64 = 1e-5;
const LOSS: f64 = 1e-7;
const GRAD: f64 = 2e-5;
const COMMIT_GRAD: f64 = 1e-8;

#[test]
fn routing() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "routing").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        let known = file.has(&["q", "k", "v", "out", "centroids", "q_idx", "k_idx", "count"]);
        assert!(known, "{}: of no known kind", file.path().display());
        println!("{}", file.path().display());
        check(&file).unwrap();
    }
}

fn config(file: &GoldenFile) -> Config {
    let number = |key: &str| file.number(key).unwrap();
    let flag = |key: &str| file.config()[key].as_bool().unwrap();
    let mut config = Config::new(number("clusters") as usize, number("window") as usize);
    config.causal = flag("causal");
    config.shared_qk = flag("shared_qk");
    config.scale = number("scale");
    config.epsilon = number("scatter_eps");
    config.decay = number("lambda_");
    config.commitment = number("beta");
    config
}

fn read<D: Dimension>(file: &GoldenFile, name: &str) -> Result<Array<f64, D>> {
    Ok(file.f64(name)?.into_dimensionality().unwrap())
}

fn close<D: Dimension>(what: &str, got: &Array<f64, D>, want: &Array<f64, D>, bound: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= bound, "{what}: {worst:e} above {bound:e}");
    println!("  {what}: {worst:.1e}");
}

fn check(file: &GoldenFile) -> Result<()> {
    let config = config(file);
    let [q, k, v]: [Array4<f64>; 3] = [read::<Ix4>(file, "q")?, read(file, "k")?, read(file, "v")?];
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    let means: Array3<f64> = read::<Ix3>(file, "centroids")?;
    let (heads, clusters, dim) = means.dim();
    let (sums, counts) = (read::<Ix3>(file, "ema_sum")?, read::<Ix2>(file, "ema_count")?);
    let centroids = Uninitialised::new(heads, clusters, dim)
        .with_means(means.view())?
        .with_averages(sums.view(), counts.view())?;
    let output = forward(inputs, None, &centroids, &config)?;

    let routes = &output.routes;
    for (name, got) in [("q_idx", &routes.queries), ("k_idx", &routes.keys)] {
        let want: Vec<i32> = file.i32(name)?.iter().copied().collect();
        let got: Vec<i32> = got.iter().flatten().flatten().map(|&token| token as i32).collect();
        assert_eq!(got, want, "{name}");
    }
    let want: Vec<i32> = file.i32("count")?.iter().copied().collect();
    assert_eq!(routes.counts.iter().map(|&n| n as i32).collect::<Vec<_>>(), want, "count");
    for (name, got) in [("assign_q", &routes.assigned_q), ("assign_k", &routes.assigned_k)] {
        let want: Vec<i32> = file.i32(name)?.iter().copied().collect();
        let got: Vec<i32> = got.iter().map(|cluster| cluster.unwrap() as i32).collect();
        assert_eq!(got, want, "{name}");
    }
    close("out", &output.out, &read::<Ix4>(file, "out")?, OUT);

    let next = update(inputs, routes, &centroids, &config)?;
    close("ema_sum_next", &next.sums, &read::<Ix3>(file, "ema_sum_next")?, CENTROIDS);
    close("ema_count_next", &next.counts, &read::<Ix2>(file, "ema_count_next")?, CENTROIDS);
    close("centroids_next_ema", &next.means, &read::<Ix3>(file, "centroids_next_ema")?, CENTROIDS);
    let paper = config.clone().with_rule(UpdateRule::Paper);
    let next = update(inputs, routes, &centroids, &paper)?;
    let want = read::<Ix3>(file, "centroids_next_paper")?;
    close("centroids_next_paper", &next.means, &want, CENTROIDS);

    let (loss, [dq_commit, dk_commit]) = commitment_loss(inputs, routes, &centroids, &config)?;
    let want = read::<Ix1>(file, "commit_loss")?;
    close("commit_loss", &ndarray::arr1(&[loss]), &want, LOSS);
    if file.contains("dout") {
        let d_out = read::<Ix4>(file, "dout")?;
        let grads = backward(inputs, routes, &config, d_out.view())?;
        close("dq", &grads.dq, &read::<Ix4>(file, "dq")?, GRAD);
        close("dk", &grads.dk, &read::<Ix4>(file, "dk")?, GRAD);
        close("dv", &grads.dv, &read::<Ix4>(file, "dv")?, GRAD);
        close("dq_commit", &dq_commit, &read::<Ix4>(file, "dq_commit")?, COMMIT_GRAD);
        close("dk_commit", &dk_commit, &read::<Ix4>(file, "dk_commit")?, COMMIT_GRAD);
    }
    on_the_device(file, &config, &centroids, routes)
}

/// The same on a device: routes exactly, numbers within the tolerances.
fn on_the_device(
    file: &GoldenFile,
    config: &Config,
    centroids: &reference::Centroids,
    routes: &reference::Routes,
) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let upload = |name| -> Result<Tensor> {
        let data = file.f32(name)?;
        Ok(Tensor::from_array(&gpu, &data.view()).unwrap())
    };
    let held = |name: &str, got: &Tensor, bound| -> Result<()> {
        let got = got.to_array::<f32>().unwrap().mapv(f64::from);
        close(&format!("{name} on the device"), &got, &file.f64(name)?, bound);
        Ok(())
    };
    let (q, k, v) = (upload("q")?, upload("k")?, upload("v")?);
    let inputs = attn_routing::Inputs::new(&q, &k, &v);
    let centroids = Centroids::upload(&gpu, centroids).unwrap();
    let layer = Routing::new(&gpu, config.clone()).unwrap();
    let (output, saved) = layer.forward_saved(inputs, None, &centroids).unwrap();
    assert_eq!(&output.routes.read().unwrap(), routes, "routes on the device");
    held("out", &output.out, OUT)?;

    let next = layer.update(inputs, &output.routes, &centroids).unwrap();
    held("ema_sum_next", &next.sums, CENTROIDS)?;
    held("ema_count_next", &next.counts, CENTROIDS)?;
    held("centroids_next_ema", &next.means, CENTROIDS)?;
    let paper = Routing::new(&gpu, config.clone().with_rule(UpdateRule::Paper)).unwrap();
    let next = paper.update(inputs, &output.routes, &centroids).unwrap();
    held("centroids_next_paper", &next.means, CENTROIDS)?;

    let commitment = layer.commitment_loss(inputs, &output.routes, &centroids).unwrap();
    held("commit_loss", &commitment.loss, LOSS)?;
    if file.contains("dout") {
        let d_out = upload("dout")?;
        let grads = layer.backward(&saved, Cotangents { out: &d_out }).unwrap();
        held("dq", &grads.dq, GRAD)?;
        held("dk", &grads.dk, GRAD)?;
        held("dv", &grads.dv, GRAD)?;
        held("dq_commit", &commitment.dq, COMMIT_GRAD)?;
        held("dk_commit", &commitment.dk, COMMIT_GRAD)?;
    }
    Ok(())
}
