//! Statutes re-ranked in context: `ranking MODEL FOLDER [OPTIONS]`.
//!
//! FOLDER has `corpus.jsonl`, `queries.jsonl` and `qrels.tsv` in the layout of BEIR, as the README says. BM25 finds
//! candidates, the model's attention orders them; both orders are judged on the same queries.
//!
//! --projections FILE   projections of queries and keys that were tuned (their layer is theirs)
//! --layer N            the layer of the scores without projections; two thirds of them by default
//! --kind KIND          `title` (default) or `citation`
//! --split SPLIT        `test` (default), `dev` or `train`
//! --candidates N       how many BM25 hands over; 8 by default
//! --length N           tokens of a document at most; 96 by default
//! --queries N          how many queries; 20 by default

mod bm25;
mod data;

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use attn_blockrank::projections::Projections;
use attn_blockrank::prompt::Document;
use attn_blockrank::ranker::{Ranker, Request};
use attn_blockrank::{Config, Gpu, QueryOffset};
use attn_model::{Model, Options, Source};
use bm25::Bm25;
use data::{Measures, Set};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const USAGE: &str = "ranking MODEL FOLDER [--projections FILE] [--layer N] [--kind title|citation] \
                     [--split test|dev|train] [--candidates N] [--length N] [--queries N]";

struct Arguments {
    paths: Vec<String>,
    named: HashMap<String, String>,
}

impl Arguments {
    fn read() -> Result<Arguments> {
        let (mut paths, mut named) = (Vec::new(), HashMap::new());
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.strip_prefix("--") {
                Some(name) => {
                    let value = args.next().ok_or_else(|| format!("--{name} needs a value"))?;
                    named.insert(name.to_owned(), value);
                }
                None => paths.push(arg),
            }
        }
        Ok(Arguments { paths, named })
    }

    fn number(&self, name: &str, default: usize) -> Result<usize> {
        self.named.get(name).map_or(Ok(default), |text| Ok(text.parse()?))
    }

    fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.named.get(name).map_or(default, String::as_str)
    }
}

fn main() -> Result<()> {
    let options = Arguments::read()?;
    let [model, folder] = &options.paths[..] else { return Err(USAGE.into()) };
    let (kind, split) = (options.text("kind", "title"), options.text("split", "test"));
    let set = Set::read(Path::new(folder), kind, split, options.number("queries", 20)?)?;
    let candidates = options.number("candidates", 8)?;

    let gpu = Gpu::new()?;
    println!("{}", gpu.adapter());
    let source = Source::open(Path::new(model))?;
    let model = Model::from_source(&gpu, &source, Options::default(), &mut |_, _| ())?;
    let tokenizer = source.tokenizer()?.ok_or("the model has no tokenizer")?;
    let layer = options.number("layer", 2 * model.config().layers.len() / 3)?;
    let config = Config::new().with_query_offset(QueryOffset::AfterLongest);
    let mut ranker = Ranker::new(&model, tokenizer, layer, config)?
        .with_max_document(options.number("length", 96)?);
    if let Some(path) = options.named.get("projections") {
        ranker = ranker.with_projections(&Projections::load(path)?)?;
    }
    println!(
        "{} queries of kind {kind} ({split}), {candidates} candidates of {} documents, layer {}",
        set.queries.len(),
        set.documents.len(),
        ranker.layer()
    );

    let bm25 = Bm25::new(set.documents.iter().map(|document| document.searched.as_str()));
    let (mut before, mut after) = (Measures::default(), Measures::default());
    let start = Instant::now();
    for query in &set.queries {
        let scores = bm25.scores(&query.text);
        let mut order: Vec<usize> =
            (0..scores.len()).filter(|number| !query.excluded.contains(number)).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        before.add(&order, &query.relevant);
        let (head, tail) = order.split_at(candidates.min(order.len()));
        let documents =
            head.iter().map(|&number| Document::from(set.documents[number].text.as_str()));
        let ranking = ranker.rank(&Request::new(documents.collect(), query.text.as_str()))?;
        let reordered = ranking.order.iter().map(|ranked| head[ranked.document]);
        let order: Vec<usize> = reordered.chain(tail.iter().copied()).collect();
        after.add(&order, &query.relevant);
    }
    println!("         P@1     MRR     nDCG@10");
    println!("BM25     {before}");
    println!("re-ranked {after}");
    println!(
        "{:.2} s a query by the clock",
        start.elapsed().as_secs_f64() / set.queries.len() as f64
    );
    Ok(())
}
