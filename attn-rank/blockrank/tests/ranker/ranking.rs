//! The ranker.

use attn_blockrank::policy::BlockRankPolicy;
use attn_blockrank::projections::Projections;
use attn_blockrank::prompt::{Document, Template};
use attn_blockrank::ranker::{Ranker, Ranking, Request};
use attn_blockrank::{BlockRank, Config, QueryOffset, Segments};
use attn_core::dense;
use attn_model::{DType, Model, Pass, Source};
use attn_wgpu::Tensor;
use ndarray::Array2;

use crate::support::{far, folder, model, positions, tokenizer};

fn config() -> Config {
    Config::new().with_query_offset(QueryOffset::AfterLongest)
}

fn ranker(model: &Model) -> Ranker {
    Ranker::new(model, tokenizer(), 1, config()).unwrap()
}

fn documents(texts: &[&str]) -> Vec<Document> {
    texts.iter().map(|&text| Document::from(text)).collect()
}

const TEXTS: [&str; 4] = ["the whale", "a ship at sea", "iron", "bread and butter"];

fn scores(ranking: &Ranking) -> Vec<f32> {
    let mut scores = vec![0.0; ranking.order.len()];
    ranking.order.iter().for_each(|ranked| scores[ranked.document] = ranked.score);
    scores
}

/// One pass of the whole prompt through the policy, and the scores of its layer: what the ranker does in parts.
fn at_once(ranker: &Ranker, texts: &[&str], query: &str) -> Vec<f32> {
    let (model, gpu) = (ranker.model(), ranker.model().gpu());
    let context = ranker.builder().context(None, &documents(texts), query).unwrap();
    let asked = ranker.builder().query(texts.len(), query).unwrap();
    let tokens = [context.tokens, asked.clone()].concat();
    let lengths = [context.lengths, vec![asked.len()]].concat();
    let segments = Segments::one(&lengths).unwrap();
    let at = positions(&segments, &config());
    let mut session = model.session_with(0, BlockRankPolicy::new(&lengths).unwrap()).unwrap();
    let pass = Pass::new().with_positions(&at);
    let hidden = session.run_to(ranker.layer(), &tokens, pass).unwrap();
    let made = model.project(ranker.layer(), &hidden).unwrap();
    let rope = model.rope(ranker.layer()).unwrap();
    let at = Tensor::from_slice(gpu, &at, &[at.len()]).unwrap();
    let [q, k] = [&made.q, &made.k].map(|x| rope.apply(x, &at).unwrap());
    let scale = dense::Config::new().with_scale(model.config().scale);
    let scale = scale.with_mask(attn_core::Mask::Causal);
    let method = BlockRank::with_attention(gpu, config(), scale).unwrap();
    let device = method.segments(&segments).unwrap();
    let signal = method.signal_queries(&q, &device).unwrap();
    method.doc_scores(&signal, &k, &device).unwrap().to_vec().unwrap()
}

