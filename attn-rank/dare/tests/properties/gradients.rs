//! Gradients: of the reference by differences, of the device by the reference.

use attn_dare::reference::{self, Cotangents, Embeddings, Tables, backward, forward};
use attn_dare::{Config, Dare, EmbeddingTargets, Inputs, Saved, Scores, Search, Targets, Tensor};
use attn_wgpu::DType;
use attn_wgpu::testing::gpu;
use ndarray::Array2;

use crate::support::{Rows, batch, bits_of, config, matrix, near, tables, up};

const ROWS: Rows = [17, 5, 12];

/// The loss of both heads' features, and what was kept.
fn loss(
    tables: &Tables,
    batch: &reference::Batch,
    config: &Config,
    dx: &[Array2<f64>; 2],
) -> (f64, Array2<i64>) {
    let out = forward(tables, batch, config).unwrap();
    ((&out.features * &dx[0]).sum() + (&out.aux_features * &dx[1]).sum(), out.index)
}

fn each(embeddings: &mut Embeddings) -> [&mut Array2<f64>; 3] {
    [&mut embeddings.item, &mut embeddings.category, &mut embeddings.time]
}

/// Every element of every table, by central differences.
#[test]
fn differences() {
    let configs = [
        config([3, 2, 4], [2, 3, 1], 4),
        config([3, 2, 4], [2, 3, 1], 4).with_scores(Scores::Joint),
        config([2, 2, 2], [3, 1, 2], 3).without_target_aware(),
        config([2, 2, 2], [3, 1, 2], 3).with_search(Search::Category),
    ];
    for (seed, config) in configs.iter().enumerate() {
        let seed = seed as u64;
        let (tables, batch) = (tables(seed, ROWS, config), batch(seed, 3, 11, ROWS));
        let dx = [0, 1].map(|i| matrix(seed, 90 + i, 3, config.features()));
        let out = forward(&tables, &batch, config).unwrap();
        let cotangents = Cotangents::new(dx[0].view()).with_auxiliary(dx[1].view());
        let mut grads = backward(&tables, &batch, config, &out, cotangents).unwrap();
        let mut compared = 0;
        for stage in 0..2 {
            for table in 0..3 {
                let own = if stage == 0 { &mut grads.attention } else { &mut grads.representation };
                let gradient = each(own)[table].clone();
                for ((r, c), &got) in gradient.indexed_iter() {
                    let at = |step: f64| {
                        let mut moved = tables.clone();
                        let own = if stage == 0 {
                            &mut moved.attention
                        } else {
                            moved.representation.as_mut().unwrap()
                        };
                        each(own)[table][[r, c]] += step;
                        loss(&moved, &batch, config, &dx)
                    };
                    let ((up, kept), (down, other)) = (at(1e-5), at(-1e-5));
                    if kept == out.index && other == out.index {
                        let want = (up - down) / 2e-5;
                        assert!(
                            (got - want).abs() < 1e-7 * (1.0 + want.abs()),
                            "{stage} {table} {r} {c}: {got} for {want}"
                        );
                        compared += 1;
                    }
                }
            }
        }
        assert!(compared > 100, "{compared}");
    }
}

