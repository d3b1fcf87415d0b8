//! What observers get, under every policy, and what edits of heads do.

mod common;

use std::ops::Range;

use attn_model::attn_wgpu::{DType, Gpu, Tensor};
use attn_model::policy::SinkWindow;
use attn_model::{
    AttentionPolicy, AttentionView, HeadEdit, HeadEdits, Model, Observer, Options, Pass, Result,
    Session, Wants,
};
use attn_wgpu::testing::gpu;
use common::policies::Raw;
use common::reference::{Recorder, all_logits, close, floats};
use common::{data, model_folders};

fn model(name: &str) -> Option<Model> {
    let folder = data(&format!("models/{name}"));
    Some(Model::load(&gpu()?, &folder, Options::exact()).unwrap())
}

fn text(len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + 13) % 300) as u32).collect()
}

/// Wants the same of some layers, and keeps it.
struct Watcher {
    layers: Vec<usize>,
    wants: Wants,
    views: Vec<(usize, AttentionView)>,
}

impl Watcher {
    fn new(layers: &[usize], wants: Wants) -> Self {
        Watcher { layers: layers.to_vec(), wants, views: Vec::new() }
    }
}

impl Observer for Watcher {
    fn wants(&mut self, layer: usize, _: Range<usize>) -> Wants {
        match self.layers.contains(&layer) {
            true => self.wants.clone(),
            false => Wants::nothing(),
        }
    }

    fn attention(&mut self, layer: usize, view: &AttentionView) -> Result<()> {
        self.views.push((layer, view.clone()));
        Ok(())
    }
}

fn watched(session: &mut Session, tokens: &[u32], layers: &[usize], wants: Wants) -> Watcher {
    let mut watcher = Watcher::new(layers, wants);
    session.forward_with(tokens, Pass::new().with_observer(&mut watcher)).unwrap();
    watcher
}

fn maps(session: &mut Session, tokens: &[u32]) -> Recorder {
    let layers: Vec<usize> = (0..session.model().config().layers.len()).collect();
    let mut seen = Recorder::of(session.model().config(), &layers);
    session.forward_with(tokens, Pass::new().with_observer(&mut seen)).unwrap();
    seen
}

const K: usize = 6;

/// Everything that one view holds, against weights in f64: `[heads, queries, keys]`.
fn check(what: &str, view: &AttentionView, map: &[f64], asked: &[usize]) {
    let &[_, heads, queries, _] = view.out.shape() else { unreachable!() };
    let keys = map.len() / heads / queries;
    let row = |number: usize| &map[number * keys..][..keys];
    close(&format!("{what}, map"), &floats(view.map.as_ref().unwrap()), map, 1e-5);

    let argmax = view.argmax.as_ref().unwrap().to_vec::<u32>().unwrap();
    let top = view.top.as_ref().unwrap();
    let (weights, numbers) = (floats(&top.weights), top.keys.to_vec::<u32>().unwrap());
    for number in 0..heads * queries {
        let mut sorted = row(number).to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted.resize(keys.max(K), 0.0);
        let best = row(number)[argmax[number] as usize];
        assert!(best >= sorted[0] - 1e-5, "{what}: argmax of row {number}");
        let (weights, numbers) = (&weights[number * K..][..K], &numbers[number * K..][..K]);
        close(&format!("{what}, top"), weights, &sorted[..K], 1e-5);
        for (weight, key) in weights.iter().zip(numbers).filter(|(weight, _)| **weight > 0.0) {
            let expected = row(number)[*key as usize];
            assert!((f64::from(*weight) - expected).abs() <= 1e-5, "{what}: key {key}");
        }
    }

    let mut sums = vec![0.0; heads * keys];
    for (number, weight) in map.iter().enumerate() {
        sums[number / (queries * keys) * keys + number % keys] += weight;
    }
    let got = floats(view.column_sums.as_ref().unwrap());
    close(&format!("{what}, column sums"), &got, &sums, 1e-5 * queries as f64);

    let ran = keys - queries..keys;
    let expected: Vec<usize> = asked.iter().copied().filter(|row| ran.contains(row)).collect();
    let Some(rows) = &view.rows else {
        assert!(expected.is_empty(), "{what}: rows {expected:?}");
        return;
    };
    assert_eq!(rows.queries, expected, "{what}");
    let chosen: Vec<f64> = (0..heads)
        .flat_map(|head| {
            expected.iter().map(move |query| head * queries + query - (keys - queries))
        })
        .flat_map(|number| row(number).to_vec())
        .collect();
    close(&format!("{what}, rows"), &floats(&rows.weights), &chosen, 1e-5);
}

