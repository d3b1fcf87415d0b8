//! Calls that are wrong or nearly empty.

use attn_dare::conflict::{conflicts, summary};
use attn_dare::reference::{self, Cotangents, backward, forward};
use attn_dare::{Batch, Config, Dare, Embeddings, Inputs, Saved, Tables, Tensor, Widths};
use attn_wgpu::testing::gpu;
use attn_wgpu::{DType, Error};
use ndarray::{Array1, Array2, arr2};

use crate::support::{batch, config, host, matrix, tables};

const ROWS: [usize; 3] = [20, 5, 13];

#[test]
fn configurations() {
    let wrong = |config: Config| config.validate().unwrap_err().to_string();
    assert!(wrong(Config::new().with_keep(0)).contains("`keep` is 0"));
    assert!(wrong(Config::new().with_keep(129)).contains("`keep` is 129"));
    let widths =
        |attention, other| Config::new().with_widths(Widths::each(attention), Widths::each(other));
    assert!(wrong(widths(0, 4)).contains("`attention` is 0"));
    assert!(wrong(widths(4, 257)).contains("`representation` is 257"));
    let usual = Config::new();
    assert_eq!((usual.attention.sum(), usual.features(), usual.keep), (48, 144, 20));
    assert_eq!(usual.without_target_aware().features(), 96);
}

/// Histories of nothing, of one behaviour, and of padding alone.
#[test]
fn smoke_short_histories() {
    let config = config([4, 4, 4], [4, 4, 4], 5);
    let own = tables(1, ROWS, &config);
    for (length, items) in
        [(0, vec![]), (1, vec![7]), (1, vec![0]), (3, vec![0, 0, 0]), (3, vec![0, 4, 0])]
    {
        let one = Array1::from_elem(1, 3);
        let history = Array2::from_shape_vec((1, length), items.clone()).unwrap();
        let categories = history.mapv(|item: u32| item.min(2));
        let data = reference::Batch::new(one.clone(), one, history, categories);
        let want = forward(&own, &data, &config).unwrap();
        let counting = items.iter().filter(|item| **item > 0).count();
        assert_eq!(want.h.iter().any(|x| *x != 0.0), counting > 0);
        assert_eq!(want.index.iter().filter(|j| **j >= 0).count(), counting);
        let Some(gpu) = gpu() else { continue };
        let tables = Tables::upload(&gpu, &own).unwrap();
        let batch = Batch::upload(&gpu, &data, &tables).unwrap();
        let dare = Dare::new(&gpu, config.clone()).unwrap();
        let (output, saved): (_, Saved) = dare.forward_saved(Inputs::new(&tables, &batch)).unwrap();
        crate::support::near("features", &output.features, want.features.view(), 1e-6);
        let auxiliary = output.auxiliary.unwrap().features;
        crate::support::near("auxiliary", &auxiliary, want.aux_features.view(), 1e-6);
        let grads = dare.backward(&saved, attn_dare::Cotangents::new(&auxiliary)).unwrap();
        // With one behaviour there is nothing to search among.
        assert!(grads.attention.item.to_vec::<f32>().unwrap().iter().all(|x| x.abs() < 1e-6));
    }
}

