//! SmolLM2-135M-Instruct, a real model, against golden data of an f64 forward pass. Skipped where the
//! model has not been fetched.

mod common;

use std::sync::OnceLock;

use attn_core::testing::{Budget, TensorFile};
use attn_model::attn_wgpu::DType;
use attn_model::attn_wgpu::Gpu;
use attn_model::{Generate, Model, Options, Pass, Source, cache_bytes, weight_bytes};
use attn_wgpu::testing::gpu;
use common::reference::{Recorder, close, tokens};
use common::{data, golden, smollm2};

/// Tolerances of the golden data in f32.
const LOGITS: f64 = 2e-3;
const HIDDEN: f64 = 1e-4;
const WEIGHTS: f64 = 1e-4;
const SCORES: f64 = 1e-3;
/// Logits that are closer to each other may change places.
const MARGIN: f64 = 4e-3;

/// The model with f32 weights, loaded once.
fn exact() -> Option<&'static Model> {
    static MODEL: OnceLock<Option<Model>> = OnceLock::new();
    let load = || Some(Model::load(&gpu()?, &smollm2()?, Options::exact()).unwrap());
    MODEL.get_or_init(load).as_ref()
}

/// Distance of the norms, and of the last vectors, relative to the norm of each vector.
fn check_hidden(file: &TensorFile, hidden: &[Vec<f32>]) {
    let norms = file.f64("hidden_norms").unwrap();
    let last = file.f64("hidden_last").unwrap();
    for (layer, stream) in hidden.iter().enumerate() {
        let width = last.shape()[1];
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        for (token, row) in stream.chunks(width).enumerate() {
            let (got, expected) = (norm(row), norms[[layer, token]]);
            let off = (got - expected).abs() / expected;
            assert!(off <= HIDDEN, "layer {layer}, token {token}: norm {got}, not {expected}");
        }
        let row = &stream[stream.len() - width..];
        let far: f64 = row
            .iter()
            .enumerate()
            .map(|(i, x)| (f64::from(*x) - last[[layer, i]]).powi(2))
            .sum::<f64>()
            .sqrt();
        let bound = HIDDEN * norm(row);
        assert!(far <= bound, "layer {layer}: last vector is {far} off, above {bound}");
    }
}

/// Weights of attention: of whole heads, of the last query, and sums over blocks of keys.
fn check_maps(file: &TensorFile, seen: &Recorder, heads: usize, count: usize) {
    for name in file.names().filter(|name| name.starts_with("attn")) {
        let mut parts = name.split('.').skip(1).map(|part| part.parse::<usize>().unwrap());
        let map = &seen.maps[&parts.next().unwrap()];
        let whole = file.f64(name).unwrap();
        let expected: Vec<f64> = whole.iter().copied().collect();
        let head = |head: usize| &map[head * count * count..][..count * count];
        let got: Vec<f64> = match parts.next() {
            Some(number) => head(number).to_vec(),
            None if name.starts_with("attn_last") => {
                (0..heads).flat_map(|h| head(h)[(count - 1) * count..].iter().copied()).collect()
            }
            None => {
                let blocks = whole.shape()[1];
                (0..heads).flat_map(|h| block_mass(head(h), count, blocks)).collect()
            }
        };
        close(name, &got, &expected, WEIGHTS);
    }
}

/// Mean over the queries of each block of 64 of the weight that lies on each block of 64 keys.
fn block_mass(map: &[f64], count: usize, blocks: usize) -> Vec<f64> {
    let mut mass = vec![0.0; blocks * blocks];
    for (query, row) in map.chunks(count).enumerate() {
        let block = query / 64;
        let queries = (count - block * 64).min(64) as f64;
        for (key, weight) in row.iter().enumerate() {
            mass[block * blocks + key / 64] += weight / queries;
        }
    }
    mass
}

