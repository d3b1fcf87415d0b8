//! What is refused, and with which words.

use attn_core::dense;
use attn_vlsam::ndarray::Array4;
use attn_vlsam::reference::{flow_matrix, flow_rows, forward, raw_map};
use attn_vlsam::{
    AttentionFlow, AttentionSource, Config, LayerAttention, Layers, MAX_LAYERS, QueriesKeys,
    Regularisation, Tensor, TokenLayout,
};
use attn_wgpu::DType;
use attn_wgpu::testing::{gpu, open};

fn says<T>(result: Result<T, impl ToString>, part: &str) {
    let error = match result {
        Ok(_) => panic!("nothing refused, expected {part:?}"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(part), "{error:?} lacks {part:?}");
}

#[test]
fn layouts() {
    let valid = |image, grid, rows: &[usize]| TokenLayout::new(image, grid, rows).validate(10);
    valid(2..8, (2, 3), &[9, 0]).unwrap();
    says(valid(2..8, (2, 2), &[9]), "2 x 2 patches");
    says(valid(2..2, (0, 3), &[9]), "at least one");
    says(valid(0..9, (usize::MAX, 2), &[9]), "patches");
    says(valid(5..11, (2, 3), &[9]), "within 10 tokens");
    says(valid(2..8, (2, 3), &[10]), "within 10 tokens");
    says(valid(2..8, (2, 3), &[]), "at least one token");
    says(valid(2..8, (2, 3), &[9, 8, 9]), "9 twice");
    assert_eq!(TokenLayout::text(3..7, [9]), TokenLayout::new(3..7, (1, 4), [9]));
}

#[test]
fn on_the_host() {
    let layout = TokenLayout::text(0..4, [3]);
    let run = |shape, layout: &TokenLayout, counts: Option<&[usize]>| {
        forward(Array4::zeros(shape).view(), layout, &Config::new(), counts)
    };
    run((1, 1, 4, 4), &layout, None).unwrap();
    says(run((1, 1, 4, 5), &layout, None), "as many rows as columns");
    says(run((0, 1, 4, 4), &layout, None), "at least one layer");
    says(run((1, 0, 4, 4), &layout, None), "one head");
    says(run((1, 1, 3, 3), &layout, None), "within 3 tokens");
    says(run((1, 1, 4, 4), &layout, Some(&[1; 3])), "[4]");
    says(run((1, 1, 4, 4), &layout, Some(&[5; 4])), "at most 4");
    let maps = attn_vlsam::ndarray::Array3::<f64>::zeros((2, 4, 3));
    let factor = attn_vlsam::ndarray::Array1::ones(4);
    says(flow_matrix(maps.view(), Regularisation::None, factor.view()), "as many rows");
    let maps = attn_vlsam::ndarray::Array3::<f64>::zeros((2, 3, 3));
    says(flow_matrix(maps.view(), Regularisation::None, factor.view()), "[3]");
    let factor = attn_vlsam::ndarray::Array1::ones(3);
    says(flow_rows(maps.view(), &[3], Regularisation::None, factor.view()), "within 3 tokens");
    let rows = attn_vlsam::ndarray::Array2::<f64>::zeros((1, 3));
    says(raw_map(rows.view(), &layout), "within 3 tokens");
}

/// Says that it has more than it gives.
struct Short(Layers);

impl AttentionSource for Short {
    fn tokens(&self) -> usize {
        self.0.tokens()
    }

    fn layers(&self) -> usize {
        self.0.layers() + 1
    }

    fn layer(&self, layer: usize) -> attn_wgpu::Result<LayerAttention> {
        self.0.layer(layer)
    }
}

#[test]
fn on_a_device() {
    let Some(gpu) = gpu() else { return };
    let flow = AttentionFlow::new(&gpu, Config::new()).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let maps = |shape: &[usize]| LayerAttention::Maps(zeros(shape));
    let qk = |q: &[usize], k: &[usize]| {
        LayerAttention::QueriesKeys(QueriesKeys::new(&zeros(q), &zeros(k), dense::Config::new()))
    };
    let rows = |layers| flow.rows(&Layers::new(4, layers), &[3]);
    rows(vec![maps(&[2, 4, 4]), qk(&[1, 2, 4, 8], &[1, 1, 4, 8])]).unwrap();
    says(rows(vec![]), "1 to 126");
    says(flow.rows(&Layers::new(0, vec![maps(&[1, 0, 0])]), &[]), "at least one");
    says(rows(vec![maps(&[1, 4, 4]); MAX_LAYERS + 1]), "127");
    says(rows(vec![maps(&[4, 4])]), "[heads, 4, 4]");
    says(rows(vec![maps(&[1, 5, 5])]), "[heads, 4, 4]");
    says(rows(vec![maps(&[0, 4, 4])]), "at least one head");
    says(rows(vec![maps(&[1, 4, 4]), maps(&[2, 4, 4])]), "2 heads in every layer");
    says(rows(vec![qk(&[2, 2, 4, 8], &[2, 2, 4, 8])]), "[1, heads, 4, D]");
    says(rows(vec![qk(&[1, 2, 4, 8], &[1, 2, 5, 8])]), "[1, heads, 4, D]");
    says(rows(vec![qk(&[1, 0, 4, 8], &[1, 0, 4, 8])]), "at least one head");
    says(rows(vec![qk(&[1, 3, 4, 8], &[1, 2, 4, 8])]), "divide");
    says(rows(vec![qk(&[1, 2, 4, 8], &[1, 2, 4, 9])]), "dim_qk");
    let half = attn_wgpu::ops::convert(&zeros(&[1, 4, 4]), DType::F16).unwrap();
    says(rows(vec![LayerAttention::Maps(half)]), "f16");

    let source = Layers::new(4, vec![maps(&[1, 4, 4])]);
    says(flow.rows(&source, &[4]), "within 4 tokens");
    assert_eq!(flow.rows(&source, &[]).unwrap().rows.shape(), [0, 4]);
    says(source.layer(1), "below 1");
    says(flow.rows(&Short(source.clone()), &[0]), "below 1");
    says(flow.rows(&source.clone().with_column_counts(vec![1; 5]), &[0]), "[4]");
    says(flow.rows(&source.clone().with_column_counts(vec![5; 4]), &[0]), "at most 4");
    says(Layers::maps(&zeros(&[2, 3, 3])), "[layers, heads, N, N]");
    says(Layers::maps(&zeros(&[2, 1, 3, 4])), "as many rows as columns");

    let layout = TokenLayout::text(0..3, [3, 2]);
    let found = flow.rows(&source, &[3, 2]).unwrap();
    flow.map(&found, &layout).unwrap();
    says(flow.map(&found, &TokenLayout::text(0..3, [3])), "[1, N]");
    says(flow.map(&found, &TokenLayout::text(0..5, [3, 2])), "within 4 tokens");
    says(flow.forward(&source, &TokenLayout::text(0..3, [])), "at least one token");
    says(flow.forward_all(&source, &[layout.clone(), TokenLayout::text(0..9, [1])]), "within 4");

    // Not finite: the map cannot be read.
    let nan = Tensor::full(&gpu, &[1, 1, 4, 4], f32::NAN).unwrap();
    let output = flow.forward(&Layers::maps(&nan).unwrap(), &layout).unwrap();
    says(output.read(), "map");

    let Some(other) = open() else { return };
    let foreign = AttentionFlow::new(&other, Config::new()).unwrap();
    says(foreign.rows(&source, &[3]), "another Gpu");
    let source = Layers::new(4, vec![qk(&[1, 2, 4, 8], &[1, 1, 4, 8])]);
    says(foreign.rows(&source, &[3]), "another Gpu");
}