#[test]
fn all_that_is_wanted_is_that_of_the_weights() {
    let asked = [3, 0, 1, 2, 2, 44, 50, 51, 7, 1000];
    let wants =
        Wants::nothing().with_argmax().with_top_k(K).with_column_sums().with_rows(asked).with_map();
    for folder in model_folders() {
        let Some(gpu) = gpu() else { return };
        let model = Model::load(&gpu, &folder, Options::exact()).unwrap();
        let layers: Vec<usize> = (0..model.config().layers.len()).collect();
        // Under other policies weights are still those of the model's own attention.
        let policies: Vec<Box<dyn AttentionPolicy>> = vec![
            Box::new(attn_model::policy::Dense),
            Box::new(Raw),
            Box::new(SinkWindow::new(1, 5)),
        ];
        for policy in policies {
            let what = format!("{}, {policy:?}", folder.display());
            let mut session = Session::with_policy(&model, 0, policy).unwrap();
            let mut start = 0;
            for len in [5, 40, 1, 9] {
                let tokens = &text(55)[start..start + len];
                let expected = maps(&mut session.fork().unwrap(), tokens);
                let watcher = watched(&mut session, tokens, &layers, wants.clone());
                assert_eq!(watcher.views.len(), layers.len());
                for (layer, view) in &watcher.views {
                    check(&what, view, &expected.maps[layer], &asked);
                }
                start += len;
            }
        }
    }
}

#[test]
fn outputs_are_weights_times_values() {
    let Some(model) = model("tiny-gemma2") else { return };
    let wants = Wants::nothing().with_inputs();
    let mut session = model.session(0).unwrap();
    let expected = maps(&mut session.fork().unwrap(), &text(30));
    let watcher = watched(&mut session, &text(30), &[0, 1], wants);
    for (layer, view) in &watcher.views {
        let values = floats(&view.inputs.as_ref().unwrap().v.contiguous().unwrap());
        let map = &expected.maps[layer];
        let &[_, heads, queries, dim] = view.out.shape() else { unreachable!() };
        let group = heads / model.config().heads_kv;
        let value = |head: usize, query: usize, d: usize| -> f64 {
            let of = |key: usize| {
                map[(head * queries + query) * 30 + key]
                    * f64::from(values[(head / group * 30 + key) * dim + d])
            };
            (0..30).map(of).sum()
        };
        let all: Vec<f64> = (0..heads * queries * dim)
            .map(|i| value(i / (queries * dim), i / dim % queries, i % dim))
            .collect();
        close("out", &floats(&view.out.contiguous().unwrap()), &all, 1e-5);
        assert!(view.argmax.is_none() && view.top.is_none() && view.map.is_none());
        assert!(view.rows.is_none() && view.column_sums.is_none());
    }
}

#[test]
fn looking_on_changes_no_bit() {
    let Some(model) = model("tiny-gemma3") else { return };
    let all = Wants::nothing()
        .with_outputs()
        .with_inputs()
        .with_argmax()
        .with_top_k(3)
        .with_column_sums()
        .with_rows(0..100)
        .with_map();
    let (mut plain, mut seen) = (model.session(0).unwrap(), model.session(0).unwrap());
    for len in [20, 1, 4, 1] {
        let expected = plain.forward(&text(len)).unwrap().to_vec::<f32>().unwrap();
        let mut watcher = Watcher::new(&[0, 1, 2], all.clone());
        let pass = Pass::new().with_observer(&mut watcher);
        let got = seen.forward_with(&text(len), pass).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(got, expected);
    }
    // Of layers of which nothing is wanted nothing is told.
    let watcher = watched(&mut seen, &text(3), &[1], Wants::nothing().with_outputs());
    assert_eq!(watcher.views.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(), [1]);
}

