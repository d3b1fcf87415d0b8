//! What is below the layer that learns: computed once for every prompt, and kept on disk for the next run.

use std::fs;
use std::path::{Path, PathBuf};

use attn_burn::Gpu;
use attn_burn::attn_blockrank::policy::BlockRankPolicy;
use attn_burn::attn_blockrank::prompt::{Document, PromptBuilder, Template};
use attn_burn::attn_blockrank::{QueryOffset, Segments};
use attn_core::ArrayFile;
use attn_model::{DType, Model, Options, Pass, Source};
use ndarray::{Array1, Array2, Axis};

use crate::LAYER;
use crate::model::{Failure, Frozen, Heads};
use crate::prompts::Task;

const MODEL: &str = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const WIKI: &str = "wiki/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened";

/// Signal tokens at the end of a prompt.
const SIGNALS: usize = 2;

pub struct Prepared {
    /// To learn from, and held back.
    pub prompts: [Vec<Frozen>; 2],
    pub heads: Heads,
    /// Weights of the layer as they are in the model, `[out, hidden]`.
    pub query: Vec<f32>,
    pub key: Vec<f32>,
}

fn cache() -> Result<PathBuf, Failure> {
    Ok(attn_model::cache_dir().ok_or("no cache folder: HOME is not set")?)
}

/// The fetched model, and the text that prompts are made of.
pub fn fetched() -> Result<(Source, String), Failure> {
    let cache = cache()?;
    let there = |file: &str, command: &str| match cache.join(file) {
        path if path.is_file() => Ok(path),
        path => Err(format!("{} is not there: `cargo xtask {command}` gets it", path.display())),
    };
    let source = Source::open(there(MODEL, "model fetch smollm2")?)?;
    let text = fs::read_to_string(there(WIKI, "data fetch wiki")?)?;
    Ok((source, text))
}

/// Prompts of each kind.
pub fn prepare(
    gpu: &Gpu,
    source: &Source,
    tasks: &[Vec<Task>; 2],
    seed: u64,
) -> Result<Prepared, Failure> {
    let weights = |name: &str, count: usize| {
        let name = format!("model.layers.{LAYER}.self_attn.{name}.weight");
        let shape = [count * source.config.head_dim, source.config.hidden];
        source.weights.tensor(&name, &shape, DType::F32).map(|tensor| tensor.to_f32())
    };
    let (query, key) =
        (weights("q_proj", source.config.heads)?, weights("k_proj", source.config.heads_kv)?);

    let [train, test] = tasks.each_ref().map(Vec::len);
    let folder = cache()?.join("blockrank");
    let kept = folder.join(format!("layer{LAYER}-{train}-{test}-{seed}.safetensors"));
    let prompts = match kept.is_file() {
        true => load(&kept)?,
        false => {
            let reader = Reader::new(gpu, source)?;
            let [learned, held_back] = tasks.each_ref().map(|tasks| reader.all(tasks));
            let prompts = [learned?, held_back?];
            fs::create_dir_all(&folder)?;
            save(&kept, &prompts)?;
            prompts
        }
    };
    Ok(Prepared { prompts, heads: Heads::of(&source.config, LAYER), query, key })
}

/// Runs prompts up to the layer.
struct Reader {
    model: Model,
    builder: PromptBuilder,
}

impl Reader {
    fn new(gpu: &Gpu, source: &Source) -> Result<Reader, Failure> {
        let tokenizer = source.tokenizer()?.ok_or("the model has no tokenizer")?;
        let model = Model::from_source(gpu, source, Options::exact(), &mut |_, _| ())?;
        Ok(Reader { model, builder: PromptBuilder::new(tokenizer, Template::default()) })
    }

    fn all(&self, tasks: &[Task]) -> Result<Vec<Frozen>, Failure> {
        let one = |(number, task)| {
            if number % 10 == 0 {
                println!("reading prompt {number} of {}", tasks.len());
            }
            self.one(task)
        };
        tasks.iter().enumerate().map(one).collect()
    }

