//! Vectors from the authors' code and, for short histories, from the equations. `ATTN_GOLDEN_DIR` adds a
//! folder of more.

use std::path::PathBuf;

use attn_core::ArrayFile;
use attn_core::testing::golden::{self, GoldenFile};
use attn_dare::reference::{self, Batch, HeadCotangents, Tables};
use attn_dare::{
    Config, Dare, Embeddings, Gpu, Head, HeadInputs, Inputs, Parameters, Tensor, Widths,
};
use attn_wgpu::testing::gpu;
use ndarray::{Array, Array1, ArrayD, Dimension, Ix1, Ix2};

/// Absolute and relative, of the specification, on the host and on the device. Batch normalisation over four
/// to six rows amplifies rounding in gradients.
const FORWARD: (f64, f64) = (2e-6, 1e-5);
const PROB: (f64, f64) = (1e-5, 0.0);
const LOSS: (f64, f64) = (0.0, 1e-5);
const GRAD: (f64, f64) = (2e-5, 1e-4);

const SEARCH: [&str; 12] = [
    "target_item",
    "target_cat",
    "target_time",
    "hist_item",
    "hist_cat",
    "hist_time",
    "mask",
    "scores",
    "topk_index",
    "weights",
    "weights_full",
    "h",
];

#[test]
fn dare() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "dare").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        println!("{}", file.path().display());
        assert!(file.has(&SEARCH), "{}: of no known kind", file.path().display());
        let case = Case::read(&file);
        host(&file, &case);
        if let Some(gpu) = gpu() {
            device(&file, &case, &gpu);
        }
    }
}

struct Case {
    config: Config,
    tables: Tables,
    batch: Batch,
    /// Main and auxiliary.
    heads: Option<[reference::Head; 2]>,
    label: Array1<u32>,
}

impl Case {
    fn read(file: &GoldenFile) -> Case {
        let widths = |name: &str| {
            let width = |key: &str| file.config()[name][key].as_u64().unwrap() as usize;
            Widths::new(width("item"), width("category"), width("time"))
        };
        let config = Config::new()
            .with_widths(widths("dims_attention"), widths("dims_representation"))
            .with_keep(file.number("top_k").unwrap() as usize);
        let batch = Batch::new(
            ids::<Ix1>(file, "target_item"),
            ids::<Ix1>(file, "target_cat"),
            ids::<Ix2>(file, "hist_item"),
            ids::<Ix2>(file, "hist_cat"),
        );
        let batch = batch
            .with_times(ids::<Ix1>(file, "target_time"), ids::<Ix2>(file, "hist_time"))
            .with_mask(ids::<Ix2>(file, "mask").mapv(|mask| mask != 0));
        let arrays = ArrayFile::open(file.path()).unwrap();
        let head = |prefix| reference::Head::read(&arrays, prefix).unwrap();
        let heads = file.contains("loss").then(|| [head("main_mlp"), head("auxiliary_mlp")]);
        // Column 0 of the labels is a click.
        let label = ids::<Ix2>(file, "label").column(0).mapv(|click| 1 - click);
        Case { config, tables: Tables::load(file.path()).unwrap(), batch, heads, label }
    }
}

fn ids<D: Dimension>(file: &GoldenFile, name: &str) -> Array<u32, D> {
    file.i32(name).unwrap().mapv(|id| id as u32).into_dimensionality().unwrap()
}

fn close(file: &GoldenFile, name: &str, got: &ArrayD<f64>, (absolute, relative): (f64, f64)) {
    let want = file.f64(name).unwrap();
    assert_eq!(got.shape(), want.shape(), "{name}");
    let masked = |x: f64| if x <= -1e9 { -1e9 } else { x };
    let error = |(&got, &want): (&f64, &f64)| {
        (masked(got) - want).abs() / (absolute + relative * want.abs())
    };
    let worst = got.iter().zip(&want).map(error).fold(0.0, f64::max);
    println!("  {name}: {worst:.3} of the tolerance");
    assert!(worst <= 1.0, "{name}: {worst} times the tolerance");
}