/// Ids outside of the tables: errors where the host sees them; else behaviours that do not count, and a
/// candidate that is no number.
#[test]
fn ids_that_tables_do_not_have() {
    let config = config([4, 4, 4], [4, 4, 4], 5);
    let own = tables(1, ROWS, &config);
    let data = batch(1, 4, 12, ROWS);
    let wrong = |change: &dyn Fn(&mut reference::Batch)| {
        let mut data = data.clone();
        change(&mut data);
        forward(&own, &data, &config).unwrap_err().to_string()
    };
    let slots = Array2::from_elem((4, 12), 13);
    for (message, part) in [
        (wrong(&|data| data.item[1] = 20), "`item` holds 20"),
        (wrong(&|data| data.category[1] = 5), "`category` holds 5"),
        (wrong(&|data| data.history_item[[3, 11]] = 20), "`history_item` holds 20"),
        (
            wrong(&|data| {
                data.history_item[[3, 11]] = 1;
                data.history_category[[3, 11]] = 9;
            }),
            "`history_category` holds 9",
        ),
        (wrong(&|data| data.history_time = Some(slots.clone())), "`history_time` holds 13"),
        (wrong(&|data| data.item = Array1::zeros(3)), "`item` has shape [3]"),
        (
            wrong(&|data| data.history_category = Array2::zeros((4, 11))),
            "`history_category` has shape",
        ),
        (wrong(&|data| data.mask = Some(Array2::from_elem((3, 12), true))), "`mask` has shape"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let Some(gpu) = gpu() else { return };
    let on = Tables::upload(&gpu, &own).unwrap();
    let mut bad = data.clone();
    bad.item[1] = 20;
    let refused = Batch::upload(&gpu, &bad, &on).unwrap_err().to_string();
    assert!(refused.contains("`item` holds 20"), "{refused}");
    // On the device nobody sees them: negative ones and large ones.
    let ids = |x: &Array2<u32>| x.mapv(|id| id as i32);
    let (mut items, categories) = (ids(&data.history_item), ids(&data.history_category));
    items[[3, 10]] = -5;
    items[[3, 4]] = 20;
    let up = |x: &Array2<i32>| Tensor::from_array(&gpu, &x.view().into_dyn()).unwrap();
    let one = |x: Vec<i32>| Tensor::from_slice(&gpu, &x, &[4]).unwrap();
    let category = one(data.category.iter().map(|&id| id as i32).collect());
    let mut item: Vec<i32> = data.item.iter().map(|&id| id as i32).collect();
    item[2] = -1;
    let given = Batch::new(one(item), category, up(&items), up(&categories));
    let dare = Dare::new(&gpu, config.clone()).unwrap();
    let (output, saved): (_, Saved) = dare.forward_saved(Inputs::new(&on, &given)).unwrap();
    let features = host::<ndarray::Ix2>(&output.features);
    let mut without = data;
    without.history_item[[3, 10]] = 0;
    without.history_item[[3, 4]] = 0;
    let want = forward(&own, &without, &config).unwrap().features;
    for b in [0, 1, 3] {
        let worst = crate::support::worst(features.row(b), want.row(b));
        assert!(worst < 1e-5, "request {b}: {worst:e}");
    }
    assert!(features.row(2).iter().take(12).all(|x| x.is_nan()));
    // Gradients of what is not there go nowhere.
    let dx = matrix(1, 1, 4, config.features());
    let dx = Tensor::from_array(&gpu, &dx.mapv(|x| x as f32).view().into_dyn()).unwrap();
    dare.backward(&saved, attn_dare::Cotangents::new(&dx)).unwrap();
    gpu.sync().unwrap();
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let config = config([4, 4, 4], [4, 4, 4], 5);
    let own = tables(1, ROWS, &config);
    let data = batch(1, 3, 12, ROWS);
    let out = forward(&own, &data, &config).unwrap();
    let dx = matrix(1, 1, 3, 35);
    let message = backward(&own, &data, &config, &out, Cotangents::new(dx.view())).unwrap_err();
    assert!(message.to_string().contains("`cotangents.features` has shape [3, 35]"));
    let mut short = own.clone();
    short.representation.as_mut().unwrap().category = Array2::zeros((4, 4));
    let message = forward(&short, &data, &config).unwrap_err().to_string();
    assert!(message.contains("`rep_cat` has shape [4, 4]"), "{message}");

    let Some(gpu) = gpu() else { return };
    assert!(Dare::new(&gpu, config.clone().with_keep(0)).is_err());
    let dare = Dare::new(&gpu, config.clone()).unwrap();
    let on = Tables::upload(&gpu, &own).unwrap();
    let good = Batch::upload(&gpu, &data, &on).unwrap();
    let text = |result: Result<(), Error>| result.unwrap_err().to_string();
    let run =
        |tables: &Tables, batch: &Batch| text(dare.forward(Inputs::new(tables, batch)).map(drop));
    let zeros = |shape: &[usize], dtype| Tensor::zeros(&gpu, shape, dtype).unwrap();
    let with = |change: &dyn Fn(&mut Batch)| {
        let mut batch = good.clone();
        change(&mut batch);
        run(&on, &batch)
    };
    let table = |change: &dyn Fn(&mut Embeddings)| {
        let mut tables = on.clone();
        change(&mut tables.representation);
        run(&tables, &good)
    };
    let features = zeros(&[3, 36], DType::F32);
    let into = |features: &Tensor, auxiliary: Option<&Tensor>| {
        text(dare.forward_saved_into(Inputs::new(&on, &good), features, auxiliary).map(drop))
    };
    let (output, saved): (_, Saved) = dare.forward_saved(Inputs::new(&on, &good)).unwrap();
    let back = |cotangents| text(dare.backward(&saved, cotangents).map(drop));
    let alone = Dare::new(&gpu, config.without_auxiliary()).unwrap();
    let (_, alone_saved) = alone.forward_saved(Inputs::new(&on, &good)).unwrap();
    let both = attn_dare::Cotangents::new(&features).with_auxiliary(&features);
    let long = zeros(&[3, 13], DType::U32);
    for (message, part) in [
        (with(&|batch| batch.item = zeros(&[3], DType::F32)), "`item` has element type f32"),
        (with(&|batch| batch.item = zeros(&[3, 1], DType::U32)), "`item` has shape [3, 1]"),
        (with(&|batch| batch.item = zeros(&[2], DType::U32)), "`history_item` has shape [3, 12]"),
        (with(&|batch| batch.category = zeros(&[2], DType::U32)), "`category` has shape [2]"),
        (with(&|batch| batch.history_category = long.clone()), "`history_category` has shape"),
        (
            with(&|batch| {
                (batch.history_item, batch.history_category) = (long.clone(), long.clone())
            }),
            "at most 12 behaviours",
        ),
        (with(&|batch| batch.mask = Some(long.clone())), "`mask` has shape [3, 13]"),
        (with(&|batch| batch.time = Some(long.clone())), "`time` has shape [3, 13]"),
        (table(&|own| own.item = zeros(&[20, 5], DType::F32)), "`rep_item` has shape [20, 5]"),
        (table(&|own| own.category = zeros(&[6, 4], DType::F32)), "`rep_cat` has shape [6, 4]"),
        (table(&|own| own.time = zeros(&[13, 4], DType::F16)), "`rep_time` has element type f16"),
        (table(&|own| own.time = zeros(&[13], DType::F32)), "`rep_time` has shape [13]"),
        (into(&zeros(&[3, 35], DType::F32), Some(&features)), "`features` has shape [3, 35]"),
        (into(&features, Some(&zeros(&[2, 36], DType::F32))), "`auxiliary` has shape [2, 36]"),
        (into(&features, None), "`auxiliary` is none"),
        (back(attn_dare::Cotangents::default()), "`cotangents` is none"),
        (
            back(attn_dare::Cotangents::new(&zeros(&[3, 36], DType::F16))),
            "`cotangents.features` has element type f16",
        ),
        (text(alone.backward(&alone_saved, both).map(drop)), "`cotangents.auxiliary` is one"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let item = zeros(&[20, 3], DType::F32);
    let mut targets = attn_dare::Targets::default();
    targets.attention.item = Some(&item);
    let cotangents = attn_dare::Cotangents::new(&output.features);
    let message = text(dare.backward_into(&saved, cotangents, targets));
    assert!(message.contains("`targets` has shape [20, 3]"), "{message}");
}

/// Domination and conflict, row by row.
#[test]
fn gradients_that_meet() {
    let by_search = arr2(&[[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]);
    let by_pooling = arr2(&[[0.0, 0.0], [-3.0, 0.0], [5.0, 0.0], [1.0, 1.0]]);
    let found = conflicts(by_search.view(), by_pooling.view()).unwrap();
    let all: Vec<_> = found.iter().map(|one| (one.row, one.ratio, one.cosine)).collect();
    assert_eq!(all, [(1, 3.0, -1.0), (2, 2.5, 0.0), (3, f64::INFINITY, 0.0)]);
    let summary = summary(&found).unwrap();
    assert_eq!((summary.ratio, summary.rows), (3.0, 3));
    assert!((summary.opposed - 1.0 / 3.0).abs() < 1e-15);
    assert!(attn_dare::conflict::summary(&[]).is_none());
    assert!(conflicts(by_search.view(), arr2(&[[0.0]]).view()).is_err());
}