/// Where every head looked when it wrote a token.
#[test]
fn generation_can_be_observed_token_by_token() {
    let Some(model) = model("tiny-llama") else { return };
    let options = attn_model::Generate::greedy(4);
    let mut session = model.session(0).unwrap();
    let plain: Vec<u32> =
        session.generate(&text(9), options.clone()).unwrap().map(|token| token.unwrap()).collect();
    let mut session = model.session(0).unwrap();
    let mut tokens = session.generate(&text(9), options).unwrap();
    let (mut watcher, mut seen) = (Watcher::new(&[1], Wants::nothing().with_argmax()), Vec::new());
    while let Some(token) = tokens.next_observed(&mut watcher) {
        seen.push(token.unwrap());
    }
    assert_eq!(seen, plain);
    let heads = model.config().heads;
    let shapes: Vec<_> =
        watcher.views.iter().map(|(_, view)| view.argmax.as_ref().unwrap().shape()).collect();
    assert_eq!(shapes, [[1, heads, 9], [1, heads, 1], [1, heads, 1], [1, heads, 1]]);
}

#[test]
fn an_observer_that_fails_leaves_the_session_as_it_was() {
    struct Failing;
    impl Observer for Failing {
        fn hidden(&mut self, layer: usize, _: &Tensor) -> Result<()> {
            match layer {
                2 => Err(attn_core::Error::config("test", "nothing", "an error").into()),
                _ => Ok(()),
            }
        }
    }
    let Some(model) = model("tiny-llama") else { return };
    let mut session = model.session(0).unwrap();
    session.forward(&text(6)).unwrap();
    let mut failing = Failing;
    let pass = Pass::new().with_observer(&mut failing);
    assert!(session.forward_with(&text(3), pass).is_err());
    assert_eq!(session.len(), 6);
    let mut fresh = model.session(0).unwrap();
    fresh.forward(&text(6)).unwrap();
    let got = session.forward(&text(4)).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(got, fresh.forward(&text(4)).unwrap().to_vec::<f32>().unwrap());
}

#[test]
fn no_map_is_stored_unless_it_is_asked_for() {
    if gpu().is_none() {
        return;
    }
    // A device of its own: its memory is that of this test.
    let gpu = Gpu::new().unwrap();
    let model = Model::load(&gpu, &data("models/tiny-llama"), Options::exact()).unwrap();
    let tokens = 3001;
    let map = model.config().heads * tokens * tokens * 4;
    let peak = |wants: Wants| {
        let mut session = model.session(tokens).unwrap();
        gpu.reset_peak();
        let before = gpu.memory().peak;
        watched(&mut session, &text(tokens), &[1], wants);
        gpu.flush().unwrap();
        (gpu.memory().peak - before) as usize
    };
    let plain = peak(Wants::nothing());
    let wants = Wants::nothing().with_argmax().with_column_sums().with_top_k(4);
    let partial = peak(wants.with_rows([5, 2000, 3000]));
    let whole = peak(Wants::nothing().with_map());
    assert!(whole >= map, "{whole} bytes for a map of {map}");
    // Blocks of 16 MiB that are in flight together.
    assert!(partial < plain + map / 2, "{partial} bytes, {plain} without, a map takes {map}");
}

