//! Policies: what they see, what they may do, and what a session makes of them.

mod common;
/// The policy of the example, with its `main`.
#[allow(dead_code)]
#[path = "../examples/own_policy.rs"]
mod own_policy;

use std::sync::{Arc, Mutex};

use attn_model::attn_wgpu::Tensor;
use attn_model::policy::{Dense, Layer, Phase, SinkPositions, SinkWindow};
use attn_model::{AttentionPolicy, Generate, Model, Options, Pass, Result, Session};
use attn_wgpu::testing::gpu;
use common::policies::{Raw, Remembering, Unruly, Wrong};
use common::reference::{Recorder, all_logits, close, floats};
use common::{data, model_folders};
use own_policy::SelfExtend;
use proptest::prelude::*;

fn model(name: &str) -> Option<Model> {
    let folder = data(&format!("models/{name}"));
    Some(Model::load(&gpu()?, &folder, Options::exact()).unwrap())
}

fn text(len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + 13) % 300) as u32).collect()
}

fn logits(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    let hidden = session.forward(tokens).unwrap();
    all_logits(session, &hidden)
}

fn near(what: &str, got: &[f32], expected: &[f32]) {
    let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
    close(what, got, &expected, 1e-4);
}

/// One policy of each kind, by name.
fn policies() -> Vec<(&'static str, Box<dyn AttentionPolicy>)> {
    vec![
        ("dense", Box::new(Dense)),
        ("raw", Box::new(Raw)),
        ("remembering", Box::<Remembering>::default()),
        ("sink window", Box::new(SinkWindow::new(3, 17))),
        ("sinks in the text", Box::new(sinks_in_the_text(3, 17))),
        ("window", Box::new(SinkWindow::new(0, 20))),
        ("own", Box::new(SelfExtend { window: 12, group: 3 })),
    ]
}

fn sinks_in_the_text(sinks: usize, window: usize) -> SinkWindow {
    SinkWindow::new(sinks, window).with_positions(SinkPositions::Text)
}

#[test]
fn raw_and_remembered_keys_give_the_models_own_attention() {
    for folder in model_folders() {
        let Some(gpu) = gpu() else { return };
        for options in [Options::exact(), Options::default().with_cache(attn_model::DType::F16)] {
            let model = Model::load(&gpu, &folder, options).unwrap();
            let ids = text(45);
            let expected = logits(&mut model.session(45).unwrap(), &ids);
            let raw = logits(&mut model.session_with(45, Raw).unwrap(), &ids);
            let own = logits(&mut model.session_with(45, Remembering::default()).unwrap(), &ids);
            let name = format!("{}, {options:?}", folder.display());
            assert_eq!(own, expected, "{name}");
            // Raw keys in half precision are rounded before they are rotated, not after.
            let bound = if options == Options::exact() { 0.0 } else { 2e-2 };
            let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
            close(&name, &raw, &expected, bound);
        }
    }
}

#[test]
fn chunks_of_any_size_are_one_text_under_every_policy() {
    for name in ["tiny-llama", "tiny-gemma3", "tiny-mistral"] {
        let Some(model) = model(name) else { return };
        let ids = text(140);
        for (kind, policy) in policies() {
            let mut session = Session::with_policy(&model, 140, policy.fork().unwrap()).unwrap();
            let whole = logits(&mut session, &ids);
            let mut session = Session::with_policy(&model, 0, policy).unwrap();
            let (mut parts, mut start) = (Vec::new(), 0);
            for len in [1, 7, 64, 65, 0, 3] {
                parts.extend(logits(&mut session, &ids[start..start + len]));
                start += len;
            }
            assert_eq!((start, session.len()), (140, 140));
            near(&format!("{name}, {kind}"), &parts, &whole);
        }
    }
}

