//! Sessions: chunks, forks, truncation, early exit, positions, generation, and what a step costs.

mod common;

use attn_model::attn_wgpu::sample::Sampling;
use attn_model::attn_wgpu::{DType, Gpu};
use attn_model::{Generate, Model, Options, Pass, Session};
use attn_wgpu::testing::gpu;
use common::data;
use common::reference::{Recorder, all_logits, close};

fn model(name: &str) -> Option<Model> {
    let folder = data(&format!("models/{name}"));
    Some(Model::load(&gpu()?, &folder, Options::exact()).unwrap())
}

fn text(len: usize, vocabulary: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect()
}

/// Logits of `tokens` behind what the session holds.
fn logits(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    let hidden = session.forward(tokens).unwrap();
    all_logits(session, &hidden)
}

fn near(what: &str, got: &[f32], expected: &[f32]) {
    let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
    close(what, got, &expected, 1e-4);
}

#[test]
fn chunks_of_any_size_are_one_text() {
    for name in ["tiny-llama", "tiny-gemma3", "tiny-mistral"] {
        let Some(model) = model(name) else { return };
        let ids = text(140, model.config().vocabulary);
        let whole = logits(&mut model.session(140).unwrap(), &ids);
        let mut session = model.session(0).unwrap();
        let (mut parts, mut start) = (Vec::new(), 0);
        for len in [1, 7, 64, 65, 0, 3] {
            parts.extend(logits(&mut session, &ids[start..start + len]));
            start += len;
        }
        assert_eq!((start, session.len()), (140, 140));
        near(name, &parts, &whole);
    }
}

#[test]
fn forks_and_truncated_sessions_are_like_fresh_ones() {
    let Some(model) = model("tiny-gemma2") else { return };
    let vocabulary = model.config().vocabulary;
    let (ids, other) = (text(50, vocabulary), text(90, vocabulary)[50..].to_vec());
    let fresh = |tokens: &[u32], more: &[u32]| {
        let mut session = model.session(0).unwrap();
        logits(&mut session, tokens);
        logits(&mut session, more)
    };
    let mut first = model.session(0).unwrap();
    logits(&mut first, &ids);
    let mut second = first.fork().unwrap();
    assert_eq!(second.len(), 50);
    // Both go on, in turn, and neither sees the other.
    let ones = [logits(&mut first, &ids[..20]), logits(&mut second, &other)];
    assert_eq!(ones[0], fresh(&ids, &ids[..20]));
    assert_eq!(ones[1], fresh(&ids, &other));

    second.truncate(30).unwrap();
    let third = second.fork().unwrap();
    assert_eq!(logits(&mut second, &other[..9]), fresh(&ids[..30], &other[..9]));
    drop(second);
    let mut third = third;
    assert_eq!(logits(&mut third, &other[9..]), fresh(&ids[..30], &other[9..]));
    third.truncate(0).unwrap();
    assert!(third.is_empty());
    assert_eq!(logits(&mut third, &other), fresh(&[], &other));
}

#[test]
fn early_exit_shows_the_stream_and_leaves_the_session_alone() {
    let Some(model) = model("tiny-gemma3") else { return };
    let ids = text(30, model.config().vocabulary);
    let mut session = model.session(0).unwrap();
    session.forward(&ids[..12]).unwrap();
    let mut seen = Recorder::default();
    let whole = session
        .fork()
        .unwrap()
        .forward_with(&ids[12..], Pass::new().with_observer(&mut seen))
        .unwrap();
    for layer in 0..=3 {
        let stream = session.run_to(layer, &ids[12..], Pass::new()).unwrap();
        assert_eq!(stream.to_vec::<f32>().unwrap(), seen.hidden[layer], "{layer}");
        assert_eq!(session.len(), 12);
    }
    let again = session.forward(&ids[12..]).unwrap();
    assert_eq!(again.to_vec::<f32>().unwrap(), whole.to_vec::<f32>().unwrap());
}

