//! The policy in whole models: small ones of every family, with random weights.
#![cfg(feature = "model")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use attn_core::{Mask, dense, plan};
use attn_flexprefill::policy::{FlexPrefillPolicy, LayerPass};
use attn_flexprefill::{Config, Tensor, reference};
use attn_model::policy::{Layer, Phase};
use attn_model::{AttentionPolicy, Model, Options, Pass, Result, Session};
use attn_wgpu::testing::gpu;
use ndarray::{Array4, Ix4};

/// Sizes of the parts in which a prompt comes: single tokens, inside of blocks and across them.
const PARTS: [usize; 5] = [1, 7, 64, 65, 3];
const TOKENS: usize = 140;

fn model(name: &str) -> Option<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../attn-model/tests/data/models");
    Some(Model::load(&gpu()?, &folder.join(name), Options::exact()).unwrap())
}

fn text(len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + 13) % 300) as u32).collect()
}

fn small() -> Config {
    Config::new().with_block(8).with_budget(None, None)
}

fn sparse() -> Config {
    small().with_gamma(0.6).with_budget(None, Some(32))
}

fn begin(model: &Model, policy: impl AttentionPolicy) -> Session {
    model.session_with(TOKENS, policy).unwrap()
}

fn logits(session: &mut Session, tokens: &[u32], pass: Pass<'_>) -> Vec<f32> {
    let hidden = session.forward_with(tokens, pass).unwrap();
    session.logits(&hidden, 0..tokens.len()).unwrap().to_vec().unwrap()
}

/// Runs a prompt in parts.
fn in_parts(session: &mut Session, tokens: &[u32], parts: &[usize]) -> Vec<f32> {
    let (mut all, mut start) = (Vec::new(), 0);
    for len in parts {
        all.extend(logits(session, &tokens[start..start + len], Pass::new()));
        start += len;
    }
    all
}

fn passes(session: &Session) -> &[LayerPass] {
    session.policy_as::<FlexPrefillPolicy>().unwrap().passes()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// With a share above 1 every block is on, whether a prompt comes whole or in parts.
#[test]
fn everything_selected_is_the_models_own_attention() {
    // Soft-caps, windows and a scale of its own; norms of queries and keys; shared heads of three.
    for name in ["tiny-gemma2", "tiny-qwen3", "tiny-llama-tied"] {
        let Some(model) = model(name) else { return };
        let ids = text(TOKENS);
        let expected = logits(&mut model.session(TOKENS).unwrap(), &ids, Pass::new());
        let windows = model.config().layers.iter().filter(|layer| layer.window.is_some()).count();
        for block in [8, 7] {
            for parts in [&[TOKENS][..], &PARTS] {
                let config = small().with_block(block).with_gamma(1.5);
                let mut session = begin(&model, FlexPrefillPolicy::new(config));
                let got = in_parts(&mut session, &ids, parts);
                // The tolerance of attn-model for another order of sums in two layers.
                let far = largest_difference(&got, &expected);
                assert!(far <= 1e-4, "{name}, blocks of {block}, {parts:?}: {far:e}");

                let selected: Vec<_> =
                    passes(&session).iter().filter(|pass| pass.selection.is_some()).collect();
                // Of the parts, those of 64 and 65 tokens are longer than a block.
                let wanted = if parts.len() == 1 { 1 } else { 2 };
                assert_eq!(selected.len(), wanted * (model.config().layers.len() - windows));
                for pass in selected {
                    let heads = pass.heads().unwrap();
                    assert_eq!(heads.len(), model.config().heads);
                    assert!(heads.iter().all(|head| head.density == 1.0));
                }
            }
        }
    }
}

/// Keys, values and queries in half precision, with a factor of `q.k` that selection is told.
#[test]
fn caches_in_half_precision() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../attn-model/tests/data/models");
    let Some(gpu) = gpu() else { return };
    let options = Options::exact().with_cache(attn_model::DType::F16);
    let model = Model::load(&gpu, &folder.join("tiny-gemma2"), options).unwrap();
    let ids = text(TOKENS);
    let expected = logits(&mut model.session(TOKENS).unwrap(), &ids, Pass::new());
    let run = |config: Config| {
        let mut session = begin(&model, FlexPrefillPolicy::new(config));
        largest_difference(&in_parts(&mut session, &ids, &PARTS), &expected)
    };
    // Outputs are rounded to f16, here and there: tolerance of attn-model for that.
    let far = run(small().with_gamma(1.5));
    assert!(far <= 2e-2, "{far:e}");
    assert!(run(sparse()).is_finite());
}

/// Lets the policy attend, and holds its results to the reference in f64.
#[derive(Debug, Clone)]
struct Judged {
    policy: FlexPrefillPolicy,
    /// Worst differences of the output and of the divergence, and how many heads were query-aware or not.
    seen: Arc<Mutex<(f64, f64, [usize; 2])>>,
}

fn wide(tensor: &Tensor) -> Array4<f64> {
    let array = tensor.to_array::<f32>().unwrap().mapv(f64::from);
    array.into_dimensionality::<Ix4>().unwrap()
}