/// What happens to a session.
#[derive(Debug, Clone)]
enum Event {
    Forward(usize),
    Decode(usize),
    RunTo(usize, usize),
    Truncate(prop::sample::Index),
    Fork,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0usize..40).prop_map(Event::Forward),
        (1usize..3).prop_map(Event::Decode),
        (0usize..3, 1usize..9).prop_map(|(layer, len)| Event::RunTo(layer, len)),
        any::<prop::sample::Index>().prop_map(Event::Truncate),
        Just(Event::Fork),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// Whatever a session went through, it continues as one that ran the tokens that are left in it, in
    /// the same pieces; bit for bit where pieces were not cut.
    #[test]
    fn a_session_with_a_history_is_like_a_fresh_one(
        events in prop::collection::vec(event(), 1..8),
        which in 0usize..7,
        seed in 0usize..1000,
    ) {
        let Some(model) = model("tiny-llama-tied") else { return Ok(()) };
        let (name, policy) = policies().swap_remove(which);
        let fresh = policy.fork().unwrap();
        let mut session = Session::with_policy(&model, 0, policy).unwrap();
        let mut others = Vec::new();
        let mut tokens: Vec<u32> = Vec::new();
        for (number, event) in events.iter().enumerate() {
            let new = |len: usize| -> Vec<u32> {
                (0..len).map(|i| ((seed + 31 * number + 7 * i) % 300) as u32).collect()
            };
            match event {
                Event::Forward(len) => {
                    session.forward(&new(*len)).unwrap();
                    tokens.extend(new(*len));
                }
                Event::Decode(len) => {
                    session.forward_with(&new(*len), Pass::new().decoding()).unwrap();
                    tokens.extend(new(*len));
                }
                Event::RunTo(layer, len) => {
                    session.run_to(*layer, &new(*len), Pass::new()).unwrap();
                }
                Event::Truncate(index) => {
                    let len = index.index(tokens.len() + 1);
                    session.truncate(len).unwrap();
                    tokens.truncate(len);
                }
                Event::Fork => {
                    let mut fork = session.fork().unwrap();
                    // The original goes another way, and must not disturb the fork.
                    std::mem::swap(&mut session, &mut fork);
                    fork.forward(&new(5)).unwrap();
                    others.push(fork);
                }
            }
            prop_assert_eq!(session.len(), tokens.len());
        }
        let more = text(6);
        let got = logits(&mut session, &more);
        let mut fresh = Session::with_policy(&model, 0, fresh).unwrap();
        fresh.forward(&tokens).unwrap();
        near(name, &got, &logits(&mut fresh, &more));
    }
}

/// Lets another policy attend, and holds its results to the paper's rule, with numbers in f64.
#[derive(Debug, Clone)]
struct Judged {
    policy: SinkWindow,
    worst: Arc<Mutex<f64>>,
    seen: Arc<Mutex<usize>>,
}

impl AttentionPolicy for Judged {
    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        let out = self.policy.attend(layer)?;
        let got = floats(&out.contiguous()?);
        let expected = streaming(layer, &self.policy);
        let off = got.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
        let mut worst = self.worst.lock().unwrap();
        *worst = off.fold(*worst, f64::max);
        *self.seen.lock().unwrap() += got.len();
        Ok(out)
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}