#[test]
fn rotation_depends_on_distances_alone() {
    let Some(model) = model("tiny-qwen3") else { return };
    let ids = text(21, model.config().vocabulary);
    let plain = logits(&mut model.session(0).unwrap(), &ids);
    let of = |positions: &[u32]| {
        let mut session = model.session(0).unwrap();
        let hidden = session.forward_with(&ids, Pass::new().with_positions(positions)).unwrap();
        (all_logits(&session, &hidden), session)
    };
    let (shifted, mut session) = of(&(300..321).collect::<Vec<_>>());
    near("shifted", &shifted, &plain);
    // Later tokens count on from the last position.
    let more = logits(&mut session, &ids[..4]);
    let mut fresh = model.session(0).unwrap();
    logits(&mut fresh, &ids);
    near("behind it", &more, &logits(&mut fresh, &ids[..4]));
    // Other distances are another text.
    let (stretched, _) = of(&(0..21).map(|i| 3 * i).collect::<Vec<_>>());
    let far = stretched.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-2);
    assert!(far, "positions are not used");
}

#[test]
fn wrong_arguments_are_typed_errors_and_change_nothing() {
    let Some(model) = model("tiny-llama") else { return };
    let mut session = model.session(0).unwrap();
    session.forward(&[1, 2, 3]).unwrap();
    let message = |error: attn_model::Error| error.to_string();
    let cases = [
        (message(session.forward(&[1, 320]).unwrap_err()), "`tokens` holds 320"),
        (
            message(session.forward_with(&[1, 2], Pass::new().with_positions(&[5])).unwrap_err()),
            "`positions` has shape [1]",
        ),
        (
            message(
                session.forward_with(&[1], Pass::new().with_positions(&[u32::MAX])).unwrap_err(),
            ),
            "`positions`",
        ),
        (message(session.run_to(3, &[1], Pass::new()).unwrap_err()), "`layer` is 3"),
        (message(session.truncate(4).unwrap_err()), "`len` is 4"),
        (message(session.generate(&[], Generate::greedy(1)).unwrap_err()), "`prompt`"),
        (message(session.generate(&[999], Generate::greedy(1)).unwrap_err()), "999"),
        (
            message(
                session
                    .generate(
                        &[1],
                        Generate::greedy(1)
                            .with_sampling(Sampling { top_p: 2.0, ..Sampling::default() }, 1),
                    )
                    .unwrap_err(),
            ),
            "`top_p` is 2",
        ),
    ];
    for (message, part) in cases {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert_eq!(session.len(), 3);
    let hidden = session.forward(&[]).unwrap();
    assert_eq!(hidden.shape(), [0, 64]);
    assert!(session.score(&[7]).unwrap().is_empty());
    let cache = Options::exact().with_cache(DType::U32);
    let error = Model::load(model.gpu(), &data("models/tiny-llama"), cache).unwrap_err();
    assert!(error.to_string().contains("`cache` is u32"), "{error}");
}

#[test]
fn scores_are_log_probabilities_of_the_next_tokens() {
    let Some(model) = model("tiny-gemma2") else { return };
    let ids = text(40, model.config().vocabulary);
    let all = logits(&mut model.session(0).unwrap(), &ids);
    let width = model.config().vocabulary;
    let expected: Vec<f64> = (0..39)
        .map(|row| {
            let row_logits = &all[row * width..][..width];
            let sum: f64 = row_logits.iter().map(|x| f64::from(*x).exp()).sum();
            sum.ln() - f64::from(row_logits[ids[row + 1] as usize])
        })
        .collect();
    let scores = model.session(0).unwrap().score(&ids).unwrap();
    close("scores", &scores, &expected, 1e-4);
}

#[test]
fn sampled_texts_follow_their_seed() {
    let Some(model) = model("tiny-llama") else { return };
    let run = |sampling: Option<Sampling>, seed| {
        let mut options = Generate::greedy(24);
        if let Some(sampling) = sampling {
            options = options.with_sampling(sampling, seed);
        }
        let mut session = model.session(64).unwrap();
        let tokens: Vec<u32> =
            session.generate(&[5, 6, 7], options).unwrap().map(Result::unwrap).collect();
        tokens
    };
    let hot = Some(Sampling { temperature: 1.5, ..Sampling::default() });
    assert_eq!(run(hot, 1), run(hot, 1));
    assert_ne!(run(hot, 1), run(hot, 2));
    let one = Some(Sampling { top_k: Some(1), ..Sampling::default() });
    assert_eq!(run(one, 3), run(None, 0));
    // A stop token ends the text and is its last one.
    let greedy = run(None, 0);
    let mut session = model.session(64).unwrap();
    let stop = Generate::greedy(24).with_stop(&[greedy[5]]);
    let stopped: Vec<u32> =
        session.generate(&[5, 6, 7], stop).unwrap().map(Result::unwrap).collect();
    let end = greedy.iter().position(|token| *token == greedy[5]).unwrap();
    assert_eq!(stopped, greedy[..=end]);
}

// tracel-ai/burn#2042, #4792, #1492: memory grows with every step; tfjs#6970: pipelines do.
#[test]
fn two_thousand_tokens_in_steady_memory_one_submission_each() {
    if gpu().is_none() {
        return;
    }
    // A device of its own: its counters are those of this test.
    let gpu = Gpu::new().unwrap();
    let model = Model::load(&gpu, &data("models/tiny-llama"), Options::exact()).unwrap();
    let mut session = model.session(2100).unwrap();
    let mut tokens = session.generate(&text(40, 320), Generate::greedy(2000)).unwrap();
    for token in tokens.by_ref().take(30) {
        token.unwrap();
    }
    let (memory, pipelines) = (gpu.memory(), gpu.pipelines());
    gpu.reset_peak();
    let mut before = gpu.stream_stats();
    let mut created = 0;
    for (number, token) in tokens.enumerate() {
        token.unwrap();
        let after = gpu.stream_stats();
        assert_eq!(after.submissions - before.submissions, 1, "token {number}");
        created += after.bind_groups - before.bind_groups;
        before = after;
    }
    assert_eq!(session.len(), 2039);
    assert_eq!(created, 0, "bind groups");
    assert_eq!(gpu.pipelines(), pipelines);
    assert_eq!(gpu.memory().allocations, memory.allocations);
    assert_eq!(gpu.memory().in_use, memory.in_use);
}

/// Tokens that are kept up to some layer are there for later passes up to it, and only for those.
#[test]
fn tokens_are_kept_up_to_a_layer() {
    let Some(model) = model("tiny-llama") else { return };
    let ids = text(40, model.config().vocabulary);
    let hidden = |tensor: attn_wgpu::Tensor| tensor.to_vec::<f32>().unwrap();
    let whole = hidden(model.session(0).unwrap().run_to(1, &ids, Pass::new()).unwrap());
    let mut session = model.session(0).unwrap();
    let mut parts = hidden(session.keep_to(1, &ids[..15], Pass::new()).unwrap());
    parts.extend(hidden(session.keep_to(1, &ids[15..30], Pass::new()).unwrap()));
    parts.extend(hidden(session.run_to(1, &ids[30..], Pass::new()).unwrap()));
    assert_eq!(session.len(), 30);
    near("parts", &parts, &whole);
    for error in [
        session.forward(&ids[30..]).unwrap_err(),
        session.fork().unwrap().run_to(2, &ids[30..], Pass::new()).unwrap_err(),
    ] {
        let expected = "expected at most 1 layers, as the tokens from number 0 on";
        assert!(error.to_string().contains(expected), "{error}");
    }
    session.truncate(0).unwrap();
    assert_eq!(
        logits(&mut session, &ids),
        logits(&mut model.session(0).unwrap(), &ids),
        "forgotten tokens leave nothing behind"
    );
    // The norm is what the layer projects.
    let stream = session.run_to(0, &ids, Pass::new()).unwrap();
    let normed = model.normed(0, &stream).unwrap();
    let squares: f32 = normed.to_vec::<f32>().unwrap().iter().map(|x| x * x).sum();
    assert!(normed.shape() == stream.shape() && squares > 0.0);
    assert!(model.normed(99, &stream).is_err());
}
