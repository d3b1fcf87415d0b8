//! How fast a quantised model runs from packed weights, and from the same weights in f16.
//!
//! Usage: `attn-model-packed-speed [GGUF FILE] [TOKENS OF A PROMPT] [TOKENS BEHIND IT] [ROUNDS]`, by default SmolLM2
//! from the cache of models, 512, 32 and 3. Both run in turn, after a round that compiles kernels, and the best
//! round of each counts. On a software driver time is CPU time of the process over the cores that share the work.

use std::error::Error;
use std::path::PathBuf;

use attn_model::attn_wgpu::Gpu;
use attn_model::attn_wgpu::bench::Clock;
use attn_model::{DType, Generate, Model, Options, Source, cache_dir};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Seconds of the prompt, and of the tokens behind it.
fn round(model: &Model, prompt: &[u32], more: usize) -> Result<[f64; 2]> {
    let clock = Clock::of(model.gpu());
    let mut session = model.session(prompt.len() + more + 1)?;
    let start = clock.now();
    // The first token is a result of the prompt.
    let mut tokens = session.generate(prompt, Generate::greedy(more + 1))?;
    tokens.next().ok_or("no token")??;
    let middle = clock.now();
    for token in tokens {
        token?;
    }
    let end = clock.now();
    Ok([middle - start, end - middle].map(|time| time.as_secs_f64()))
}

fn main() -> Result<()> {
    let cached = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let mut args = std::env::args().skip(1);
    let path = args.next().map(PathBuf::from);
    let path = path.or_else(|| cache_dir().map(|cache| cache.join(cached)));
    let path = path.ok_or("no model: give a GGUF file")?;
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse());
    let (count, more, rounds) = (number(512)?, number(32)?, number(3)?);

    let gpu = Gpu::new()?;
    println!("{}, {count} tokens and {more} behind them", gpu.adapter());
    let source = Source::open(&path)?;
    let vocabulary = source.config.vocabulary;
    let prompt: Vec<u32> = (0..count).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect();
    let mut models = Vec::new();
    for options in [Options::packed(), Options::default()] {
        let options = options.with_cache(DType::F16);
        models.push(Model::from_source(&gpu, &source, options, &mut |_, _| ())?);
    }
    let mut best = [[f64::INFINITY; 2]; 2];
    for number in 0..=rounds {
        for (model, best) in models.iter().zip(&mut best) {
            let times = round(model, &prompt, more)?;
            if number > 0 {
                *best = [best[0].min(times[0]), best[1].min(times[1])];
            }
        }
    }
    for (model, [prefill, decode]) in models.iter().zip(best) {
        let forms: Vec<_> = model.weight_forms().iter().map(|form| form.name).collect();
        println!(
            "{:<16} {:>6.1} MB of weights, prompt {:>7.1} tokens/s, behind it {:>6.2} tokens/s",
            forms.join(" + "),
            model.bytes() as f64 / 1e6,
            count as f64 / prefill,
            more as f64 / decode,
        );
    }
    let [packed, f16] = best;
    println!(
        "packed over f16: prompt {:.2}, behind it {:.2}",
        f16[0] / packed[0],
        f16[1] / packed[1]
    );
    Ok(())
}
