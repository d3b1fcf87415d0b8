//! DARE: search, heads, loss.

use std::path::Path;

use attn_burn::attn_dare::{Config, Widths};
use attn_burn::nn::{Dare, DareConfig, DareHead, DareTables};
use attn_burn::ops::{self, Embeddings, Requests};
use attn_core::testing::golden::{GoldenFile, files};
use burn::module::{Module, Param};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::common::{device, normal, read, seeded, tensor};
use crate::{ints, one, values};

/// Absolute and relative, by the paper's specification.
const FEATURES: [f64; 2] = [2e-6, 1e-5];
const PROBABILITIES: [f64; 2] = [1e-5, 0.0];
const LOSS: [f64; 2] = [0.0, 1e-5];
const GRAD: [f64; 2] = [2e-5, 1e-4];

fn within(file: &GoldenFile, name: &str, got: &[f32], [absolute, relative]: [f64; 2]) {
    let want = values(file, name);
    assert_eq!(got.len(), want.len(), "{}: {name}", file.name);
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let apart = f64::from((got - want).abs());
        let bound = absolute + relative * f64::from(want.abs());
        assert!(apart <= bound, "{}: {name}[{at}]: {got} for {want}", file.name);
    }
}

fn requests(file: &GoldenFile, device: &Device) -> Requests {
    let times = (ints(file, "target_time", device), ints(file, "hist_time", device));
    Requests {
        item: ints(file, "target_item", device),
        category: ints(file, "target_cat", device),
        history_item: ints(file, "hist_item", device),
        history_category: ints(file, "hist_cat", device),
        times: Some(times),
        mask: Some(ints(file, "mask", device)),
    }
}

fn load(file: &GoldenFile, device: &Device) -> Dare {
    let widths = |side: &str| {
        let of = |part: &str| file.f32(&format!("{side}_{part}")).unwrap().shape()[1];
        Widths::new(of("item"), of("cat"), of("time"))
    };
    let keep = file.number("top_k").unwrap() as usize;
    let config = Config::new().with_widths(widths("att"), widths("rep")).with_keep(keep);
    let rows = |name: &str| file.f32(name).unwrap().shape()[0];
    let slots = rows("att_time");
    let extents = DareConfig::new(rows("att_item"), rows("att_cat"), slots - 1)
        .with_hidden(vec![rows("main_mlp.1.weight"), rows("main_mlp.3.weight")])
        .with_auxiliary_hidden(vec![rows("auxiliary_mlp.1.weight")]);
    let mut module = extents.init(config, device).unwrap();
    let tables = |side: &str| {
        let table = |part: &str| Param::from_tensor(one(file, &format!("{side}_{part}"), device));
        DareTables { item: table("item"), category: table("cat"), time: table("time") }
    };
    (module.attention, module.representation) = (Some(tables("att")), tables("rep"));
    for (name, head) in [("main_mlp", &mut module.main), ("auxiliary_mlp", &mut module.auxiliary)] {
        fill(head, file, name, device);
    }
    module
}

fn fill(head: &mut DareHead, file: &GoldenFile, name: &str, device: &Device) {
    let vector = |number: usize, part: &str| {
        Param::from_tensor(one::<1>(file, &format!("{name}.{number}.{part}"), device))
    };
    (head.norm.gamma, head.norm.beta) = (vector(0, "weight"), vector(0, "bias"));
    for (i, layer) in head.layers.iter_mut().enumerate() {
        let weight = one::<2>(file, &format!("{name}.{}.weight", 2 * i + 1), device);
        // Files have rows for what comes out, burn for what goes in.
        layer.weight = Param::from_tensor(weight.transpose());
        layer.bias = Some(vector(2 * i + 1, "bias"));
    }
    for (i, slope) in head.slopes.iter_mut().enumerate() {
        slope.alpha = vector(2 * i + 2, "weight");
    }
}

