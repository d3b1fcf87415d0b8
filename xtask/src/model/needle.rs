//! `cargo xtask model needle`: facts hidden in a long text, and whether a model finds them.

mod facts;
mod haystack;
mod page;
mod report;
mod score;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use attn_model::{Generate, Message, Model, Session, Source, Tokenizer};
use clap::builder::RangedU64ValueParser;
use indicatif::ProgressBar;

use self::facts::Needle;
use self::haystack::{Hidden, Sentence};
use self::report::{Asked, Cell, PolicyResult, Report, Settings};
use super::loaded::{ModelArgs, device, read, tokenizer};
use super::policies::{Choice, or_dense};
use super::report::{Origin, json, write};
use super::{PROMPT_CHUNK, bar};
use crate::workspace::Workspace;

/// What a text is taken from where none is given.
const TEXT: &str = "attn-model/tests/data/text/sotu-2011.txt";

/// Hide facts in a long text, ask a model for them, and say what it finds by length and depth.
///
/// A fact such as "The favourite dish of Iris Falk is sour plum soup." is put behind the last sentence that ends in
/// front of a depth (0 % is the beginning of the text, 100 % its end), and asked for behind the text, with the model's
/// chat template where it has one. A length is that of the whole prompt in tokens. With several needles, the
/// first lies at the depth and the others at even steps from there to the end; each is asked for by itself, and the
/// text in front of the question runs once.
///
/// An answer's score is the share of the fact's words that are in it (recall); whether it holds the fact word for word
/// is told too. Each policy gets the same prompts. Answers are greedy and end at a line's end.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A file with the text to hide needles in (an address of 2011 by default, 8,200 tokens)
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Attention policy, as NAME or as NAME:{JSON with its settings} (may be repeated; dense by default)
    #[arg(long = "policy", value_name = "POLICY")]
    policies: Vec<Choice>,
    /// Lengths of the whole prompt, in tokens
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_value = "256,512,1024")]
    lengths: Vec<usize>,
    /// Depths of the needle, in percent
    #[arg(long, value_name = "P,P,..", value_delimiter = ',', default_value = "0,25,50,75,100",
          value_parser = RangedU64ValueParser::<u32>::new().range(0..=100))]
    depths: Vec<u32>,
    /// Needles in a text
    #[arg(long, value_name = "K", default_value_t = 1)]
    needles: usize,
    /// How often each length and depth is tried, with other needles each time
    #[arg(long, value_name = "R", default_value_t = 1)]
    repeats: usize,
    /// Seed of the needles: the same seed gives the same ones
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 32)]
    answer_tokens: usize,
    /// Write settings, questions, answers and scores to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with a heat map for each policy to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let source = Source::open(&args.model.model)?;
    let tokenizer = tokenizer(&source)?;
    let root = Workspace::load()?.root;
    let file = args.text.clone().unwrap_or_else(|| root.join(TEXT));
    let text = read(&file)?;
    let policies = or_dense(&args.policies)?;
    let is_chat = tokenizer.templates().next().is_some();
    let form = Form { tokenizer: &tokenizer, is_chat };
    let cells = cells(args, &form, &text)?;

    let gpu = device()?;
    let model = args.model.load(&gpu, &source)?;
    let bar = bar("{msg} {bar:30} {pos}/{len} texts, {elapsed}");
    bar.set_length((policies.len() * cells.len()) as u64);
    let ask = Ask { model: &model, form, answer_tokens: args.answer_tokens, bar: &bar };
    let results = policies.iter().map(|policy| ask.all(policy, &cells)).collect::<Result<_>>()?;
    bar.finish_and_clear();
    let tokens = tokenizer.encode(&text, false)?.len();
    let report = Report {
        origin: Origin::here(&root, &args.model.model, &model, (&file, tokens)),
        settings: Settings {
            chat_template: is_chat,
            lengths: args.lengths.clone(),
            depths: args.depths.clone(),
            needles: args.needles,
            repeats: args.repeats,
            seed: args.seed,
            answer_tokens: args.answer_tokens,
        },
        policies: results,
    };
    print!("{}", report.text());
    write(args.json.as_deref(), || json(&report))?;
    write(args.html.as_deref(), || Ok(page::page(&report)))
}

/// A text with needles, not asked for yet.
struct Trial {
    length: usize,
    depth: u32,
    repeat: usize,
    needles: Vec<Needle>,
    hidden: Hidden,
}

/// How text and question become a prompt.
struct Form<'a> {
    tokenizer: &'a Tokenizer,
    is_chat: bool,
}

impl Form<'_> {
    fn prompt(&self, text: &str, question: &str) -> Result<Vec<u32>> {
        let asked = format!("{text}\n\n{question} Answer with the words of the text.");
        if self.is_chat {
            let text = self.tokenizer.chat(&[Message::new("user", asked)], true)?;
            return Ok(self.tokenizer.encode(&text, false)?);
        }
        Ok(self.tokenizer.encode(&format!("{asked}\nAnswer:"), true)?)
    }

    fn count(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode(text, false)?.len())
    }
}

