//! The acceptance of the specification on SmolLM2-135M. Skipped where the model has not been fetched.

use std::path::PathBuf;

use attn_blockrank::policy::BlockRankPolicy;
use attn_blockrank::prompt::{Document, PromptBuilder, Template};
use attn_blockrank::{BlockRank, Config, QueryOffset, Segments};
use attn_model::{AttentionView, Model, Observer, Options, Pass, Result, Source, Wants};
use attn_wgpu::Tensor;
use attn_wgpu::testing::gpu;

use crate::support::{OnTheHost, far, positions};

/// Tolerances of the specification.
const LOGITS: f32 = 2e-3;
const SCORES: f32 = 1e-5;

fn file() -> Option<PathBuf> {
    let name = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let roots = [std::env::var_os("ATTN_MODELS_DIR").map(PathBuf::from), attn_model::cache_dir()];
    let found = roots.iter().flatten().map(|root| root.join(name)).find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: SmolLM2 is not here; `cargo xtask model fetch smollm2` gets it");
    }
    found
}

/// Scores of documents in every layer.
struct Scores {
    method: BlockRank,
    segments: Segments,
    layers: Vec<Tensor>,
}

impl Observer for Scores {
    fn wants(&mut self, _: usize, _: std::ops::Range<usize>) -> Wants {
        Wants::nothing().with_inputs()
    }

    fn attention(&mut self, _: usize, view: &AttentionView) -> Result<()> {
        let inputs = view.inputs.as_ref().unwrap();
        let device = self.method.segments(&self.segments)?;
        let signal = self.method.signal_queries(&inputs.q, &device)?;
        self.layers.push(self.method.doc_scores(&signal, &inputs.k, &device)?);
        Ok(())
    }
}

struct Run {
    /// Of the last token.
    logits: Vec<f32>,
    /// Of every layer.
    scores: Vec<Vec<f32>>,
}

fn run(model: &Model, tokens: &[u32], lengths: &[usize], on_the_host: bool) -> Run {
    let config = Config::new().with_query_offset(QueryOffset::At(2048));
    let segments = Segments::one(lengths).unwrap();
    let at = positions(&segments, &config);
    let mut session = match on_the_host {
        true => model.session_with(0, OnTheHost(segments.clone())).unwrap(),
        false => model.session_with(0, BlockRankPolicy::new(lengths).unwrap()).unwrap(),
    };
    let method = BlockRank::new(model.gpu(), config).unwrap();
    let mut seen = Scores { method, segments, layers: Vec::new() };
    let pass = Pass::new().with_positions(&at).with_observer(&mut seen);
    let hidden = session.forward_with(tokens, pass).unwrap();
    let last = tokens.len() - 1;
    let logits = session.logits(&hidden, last..last + 1).unwrap().to_vec().unwrap();
    let scores = seen.layers.iter().map(|scores| scores.to_vec().unwrap()).collect();
    Run { logits, scores }
}

#[test]
fn logits_and_the_order_of_documents() {
    let (Some(gpu), Some(path)) = (gpu(), file()) else { return };
    let source = Source::open(&path).unwrap();
    let model = Model::from_source(&gpu, &source, Options::exact(), &mut |_, _| ()).unwrap();
    let tokenizer = source.tokenizer().unwrap().unwrap();
    let template =
        Template { instruction: "Query: {query}\nDocuments:".into(), ..Template::default() };
    let builder = PromptBuilder::new(tokenizer, template);
    let texts = ["Whales are mammals.", "Iron rusts in salt water.", "Bread is baked."];
    let prompt = |order: [usize; 3]| {
        let named =
            |&number: &usize| Document { text: texts[number].into(), id: Some(number.to_string()) };
        let documents: Vec<Document> = order.iter().map(named).collect();
        let query = "What do whales breathe?";
        let context = builder.context(None, &documents, query).unwrap();
        let query = builder.query(3, query).unwrap();
        ([context.tokens, query.clone()].concat(), [context.lengths, vec![query.len()]].concat())
    };
    let (tokens, lengths) = prompt([0, 1, 2]);
    let own = run(&model, &tokens, &lengths, false);
    let host = run(&model, &tokens, &lengths, true);
    let off = far(&own.logits, &host.logits);
    println!("{} tokens, logits {off:.1e} from attention on the host", tokens.len());
    assert!(off <= LOGITS, "{off:e}");
    let order = [2, 0, 1];
    let (tokens, lengths) = prompt(order);
    let moved = run(&model, &tokens, &lengths, false);
    assert_eq!(moved.scores.len(), 30);
    let mut worst = 0f32;
    for (own, moved) in own.scores.iter().zip(&moved.scores) {
        let back: Vec<f32> = (0..3)
            .map(|number| {
                let place = order.iter().position(|&at| at == number).unwrap();
                moved[place]
            })
            .collect();
        worst = worst.max(far(own, &back));
    }
    println!("scores of documents in another order: {worst:.1e}");
    assert!(worst <= SCORES, "{worst:e}");
}
