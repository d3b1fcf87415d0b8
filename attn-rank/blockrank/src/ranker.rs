//! A language model as a ranker (feature `model`): an instruction, documents and a query in, an order out.
//!
//! ```no_run
//! use attn_blockrank::prompt::Document;
//! use attn_blockrank::ranker::{Ranker, Request};
//! use attn_blockrank::{Config, QueryOffset};
//! use attn_model::{Model, Options, Source};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = Source::open(std::path::Path::new("model"))?;
//! let model = Model::from_source(&attn_wgpu::Gpu::new()?, &source, Options::default(), &mut |_, _| ())?;
//! let tokenizer = source.tokenizer()?.ok_or("the model has no tokenizer")?;
//! let config = Config::new().with_query_offset(QueryOffset::AfterLongest);
//! let ranker = Ranker::new(&model, tokenizer, 20, config)?.with_max_document(160);
//! let documents = ["Whales are mammals.", "Iron rusts."].map(Document::from).to_vec();
//! let ranking = ranker.rank(&Request::new(documents, "Do whales lay eggs?"))?;
//! for ranked in &ranking.order {
//!     println!("document {}: {:.3}", ranked.document, ranked.score);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The layers below [`Ranker::layer`] run with the block mask, the instruction and documents in parts of some
//! thousand tokens; at that layer the queries of the signal tokens and the keys of the documents are made and
//! compared. Nothing above it runs, and neither do that layer's output projection and perceptron. Queries, keys and
//! values of a layer are one matrix of `attn-model`, so that those of the documents which no score needs are computed
//! with the keys, unless there are [`Projections`].

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_model::{Model, Pass, Result, Session, Tokenizer};
use attn_wgpu::{DType, Tensor};

use crate::policy::BlockRankPolicy;
use crate::projections::{DeviceProjections, Projections};
use crate::prompt::{Cut, Document, PromptBuilder, Template};
use crate::{BlockRank, Config, DeviceSegments, QueryOffset, Segments, reference};

/// Tokens of a part of a prompt.
const PART: usize = 2048;

/// What is to be ranked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// What documents are ranked for; [`TASK`](crate::prompt::TASK) where it is not set.
    pub instruction: Option<String>,
    /// The documents.
    pub documents: Vec<Document>,
    /// The query.
    pub query: String,
}

impl Request {
    /// Documents for a query.
    pub fn new(documents: Vec<Document>, query: impl Into<String>) -> Request {
        Request { instruction: None, documents, query: query.into() }
    }

    /// The same for a task of one's own.
    pub fn with_instruction(self, instruction: impl Into<String>) -> Request {
        Request { instruction: Some(instruction.into()), ..self }
    }
}

/// A document in its place.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Ranked {
    /// Number of the document.
    pub document: usize,
    /// Share of the attention that the documents get; all together 1.
    pub score: f32,
}

/// An order of documents.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Ranking {
    /// All documents, the best one first; documents of equal scores by their numbers.
    pub order: Vec<Ranked>,
    /// Documents that were cut.
    pub cuts: Vec<Cut>,
    /// Tokens of the prompt.
    pub tokens: usize,
}

/// A language model with the layer and the heads whose attention is the score. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ranker {
    model: Model,
    builder: PromptBuilder,
    layer: usize,
    method: BlockRank,
    projections: Option<DeviceProjections>,
    part: usize,
}

/// Instruction and documents with their keys and values, to be asked many queries.
#[derive(Debug)]
pub struct Prepared {
    ranker: Ranker,
    session: Session,
    /// Instruction, documents and an empty query segment.
    segments: DeviceSegments,
    /// Keys of the scoring layer, rotated, `[1, heads_kv, tokens, head_dim]`.
    keys: Tensor,
    cuts: Vec<Cut>,
}

impl Ranker {
    /// The model's attention at `layer`, the first of which is 0, as the score. The paper takes 20 of 32; any
    /// layer in the middle works once it is trained.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for a layer or heads that the model lacks, a scale (that is the model's), and a
    /// query offset beyond what the model was made for; see [`Config::validate`].
    pub fn new(
        model: &Model,
        tokenizer: Tokenizer,
        layer: usize,
        config: Config,
    ) -> Result<Ranker> {
        let own = model.config();
        if layer >= own.layers.len() {
            let expected = format!("below {}", own.layers.len());
            return Err(attn_core::Error::config("layer", expected, layer).into());
        }
        config.heads_of(own.heads)?;
        if let QueryOffset::At(offset) = config.query_offset
            && offset as usize >= own.context
        {
            let expected = format!("below {}, the model's context", own.context);
            return Err(attn_core::Error::config("query_offset", expected, offset).into());
        }
        let dense = Dense::new().with_mask(Mask::Causal).with_scale(own.scale);
        let method = BlockRank::with_attention(model.gpu(), config, dense)?;
        let builder = PromptBuilder::new(tokenizer, Template::default());
        let model = model.clone();
        Ok(Ranker { model, builder, layer, method, projections: None, part: PART })
    }