/// Of each query: its own cache of sinks and last tokens, with positions counted in the cache.
fn streaming(layer: &Layer<'_>, policy: &SinkWindow) -> Vec<f64> {
    let frequencies = &layer.rope().rope().frequencies;
    let rotate = |x: &[f64], angle: f64| -> Vec<f64> {
        let half = x.len() / 2;
        let turned = |i: usize| {
            let (sin, cos) = (angle * frequencies[i % half]).sin_cos();
            let other = if i < half { -x[i + half] } else { x[i - half] };
            x[i] * cos + other * sin
        };
        (0..x.len()).map(turned).collect()
    };
    let wide = |tensor: &Tensor| -> Vec<f64> {
        floats(&tensor.contiguous().unwrap()).into_iter().map(f64::from).collect()
    };
    let (q, k, v) = (layer.q(), layer.keys().unwrap(), layer.values().unwrap());
    let &[_, heads, queries, dim] = q.shape() else { unreachable!() };
    let &[_, heads_kv, keys, _] = k.shape() else { unreachable!() };
    let (q, k, v) = (wide(q), wide(&k), wide(&v));
    let mut out = Vec::new();
    for head in 0..heads {
        let kv = head / (heads / heads_kv);
        for query in 0..queries {
            let index = query + keys - queries;
            let cached: Vec<usize> = (0..=index)
                .filter(|&key| key < policy.sinks || key + policy.window > index)
                .collect();
            let place = |slot: usize, key: usize| match policy.positions {
                SinkPositions::Cache => slot as f64,
                SinkPositions::Text => key as f64,
            };
            let own = place(cached.len() - 1, index);
            let q = rotate(&q[(head * queries + query) * dim..][..dim], own);
            let logit = |(slot, &key): (usize, &usize)| {
                // The model cached it rotated by its place in the text.
                let k = rotate(&k[(kv * keys + key) * dim..][..dim], place(slot, key) - key as f64);
                let dot: f64 = q.iter().zip(&k).map(|(a, b)| a * b).sum();
                let scaled = layer.scale() * dot;
                layer.soft_cap().map_or(scaled, |cap| cap * (scaled / cap).tanh())
            };
            let logits: Vec<f64> = cached.iter().enumerate().map(logit).collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = logits.iter().map(|x| (x - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let value = |d: usize| -> f64 {
                let of = |(key, weight): (&usize, &f64)| weight * v[(kv * keys + key) * dim + d];
                cached.iter().zip(&weights).map(of).sum::<f64>() / sum
            };
            out.extend((0..dim).map(value));
        }
    }
    out
}

#[test]
fn a_window_with_sinks_is_the_papers_rule() {
    let Some(model) = model("tiny-llama") else { return };
    let ids = text(70);
    for (sinks, window) in [(4, 13), (0, 9), (1, 1), (5, 1), (30, 8)] {
        for positions in [SinkPositions::Cache, SinkPositions::Text] {
            let policy = SinkWindow::new(sinks, window).with_positions(positions);
            let judged = Judged { policy, worst: Arc::default(), seen: Arc::default() };
            let mut session = model.session_with(0, judged.clone()).unwrap();
            let mut start = 0;
            for len in [3, 21, 40, 1, 1, 4] {
                session.forward(&ids[start..start + len]).unwrap();
                start += len;
            }
            let (worst, seen) = (*judged.worst.lock().unwrap(), *judged.seen.lock().unwrap());
            assert!(worst <= 1e-5, "{sinks}, {window}, {positions:?}: {worst:e}");
            assert_eq!(seen, 2 * 70 * 64, "all elements of both layers");
        }
    }
}

#[test]
fn a_window_that_hides_nothing_changes_no_bit() {
    for name in ["tiny-llama", "tiny-gemma2", "tiny-mistral"] {
        let Some(model) = model(name) else { return };
        let ids = text(60);
        let dense = logits(&mut model.session(60).unwrap(), &ids);
        for policy in [SinkWindow::new(4, 56), sinks_in_the_text(0, 60), SinkWindow::default()] {
            let got = logits(&mut model.session_with(60, policy).unwrap(), &ids);
            assert_eq!(got, dense, "{name}");
        }
        // One token out of sight of the last query alone.
        let width = model.config().vocabulary;
        let got = logits(&mut model.session_with(60, SinkWindow::new(4, 55)).unwrap(), &ids);
        near(name, &got[..59 * width], &dense[..59 * width]);
        if name == "tiny-llama" {
            let far =
                got[59 * width..].iter().zip(&dense[59 * width..]).map(|(a, b)| (a - b).abs());
            assert!(far.fold(0.0, f32::max) > 1e-4, "{name}: all is seen");
        }
    }
}

/// The policy of the example, where it must change nothing: distances divided by one.
#[test]
fn a_policy_of_ones_own() {
    let Some(model) = model("tiny-llama") else { return };
    let ids = text(60);
    let dense = logits(&mut model.session(60).unwrap(), &ids);
    let own = |group| {
        logits(&mut model.session_with(60, SelfExtend { window: 16, group }).unwrap(), &ids)
    };
    near("own", &own(1), &dense);
    let far = own(3).iter().zip(&dense).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far > 1e-3, "{far}");
}

#[test]
fn windows_look_at_distances_alone() {
    let Some(model) = model("tiny-llama") else { return };
    let ids = text(50);
    let positions: Vec<u32> = (400..450).collect();
    for policy in [SinkWindow::new(2, 12), sinks_in_the_text(2, 12)] {
        let plain = logits(&mut model.session_with(50, policy.clone()).unwrap(), &ids);
        let mut session = model.session_with(50, policy).unwrap();
        let hidden = session.forward_with(&ids, Pass::new().with_positions(&positions)).unwrap();
        near("shifted", &all_logits(&session, &hidden), &plain);
    }
}

#[test]
fn policies_know_the_phase() {
    let Some(model) = model("tiny-llama") else { return };
    let policy = Unruly::new();
    let phases = Arc::clone(&policy.phases);
    let mut session = model.session_with(0, policy).unwrap();
    let tokens = session.generate(&text(9), Generate::greedy(3)).unwrap();
    assert_eq!(tokens.filter(|token| token.is_ok()).count(), 3);
    session.truncate(10).unwrap();
    session.forward_with(&[1, 2], Pass::new().decoding()).unwrap();
    session.forward(&[5, 6, 7]).unwrap();
    session.forward_with(&[8], Pass::new().decoding()).unwrap();
    let decode = |step| Phase::Decode { step };
    let expected = [
        (9, Phase::Prefill),
        (1, decode(1)),
        (1, decode(2)),
        // One of the two was forgotten.
        (2, decode(2)),
        (3, Phase::Prefill),
        (1, decode(1)),
    ];
    assert_eq!(*phases.lock().unwrap(), expected);
}

#[test]
fn a_policy_that_goes_wrong_leaves_the_session_as_it_was() {
    let Some(model) = model("tiny-llama") else { return };
    let policy = Unruly::new();
    let wrong = Arc::clone(&policy.wrong);
    let mut session = model.session_with(0, policy).unwrap();
    session.forward(&text(11)).unwrap();
    let cases = [
        (Wrong::Shape, "`attend` has shape"),
        (Wrong::Dtype, "`attend` has element type u32"),
        (Wrong::Fails(0), "gives up"),
        (Wrong::Fails(1), "gives up"),
    ];
    for (kind, part) in cases {
        *wrong.lock().unwrap() = kind;
        let message = session.forward(&text(4)).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        assert_eq!(session.len(), 11);
    }
    *wrong.lock().unwrap() = Wrong::Nothing;
    let mut fresh = model.session(0).unwrap();
    fresh.forward(&text(11)).unwrap();
    assert_eq!(logits(&mut session, &text(5)), logits(&mut fresh, &text(5)));

    // What a policy cannot forget, nobody goes on from.
    *wrong.lock().unwrap() = Wrong::Forgets;
    assert!(session.forward(&text(4)).is_err());
    assert!(session.truncate(3).is_err());
    assert_eq!(session.len(), 16);
    *wrong.lock().unwrap() = Wrong::Nothing;
    let message = session.forward(&text(4)).unwrap_err().to_string();
    assert!(message.contains("could not forget"), "{message}");
    session.truncate(11).unwrap();
    fresh.truncate(11).unwrap();
    assert_eq!(logits(&mut session, &text(5)), logits(&mut fresh, &text(5)));
}

#[test]
fn settings_of_a_window() {
    let parse = serde_json::from_str::<SinkWindow>;
    assert_eq!(parse("{}").unwrap(), SinkWindow::new(4, 1020));
    let some = parse(r#"{"sinks": 2, "window": 30, "positions": "text"}"#).unwrap();
    assert_eq!(some, sinks_in_the_text(2, 30));
    assert!(parse(r#"{"sink": 2}"#).unwrap_err().to_string().contains("unknown field `sink`"));
    let Some(model) = model("tiny-llama") else { return };
    let message = model.session_with(0, SinkWindow::new(4, 0)).unwrap_err().to_string();
    assert!(message.contains("`window` is 0"), "{message}");
    let session = model.session_with(0, SinkWindow::new(2, 3)).unwrap();
    assert_eq!(session.policy_as::<SinkWindow>().unwrap().sinks, 2);
    assert!(session.policy_as::<Dense>().is_none());
    assert!(format!("{:?}", session.policy()).contains("window: 3"));
}

/// Ranking by the attention of one layer: everything in front of it, and of it only what is needed.
#[test]
fn early_exit_and_projections_are_what_the_layer_reads() {
    let Some(model) = model("tiny-qwen3") else { return };
    let ids = text(33);
    // Two documents at the same positions.
    let positions: Vec<u32> = (0..10).chain(10..20).chain(10..20).chain(100..103).collect();
    let mut session = model.session(33).unwrap();
    let mut seen = Recorder::of(model.config(), &[1]);
    let observed = Pass::new().with_positions(&positions).with_observer(&mut seen);
    session.fork().unwrap().forward_with(&ids, observed).unwrap();
    let hidden = session.run_to(1, &ids, Pass::new().with_positions(&positions)).unwrap();
    let all = model.project(1, &hidden).unwrap();
    let last = model.project(1, &hidden.narrow(0, 31, 2).unwrap()).unwrap();
    let rotate = |x: &Tensor, positions: &[u32]| {
        let positions = Tensor::from_slice(model.gpu(), positions, &[positions.len()]).unwrap();
        floats(&model.rope(1).unwrap().apply(x, &positions).unwrap())
    };
    let (q, k) = (rotate(&last.q, &positions[31..]), rotate(&all.k, &positions));
    let (heads, heads_kv, dim) = (model.config().heads, model.config().heads_kv, last.q.shape()[3]);
    let map = &seen.maps[&1];
    for head in 0..heads {
        let kv = head / (heads / heads_kv);
        let row = &q[(head * 2 + 1) * dim..][..dim];
        let logit = |key: usize| -> f64 {
            let column = &k[(kv * 33 + key) * dim..][..dim];
            let dot: f64 = row.iter().zip(column).map(|(a, b)| f64::from(a * b)).sum();
            dot * model.config().scale
        };
        let sum: f64 = (0..33).map(|key| logit(key).exp()).sum();
        let weights: Vec<f64> = (0..33).map(|key| logit(key).exp() / sum).collect();
        close("last row", &weights, &map[(head * 33 + 32) * 33..][..33], 1e-5);
    }
    assert!(model.project(9, &hidden).unwrap_err().to_string().contains("`layer` is 9"));
    assert!(model.rope(9).is_err());
    assert!(session.is_empty());
}