    fn one(&self, task: &Task) -> Result<Frozen, Failure> {
        let documents: Vec<Document> = task.documents.iter().map(Document::from).collect();
        let context = self.builder.context(None, &documents, &task.query)?;
        let query = self.builder.query(documents.len(), &task.query)?;
        let (mut tokens, mut lengths) = (context.tokens, context.lengths);
        let instruction = lengths[0];
        lengths.push(query.len());
        tokens.extend(query);
        let segments = Segments::one(&lengths)?;
        let positions = segments.positions(QueryOffset::AfterLongest)?;
        let positions: Vec<u32> = positions.iter().copied().collect();
        let policy = BlockRankPolicy::new(&lengths)?;
        let mut session = self.model.session_with(tokens.len(), policy)?;
        let pass = Pass::new().with_positions(&positions);
        let hidden = session.run_to(LAYER, &tokens, pass)?;
        let rows = self.model.normed(LAYER, &hidden)?.to_vec::<f32>()?;

        let documents = lengths[1..lengths.len() - 1].to_vec();
        let end = instruction + documents.iter().sum::<usize>();
        let parts = [instruction..end, tokens.len() - SIGNALS..tokens.len()];
        let width = self.model.config().hidden;
        let of = |part: &std::ops::Range<usize>| &rows[part.start * width..part.end * width];
        Ok(Frozen {
            rows: parts.iter().flat_map(of).copied().collect(),
            positions: parts.iter().flat_map(|part| &positions[part.clone()]).copied().collect(),
            documents,
            positive: task.positive,
        })
    }
}

/// What files of frozen prompts say they are.
const KIND: &str = "attn-burn frozen prompts";

fn save(path: &Path, prompts: &[Vec<Frozen>; 2]) -> Result<(), Failure> {
    let mut file = ArrayFile::new(KIND);
    for (group, prompts) in prompts.iter().enumerate() {
        for (number, prompt) in prompts.iter().enumerate() {
            let name = |what: &str| format!("{group}.{number:04}.{what}");
            let rows = prompt.rows.iter().map(|x| f64::from(*x)).collect();
            let width = prompt.rows.len() / prompt.positions.len();
            let rows = Array2::from_shape_vec((prompt.positions.len(), width), rows)?;
            let positions: Array1<f64> = prompt.positions.iter().map(|x| f64::from(*x)).collect();
            let own = [prompt.positive].into_iter().chain(prompt.documents.iter().copied());
            let documents: Array1<f64> = own.map(|x| x as f64).collect();
            file = file.with(&name("rows"), rows.view());
            file = file.with(&name("positions"), positions.view());
            file = file.with(&name("documents"), documents.view());
        }
    }
    // In one step, so that a run that is stopped leaves no half a file.
    let part = path.with_extension("part");
    file.write(&part)?;
    Ok(fs::rename(part, path)?)
}

fn load(path: &Path) -> Result<[Vec<Frozen>; 2], Failure> {
    let file = ArrayFile::read(path, KIND)?;
    let group = |group: usize| -> Result<Vec<Frozen>, Failure> {
        let name = |number: usize, what: &str| format!("{group}.{number:04}.{what}");
        let mut prompts = Vec::new();
        while file.contains(&name(prompts.len(), "rows")) {
            let number = prompts.len();
            let rows: Array2<f64> = file.get(&name(number, "rows"))?;
            let positions: Array1<f64> = file.get(&name(number, "positions"))?;
            let documents: Array1<f64> = file.get(&name(number, "documents"))?;
            let (positive, documents) = documents.view().split_at(Axis(0), 1);
            prompts.push(Frozen {
                rows: rows.iter().map(|x| *x as f32).collect(),
                positions: positions.iter().map(|x| *x as u32).collect(),
                documents: documents.iter().map(|x| *x as usize).collect(),
                positive: positive[0] as usize,
            });
        }
        Ok(prompts)
    };
    Ok([group(0)?, group(1)?])
}