    /// The same with other texts around documents and query.
    pub fn with_template(self, template: Template) -> Ranker {
        Ranker { builder: self.builder.with_template(template), ..self }
    }

    /// The same with documents of at most so many tokens, marks included.
    pub fn with_max_document(self, tokens: usize) -> Ranker {
        Ranker { builder: self.builder.with_max_document(tokens), ..self }
    }

    /// The same with instruction and documents in parts of so many tokens, at least 1: what runs at once takes
    /// memory.
    pub fn with_part(self, tokens: usize) -> Ranker {
        Ranker { part: tokens.max(1), ..self }
    }

    /// The same with projections that were tuned for scores, at their layer.
    ///
    /// # Errors
    /// As [`Projections::check`]; those of allocation.
    pub fn with_projections(self, projections: &Projections) -> Result<Ranker> {
        projections.check(&self.model)?;
        let own = projections.upload(self.model.gpu())?;
        Ok(Ranker { layer: projections.layer, projections: Some(own), ..self })
    }

    /// The layer whose attention is the score.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What makes the tokens of prompts.
    pub fn builder(&self) -> &PromptBuilder {
        &self.builder
    }

    /// The mechanism: its parameters, scores and loss.
    pub fn method(&self) -> &BlockRank {
        &self.method
    }

    /// Ranks the documents of a request. Waits for the device.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] where a position reaches the end of the model's context or documents reach the
    /// query offset, [`attn_core::Error::Data`] for a query segment without enough signal tokens; those of the
    /// tokenizer, of [`BlockRankPolicy`] and of the device.
    pub fn rank(&self, request: &Request) -> Result<Ranking> {
        let Request { instruction, documents, query } = request;
        if documents.is_empty() {
            return Ok(Ranking { order: Vec::new(), cuts: Vec::new(), tokens: 0 });
        }
        self.prepared(instruction.as_deref(), documents, query)?.rank(query)
    }

    /// Ranks the documents of several requests, one after the other: each gets what [`Ranker::rank`] gives.
    ///
    /// # Errors
    /// As [`Ranker::rank`].
    pub fn rank_all(&self, requests: &[Request]) -> Result<Vec<Ranking>> {
        requests.iter().map(|request| self.rank(request)).collect()
    }

    /// Runs instruction and documents, so that many queries can follow.
    ///
    /// # Errors
    /// As [`Ranker::rank`], and [`attn_core::Error::Config`] for a template whose instruction has the query:
    /// [`Template::for_many_queries`] is one without.
    pub fn prepare(&self, instruction: Option<&str>, documents: &[Document]) -> Result<Prepared> {
        if self.builder.template().asks_first() {
            let (expected, got) = ("an instruction without {query}", "one with it");
            return Err(attn_core::Error::config("template", expected, got).into());
        }
        self.prepared(instruction, documents, "")
    }

    fn prepared(
        &self,
        instruction: Option<&str>,
        documents: &[Document],
        query: &str,
    ) -> Result<Prepared> {
        let context = self.builder.context(instruction, documents, query)?;
        self.run(&context.tokens, context.lengths, context.cuts)
    }

    /// Runs an instruction and documents of these lengths that are tokens already.
    ///
    /// # Errors
    /// As [`Ranker::rank`], and [`attn_core::Error::Data`] for lengths of another sum.
    pub fn prepare_tokens(&self, tokens: &[u32], lengths: &[usize]) -> Result<Prepared> {
        self.run(tokens, lengths.to_vec(), Vec::new())
    }

    fn run(&self, tokens: &[u32], mut lengths: Vec<usize>, cuts: Vec<Cut>) -> Result<Prepared> {
        let sum = lengths.iter().fold(0usize, |sum, len| sum.saturating_add(*len));
        if sum != tokens.len() {
            let expected = format!("lengths of {} tokens", tokens.len());
            return Err(attn_core::Error::data("lengths", expected, sum).into());
        }
        if lengths.is_empty() {
            lengths.push(0);
        }
        lengths.push(0);
        let (gpu, config) = (self.model.gpu(), self.model.config());
        let segments = Segments::one(&lengths)?;
        let positions = segments.positions(self.method.config().query_offset)?;
        let positions: Vec<u32> = positions.iter().copied().collect();
        self.check_context(positions.iter().max().map_or(0, |&last| last as usize))?;
        let mut session = self.model.session_with(0, BlockRankPolicy::new(&lengths)?)?;
        let shape = [1, config.heads_kv, tokens.len(), config.head_dim];
        let keys = Tensor::uninit(gpu, &shape, DType::F32)?;
        for start in (0..tokens.len()).step_by(self.part) {
            let end = (start + self.part).min(tokens.len());
            let own = &positions[start..end];
            let pass = Pass::new().with_positions(own);
            let hidden = session.keep_to(self.layer, &tokens[start..end], pass)?;
            let k = self.keys(&hidden)?;
            self.rotate(&k, own, &keys.narrow(2, start, end - start)?)?;
        }
        let segments = self.method.segments(&segments)?;
        Ok(Prepared { ranker: self.clone(), session, segments, keys, cuts })
    }

