//! `cargo xtask model run`: continue a text.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use attn_model::attn_wgpu::sample::Sampling;
use attn_model::{AttentionPolicy, Error, Generate, Message, Model, Session, Source};

use super::loaded::{ModelArgs, device, matrices, read, tokenizer};
use super::policies::Choice;
use super::{bar, mib};
use crate::bench::table::markdown;

/// Continue a text with a language model, and say how fast that was.
///
/// The text appears as it is made. Without --temperature the most probable tokens are taken.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue; with --chat, what the user says
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_file")]
    prompt: Option<String>,
    /// A file with the text to continue
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Use the model's chat template
    #[arg(long)]
    chat: bool,
    /// Tokens at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Draw tokens at random, with logits divided by this
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Of the K most probable tokens only
    #[arg(long, value_name = "K", requires = "temperature")]
    top_k: Option<usize>,
    /// Of the most probable tokens that have this probability together
    #[arg(long, value_name = "P", requires = "temperature")]
    top_p: Option<f32>,
    /// Of tokens at least this many times as probable as the most probable one
    #[arg(long, value_name = "P", requires = "temperature")]
    min_p: Option<f32>,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Attention policy, as NAME or as NAME:{JSON with its settings}
    #[arg(long, value_name = "POLICY", default_value = "dense")]
    policy: Choice,
    /// Say which kernels the prompt's time goes to, in a second pass
    #[arg(long)]
    profile: bool,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let source = Source::open(&args.model.model)?;
    let tokenizer = tokenizer(&source)?;
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) => String::new(),
    };
    let text = match args.chat {
        true => tokenizer.chat(&[Message::new("user", text)], true)?,
        false => text,
    };
    let prompt = tokenizer.encode(&text, !args.chat)?;
    if prompt.is_empty() {
        bail!("the prompt holds no token");
    }
    let gpu = device()?;
    let model = args.model.load(&gpu, &source)?;

    let capacity = prompt.len() + args.max_tokens;
    let mut session = Session::with_policy(&model, capacity, args.policy.policy()?)?;
    let options = generate(args, &model);
    let (start, mut first, mut count) = (Instant::now(), None, 0);
    let mut words = tokenizer.decode_stream();
    let mut out = io::stdout().lock();
    // Until the first token there is nothing to see.
    let waiting = bar("{spinner} reading {len} tokens, {elapsed}");
    waiting.set_length(prompt.len() as u64);
    waiting.enable_steady_tick(Duration::from_millis(200));
    for token in session.generate(&prompt, options)? {
        waiting.finish_and_clear();
        let token = token?;
        first.get_or_insert_with(|| start.elapsed());
        count += 1;
        write!(out, "{}", words.push(token)?)?;
        out.flush()?;
    }
    writeln!(out, "{}", words.finish()?)?;
    let (first, all) = (first.unwrap_or_default().as_secs_f64(), start.elapsed().as_secs_f64());
    eprintln!(
        "prompt: {} tokens in {first:.2} s, {:.1} tokens/s, compiling included\ntext: {count} tokens, {:.1} tokens/s\n\
         memory: {} of weights in {}, {} of keys and values, {} at most",
        prompt.len(),
        prompt.len() as f64 / first,
        (count.max(1) - 1) as f64 / (all - first).max(1e-9),
        mib(model.bytes()),
        matrices(&model),
        mib(session.bytes()),
        mib(gpu.memory().peak),
    );
    if args.profile {
        eprintln!("{}", profile(&model, args.policy.policy()?, &prompt)?);
    }
    Ok(())
}

/// Time of the prompt by kernel, most first.
fn profile(model: &Model, policy: Box<dyn AttentionPolicy>, prompt: &[u32]) -> Result<String> {
    let mut session = Session::with_policy(model, prompt.len(), policy)?;
    let (_, profile) = model.gpu().profile(|| {
        let hidden = session.forward(prompt);
        hidden.map_err(|error| match error {
            Error::Gpu(error) => error,
            other => attn_core::Error::data("prompt", "tokens of the model", other).into(),
        })
    })?;
    let mut kernels: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for time in &profile.kernels {
        let name = time.kernel.split(' ').next().unwrap_or_default();
        let entry = kernels.entry(name).or_default();
        entry.0 += 1;
        entry.1 += time.time.as_secs_f64();
    }
    let total = profile.total().as_secs_f64().max(1e-12);
    let mut kernels: Vec<_> = kernels.into_iter().collect();
    kernels.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let row = |(name, (count, seconds)): (&str, (usize, f64))| {
        let share = format!("{:.1} %", 100.0 * seconds / total);
        vec![name.into(), count.to_string(), format!("{:.1}", seconds * 1e3), share]
    };
    let header = ["kernel", "dispatches", "ms", "share"].map(String::from).to_vec();
    Ok(markdown(header, kernels.into_iter().map(row).collect(), 1).to_string())
}

fn generate(args: &Args, model: &Model) -> Generate {
    let options = Generate::greedy(args.max_tokens).with_stop(&model.config().eos);
    let Some(temperature) = args.temperature else { return options };
    let default = Sampling::default();
    let sampling = Sampling {
        temperature,
        top_k: args.top_k,
        top_p: args.top_p.unwrap_or(default.top_p),
        min_p: args.min_p.unwrap_or(default.min_p),
    };
    options.with_sampling(sampling, args.seed)
}