/// Means of the visible values are what uniform attention gives.
#[test]
fn edits_of_heads() {
    for (name, cache) in [("tiny-llama", DType::F32), ("tiny-qwen3", DType::F16)] {
        let Some(gpu) = gpu() else { return };
        let options = Options::exact().with_cache(cache);
        let model = Model::load(&gpu, &data(&format!("models/{name}")), options).unwrap();
        let (heads, dim) = (model.config().heads, model.config().head_dim);
        let constant: Vec<f32> = (0..dim).map(|d| d as f32 / 8.0).collect();
        let edits = HeadEdits::new()
            .with(1, 0, HeadEdit::Uniform)
            .with(1, 1, HeadEdit::Zero)
            .with(1, 2, HeadEdit::Scale(-0.5))
            .with(1, 3, HeadEdit::Scale(7.0))
            // The last one counts.
            .with(1, 3, HeadEdit::Replace(constant.clone()));
        let wants = Wants::nothing().with_inputs();
        let run = |edits: &HeadEdits| {
            let mut session = model.session(0).unwrap();
            session.forward(&text(9)).unwrap();
            session.edit_heads(edits).unwrap();
            let watcher = watched(&mut session, &text(20)[9..], &[0, 1], wants.clone());
            let mut views = watcher.views.into_iter().map(|(_, view)| view);
            [views.next().unwrap(), views.next().unwrap()]
        };
        let (plain, edited) = (run(&HeadEdits::new()), run(&edits));
        let out = |view: &AttentionView| floats(&view.out.contiguous().unwrap());
        assert_eq!(out(&plain[0]), out(&edited[0]), "layers in front");
        let (before, after) = (out(&plain[1]), out(&edited[1]));
        let size = 11 * dim;
        let head = |all: &[f32], number: usize| all[number * size..][..size].to_vec();
        for number in 4..heads {
            assert_eq!(head(&before, number), head(&after, number), "head {number}");
        }
        assert!(head(&after, 1).iter().all(|x| *x == 0.0));
        let bound = if cache == DType::F32 { 1e-6 } else { 1e-3 };
        let halved: Vec<f64> = head(&before, 2).iter().map(|x| -0.5 * f64::from(*x)).collect();
        close("scaled", &head(&after, 2), &halved, bound);
        let replaced: Vec<f64> = (0..size).map(|i| f64::from(constant[i % dim])).collect();
        close("replaced", &head(&after, 3), &replaced, bound);
        let values = floats(&edited[1].inputs.as_ref().unwrap().v.contiguous().unwrap());
        let mean = |query: usize, d: usize| -> f64 {
            let seen = query + 10;
            (0..seen).map(|key| f64::from(values[key * dim + d])).sum::<f64>() / seen as f64
        };
        let means: Vec<f64> = (0..size).map(|i| mean(i / dim, i % dim)).collect();
        close("uniform", &head(&after, 0), &means, 4.0 * bound);
    }
}

#[test]
fn edits_stay_until_they_are_changed_and_do_not_touch_what_was() {
    let Some(model) = model("tiny-llama-tied") else { return };
    let edits = HeadEdits::of([(0, 1), (1, 2)], &HeadEdit::Zero);
    assert_eq!(edits.iter().count(), 2);
    let next = |session: &mut Session| {
        let hidden = session.forward(&text(4)).unwrap();
        all_logits(session, &hidden)
    };
    let with_prompt = || {
        let mut session = model.session(0).unwrap();
        session.forward(&text(12)).unwrap();
        session
    };
    let plain = next(&mut with_prompt());
    let mut session = with_prompt();
    session.edit_heads(&edits).unwrap();
    let mut fork = session.fork().unwrap();
    assert_eq!(fork.head_edits(), Some(&edits));
    let edited = next(&mut session);
    assert_eq!(edited, next(&mut fork));
    assert_ne!(edited, plain);
    session.truncate(12).unwrap();
    session.edit_heads(&HeadEdits::new()).unwrap();
    assert_eq!(next(&mut session), plain);
    // A scale of 1 is no edit.
    session.truncate(12).unwrap();
    session.edit_heads(&HeadEdits::of([(0, 1), (1, 0)], &HeadEdit::Scale(1.0))).unwrap();
    assert_eq!(next(&mut session), plain);
}

#[test]
fn wrong_edits_are_typed_errors() {
    let Some(model) = model("tiny-llama") else { return };
    let mut session = model.session(0).unwrap();
    let one = |layer, head, edit| HeadEdits::new().with(layer, head, edit);
    for (edits, part) in [
        (one(2, 0, HeadEdit::Zero), "`layer` is 2"),
        (one(0, 4, HeadEdit::Zero), "`head` is 4"),
        (one(0, 0, HeadEdit::Scale(f32::NAN)), "`edit` holds NaN"),
        (one(0, 0, HeadEdit::Replace(vec![0.0; 3])), "`edit` has shape [3]"),
    ] {
        let message = session.edit_heads(&edits).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        assert!(session.head_edits().is_none());
    }
}