#[test]
fn golden_texts() {
    let Some(model) = exact() else { return };
    for path in golden("smollm2", ".safetensors") {
        let file = TensorFile::read(&path).unwrap();
        if !file.contains("hidden_norms") {
            continue;
        }
        let ids = tokens(&file, "input_ids", 0);
        let mut layers: Vec<usize> = file
            .names()
            .filter(|name| name.starts_with("attn"))
            .map(|name| name.split('.').nth(1).unwrap().parse().unwrap())
            .collect();
        layers.sort_unstable();
        layers.dedup();
        let mut seen = Recorder::of(model.config(), &layers);
        let mut session = model.session(ids.len() + 32).unwrap();
        let hidden = session.forward_with(&ids, Pass::new().with_observer(&mut seen)).unwrap();
        check_hidden(&file, &seen.hidden);
        check_maps(&file, &seen, model.config().heads, ids.len());

        let last = session.logits(&hidden, ids.len() - 1..ids.len()).unwrap();
        let last = last.to_vec::<f32>().unwrap();
        if file.contains("last_logits") {
            let expected: Vec<f64> = file.f64("last_logits").unwrap().iter().copied().collect();
            close("last_logits", &last, &expected, LOGITS);
        }
        let top = tokens(&file, "top20_ids", 0);
        let picked: Vec<f32> = top.iter().map(|&id| last[id as usize]).collect();
        let expected: Vec<f64> = file.f64("top20_logits").unwrap().iter().copied().collect();
        close("top20_logits", &picked, &expected, LOGITS);
        let sum: f64 = last.iter().map(|x| f64::from(*x).exp()).sum();
        close("last_logsumexp", &[sum.ln()], &[file.f64("last_logsumexp").unwrap()[[0]]], LOGITS);

        let at_once = session.logit_rows();
        let margins = file.f64("argmax_margin").unwrap();
        let expected = tokens(&file, "argmax", 0);
        for first in (0..ids.len()).step_by(at_once) {
            let rows = first..(first + at_once).min(ids.len());
            let logits = session.logits(&hidden, rows.clone()).unwrap();
            let best = attn_model::attn_wgpu::sample::argmax(&logits).unwrap();
            for (row, best) in rows.zip(best.to_vec::<u32>().unwrap()) {
                let clear = margins[[row]] > MARGIN;
                assert!(!clear || best == expected[row], "argmax of token {row}");
            }
        }
        let nll: Vec<f64> = file.f64("nll").unwrap().iter().copied().collect();
        let scores = model.session(ids.len()).unwrap().score(&ids).unwrap();
        close("nll", &scores, &nll, SCORES);

        // From where the session is: packed weights below go through `generate`.
        let (mut got, mut last) = (Vec::new(), last);
        let greedy = tokens(&file, "greedy", 0);
        while got.len() < greedy.len() {
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            got.push(best as u32);
            let hidden = session.forward(&[best as u32]).unwrap();
            last = session.logits(&hidden, 0..1).unwrap().to_vec::<f32>().unwrap();
        }
        assert_eq!(got, greedy, "{}", path.display());
        println!("checked {}", path.display());
    }
}

/// Perplexity of the first window of 512 tokens, and of the first few, the first token of each not scored.
fn perplexities(model: &Model, ids: &[u32], windows: usize) -> (f64, f64) {
    let sum = |window: &[u32]| {
        let scores = model.session(512).unwrap().score(window).unwrap();
        scores.iter().map(|score| f64::from(*score)).sum::<f64>()
    };
    let sums: Vec<f64> = ids.chunks(512).take(windows).map(sum).collect();
    let of = |sums: &[f64]| (sums.iter().sum::<f64>() / (sums.len() * 511) as f64).exp();
    (of(&sums[..1]), of(&sums))
}

