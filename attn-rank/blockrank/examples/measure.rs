//! What the README says of speed: `measure` for attention alone, `measure MODEL [DOCUMENTS]` for a whole model.
//! Times are CPU seconds of the process where the system tells them, over its cores.

use std::path::Path;
use std::time::Instant;

use attn_blockrank::policy::BlockRankPolicy;
use attn_blockrank::ranker::Ranker;
use attn_blockrank::{BlockRank, Config, Gpu, Inputs, QueryOffset, Segments, Tensor};
use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_core::testing::{Values, fill};
use attn_model::{Model, Options, Pass, Source};
use attn_wgpu::attention::Attention;
use attn_wgpu::bench::{best_seconds, cores, cpu_time};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const HEADS: usize = 9;
const HEADS_KV: usize = 3;
const DIM: usize = 64;
const LENGTH: usize = 64;

fn main() -> Result<()> {
    let gpu = Gpu::new()?;
    println!("{}", gpu.adapter());
    match std::env::args().nth(1) {
        None => attention(&gpu),
        Some(model) => {
            let documents = std::env::args().nth(2).map_or(Ok(100), |count| count.parse())?;
            whole(&gpu, Path::new(&model), documents)
        }
    }
}

fn tensor(gpu: &Gpu, stream: u64, heads: usize, tokens: usize) -> Result<Tensor> {
    let data = fill(1, stream, Values::Normal, heads * tokens * DIM);
    Ok(Tensor::from_slice(gpu, &data, &[1, heads, tokens, DIM])?)
}

/// Documents, instruction and query of `LENGTH` tokens each.
fn attention(gpu: &Gpu) -> Result<()> {
    println!("{HEADS}/{HEADS_KV} heads, dim {DIM}, segments of {LENGTH} tokens");
    println!(
        "documents   dense ms   blocks ms   speed-up   of pairs   t(2N)/t(N)   scores ms   back ms"
    );
    let dense = Attention::new(gpu, Dense::new().with_mask(Mask::Causal))?;
    let blocks = BlockRank::new(gpu, Config::new())?;
    let mut before = None;
    for documents in [16, 32, 64, 128] {
        let segments = Segments::one(&vec![LENGTH; documents + 2])?;
        let tokens = segments.tokens();
        let (q, k) = (tensor(gpu, 0, HEADS, tokens)?, tensor(gpu, 1, HEADS_KV, tokens)?);
        let v = tensor(gpu, 2, HEADS_KV, tokens)?;
        let inputs = Inputs::new(&q, &k, &v);
        let device = blocks.segments(&segments)?;
        let milliseconds = |run: &mut dyn FnMut() -> attn_wgpu::Result<()>| -> Result<f64> {
            Ok(1e3 * best_seconds(gpu, run)?)
        };
        let own = milliseconds(&mut || blocks.forward(inputs, &device).map(drop))?;
        let full = milliseconds(&mut || dense.forward(inputs).map(drop))?;
        let signal = blocks.signal_queries(&q, &device)?;
        let scores = milliseconds(&mut || blocks.doc_scores(&signal, &k, &device).map(drop))?;
        let (output, saved) = blocks.forward_saved(inputs, &device)?;
        let cotangents = attn_blockrank::Cotangents { out: &output.out, lse: None };
        let back = milliseconds(&mut || blocks.backward(&saved, cotangents).map(drop))?;
        let pairs = (tokens * (tokens + 1) / 2) as f64 / segments.pairs() as f64;
        let twice = before.map_or(f64::NAN, |before| own / before);
        println!(
            "{documents:9} {full:10.2} {own:11.2} {:10.2} {pairs:10.2} {twice:12.2} {scores:11.2} {back:9.2}",
            full / own
        );
        before = Some(own);
    }
    Ok(())
}

/// A pass of a whole model to its logits against a ranking, with `documents` documents of 160 tokens.
fn whole(gpu: &Gpu, model: &Path, documents: usize) -> Result<()> {
    let source = Source::open(model)?;
    let model = Model::from_source(gpu, &source, Options::default(), &mut |_, _| ())?;
    let tokenizer = source.tokenizer()?.ok_or("the model has no tokenizer")?;
    let layers = model.config().layers.len();
    let layer = 2 * layers / 3;
    let lengths = [vec![160; documents + 1], vec![40]].concat();
    let vocabulary = model.config().vocabulary as u64;
    let tokens: Vec<u32> = (0..160 * (documents as u64 + 1) + 40)
        .map(|i| (i * 7919 % vocabulary.min(40_000)) as u32)
        .collect();
    let config = Config::new().with_query_offset(QueryOffset::AfterLongest);
    let ranker = Ranker::new(&model, tokenizer, layer, config.clone())?;
    println!("{documents} documents of 160 tokens, {} in all, {layers} layers", tokens.len());
    let (context, query) = tokens.split_at(tokens.len() - 40);

    let rank = |documents: usize| -> Result<()> {
        let end = 160 * (documents + 1);
        let mut prepared = ranker.prepare_tokens(&context[..end], &lengths[..documents + 1])?;
        prepared.scores(query)?.to_vec::<f32>()?;
        Ok(())
    };
    // Kernels are compiled when they first run.
    rank(2)?;
    let ranking = timed("scores at two thirds of the layers, block mask", || rank(documents))?;
    let mut prepared = ranker.prepare_tokens(context, &lengths[..documents + 1])?;
    prepared.scores(query)?.to_vec::<f32>()?;
    timed("another query for the same documents", || {
        prepared.scores(query)?.to_vec::<f32>()?;
        Ok(())
    })?;
    drop(prepared);

    let blocks = |count: usize| -> Result<()> {
        let tokens = &tokens[..count];
        let at = Segments::one(&lengths)?.positions(config.query_offset)?;
        let at: Vec<u32> = at.iter().copied().take(count).collect();
        let mut session = model.session_with(count, BlockRankPolicy::new(&lengths)?)?;
        in_parts(tokens, &at, |tokens, at| {
            session.forward_with(tokens, Pass::new().with_positions(at))
        })
    };
    blocks(640)?;
    let all = timed("all layers, block mask", || blocks(tokens.len()))?;
    let full = |count: usize| -> Result<()> {
        let at: Vec<u32> = (0..count as u32).collect();
        let mut session = model.session(count)?;
        in_parts(&tokens[..count], &at, |tokens, at| {
            session.forward_with(tokens, Pass::new().with_positions(at))
        })
    };
    full(640)?;
    let dense = timed("all layers, dense attention", || full(tokens.len()))?;
    println!("dense / block mask {:.2}, dense / scores {:.2}", dense / all, dense / ranking);
    Ok(())
}

/// Tokens that run at once: with all keys of a hundred documents, more take a software driver longer than the device
/// is waited for.
const PART: usize = 512;

/// Runs tokens in parts, and waits for each.
fn in_parts(
    tokens: &[u32],
    at: &[u32],
    mut run: impl FnMut(&[u32], &[u32]) -> attn_model::Result<Tensor>,
) -> Result<()> {
    for (tokens, at) in tokens.chunks(PART).zip(at.chunks(PART)) {
        run(tokens, at)?.narrow(0, 0, 1)?.to_vec::<f32>()?;
    }
    Ok(())
}

fn timed(what: &str, run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let cpu = || cpu_time().unwrap_or_default();
    let start = (Instant::now(), cpu());
    run()?;
    let clock = start.0.elapsed().as_secs_f64();
    let used = (cpu() - start.1).as_secs_f64();
    println!("{what}: {clock:.1} s by the clock, {used:.1} CPU seconds on {} cores", cores());
    Ok(used)
}