#[test]
fn rankings_are_those_of_one_pass() {
    for name in ["tiny-llama", "tiny-qwen3"] {
        let Some(model) = model(name) else { return };
        let ranker = ranker(&model);
        let want = at_once(&ranker, &TEXTS, "who swims?");
        let request = Request::new(documents(&TEXTS), "who swims?");
        let ranking = ranker.rank(&request).unwrap();
        let got = scores(&ranking);
        assert!(far(&got, &want) <= 1e-5, "{name}: {got:?} {want:?}");
        assert!((got.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(ranking.order.is_sorted_by(|a, b| a.score >= b.score));
        let small = ranker.clone().with_part(17).rank(&request).unwrap();
        assert!(far(&scores(&small), &want) <= 1e-5);
        // Several at once: each as alone.
        let other = Request::new(documents(&TEXTS[..2]), "rust").with_instruction("Sort these.");
        let both = ranker.rank_all(&[request, other.clone()]).unwrap();
        assert_eq!(both[0], ranking);
        assert_eq!(both[1], ranker.rank(&other).unwrap());
    }
}

/// Documents that are kept serve query after query, as if each came fresh.
#[test]
fn documents_are_run_once_for_many_queries() {
    let Some(model) = model("tiny-llama") else { return };
    let ranker = ranker(&model).with_template(Template::for_many_queries());
    let mut kept = ranker.prepare(None, &documents(&TEXTS)).unwrap();
    assert_eq!(kept.documents(), 4);
    let bytes = kept.bytes();
    for query in ["who swims?", "rust", "who swims?"] {
        let fresh = ranker.rank(&Request::new(documents(&TEXTS), query)).unwrap();
        assert_eq!(kept.rank(query).unwrap(), fresh);
        assert!(far(&scores(&fresh), &at_once(&ranker, &TEXTS, query)) <= 1e-5);
    }
    assert!(bytes > 0 && kept.tokens() > 0);
    // What is kept is more than nothing: other documents, other scores.
    let mut other = ranker.prepare(None, &documents(&["x", "y", "z", "w"])).unwrap();
    assert_ne!(other.rank("rust").unwrap().order, kept.rank("rust").unwrap().order);
}

#[test]
fn none_one_equal_and_many_documents() {
    let Some(model) = model("tiny-llama-tied") else { return };
    let ranker = ranker(&model).with_max_document(80);
    let rank = |documents: Vec<Document>| ranker.rank(&Request::new(documents, "q")).unwrap();
    assert!(rank(Vec::new()).order.is_empty());
    let one = rank(documents(&["alone"]));
    assert!(one.order.len() == 1 && (one.order[0].score - 1.0).abs() < 1e-6);
    // Equal documents have equal names, too.
    let named = |text: &str| Document { text: text.into(), id: Some("A".into()) };
    let twins = scores(&rank(vec![named("twin"), named("other"), named("twin")]));
    assert!((twins[0] - twins[2]).abs() <= 1e-6 && (twins[0] - twins[1]).abs() > 1e-7);
    let order = rank(vec![named("same"), named("same")]).order;
    assert_eq!([order[0].document, order[1].document], [0, 1]);
    // One that is too long.
    let long = rank(documents(&["short", &"long ".repeat(50)]));
    assert!(long.cuts.len() == 1 && long.cuts[0].document == 1);
    // Hundreds, of empty texts.
    let many = rank(vec![Document::from(""); 250]);
    assert_eq!(many.order.len(), 250);
    assert!((scores(&many).iter().sum::<f32>() - 1.0).abs() < 1e-4);
    assert!(many.tokens > 250 * 5);
}

fn weights(name: &str, source: &Source, rows: usize) -> Array2<f32> {
    let full = format!("model.layers.1.self_attn.{name}.weight");
    let shape = [rows * source.config.head_dim, source.config.hidden];
    let data = source.weights.tensor(&full, &shape, DType::F32).unwrap();
    let attn_model::Values::F32(values) = data.values else { panic!() };
    Array2::from_shape_vec(shape, values).unwrap()
}

#[test]
fn projections_take_the_place_of_the_models() {
    let Some(model) = model("tiny-llama") else { return };
    let source = Source::open(folder("tiny-llama")).unwrap();
    let own = Projections {
        layer: 1,
        w_q: weights("q_proj", &source, source.config.heads),
        w_k: weights("k_proj", &source, source.config.heads_kv),
    };
    let path =
        std::env::temp_dir().join(format!("attn-blockrank-{}.safetensors", std::process::id()));
    own.save(&path).unwrap();
    let read = Projections::load(&path).unwrap();
    assert_eq!(read, own);
    let request = Request::new(documents(&TEXTS), "who swims?");
    let plain = ranker(&model);
    let want = plain.rank(&request).unwrap();
    let same = plain.clone().with_projections(&read).unwrap().rank(&request).unwrap();
    assert!(far(&scores(&same), &scores(&want)) <= 1e-5);
    let zero = Projections { w_q: own.w_q.mapv(|_| 0.0), ..own.clone() };
    let shares = scores(&plain.clone().with_projections(&zero).unwrap().rank(&request).unwrap());
    // Every token gets as much: documents by their lengths.
    let context = plain.builder().context(None, &request.documents, "who swims?").unwrap();
    let all: usize = context.lengths[1..].iter().sum();
    for (share, len) in shares.iter().zip(&context.lengths[1..]) {
        assert!((share - *len as f32 / all as f32).abs() < 1e-5);
    }
    let refused = |projections: Projections, model: &Model, part: &str| {
        let error = ranker(model).with_projections(&projections).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    };
    refused(Projections { layer: 2, ..own.clone() }, &model, "`layer` is 2");
    refused(Projections { w_q: own.w_k.clone(), ..own.clone() }, &model, "`w_q` has shape");
    let with_norms = crate::support::model("tiny-qwen3").unwrap();
    let config = with_norms.config();
    let [rows, rows_kv] = [config.heads, config.heads_kv].map(|heads| heads * config.head_dim);
    let [w_q, w_k] = [rows, rows_kv].map(|rows| Array2::zeros((rows, config.hidden)));
    refused(Projections { layer: 1, w_q, w_k }, &with_norms, "without biases and norms");
    std::fs::write(&path, b"nothing").unwrap();
    assert!(Projections::load(&path).is_err());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_a_model_cannot_do_is_refused() {
    let Some(model) = model("tiny-llama") else { return };
    let new = |layer, config| Ranker::new(&model, tokenizer(), layer, config);
    let says = |result: attn_model::Result<Ranker>, part: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    };
    says(new(2, config()), "`layer` is 2, expected below 2");
    says(new(1, Config::new()), "below 512, the model's context");
    says(new(1, config().with_heads(vec![4])), "expected below 4");
    says(new(1, config().with_scale(0.5)), "`scale`");
    says(new(1, config().with_tau(-1.0)), "`tau`");
    let ask = |config: Config, documents: Vec<Document>, query: &str| {
        let ranking = new(1, config).unwrap().rank(&Request::new(documents, query));
        ranking.unwrap_err().to_string()
    };
    let near = config().with_query_offset(QueryOffset::At(20));
    assert!(ask(near, documents(&TEXTS), "q").contains("behind the longest document"));
    let long = "far ".repeat(200);
    assert!(ask(config(), documents(&[&long]), "q").contains("the model's context"));
    assert!(ask(config(), documents(&["a"]), &long).contains("the model's context"));
    let signal = config().with_signal_rows(500);
    assert!(ask(signal, documents(&["a"]), "q").contains("at least 500 tokens, the signal"));
    let asks = ranker(&model).prepare(None, &documents(&["a"])).unwrap_err().to_string();
    assert!(asks.contains("without {query}"), "{asks}");
    let tokens = ranker(&model).prepare_tokens(&[1, 2, 3], &[1, 1]).unwrap_err().to_string();
    assert!(tokens.contains("lengths of 3 tokens"), "{tokens}");
}
