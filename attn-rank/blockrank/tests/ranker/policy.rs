//! The block mask in models.

use attn_blockrank::policy::BlockRankPolicy;
use attn_blockrank::{Config, QueryOffset, Segments};
use attn_model::{Model, Pass, Session};

use crate::support::{OnTheHost, far, model, positions, text};

/// Tolerance of attn-model for another order of sums in two layers.
const LOGITS: f32 = 1e-4;

fn config() -> Config {
    Config::new().with_query_offset(QueryOffset::At(60))
}

/// A session, tokens and positions of a prompt.
fn prompt(model: &Model, lengths: &[usize]) -> (Session, Vec<u32>, Vec<u32>) {
    let segments = Segments::one(lengths).unwrap();
    let session = model.session_with(0, BlockRankPolicy::new(lengths).unwrap()).unwrap();
    let tokens = text(segments.tokens(), model.config().vocabulary.min(300));
    (session, tokens, positions(&segments, &config()))
}

fn logits(session: &mut Session, tokens: &[u32], positions: &[u32]) -> Vec<f32> {
    let pass = Pass::new().with_positions(positions);
    let hidden = session.forward_with(tokens, pass).unwrap();
    session.logits(&hidden, 0..tokens.len()).unwrap().to_vec().unwrap()
}

const LENGTHS: [usize; 5] = [9, 14, 3, 21, 8];

#[test]
fn logits_are_those_of_the_rule() {
    // Norms of queries and keys, biases, shared heads of three.
    for name in ["tiny-llama", "tiny-llama-tied", "tiny-qwen2", "tiny-qwen3"] {
        for lengths in [&LENGTHS[..], &[7, 12], &[11]] {
            let Some(model) = model(name) else { return };
            let (mut session, tokens, at) = prompt(&model, lengths);
            let got = logits(&mut session, &tokens, &at);
            let rule = OnTheHost(Segments::one(lengths).unwrap());
            let want = logits(&mut model.session_with(0, rule).unwrap(), &tokens, &at);
            assert!(far(&got, &want) <= LOGITS, "{name}, {lengths:?}: {:e}", far(&got, &want));
        }
    }
}

/// A prompt in parts, cut anywhere, then token by token, as in decoding; early exit; a fork.
#[test]
fn parts_and_decoding_are_the_whole() {
    let Some(model) = model("tiny-llama") else { return };
    let (mut session, tokens, at) = prompt(&model, &LENGTHS);
    let want = logits(&mut session, &tokens, &at);
    for parts in [&[55][..], &[5, 10, 1, 20, 11, 8], &[9, 38, 1, 1, 1, 1, 1, 1, 1, 1], &[30, 25]] {
        let mut session = model.session_with(0, BlockRankPolicy::new(&LENGTHS).unwrap()).unwrap();
        let (mut got, mut start) = (Vec::new(), 0);
        for len in parts {
            let own = start..start + len;
            got.extend(logits(&mut session, &tokens[own.clone()], &at[own]));
            start += len;
        }
        assert_eq!(start, tokens.len());
        assert!(far(&got, &want) <= LOGITS, "{parts:?}: {:e}", far(&got, &want));
    }
    // The query segment may be announced as empty: tokens behind the documents are its.
    let open = BlockRankPolicy::new(&[9, 14, 3, 21, 0]).unwrap();
    assert_eq!(open.segments().most_documents(), 3);
    let mut session = model.session_with(0, open).unwrap();
    assert!(far(&logits(&mut session, &tokens, &at), &want) <= LOGITS);
    let mut fork = session.fork().unwrap();
    session.truncate(20).unwrap();
    let behind = logits(&mut session, &tokens[20..], &at[20..]);
    assert!(far(&behind, &want[20 * 320..]) <= LOGITS);
    assert_eq!(fork.len(), tokens.len());
    let more = logits(&mut fork, &[5], &[68]);
    assert!(more.iter().all(|x| x.is_finite()));
}

#[test]
fn models_with_windows_are_refused() {
    let Some(model) = model("tiny-mistral") else { return };
    let policy = BlockRankPolicy::new(&LENGTHS).unwrap();
    let error = model.session_with(0, policy).unwrap_err().to_string();
    assert!(error.contains("`window` is") && error.contains("whole context"), "{error}");
    assert!(BlockRankPolicy::new(&[]).is_err());
}
