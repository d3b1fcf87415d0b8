//! Attention flow and maps, on the host and on a device.

use attn_core::Result;
use attn_core::testing::golden::GoldenFile;
use attn_vlsam::ndarray::{Array, Array1, Axis, Dimension, Ix1, Ix2, Ix3, Ix4};
use attn_vlsam::{
    AttentionFlow, Config, Layers, Regularisation, Tensor, TokenLayout, causal_counts,
    column_factor, reference,
};
use attn_wgpu::testing::gpu;

/// Tolerances of the specification in f32: absolute, and of flows relative to the largest element.
const WEIGHTS: f64 = 1e-6;
const FLOW: f64 = 1e-5;
const MAP: f64 = 1e-5;

pub const TENSORS: [&str; 9] = [
    "attn",
    "attn_agg",
    "column_factor",
    "flow",
    "flow_unreg",
    "head_weight",
    "map",
    "map_unreg",
    "rows",
];

fn read<D: Dimension>(file: &GoldenFile, name: &str) -> Result<Array<f64, D>> {
    Ok(file.f64(name)?.into_dimensionality().unwrap())
}

fn close<D: Dimension>(what: &str, got: &Array<f64, D>, want: &Array<f64, D>, bound: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("  {what}: {worst:.1e}");
    assert!(worst <= bound, "{what}: {worst:e} above {bound:e}");
}

fn relative<D: Dimension>(what: &str, got: &Array<f64, D>, want: &Array<f64, D>, bound: f64) {
    let largest = want.iter().fold(f64::MIN_POSITIVE, |most, x| most.max(x.abs()));
    close(what, &(got / largest), &(want / largest), bound);
}

pub fn check(file: &GoldenFile) -> Result<()> {
    let maps: Array<f64, Ix4> = read(file, "attn")?;
    let (layers, _, tokens, _) = maps.dim();
    let rows: Vec<usize> = file.i32("rows")?.iter().map(|row| *row as usize).collect();
    let first = file.number("image_start")? as usize;
    let (gh, gw) = {
        let shape = file.shape("map")?;
        (shape[0], shape[1])
    };
    let layout = TokenLayout::new(first..first + gh * gw, (gh, gw), rows.clone());

    let factor = Array1::from(column_factor(&causal_counts(tokens))?);
    close("column_factor", &factor, &read::<Ix1>(file, "column_factor")?, MAP);
    let aggregated: Array<f64, Ix3> = read(file, "attn_agg")?;
    let weights: Array<f64, Ix2> = read(file, "head_weight")?;
    for (layer, maps) in maps.outer_iter().enumerate() {
        let own = reference::head_weights(maps);
        close("head_weight", &own, &weights.row(layer).to_owned(), WEIGHTS);
        let own = reference::aggregate(maps, own.view());
        close("attn_agg", &own, &aggregated.index_axis(Axis(0), layer).to_owned(), WEIGHTS);
    }
    let kinds = [
        ("flow", "map", Regularisation::PerLayer),
        ("flow_unreg", "map_unreg", Regularisation::None),
    ];
    for (flow, map, regularisation) in kinds {
        let want: Array<f64, Ix2> = read(file, flow)?;
        // Errors of the file's own f32 in A are multiplied by every layer.
        let got = reference::flow_matrix(aggregated.view(), regularisation, factor.view())?;
        relative(flow, &got, &want, FLOW);
        let config = Config::new().with_regularisation(regularisation);
        let output = reference::forward(maps.view(), &layout, &config, None)?;
        relative("rows", &output.rows, &want.select(Axis(0), &rows), FLOW);
        close(map, &output.map, &read::<Ix2>(file, map)?, MAP);
    }
    // Once is none times the factor.
    let once = reference::forward(maps.view(), &layout, &Config::new(), None)?;
    let want = &read::<Ix2>(file, "flow_unreg")?.select(Axis(0), &rows) * &factor;
    relative("rows, once", &once.rows, &want, FLOW);
    println!("  {layers} layers, {tokens} tokens");
    on_the_device(file, &layout)
}

fn on_the_device(file: &GoldenFile, layout: &TokenLayout) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let maps = Tensor::from_array(&gpu, &file.f32("attn")?.view()).unwrap();
    let source = Layers::maps(&maps).unwrap();
    let wide = |tensor: &Tensor| -> Array<f64, Ix2> {
        tensor.to_array::<f32>().unwrap().mapv(f64::from).into_dimensionality().unwrap()
    };
    let tokens = maps.shape()[3];
    let all: Vec<usize> = (0..tokens).collect();
    let factor = Array1::from(column_factor(&causal_counts(tokens))?);
    let unregularised: Array<f64, Ix2> = read(file, "flow_unreg")?;
    let once = &unregularised * &factor;
    for (regularisation, want, map) in [
        (Regularisation::PerLayer, read::<Ix2>(file, "flow")?, Some("map")),
        (Regularisation::None, unregularised, Some("map_unreg")),
        (Regularisation::Once, once, None),
    ] {
        let config = Config::new().with_regularisation(regularisation);
        let method = AttentionFlow::new(&gpu, config).unwrap();
        // Every row, in several passes.
        let flow = method.rows(&source, &all).unwrap();
        let weights = wide(&flow.head_weights);
        close("head_weight on the device", &weights, &read::<Ix2>(file, "head_weight")?, WEIGHTS);
        relative("flow on the device", &wide(&flow.rows), &want, FLOW);
        let output = method.forward(&source, layout).unwrap();
        let got = wide(&output.map);
        match map {
            Some(map) => close("map on the device", &got, &read::<Ix2>(file, map)?, MAP),
            None => {
                let rows = want.select(Axis(0), &layout.object_rows);
                let want = reference::min_max(reference::raw_map(rows.view(), layout)?.view());
                close("map on the device, once", &got, &want, MAP);
            }
        }
        let host = output.read().unwrap();
        assert_eq!(host.grid(), layout.grid);
        assert_eq!(host.values(), output.map.to_vec::<f32>().unwrap());
    }
    Ok(())
}