    fn keys(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.projections {
            None => Ok(self.model.project(self.layer, hidden)?.k),
            Some(own) => {
                let normed = self.model.normed(self.layer, hidden)?;
                Ok(own.keys(&normed, self.model.config().heads_kv)?)
            }
        }
    }

    fn queries(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.projections {
            None => Ok(self.model.project(self.layer, hidden)?.q),
            Some(own) => {
                let normed = self.model.normed(self.layer, hidden)?;
                Ok(own.queries(&normed, self.model.config().heads)?)
            }
        }
    }

    fn rotate(&self, x: &Tensor, positions: &[u32], out: &Tensor) -> Result<()> {
        let rope = self.model.rope(self.layer)?;
        if let Some(&last) = positions.iter().max() {
            rope.reserve(last as usize + 1)?;
        }
        let positions = Tensor::from_slice(self.model.gpu(), positions, &[positions.len()])?;
        Ok(rope.apply_into(x, &positions, out)?)
    }

    /// Whether a position is one that the model was made for.
    fn check_context(&self, last: usize) -> Result<()> {
        let context = self.model.config().context;
        if last >= context {
            let expected = format!("positions below {context}, the model's context");
            return Err(attn_core::Error::config("positions", expected, last).into());
        }
        Ok(())
    }
}

impl Prepared {
    /// Ranks the documents for a query. Waits for the device.
    ///
    /// # Errors
    /// As [`Ranker::rank`].
    pub fn rank(&mut self, query: &str) -> Result<Ranking> {
        let documents = self.documents();
        if documents == 0 {
            return Ok(Ranking { order: Vec::new(), cuts: Vec::new(), tokens: self.session.len() });
        }
        let query = self.ranker.builder.query(documents, query)?;
        let scores = self.scores(&query)?.to_vec::<f32>()?;
        let wide: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
        let order = reference::rank(ndarray::ArrayView1::from(&wide));
        let order = order.into_iter().map(|document| Ranked { document, score: scores[document] });
        let tokens = self.session.len() + query.len();
        Ok(Ranking { order: order.collect(), cuts: self.cuts.clone(), tokens })
    }

    /// Scores of the documents for the tokens of a query segment, f32 `[1, documents]`. The query leaves nothing
    /// behind.
    ///
    /// # Errors
    /// As [`Ranker::rank`].
    pub fn scores(&mut self, query: &[u32]) -> Result<Tensor> {
        let ranker = &self.ranker;
        let config = ranker.method.config();
        let count = config.signal_rows;
        let Some(before) = query.len().checked_sub(count) else {
            let expected = format!("at least {count} tokens, the signal");
            return Err(attn_core::Error::data("query", expected, query.len()).into());
        };
        let host = self.segments.host();
        let all = host.prompts().first().map_or(&[][..], Vec::as_slice);
        let begins = crate::segments::starts(all, config.query_offset)?;
        let first = begins.last().copied().unwrap_or(0);
        ranker.check_context((first as usize).saturating_add(query.len() - 1))?;
        let positions: Vec<u32> = (first..).take(query.len()).collect();
        let pass = Pass::new().with_positions(&positions);
        let hidden = self.session.run_to(ranker.layer, query, pass)?;
        let q = ranker.queries(&hidden.narrow(0, before, count)?)?;
        let rotated = Tensor::uninit(q.gpu(), q.shape(), DType::F32)?;
        ranker.rotate(&q, &positions[before..], &rotated)?;
        Ok(ranker.method.doc_scores(&rotated, &self.keys, &self.segments)?)
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.segments.host().most_documents()
    }

    /// Tokens of instruction and documents.
    pub fn tokens(&self) -> usize {
        self.session.len()
    }

    /// Bytes that keys and values take on the device.
    pub fn bytes(&self) -> u64 {
        self.session.bytes() + 4 * self.keys.len() as u64
    }
}