fn host(file: &GoldenFile, case: &Case) {
    let Case { config, tables, batch, heads, label } = case;
    let output = reference::forward(tables, batch, config).unwrap();
    assert_eq!(output.index.clone().into_dyn(), file.i32("topk_index").unwrap().mapv(i64::from));
    for (name, got) in [
        ("scores", &output.scores),
        ("weights", &output.weights),
        ("weights_full", &output.weights_full),
        ("h", &output.h),
        ("h_full", &output.h_full),
        ("features", &output.features),
        ("aux_features", &output.aux_features),
    ] {
        close(file, name, &got.clone().into_dyn(), FORWARD);
    }
    let Some([main, auxiliary]) = heads else { return };
    let run = |head: &reference::Head, x: &ndarray::Array2<f64>| {
        let (out, saved) = head.forward(x.view(), None).unwrap();
        let (loss, by_prob) = out.loss(label.view()).unwrap();
        let grads = head.backward(&saved, HeadCotangents { prob: by_prob.view() }).unwrap();
        (out, loss, grads)
    };
    let (out, loss, by_main) = run(main, &output.features);
    let (_, aux_loss, by_auxiliary) = run(auxiliary, &output.aux_features);
    close(file, "prob", &out.prob.into_dyn(), PROB);
    close(file, "loss", &Array1::from_elem(1, loss + aux_loss).into_dyn(), LOSS);
    close(file, "aux_loss", &Array1::from_elem(1, aux_loss).into_dyn(), LOSS);
    let cotangents =
        reference::Cotangents::new(by_main.x.view()).with_auxiliary(by_auxiliary.x.view());
    let grads = reference::backward(tables, batch, config, &output, cotangents).unwrap();
    for (stage, own) in [("att", &grads.attention), ("rep", &grads.representation)] {
        for (table, own) in [("item", &own.item), ("cat", &own.category), ("time", &own.time)] {
            close(file, &format!("g_{stage}_{table}"), &own.clone().into_dyn(), GRAD);
        }
    }
}

/// What a device computed.
fn held(file: &GoldenFile, name: &str, got: &Tensor, bound: (f64, f64)) {
    close(file, name, &got.to_array::<f32>().unwrap().mapv(f64::from), bound);
}

fn device(file: &GoldenFile, case: &Case, gpu: &Gpu) {
    println!("  on the device");
    let dare = Dare::new(gpu, case.config.clone()).unwrap();
    let tables = attn_dare::Tables::load(gpu, file.path()).unwrap();
    let batch = attn_dare::Batch::upload(gpu, &case.batch, &tables).unwrap();
    let (output, saved) = dare.forward_saved(Inputs::new(&tables, &batch)).unwrap();
    let index = output.index.to_array::<i32>().unwrap();
    assert_eq!(index, file.i32("topk_index").unwrap());
    // Weights of what was kept, at their places in the history.
    let kept = output.weights.to_array::<f32>().unwrap();
    let mut weights = ArrayD::zeros(file.shape("weights").unwrap());
    for ((at, &j), &weight) in index.indexed_iter().zip(&kept) {
        match usize::try_from(j) {
            Ok(j) => weights[[at[0], j]] = f64::from(weight),
            Err(_) => assert_eq!(weight, 0.0),
        }
    }
    close(file, "weights", &weights, FORWARD);
    held(file, "h", &output.pooled(&case.config).unwrap(), FORWARD);
    held(file, "features", &output.features, FORWARD);
    let auxiliary = output.auxiliary.as_ref().unwrap();
    held(file, "scores", &auxiliary.scores, FORWARD);
    held(file, "weights_full", &auxiliary.weights, FORWARD);
    held(file, "h_full", &auxiliary.pooled(&case.config).unwrap(), FORWARD);
    held(file, "aux_features", &auxiliary.features, FORWARD);
    let Some(heads) = &case.heads else { return };

    let head = Head::new(gpu);
    let label = Tensor::from_array(gpu, &case.label.view().into_dyn()).unwrap();
    let one = Tensor::from_slice(gpu, &[1f32], &[1]).unwrap();
    let run = |own: &reference::Head, x: &Tensor| {
        let parameters = Parameters::upload(gpu, own).unwrap();
        let inputs = HeadInputs::new(x, &parameters).with_label(&label);
        let (out, saved) = head.forward_saved(inputs).unwrap();
        let cotangents = attn_dare::HeadCotangents::of_loss(&one);
        let grads = head.backward(&saved, cotangents).unwrap();
        (out, grads)
    };
    let (main, by_main) = run(&heads[0], &output.features);
    let (other, by_auxiliary) = run(&heads[1], &auxiliary.features);
    held(file, "prob", &main.prob, PROB);
    let (loss, aux_loss) = (main.loss.unwrap(), other.loss.unwrap());
    held(file, "loss", &attn_wgpu::ops::add(&loss, &aux_loss).unwrap(), LOSS);
    held(file, "aux_loss", &aux_loss, LOSS);
    let cotangents = attn_dare::Cotangents::new(&by_main.x).with_auxiliary(&by_auxiliary.x);
    let grads = dare.backward(&saved, cotangents).unwrap();
    let stage = |stage: &str, own: &Embeddings| {
        for (table, own) in [("item", &own.item), ("cat", &own.category), ("time", &own.time)] {
            held(file, &format!("g_{stage}_{table}"), own, GRAD);
        }
    };
    stage("att", &grads.attention);
    stage("rep", &grads.representation);
}
