//! Every family against golden data: residual stream, weights of attention, logits, continuations.

mod common;

use std::path::Path;

use attn_core::testing::TensorFile;
use attn_model::attn_wgpu::DType;
use attn_model::{Generate, Model, Options, Pass, Source};
use attn_wgpu::testing::gpu;
use common::reference::{Recorder, all_logits, close, sequence, tokens};
use common::{data, model_folders};

/// Tolerances of golden data in f32: residual stream and logits, weights of attention.
const EXACT: f64 = 1e-4;
const WEIGHTS: f64 = 1e-5;
/// Of logits, with keys and values, and what attention reads and gives, in f16.
const HALF: f64 = 2e-2;

fn load(folder: &Path, options: Options) -> Option<Model> {
    Some(Model::load(&gpu()?, folder, options).unwrap())
}

#[test]
fn residual_stream_weights_and_logits() {
    for folder in model_folders() {
        let Some(model) = load(&folder, Options::exact()) else { return };
        let file = TensorFile::read(folder.join("expected.safetensors")).unwrap();
        let layers: Vec<_> = (0..model.config().layers.len()).collect();
        for number in 0..file.shape("input_ids").unwrap()[0] {
            let name = format!("{}, sequence {number}", folder.display());
            let ids = tokens(&file, "input_ids", number);
            let mut session = model.session(ids.len()).unwrap();
            let mut seen = Recorder::of(model.config(), &layers);
            let hidden = session.forward_with(&ids, Pass::new().with_observer(&mut seen)).unwrap();
            for (layer, stream) in seen.hidden.iter().enumerate() {
                let expected = sequence(&file, &format!("hidden.{layer}"), number);
                close(&format!("{name}, hidden.{layer}"), stream, &expected, EXACT);
            }
            for (layer, map) in &seen.maps {
                let expected = sequence(&file, &format!("attn.{layer}"), number);
                close(&format!("{name}, attn.{layer}"), map, &expected, WEIGHTS);
            }
            let logits = all_logits(&session, &hidden);
            close(&name, &logits, &sequence(&file, "logits", number), EXACT);
        }
        println!("checked {}", folder.display());
    }
}

#[test]
fn continuations() {
    for folder in model_folders() {
        let Some(model) = load(&folder, Options::exact()) else { return };
        let file = TensorFile::read(folder.join("expected.safetensors")).unwrap();
        for number in 0..file.shape("input_ids").unwrap()[0] {
            let ids = tokens(&file, "input_ids", number);
            let expected = tokens(&file, "greedy", number);
            let mut session = model.session(0).unwrap();
            let options = Generate::greedy(expected.len());
            let got: Vec<u32> =
                session.generate(&ids, options).unwrap().map(Result::unwrap).collect();
            assert_eq!(got, expected, "{}, sequence {number}", folder.display());

            // Without a cache: the whole text for every token.
            let mut text = ids;
            for token in &expected[..3] {
                let mut session = model.session(text.len()).unwrap();
                let mut one = session.generate(&text, Generate::greedy(1)).unwrap();
                assert_eq!(one.next().unwrap().unwrap(), *token);
                text.push(*token);
            }
        }
    }
}

#[test]
fn half_precision_stays_near() {
    let halves = [
        Options::exact().with_cache(DType::F16),
        Options::exact().with_weights(DType::F16),
        Options::default().with_cache(DType::F16),
    ];
    for folder in model_folders() {
        let file = TensorFile::read(folder.join("expected.safetensors")).unwrap();
        let (ids, expected) = (tokens(&file, "input_ids", 0), sequence(&file, "logits", 0));
        for options in halves {
            let Some(model) = load(&folder, options) else { return };
            let mut session = model.session(ids.len()).unwrap();
            let hidden = session.forward(&ids).unwrap();
            let logits = all_logits(&session, &hidden);
            close(&format!("{}, {options:?}", folder.display()), &logits, &expected, HALF);
            // It is not f32 under another name.
            let worst = logits
                .iter()
                .zip(&expected)
                .map(|(a, b)| (f64::from(*a) - b).abs())
                .fold(0.0, f64::max);
            let rounds = options.cache == DType::F16 || stored(&folder) != Some(DType::F16);
            assert!(!rounds || worst > 1e-6, "{}, {options:?}: {worst:e}", folder.display());
        }
    }
}

/// Type that the weights are saved in.
fn stored(folder: &Path) -> Option<DType> {
    Source::open(folder).unwrap().config.dtype
}

#[test]
fn a_gguf_of_mixed_types() {
    let Some(gpu) = gpu() else { return };
    let file = TensorFile::read(data("gguf/tiny-llama-mixed.expected.safetensors")).unwrap();
    let model = Model::load(&gpu, &data("gguf/tiny-llama-mixed.gguf"), Options::exact()).unwrap();
    for number in 0..2 {
        let ids = tokens(&file, "input_ids", number);
        let mut session = model.session(ids.len()).unwrap();
        let hidden = session.forward(&ids).unwrap();
        let logits = all_logits(&session, &hidden);
        close("tiny-llama-mixed", &logits, &sequence(&file, "logits", number), EXACT);
    }
}