#[test]
fn perplexity_of_an_address() {
    let Some(model) = exact() else { return };
    let Some(file) = smollm2() else { return };
    let source = Source::open(&file).unwrap();
    let tokenizer = source.tokenizer().unwrap().unwrap();
    let text = std::fs::read_to_string(data("text/sotu-2011.txt")).unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    let (first, f32) = perplexities(model, &ids, 4);
    println!("perplexity with f32 weights: {f32:.4}");
    assert!((f32 - 20.603).abs() <= 0.01, "{f32}");
    let half = Options::exact().with_weights(DType::F16);
    let model = Model::load(model.gpu(), &file, half).unwrap();
    let (f16, _) = perplexities(&model, &ids, 1);
    println!("perplexity of the first window with f16 weights: {f16:.4}");
    assert!((f16 / first - 1.0).abs() <= 1e-3, "{f16}, {first} with f32");
}

/// Logits of the last token from packed weights, as far from the f64 forward pass as those from the same
/// weights in f32, by the error budget.
#[test]
fn packed_weights_give_the_logits_of_unpacked_ones() {
    let (Some(exact), Some(path)) = (exact(), smollm2()) else { return };
    let packed = Options::exact().with_packed(true);
    let packed = Model::load(exact.gpu(), &path, packed).unwrap();
    for path in golden("smollm2", ".safetensors") {
        let file = TensorFile::read(&path).unwrap();
        if !file.contains("last_logits") {
            continue;
        }
        let ids = tokens(&file, "input_ids", 0);
        let last = |model: &Model| {
            let mut session = model.session(ids.len()).unwrap();
            let hidden = session.forward(&ids).unwrap();
            session.logits(&hidden, ids.len() - 1..ids.len()).unwrap().to_vec::<f32>().unwrap()
        };
        let expected: Vec<f64> = file.f64("last_logits").unwrap().iter().copied().collect();
        let (got, simple) = (last(&packed), last(exact));
        let errors = Budget::default().check("last_logits", &got, &simple, &expected).unwrap();
        close("last_logits", &got, &expected, LOGITS);
        println!("checked {}: {:.1e} at most", path.display(), errors.max_abs);

        let greedy = tokens(&file, "greedy", 0);
        let mut session = packed.session(ids.len() + greedy.len()).unwrap();
        let options = Generate::greedy(greedy.len());
        let got: Vec<u32> = session.generate(&ids, options).unwrap().map(Result::unwrap).collect();
        assert_eq!(got, greedy, "{}", path.display());
    }
}

/// Of weights, and of weights with keys and values in f16 of 2048 tokens: as foretold, and the blocks of
/// the file, in which the embedding is Q8_0 and takes 30 of 96 MB.
#[test]
fn packed_memory_at_two_thousand_tokens() {
    let Some(path) = smollm2() else { return };
    if gpu().is_none() {
        return;
    }
    // A device of its own: its counters are those of this test.
    let gpu = Gpu::new().unwrap();
    let source = Source::open(&path).unwrap();
    let options = Options::packed().with_cache(DType::F16);
    let weights = weight_bytes(&source, options);
    let model = Model::from_source(&gpu, &source, options, &mut |_, _| ()).unwrap();
    assert_eq!(gpu.memory().in_use, weights);
    let mut session = model.session(2048).unwrap();
    assert_eq!(session.bytes(), cache_bytes(&source.config, options, 2048));
    let all = gpu.memory().in_use;
    gpu.reset_peak();
    session.forward(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap().to_vec::<f32>().unwrap();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "weights {:.1} MB, keys and values {:.1} MB, in use {:.1} MB, at most {:.1} MB",
        mb(weights),
        mb(session.bytes()),
        mb(all),
        mb(gpu.memory().peak),
    );
    // Beside both there are the rotation's tables, 2048 positions of 64 numbers.
    assert_eq!(all, weights + session.bytes() + 2048 * 64 * 4);
    assert!(weights < 97_000_000, "{weights}");
    // What a few tokens need on their way is small beside that, and comes back.
    assert!(gpu.memory().peak < all + 1_000_000, "{:?}", gpu.memory());
    let f16 = weight_bytes(&source, options.with_packed(false));
    assert!(f16 as f64 > 2.7 * weights as f64, "{f16}");
}