impl AttentionPolicy for Judged {
    fn begin(&mut self, shape: &attn_model::policy::ModelShape) -> Result<()> {
        self.policy.begin(shape)
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        let out = self.policy.attend(layer)?;
        let Some(selection) = self.policy.passes().last().and_then(|pass| pass.selection.clone())
        else {
            return Ok(out);
        };
        let [q, k, v] =
            [layer.rotated_q()?, layer.keys()?, layer.values()?].map(|tensor| wide(&tensor));
        let mut attention = dense::Config::new().with_mask(Mask::Causal).with_scale(layer.scale());
        if let Some(cap) = layer.soft_cap() {
            attention = attention.with_soft_cap(cap);
        }
        let plan = selection.download()?;
        let inputs = dense::Inputs::new(q.view(), k.view(), v.view());
        let want = plan::forward(inputs, &plan, &attention).unwrap().out;
        let off = (&wide(&out) - &want).mapv(f64::abs).fold(0.0, |most, x| f64::max(most, *x));

        let scaled = &q * (layer.scale() * (q.dim().3 as f64).sqrt());
        let want = reference::select(scaled.view(), k.view(), self.policy.config()).unwrap();
        let mut seen = self.seen.lock().unwrap();
        seen.0 = seen.0.max(off);
        for (head, want) in selection.heads.unwrap().read()?.iter().zip(&want.heads) {
            seen.1 = seen.1.max((f64::from(head.divergence) - want.divergence).abs());
            seen.2[usize::from(head.query_aware)] += 1;
        }
        Ok(out)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.policy.truncate(len)
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}

#[test]
fn scale_and_soft_cap_are_the_models() {
    for name in ["tiny-gemma2", "tiny-llama"] {
        let Some(model) = model(name) else { return };
        for parts in [&[TOKENS][..], &PARTS] {
            let policy = FlexPrefillPolicy::new(sparse().with_tau(0.15));
            let judged = Judged { policy, seen: Arc::default() };
            in_parts(&mut begin(&model, judged.clone()), &text(TOKENS), parts);
            let (off, divergence, heads) = *judged.seen.lock().unwrap();
            println!("{name}: output {off:.1e}, divergence {divergence:.1e}, heads {heads:?}");
            // Tolerances of the golden files.
            assert!(heads[0] + heads[1] > 0 && off <= 2e-5 && divergence <= 2e-4, "{name}");
        }
    }
}

#[test]
fn the_same_parts_give_the_same_bits_after_forks_and_truncation() {
    let Some(model) = model("tiny-llama") else { return };
    let ids = text(TOKENS);
    let policy = || FlexPrefillPolicy::new(sparse());
    let mut fresh = begin(&model, policy());
    let expected = in_parts(&mut fresh, &ids, &PARTS);
    let width = model.config().vocabulary;
    assert!(passes(&fresh).iter().any(|pass| pass.selection.is_some()));

    // 72 tokens, then other ways, then the rest.
    let mut session = begin(&model, policy());
    in_parts(&mut session, &ids, &PARTS[..3]);
    let mut fork = session.fork().unwrap();
    session.forward(&ids[3..50]).unwrap();
    fork.run_to(1, &ids[5..40], Pass::new()).unwrap();
    let rest = in_parts(&mut fork, &ids[72..], &PARTS[3..]);
    assert_eq!(rest, expected[72 * width..], "fork");
    session.truncate(72).unwrap();
    assert_eq!(passes(&session).len(), 3 * model.config().layers.len());
    let rest = in_parts(&mut session, &ids[72..], &PARTS[3..]);
    assert_eq!(rest, expected[72 * width..], "truncation");
    // Tokens that the model lacks: the pass fails, and nothing of it is left.
    session.forward(&[u32::MAX]).unwrap_err();
    for other in [&fork, &session] {
        let of = |session: &Session| -> Vec<_> {
            let passes = passes(session).iter();
            passes.map(|pass| (pass.layer, pass.tokens.clone(), pass.heads().unwrap())).collect()
        };
        assert_eq!(of(other), of(&fresh));
    }

    // Cut inside of a pass, its statistics are gone.
    session.truncate(100).unwrap();
    assert_eq!(passes(&session).len(), 3 * model.config().layers.len());
}

/// The policy for the prompt, and nothing but the model's own attention behind it.
#[derive(Debug, Clone)]
struct PromptOnly(FlexPrefillPolicy);

impl AttentionPolicy for PromptOnly {
    fn begin(&mut self, shape: &attn_model::policy::ModelShape) -> Result<()> {
        self.0.begin(shape)
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        match layer.phase() {
            Phase::Prefill => self.0.attend(layer),
            Phase::Decode { .. } => layer.dense(),
        }
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}

#[test]
fn what_the_model_continues_with_is_dense() {
    let Some(model) = model("tiny-llama") else { return };
    let ids = text(TOKENS);
    let policy = FlexPrefillPolicy::new(sparse());
    let mut own = begin(&model, policy.clone());
    let mut other = begin(&model, PromptOnly(policy));
    let dense = logits(&mut model.session(TOKENS).unwrap(), &ids[..100], Pass::new());
    let prompt = logits(&mut own, &ids[..100], Pass::new());
    assert!(largest_difference(&prompt, &dense) > 1e-3, "nothing was left out");
    assert_eq!(logits(&mut other, &ids[..100], Pass::new()), prompt);
    // One token, and more than a block of them.
    for range in [100..101, 101..130] {
        let tokens = &ids[range];
        let got = logits(&mut own, tokens, Pass::new().decoding());
        assert_eq!(got, logits(&mut other, tokens, Pass::new().decoding()));
    }
    assert_eq!(passes(&own).len(), model.config().layers.len());
}

#[test]
fn wrong_parameters_are_refused_when_a_session_begins() {
    let Some(model) = model("tiny-llama") else { return };
    for (config, part) in [
        (small().with_block(0), "`block` is 0"),
        (small().with_scale(0.5), "`scale` is 0.5, expected that of the attention"),
    ] {
        let error = model.session_with(9, FlexPrefillPolicy::new(config)).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}