#[test]
fn losses_and_gradients_are_those_of_golden_files() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-rank/dare/tests/data");
    let mut seen = 0;
    for file in files(&folder, "dare").unwrap() {
        if !file.has(&["loss", "g_att_item", "main_mlp.0.weight"]) {
            continue;
        }
        let module = load(&file, &device);
        let features = module.features(requests(&file, &device)).unwrap();
        within(&file, "features", &read(features.main), FEATURES);
        within(&file, "aux_features", &read(features.auxiliary.unwrap()), FEATURES);
        let kept: Vec<i32> = features.index.into_data().try_to_vec().unwrap();
        assert_eq!(kept, file.i32("topk_index").unwrap().into_iter().collect::<Vec<_>>());
        let clicks = module.forward(requests(&file, &device)).unwrap();
        within(&file, "prob", &read(clicks.main), PROBABILITIES);

        let labels = ints::<2>(&file, "label", &device).float();
        let loss = module.loss(requests(&file, &device), labels, 0.0).unwrap();
        within(&file, "loss", &read(loss.clone()), LOSS);
        let grads = loss.backward();
        let stages = [("att", module.attention.as_ref().unwrap()), ("rep", &module.representation)];
        for (side, tables) in stages {
            for (part, table) in
                [("item", &tables.item), ("cat", &tables.category), ("time", &tables.time)]
            {
                let name = format!("g_{side}_{part}");
                within(&file, &name, &read(table.val().grad(&grads).unwrap()), GRAD);
            }
        }
        println!("checked {}", file.name);
        seen += 1;
    }
    assert!(seen > 0);
}

const ITEMS: usize = 30;
const CATEGORIES: usize = 5;
const HISTORY: usize = 12;

/// Of `count` requests, every third behaviour of the older half missing.
fn drawn(count: usize, device: &Device) -> Requests {
    let number = |at: usize, below: usize| (1 + (at * at * 7 + at * 3) % (below - 1)) as i32;
    let item = |at: usize| match (at % HISTORY < 6 && at.is_multiple_of(3), number(at, ITEMS)) {
        (true, _) => 0,
        (false, item) => item,
    };
    let ids = |data: Vec<i32>| {
        let count = data.len();
        Tensor::<1, Int>::from_data(TensorData::new(data, [count]), device)
    };
    let all = count * HISTORY;
    let history = |data: Vec<i32>| ids(data).reshape([count, HISTORY]);
    Requests::new(
        ids((0..count).map(|at| number(at + 50, ITEMS)).collect()),
        ids((0..count).map(|at| number(at + 50, CATEGORIES)).collect()),
        history((0..all).map(item).collect()),
        history((0..all).map(|at| number(at, CATEGORIES)).collect()),
    )
}

fn config(attention: usize) -> Config {
    Config::new().with_widths(Widths::each(attention), Widths::each(4)).with_keep(4)
}

/// Both stages read one set of tables: its gradient is the sum of those of two equal sets.
#[test]
fn tied_tables_get_both_gradients() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let op = ops::Dare::new(config(4)).unwrap();
    let table =
        |rows: usize, seed| tensor(&normal(rows * 4, seed), [rows, 4], &device).require_grad();
    let set = || [table(ITEMS, 1), table(CATEGORIES, 2), table(HISTORY + 1, 3)];
    let stage = |set: &[Tensor<2>; 3]| {
        let [item, category, time] = set.clone();
        Embeddings { item, category, time }
    };
    let run = |attention: &[Tensor<2>; 3], representation: &[Tensor<2>; 3]| {
        let features =
            op.forward(stage(attention), stage(representation), drawn(3, &device)).unwrap();
        let by = |seed| tensor(&normal(3 * 36, seed), [3, 36], &device);
        let loss =
            (features.main.clone() * by(4)).sum() + (features.auxiliary.unwrap() * by(5)).sum();
        (read(features.main), loss.backward())
    };
    let [one, attention, representation] = [set(), set(), set()];
    let (tied, grads) = run(&one, &one);
    let (apart, both) = run(&attention, &representation);
    assert_eq!(tied, apart);
    for table in 0..3 {
        let sum =
            attention[table].grad(&both).unwrap() + representation[table].grad(&both).unwrap();
        assert_eq!(read(one[table].grad(&grads).unwrap()), read(sum));
    }
}

/// What is kept of one behaviour does not depend on scores: the tables that search get no gradient.
#[test]
fn one_kept_behaviour_gives_the_search_no_gradient() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let config = config(3).with_keep(1).without_auxiliary();
    let op = ops::Dare::new(config).unwrap();
    let stage = |width: usize| {
        let table =
            |rows: usize| tensor(&normal(rows * width, 6), [rows, width], &device).require_grad();
        Embeddings { item: table(ITEMS), category: table(CATEGORIES), time: table(HISTORY + 1) }
    };
    let (attention, representation) = (stage(3), stage(4));
    let features =
        op.forward(attention.clone(), representation.clone(), drawn(3, &device)).unwrap();
    assert!(features.auxiliary.is_none());
    assert_eq!(read(features.weights), [1.0; 3]);
    let grads = features.main.square().sum().backward();
    assert!(read(attention.item.grad(&grads).unwrap()).iter().all(|x| *x == 0.0));
    assert!(read(representation.item.grad(&grads).unwrap()).iter().any(|x| *x != 0.0));
}