/// All texts: for each length, depth and repeat one.
fn cells(args: &Args, form: &Form<'_>, text: &str) -> Result<Vec<Trial>> {
    for (name, is_empty) in [
        ("lengths", args.lengths.is_empty()),
        ("depths", args.depths.is_empty()),
        ("repeats", args.repeats == 0),
        ("answer-tokens", args.answer_tokens == 0),
    ] {
        if is_empty {
            bail!("--{name}: expected at least one");
        }
    }
    let sentence = |text| anyhow::Ok(Sentence { text, tokens: form.count(text)? });
    let all = haystack::sentences(text).into_iter().map(sentence).collect::<Result<Vec<_>>>()?;
    let mut trials = Vec::new();
    for &length in &args.lengths {
        for repeat in 0..args.repeats {
            // Depths share their needles: only the place differs.
            let needles = facts::needles(args.needles, args.seed.wrapping_add(repeat as u64))?;
            let sentences = haystack::cut(&all, room(form, &needles, length)?)?;
            for &depth in &args.depths {
                let at = |number| haystack::depth_of(number, needles.len(), f64::from(depth));
                let placed = needles.iter().enumerate();
                let placed: Vec<_> = placed
                    .map(|(number, needle)| (needle.statement.as_str(), at(number)))
                    .collect();
                let hidden = haystack::hide(sentences, &placed);
                trials.push(Trial { length, depth, repeat, needles: needles.clone(), hidden });
            }
        }
    }
    Ok(trials)
}

/// Tokens of a prompt of this length that needles and the longest question leave to the text.
fn room(form: &Form<'_>, needles: &[Needle], length: usize) -> Result<usize> {
    let mut frame = 0;
    let mut statements = 0;
    for Needle { statement, question, .. } in needles {
        frame = frame.max(form.prompt("", question)?.len());
        statements += form.count(&format!(" {statement}"))?;
    }
    let needed = frame + statements;
    length.checked_sub(needed).with_context(|| {
        format!("--lengths: {length} tokens do not hold needles and question, which take {needed}")
    })
}

/// What asking needs.
struct Ask<'a> {
    model: &'a Model,
    form: Form<'a>,
    answer_tokens: usize,
    bar: &'a ProgressBar,
}

impl Ask<'_> {
    /// One policy on all texts.
    fn all(&self, choice: &Choice, trials: &[Trial]) -> Result<PolicyResult> {
        self.bar.set_message(choice.record.name.clone());
        let start = Instant::now();
        let mut cells: Vec<Cell> = Vec::new();
        for trial in trials {
            let asked = self.one(choice, trial).with_context(|| {
                let Trial { length, depth, .. } = trial;
                format!("policy `{}`, length {length}, depth {depth} %", choice.label)
            })?;
            Cell::add(&mut cells, trial.length, trial.depth, asked);
            self.bar.inc(1);
        }
        Ok(PolicyResult::new(choice, cells, start.elapsed().as_secs_f64()))
    }

    /// All questions about one text.
    fn one(&self, choice: &Choice, trial: &Trial) -> Result<Vec<Asked>> {
        let prompt = |needle: &Needle| self.form.prompt(&trial.hidden.text, &needle.question);
        let prompts = trial.needles.iter().map(prompt).collect::<Result<Vec<_>>>()?;
        let shared = shared(&prompts);
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let capacity = longest + self.answer_tokens;
        let mut session = Session::with_policy(self.model, capacity, choice.policy()?)?;
        for chunk in prompts[0][..shared].chunks(PROMPT_CHUNK) {
            session.forward(chunk)?;
        }
        let mut asked = Vec::new();
        for ((needle, prompt), start) in
            trial.needles.iter().zip(&prompts).zip(&trial.hidden.starts)
        {
            let answer = self.answer(&mut session.fork()?, &prompt[shared..])?;
            asked.push(Asked {
                repeat: trial.repeat,
                needle: needle.clone(),
                place: 100.0 * *start as f64 / trial.hidden.text.len() as f64,
                prompt_tokens: prompt.len(),
                recall: score::recall(&needle.answer, &answer),
                exact: score::contains(&needle.answer, &answer),
                answer,
            });
        }
        Ok(asked)
    }

    /// The first line of what the model says.
    fn answer(&self, session: &mut Session, prompt: &[u32]) -> Result<String> {
        let options = Generate::greedy(self.answer_tokens).with_stop(&self.model.config().eos);
        let (mut tokens, mut text) = (Vec::new(), String::new());
        for token in session.generate(prompt, options)? {
            tokens.push(token?);
            text = self.form.tokenizer.decode_plain(&tokens)?;
            if text.trim_start().contains('\n') {
                break;
            }
        }
        Ok(text.trim().lines().next().unwrap_or_default().into())
    }
}

/// Tokens that all prompts begin with; less than all of each, as a continuation needs one.
fn shared(prompts: &[Vec<u32>]) -> usize {
    let Some((first, others)) = prompts.split_first() else { return 0 };
    let same = |other: &Vec<u32>| first.iter().zip(other).take_while(|(a, b)| a == b).count();
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
    let same = others.iter().map(same).min().unwrap_or(first.len());
    same.min(shortest.saturating_sub(1))
}
