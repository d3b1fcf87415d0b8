//! `cargo xtask model ppl`: perplexity of a text, under one or more attention policies.

mod report;
mod windows;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use attn_model::attn_wgpu::Tensor;
use attn_model::attn_wgpu::softmax::log_softmax_gather;
use attn_model::{Model, Pass, Session, Source};
use indicatif::ProgressBar;

use self::report::{PolicyResult, Report, WindowResult};
use self::windows::{Plan, Window};
use super::loaded::{ModelArgs, Tokens, device, read, tokenizer};
use super::policies::{Choice, or_dense};
use super::report::{Origin, json, write};
use super::{PROMPT_CHUNK, bar};
use crate::workspace::Workspace;

/// Say how well a model predicts a text: its perplexity, under one or more attention policies.
///
/// The text is cut into windows, and each is a sequence of its own. Its first token is not scored; tokens that
/// do not fill a window are left out. A model that wants a token in front of every text gets it in front of each
/// window, as a part of it. With --prompt, the first tokens of a window are a prompt; the rest is given to the model one
/// token a pass, as if it had chosen them, and what these passes predict is scored: so are policies judged that treat a
/// continuation differently. A window of W tokens with a prompt of P scores W - P - 1.
///
/// Each policy runs on the same windows. The ratio is that of its perplexity to the first policy's, and behind it
/// stands the standard error of it, from the differences of each token. Speeds leave out the first window where there
/// are several, since it compiles kernels.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A file with the text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Attention policy, as NAME or as NAME:{JSON with its settings} (may be repeated; dense by default)
    #[arg(long = "policy", value_name = "POLICY")]
    policies: Vec<Choice>,
    /// Tokens of the text that are used (all by default)
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Tokens in front of them that are left out
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Tokens of a window that are its prompt
    #[arg(long, value_name = "N", default_value_t = 0)]
    prompt: usize,
    /// Tokens of a window, its prompt included
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// Write settings and results, those of each token included, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let source = Source::open(&args.model.model)?;
    let tokens = Tokens::of(&tokenizer(&source)?, &read(&args.text)?)?;
    let Args { skip, window, prompt, .. } = *args;
    let plan = Plan { skip, tokens: args.tokens, window, prompt };
    let windows = plan.cut(&tokens)?;
    let policies = or_dense(&args.policies)?;
    let root = Workspace::load()?.root;
    let gpu = device()?;
    let model = args.model.load(&gpu, &source)?;

    let bar = bar("{msg} {bar:30} {pos}/{len} tokens, {elapsed}");
    bar.set_length((policies.len() * windows.len() * window) as u64);
    let judge = |choice| judge(&model, choice, &windows, prompt, &bar);
    let results = policies.iter().map(judge).collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();
    let origin = Origin::here(&root, &args.model.model, &model, (&args.text, tokens.text.len()));
    let report = Report::new(origin, &plan, windows.len(), results);
    print!("{}", report.text());
    write(args.json.as_deref(), || json(&report))
}

/// One policy on all windows.
fn judge(
    model: &Model,
    choice: &Choice,
    windows: &[Window],
    prompt: usize,
    bar: &ProgressBar,
) -> Result<PolicyResult> {
    bar.set_message(choice.record.name.clone());
    let mut results = Vec::new();
    for Window { first, tokens } in windows {
        let mut session = Session::with_policy(model, tokens.len(), choice.policy()?)?;
        let scores = match prompt {
            0 => whole(&mut session, tokens, bar),
            _ => continued(&mut session, tokens, prompt, bar),
        };
        let scores = scores.with_context(|| format!("policy `{}`", choice.label))?;
        results.push(WindowResult::new(*first, scores));
    }
    Ok(PolicyResult::new(choice, results))
}

/// Scores of a window, with the times that they took.
struct Scores {
    /// Negative log-probability of each token that is scored, in nats.
    nll: Vec<f32>,
    prompt_seconds: f64,
    seconds: f64,
    /// Tokens that ran in `seconds`.
    ran: usize,
}

/// All tokens in one pass, the first one not scored.
fn whole(session: &mut Session, tokens: &[u32], bar: &ProgressBar) -> Result<Scores> {
    let start = Instant::now();
    let nll = session.score(tokens)?;
    bar.inc(tokens.len() as u64);
    let seconds = start.elapsed().as_secs_f64();
    Ok(Scores { nll, prompt_seconds: 0.0, seconds, ran: tokens.len() })
}

/// The tokens behind a prompt, one a pass.
fn continued(
    session: &mut Session,
    tokens: &[u32],
    prompt: usize,
    bar: &ProgressBar,
) -> Result<Scores> {
    let start = Instant::now();
    let (prompt, rest) = tokens.split_at(prompt);
    for chunk in prompt.chunks(PROMPT_CHUNK) {
        let hidden = session.forward(chunk)?;
        // Waits for the device, so that the prompt's time is not that of the rest.
        hidden.narrow(0, 0, 1)?.to_vec::<f32>()?;
        bar.inc(chunk.len() as u64);
    }
    let prompt_seconds = start.elapsed().as_secs_f64();
    let mut nll = Vec::with_capacity(rest.len());
    for pair in rest.windows(2) {
        let hidden = session.forward_with(&pair[..1], Pass::new().decoding())?;
        nll.push(score(session, &hidden, pair[1])?);
        bar.inc(1);
    }
    let seconds = start.elapsed().as_secs_f64() - prompt_seconds;
    Ok(Scores { ran: nll.len(), nll, prompt_seconds, seconds })
}

/// Negative log-probability of `token` behind the only row of `hidden`.
fn score(session: &Session, hidden: &Tensor, token: u32) -> Result<f32> {
    let logits = session.logits(hidden, 0..1)?;
    let target = Tensor::from_slice(session.model().gpu(), &[token], &[1])?;
    let scores = log_softmax_gather(&logits, &target, None)?.to_vec::<f32>()?;
    Ok(-*scores.first().context("no score")?)
}