fn train(device: &Device, tied: bool, steps: usize) -> (Dare, Vec<f32>) {
    let extents = DareConfig::new(ITEMS, CATEGORIES, HISTORY).with_tied(tied);
    let extents = extents.with_hidden(vec![8, 4]).with_auxiliary_hidden(vec![8]);
    let mut model = seeded(device, || extents.init(config(4), device).unwrap());
    let mut adam = AdamConfig::new().init();
    let labels: Vec<f32> =
        (0..16).flat_map(|at| if at % 3 == 0 { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let labels = tensor(&labels, [16, 2], device);
        let loss = model.loss(drawn(16, device), labels, 1e-6).unwrap();
        losses.push(read(loss.clone())[0]);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(1e-2, model, grads);
    }
    (model, losses)
}

#[test]
fn training_repeats_itself_to_the_bit() {
    let Some(device) = device() else { return };
    for (tied, steps, least) in [(false, 10, 0.95), (true, 3, 1.0)] {
        let (model, losses) = train(&device.clone().autodiff(), tied, steps);
        assert!(losses[steps - 1] < least * losses[0], "{losses:?}");
        let (again, same) = train(&device.clone().autodiff(), tied, steps);
        assert_eq!(losses, same);
        let clicks = |model: Dare| read(model.valid().forward(drawn(16, &device)).unwrap().main);
        assert_eq!(clicks(model), clicks(again));
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(device) = device() else { return };
    let extents = DareConfig::new(ITEMS, CATEGORIES, HISTORY);
    assert!(extents.clone().with_tied(true).init(config(3), &device).is_err());
    assert!(extents.init(config(4).without_auxiliary(), &device).is_err());
    assert!(extents.init(config(4).with_keep(0), &device).is_err());
    assert!(DareConfig::new(0, CATEGORIES, HISTORY).init(config(4), &device).is_err());
    assert!(extents.clone().with_hidden(vec![8, 0]).init(config(4), &device).is_err());
    let widths = (Widths::each(4), Widths::new(4, 0, 4));
    assert!(extents.init(config(4).with_widths(widths.0, widths.1), &device).is_err());
    let short = DareConfig::new(ITEMS, CATEGORIES, HISTORY - 1).init(config(4), &device).unwrap();
    assert!(short.forward(drawn(3, &device)).is_err());

    let model = extents.init(config(4), &device).unwrap();
    assert!(model.forward(drawn(3, &device)).is_ok());
    let labels = |rows| Tensor::<2>::ones([rows, 2], &device);
    assert!(model.loss(drawn(3, &device), labels(3), 0.0).is_ok());
    assert!(model.loss(drawn(3, &device), labels(4), 0.0).is_err());
    let [three, four] = [drawn(3, &device), drawn(4, &device)];
    let wrong = Requests { category: four.category.clone(), ..three.clone() };
    assert!(model.forward(wrong).is_err());
    let wrong = Requests { history_category: four.history_category.clone(), ..three.clone() };
    assert!(model.forward(wrong).is_err());
    let wrong = Requests { mask: Some(four.history_item.clone()), ..three.clone() };
    assert!(model.forward(wrong).is_err());
    let wrong = Requests { times: Some((four.item.clone(), three.history_item.clone())), ..three };
    assert!(model.forward(wrong).is_err());

    let op = ops::Dare::new(config(4)).unwrap();
    let stage = |items: usize, width: usize| {
        let table = |rows: usize| Tensor::<2>::ones([rows, width], &device);
        Embeddings { item: table(items), category: table(CATEGORIES), time: table(HISTORY + 1) }
    };
    let run = |attention, representation| op.forward(attention, representation, drawn(3, &device));
    assert!(run(stage(ITEMS, 4), stage(ITEMS, 4)).is_ok());
    assert!(run(stage(ITEMS, 3), stage(ITEMS, 4)).is_err());
    assert!(run(stage(ITEMS, 4), stage(ITEMS - 1, 4)).is_err());
    assert!(run(stage(0, 4), stage(0, 4)).is_err());
}