/// Odd widths, short histories, all variants.
#[test]
fn smoke_device_gradients() {
    let Some(gpu) = gpu() else { return };
    let configs = [
        (config([4, 4, 4], [8, 4, 4], 5), 4, 23),
        (config([3, 5, 2], [6, 10, 3], 7).with_scores(Scores::Joint), 3, 24),
        (config([4, 1, 3], [2, 3, 1], 20).without_target_aware(), 5, 9),
        (config([4, 4, 4], [4, 4, 4], 3).without_auxiliary(), 4, 23),
        (config([4, 4, 4], [4, 4, 4], 3).with_search(Search::Category), 6, 23),
        (config([4, 4, 4], [4, 4, 4], 3), 2, 0),
        (config([4, 4, 4], [4, 4, 4], 3), 0, 4),
    ];
    for (seed, (config, requests, length)) in configs.into_iter().enumerate() {
        let seed = seed as u64 + 50;
        let rows = [30, 6, 25];
        let (own, data) = (tables(seed, rows, &config), batch(seed, requests, length, rows));
        let dx = [0, 1].map(|i| matrix(seed, 90 + i, requests, config.features()));
        let want = forward(&own, &data, &config).unwrap();
        let mut cotangents = Cotangents::new(dx[0].view());
        if config.auxiliary {
            cotangents = cotangents.with_auxiliary(dx[1].view());
        }
        let by_host = backward(&own, &data, &config, &want, cotangents).unwrap();

        let dare = Dare::new(&gpu, config.clone()).unwrap();
        let on = attn_dare::Tables::upload(&gpu, &own).unwrap();
        let batch = attn_dare::Batch::upload(&gpu, &data, &on).unwrap();
        let (output, saved) = dare.forward_saved(Inputs::new(&on, &batch)).unwrap();
        let what = format!("case {seed}");
        near(&what, &output.features, want.features.view(), 3e-6);
        let index = output.index.to_array::<i32>().unwrap().mapv(i64::from);
        assert_eq!(index, want.index.into_dyn(), "{what}");
        let dx = dx.map(|dx| up(&gpu, dx.view()));
        let mut cotangents = attn_dare::Cotangents::new(&dx[0]);
        if let Some(auxiliary) = &output.auxiliary {
            near(&what, &auxiliary.features, want.aux_features.view(), 3e-6);
            cotangents = cotangents.with_auxiliary(&dx[1]);
        }
        let grads = dare.backward(&saved, cotangents).unwrap();
        let pairs = [
            (&grads.attention, &by_host.attention),
            (&grads.representation, &by_host.representation),
        ];
        for (got, want) in pairs {
            near(&what, &got.item, want.item.view(), 1e-5);
            near(&what, &got.category, want.category.view(), 1e-5);
            near(&what, &got.time, want.time.view(), 1e-5);
        }
        // The same bits again, also where a target is left out.
        let again = dare.backward(&saved, cotangents).unwrap();
        assert_eq!(bits_of(&again.attention.time), bits_of(&grads.attention.time));
        let item = Tensor::uninit(&gpu, grads.attention.item.shape(), DType::F32).unwrap();
        let attention = EmbeddingTargets { item: Some(&item), ..EmbeddingTargets::default() };
        let targets = Targets { attention, ..Targets::default() };
        dare.backward_into(&saved, cotangents, targets).unwrap();
        assert_eq!(bits_of(&item), bits_of(&grads.attention.item));
    }
}

/// Tables tied on the device: the forward pass of TWIN bit for bit, and the sum of both gradients.
#[test]
fn tied_on_the_device() {
    let Some(gpu) = gpu() else { return };
    let (rows, config) = ([30, 6, 25], config([4, 8, 4], [4, 8, 4], 6));
    let own = tables(3, rows, &config).attention;
    let twice = Tables::new(own.clone(), own.clone());
    let tied = attn_dare::Tables::upload(&gpu, &Tables::tied(own)).unwrap();
    let apart = attn_dare::Tables::upload(&gpu, &twice).unwrap();
    assert!(tied.is_tied() && !apart.is_tied());
    assert_eq!(2 * tied.bytes(), apart.bytes());
    let batch = attn_dare::Batch::upload(&gpu, &batch(3, 5, 20, rows), &tied).unwrap();
    let dare = Dare::new(&gpu, config.clone()).unwrap();
    let dx = up(&gpu, matrix(3, 90, 5, config.features()).view());
    let run = |tables: &attn_dare::Tables| {
        let (output, saved): (_, Saved) = dare.forward_saved(Inputs::new(tables, &batch)).unwrap();
        assert!(saved.bytes() > 0);
        let cotangents = attn_dare::Cotangents::new(&dx).with_auxiliary(&dx);
        (output, dare.backward(&saved.with_tables(tables), cotangents).unwrap())
    };
    let ((one, by_tied), (other, by_apart)) = (run(&tied), run(&apart));
    assert_eq!(bits_of(&one.features), bits_of(&other.features));
    assert_eq!(
        bits_of(&one.auxiliary.unwrap().features),
        bits_of(&other.auxiliary.unwrap().features)
    );
    let sum = by_tied.tied().unwrap();
    for (sum, a, r) in [
        (&sum.item, &by_apart.attention.item, &by_apart.representation.item),
        (&sum.category, &by_apart.attention.category, &by_apart.representation.category),
        (&sum.time, &by_apart.attention.time, &by_apart.representation.time),
    ] {
        assert_eq!(bits_of(sum), bits_of(&attn_wgpu::ops::add(a, r).unwrap()));
    }
}
