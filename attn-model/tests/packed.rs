//! Quantised weights that stay packed: the same model as from unpacked ones, in less memory.

mod common;
/// The policy of the example, with its `main`.
#[allow(dead_code)]
#[path = "../examples/own_policy.rs"]
mod own_policy;

use attn_core::testing::TensorFile;
use attn_model::attn_wgpu::Gpu;
use attn_model::policy::{Dense, SinkPositions, SinkWindow};
use attn_model::{
    AttentionPolicy, Blob, BlockType, DType, Generate, HeadEdit, HeadEdits, Model, Options, Pass,
    Session, Source, WeightForm, cache_bytes, weight_bytes, weight_forms,
};
use attn_wgpu::testing::gpu;
use common::policies::{Raw, Remembering};
use common::reference::{Recorder, all_logits, close, floats, sequence, tokens};
use common::{data, golden, quantised};
use own_policy::SelfExtend;

/// Tolerance of logits, of golden data and between two orders of sums.
const EXACT: f64 = 1e-4;
/// Tolerance of weights of attention.
const WEIGHTS: f64 = 1e-5;

fn open(arch: &str) -> Source {
    Source::from_gguf(Blob::from_bytes(arch, quantised::model(arch))).unwrap()
}

fn load(gpu: &Gpu, source: &Source, options: Options) -> Model {
    Model::from_source(gpu, source, options, &mut |_, _| ()).unwrap()
}

/// One with packed weights, and one with the same weights in f32.
fn both(arch: &str) -> Option<[Model; 2]> {
    let (gpu, source) = (gpu()?, open(arch));
    let exact = Options::exact();
    Some([load(&gpu, &source, exact.with_packed(true)), load(&gpu, &source, exact)])
}

fn text(len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + 13) % 96) as u32).collect()
}

fn near(what: &str, got: &[f32], expected: &[f32]) {
    let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
    close(what, got, &expected, EXACT);
}

fn logits(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    let hidden = session.forward(tokens).unwrap();
    all_logits(session, &hidden)
}

#[test]
fn golden_files_of_mixed_types() {
    let Some(gpu) = gpu() else { return };
    for path in golden("gguf", ".gguf") {
        let file = TensorFile::read(path.with_extension("expected.safetensors")).unwrap();
        let model = Model::load(&gpu, &path, Options::exact().with_packed(true)).unwrap();
        let packed: Vec<_> = model
            .weight_forms()
            .iter()
            .filter(|form| form.is_packed)
            .map(|form| form.name)
            .collect();
        assert!(!packed.is_empty(), "{}", path.display());
        for number in 0..file.shape("input_ids").unwrap()[0] {
            let ids = tokens(&file, "input_ids", number);
            let mut session = model.session(ids.len()).unwrap();
            let logits = logits(&mut session, &ids);
            close("logits", &logits, &sequence(&file, "logits", number), EXACT);
        }
        println!("checked {} with packed {}", path.display(), packed.join(", "));
    }
}

#[test]
fn logits_of_packed_weights_are_those_of_unpacked_ones() {
    for arch in ["llama", "qwen2"] {
        let Some([packed, exact]) = both(arch) else { return };
        let ids = text(41);
        let (mut own, mut other) = (packed.session(0).unwrap(), exact.session(0).unwrap());
        // Few rows and many: products of both have kernels of their own.
        for part in [&ids[..1], &ids[1..4], &ids[4..], &ids[..33]] {
            near(arch, &logits(&mut own, part), &logits(&mut other, part));
        }
        let largest = logits(&mut own, &ids).into_iter().fold(0.0, f32::max);
        assert!((1.0..20.0).contains(&largest), "{largest}: of a size that 1e-4 says something of");
    }
}

/// What looks into a model, changes it or goes through it in another way.
#[test]
fn all_ways_through_a_model() {
    let Some([packed, exact]) = both("qwen2") else { return };
    let ids = text(30);
    let edits = HeadEdits::new().with(0, 1, HeadEdit::Zero).with(1, 0, HeadEdit::Uniform).with(
        1,
        3,
        HeadEdit::Replace(vec![0.25; 64]),
    );
    let run = |model: &Model| {
        let mut session = model.session(0).unwrap();
        let mut seen = Recorder::of(model.config(), &[0, 1]);
        session.forward_with(&ids, Pass::new().with_observer(&mut seen)).unwrap();
        let stream = session.run_to(1, &ids, Pass::new()).unwrap();
        let projection = model.project(1, &stream.narrow(0, 3, 9).unwrap()).unwrap();
        session.truncate(11).unwrap();
        session.edit_heads(&edits).unwrap();
        let mut fork = session.fork().unwrap();
        let edited = logits(&mut fork, &ids[..5]);
        let parts = [&projection.q, &projection.k, &projection.v].map(floats).concat();
        let scores = model.session(0).unwrap().score(&ids).unwrap();
        (seen, parts, edited, scores)
    };
    let (own, other) = (run(&packed), run(&exact));
    for (layer, map) in &own.0.maps {
        close(&format!("attention of layer {layer}"), map, &other.0.maps[layer], WEIGHTS);
    }
    for (layer, stream) in own.0.hidden.iter().enumerate() {
        near(&format!("stream of layer {layer}"), stream, &other.0.hidden[layer]);
    }
    near("projection", &own.1, &other.1);
    near("with edits", &own.2, &other.2);
    near("scores", &own.3, &other.3);
}

