//! Attention of whole models, small ones with random weights.

use std::path::Path;

use attn_model::policy::SinkWindow;
use attn_model::{Model, Options, Pass};
use attn_vlsam::ndarray::{Array4, Axis};
use attn_vlsam::{
    AttentionFlow, AttentionSource, Config, LayerAttention, Recorder, TokenLayout, reference,
};
use attn_wgpu::testing::gpu;

use crate::support::{distance, probabilities, wide};

const TOKENS: usize = 37;

fn model(name: &str, options: Options) -> Option<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../attn-model/tests/data/models");
    Some(Model::load(&gpu()?, &folder.join(name), options).unwrap())
}

fn text(len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + 13) % 300) as u32).collect()
}

/// Probabilities that follow from what a source gives, `[L, H, N, N]`.
fn maps(source: &impl AttentionSource) -> Array4<f64> {
    let mut all = Vec::new();
    for layer in 0..source.layers() {
        let LayerAttention::QueriesKeys(own) = source.layer(layer).unwrap() else { unreachable!() };
        let wide = |x: &attn_vlsam::Tensor| -> Array4<f64> {
            let x = attn_wgpu::ops::convert(x, attn_wgpu::DType::F32).unwrap();
            wide(&x).into_dimensionality().unwrap()
        };
        all.push(probabilities(&wide(&own.q), &wide(&own.k), &own.attention));
    }
    let views: Vec<_> = all.iter().map(|map| map.view()).collect();
    attn_vlsam::ndarray::stack(Axis(0), &views).unwrap()
}

/// Soft-caps, windows and a scale of its own; norms of queries and keys; shared heads of three. In one pass and
/// in parts, as tokens are generated.
#[test]
fn flows_of_models() {
    for name in ["tiny-gemma2", "tiny-qwen3", "tiny-llama-tied"] {
        let Some(model) = model(name, Options::exact()) else { return };
        let config = model.config();
        let ids = text(TOKENS);
        let layout = TokenLayout::text(2..30, [TOKENS - 1, TOKENS - 3]);
        let flow = AttentionFlow::new(model.gpu(), Config::new()).unwrap();
        let mut rows = Vec::new();
        for parts in [&[TOKENS][..], &[30, 1, 1, 5]] {
            let mut recorder = Recorder::new(&model);
            let mut session = model.session(TOKENS).unwrap();
            let mut first = 0;
            for len in parts {
                let pass = Pass::new().with_observer(&mut recorder);
                session.forward_with(&ids[first..first + len], pass).unwrap();
                first += len;
            }
            assert_eq!(recorder.tokens(), TOKENS);
            let numbers = config.layers.len() * config.heads * TOKENS * config.head_dim;
            assert_eq!(recorder.bytes(), 4 * numbers as u64);
            let source = recorder.source().unwrap();
            assert_eq!((source.tokens(), source.layers()), (TOKENS, config.layers.len()));
            let got = flow.forward(&source, &layout).unwrap();
            let want =
                reference::forward(maps(&source).view(), &layout, &Config::new(), None).unwrap();
            let off = distance(&wide(&got.flow.rows), &want.rows.into_dyn());
            assert!(off <= 1e-5, "{name}: {off:e}");
            rows.push(wide(&got.flow.rows));
        }
        // The tolerance of attn-model for another order of sums in two layers.
        assert!(distance(&rows[1], &rows[0]) <= 1e-4, "{name}");
        let windows = config.layers.iter().filter(|layer| layer.window.is_some()).count();
        println!("{name}: {windows} of {} layers have windows", config.layers.len());
    }
}

/// The maps are those that the model's own observers see.
#[test]
fn what_is_recorded_is_what_the_model_attends_to() {
    struct Maps(Vec<Array4<f64>>);
    impl attn_model::Observer for Maps {
        fn wants(&mut self, _: usize, _: std::ops::Range<usize>) -> attn_model::Wants {
            attn_model::Wants::nothing().with_map()
        }
        fn attention(
            &mut self,
            _: usize,
            view: &attn_model::AttentionView,
        ) -> attn_model::Result<()> {
            self.0.push(wide(view.map.as_ref().unwrap()).into_dimensionality().unwrap());
            Ok(())
        }
    }
    for name in ["tiny-gemma2", "tiny-llama"] {
        let Some(model) = model(name, Options::exact()) else { return };
        let ids = text(TOKENS);
        let mut seen = Maps(Vec::new());
        let mut session = model.session(TOKENS).unwrap();
        session.forward_with(&ids, Pass::new().with_observer(&mut seen)).unwrap();
        // Whatever the session's policy.
        for window in [None, Some(4)] {
            let mut recorder = Recorder::of(model.config());
            let mut session = match window {
                None => model.session(TOKENS).unwrap(),
                Some(window) => model.session_with(TOKENS, SinkWindow::new(1, window)).unwrap(),
            };
            session.forward_with(&ids, Pass::new().with_observer(&mut recorder)).unwrap();
            let maps = maps(&recorder.source().unwrap());
            assert_eq!(maps.len_of(Axis(0)), seen.0.len());
            // Of the first layer, as what another policy computes changes what comes behind it.
            let layers = if window.is_none() { seen.0.len() } else { 1 };
            for (layer, want) in seen.0.iter().enumerate().take(layers) {
                let got = maps.index_axis(Axis(0), layer).insert_axis(Axis(0)).to_owned();
                let off = distance(&got.into_dyn(), &want.clone().into_dyn());
                assert!(off <= 1e-5, "{name}, layer {layer}, {window:?}: {off:e}");
            }
        }
    }
}

#[test]
fn sessions_that_are_cut_and_caches_in_halves() {
    let options = Options::exact().with_cache(attn_model::DType::F16);
    let Some(model) = model("tiny-llama", options) else { return };
    let ids = text(TOKENS);
    let flow = AttentionFlow::new(model.gpu(), Config::new()).unwrap();
    let mut recorder = Recorder::new(&model);
    let nothing = recorder.source().unwrap_err().to_string();
    assert!(nothing.contains("recorder"), "{nothing}");
    let mut session = model.session(TOKENS).unwrap();
    let mut run = |session: &mut attn_model::Session, ids: &[u32]| {
        session.forward_with(ids, Pass::new().with_observer(&mut recorder)).unwrap();
        let found = recorder.source().unwrap();
        wide(&flow.rows(&found, &[found.tokens() - 1]).unwrap().rows)
    };
    run(&mut session, &ids[..20]);
    let want = run(&mut session, &ids[20..]);
    // Other tokens, then the same again: what was cut is forgotten, inside of a part too.
    session.truncate(7).unwrap();
    run(&mut session, &text(12));
    session.truncate(7).unwrap();
    run(&mut session, &ids[7..20]);
    let again = run(&mut session, &ids[20..]);
    // Keys and queries are rounded to f16, which another order of sums may tip.
    let off = distance(&again, &want);
    assert!(off <= 2e-3, "{off:e}");

    // A recorder that came too late lacks the beginning.
    let mut late = Recorder::new(&model);
    let mut session = model.session(TOKENS).unwrap();
    session.forward(&ids[..5]).unwrap();
    let error = session.forward_with(&ids[5..], Pass::new().with_observer(&mut late)).unwrap_err();
    assert!(error.to_string().contains("tokens"), "{error}");
}
