//! What was learned, used as users do: by a ranker that gets the saved file, and texts.

use std::path::Path;

use attn_burn::Gpu;
use attn_burn::attn_blockrank::projections::Projections;
use attn_burn::attn_blockrank::prompt::Document;
use attn_burn::attn_blockrank::ranker::{Ranker, Request};
use attn_burn::attn_blockrank::{Config, QueryOffset};
use attn_model::{Model, Options, Source};

use crate::LAYER;
use crate::model::Failure;
use crate::prompts::Task;

/// P@1 and mean reciprocal rank.
pub fn judge(
    gpu: &Gpu,
    source: &Source,
    projections: impl AsRef<Path>,
    tasks: &[Task],
) -> Result<[f64; 2], Failure> {
    let model = Model::from_source(gpu, source, Options::exact(), &mut |_, _| ())?;
    let tokenizer = source.tokenizer()?.ok_or("the model has no tokenizer")?;
    let config = Config::new().with_query_offset(QueryOffset::AfterLongest);
    let ranker = Ranker::new(&model, tokenizer, LAYER, config)?
        .with_projections(&Projections::load(projections)?)?;
    let (mut first, mut reciprocal) = (0, 0.0);
    for task in tasks {
        let documents = task.documents.iter().map(Document::from).collect();
        let order = ranker.rank(&Request::new(documents, task.query.as_str()))?.order;
        let place = order.iter().position(|ranked| ranked.document == task.positive);
        let place = place.ok_or("a document is missing")? + 1;
        first += usize::from(place == 1);
        reciprocal += 1.0 / place as f64;
    }
    let count = tasks.len().max(1) as f64;
    Ok([first as f64 / count, reciprocal / count])
}