#[test]
fn every_policy_runs_on_packed_weights() {
    let Some([packed, exact]) = both("llama") else { return };
    let ids = text(50);
    let policies: [(&str, Box<dyn AttentionPolicy>); 6] = [
        ("dense", Box::new(Dense)),
        ("raw", Box::new(Raw)),
        ("remembering", Box::<Remembering>::default()),
        ("sink window", Box::new(SinkWindow::new(3, 17))),
        ("in the text", Box::new(SinkWindow::new(2, 9).with_positions(SinkPositions::Text))),
        ("own", Box::new(SelfExtend { window: 12, group: 3 })),
    ];
    for (name, policy) in policies {
        let run = |model: &Model| {
            let policy = policy.fork().unwrap();
            let mut session = Session::with_policy(model, 50, policy).unwrap();
            logits(&mut session, &ids)
        };
        near(name, &run(&packed), &run(&exact));
    }
    let run = |model: &Model| -> Vec<u32> {
        let mut session = model.session(64).unwrap();
        session.generate(&ids, Generate::greedy(8)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(run(&packed), run(&exact));
}

#[test]
fn forms_are_told_before_loading() {
    let source = open("llama");
    let name = |form: &WeightForm| (form.name, form.is_packed, form.tensors);
    let forms = |options| weight_forms(&source, options).iter().map(name).collect::<Vec<_>>();
    // Q5 types are unpacked.
    let expected = [
        ("Q6_K", true, 3),
        ("Q4_K", true, 3),
        ("Q4_0", true, 1),
        ("Q4_1", true, 1),
        ("Q8_0", true, 4),
        ("bf16", false, 3),
        ("f32", false, 5),
    ];
    assert_eq!(forms(Options::packed().with_weights(DType::BF16)), expected);
    assert_eq!(forms(Options::default()), [("f16", false, 15), ("f32", false, 5)]);
    let elements =
        |options| weight_forms(&source, options).iter().map(|form| form.elements).sum::<u64>();
    let all: usize =
        source.config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!((elements(Options::packed()), elements(Options::exact())), (all as u64, all as u64));
    // A folder has no blocks.
    let folder = Source::open(data("models/tiny-qwen2")).unwrap();
    let dense = Options::default();
    assert_eq!(weight_forms(&folder, Options::packed()), weight_forms(&folder, dense));
}

#[test]
fn memory_is_what_was_foretold() {
    if gpu().is_none() {
        return;
    }
    // A device of its own: its counters are those of this test.
    let gpu = Gpu::new().unwrap();
    let mut sources = vec![open("llama"), open("qwen2")];
    sources.extend(golden("gguf", ".gguf").iter().map(|path| Source::open(path).unwrap()));
    for name in ["tiny-qwen2", "tiny-gemma3"] {
        sources.push(Source::open(data(&format!("models/{name}"))).unwrap());
    }
    for source in &sources {
        let mut bytes = Vec::new();
        for options in [Options::exact(), Options::default(), Options::packed()] {
            let before = gpu.memory().in_use;
            let foretold = weight_bytes(source, options);
            let mut steps = Vec::new();
            let mut progress = |done, total| steps.push((done, total));
            let model = Model::from_source(&gpu, source, options, &mut progress).unwrap();
            assert_eq!(gpu.memory().in_use - before, foretold, "{options:?}");
            assert_eq!(
                (model.bytes(), steps.last().copied()),
                (foretold, Some((foretold, foretold)))
            );
            assert!(steps.is_sorted());
            bytes.push(foretold);

            let loaded = gpu.memory().in_use;
            let session = model.session(64).unwrap();
            let tables = loaded + session.bytes();
            assert_eq!(session.bytes(), cache_bytes(&source.config, options, 64));
            assert!(gpu.memory().in_use >= tables);
        }
        let has_blocks = weight_forms(source, Options::packed()).iter().any(|form| form.is_packed);
        assert_eq!(bytes[2] < bytes[1], has_blocks, "{bytes:?}");
        assert!(bytes[1] < bytes[0], "{bytes:?}");
    }
}

#[test]
fn stored_blocks_are_given_as_they_are() {
    let source = open("llama");
    let mut seen = Vec::new();
    for (name, shape) in source.config.tensors() {
        let weights = &source.weights;
        let Some(kind) = weights.block_type(&name) else {
            let error = weights.packed_rows(&name, &shape, 0..1).unwrap_err().to_string();
            assert!(error.contains("Q4_0, Q4_1, Q8_0, Q4_K and Q6_K"), "{error}");
            continue;
        };
        seen.push(kind);
        let rows = 3..shape[0] - 2;
        let bytes = weights.packed_rows(&name, &shape, rows.clone()).unwrap();
        let (values, size) = kind.block();
        assert_eq!(bytes.len(), rows.len() * shape[1] / values * size, "{name}");
        let mut got = Vec::new();
        let stored = match kind {
            BlockType::Q4_0 => quantised::Q4_0,
            BlockType::Q4_1 => quantised::Q4_1,
            BlockType::Q8_0 => quantised::Q8_0,
            BlockType::Q4K => quantised::Q4_K,
            BlockType::Q6K => quantised::Q6_K,
            other => panic!("{other:?}"),
        };
        let kind = attn_model::gguf::GgufType::from_id(stored);
        assert!(attn_model::gguf::dequantize(kind, &bytes, &mut got));
        // In the order of the rows, those of queries and keys undone.
        let expected = weights.rows(&name, &shape, rows, DType::F32).unwrap().to_f32();
        assert!(got == expected, "{name}");
    }
    seen.sort_by_key(|kind| kind.name());
    seen.dedup();
    assert_eq!(seen.len(), 5);
    let name = attn_model::EMBEDDING;
    let error = source.weights.packed_rows(name, &[96, 256], 90..97).unwrap_err();
    assert!(error.to_string().contains("96 rows"), "{error}");
    assert!(source.weights.packed_rows(name, &[96, 255], 0..1).is_err());
    assert!(source.weights.packed_rows("gone", &[96, 256], 0..1).is_err());
    assert_eq!(source.weights.block_type("gone"), None);
}
