//! `cargo xtask mutate`: do the tests notice a broken kernel?

mod effect;
mod line;
mod mutants;
mod mutators;
mod plan;
mod process;
mod results;
mod survey;

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use self::effect::{Effect, Setting, Texts};
use self::mutants::{Choice, Mutant};
use self::mutators::MUTATORS;
use self::plan::{Tests, tests_of};
use self::results::{Explanation, Fate, Outcome};
use self::survey::{Step, Survey, Task};
use crate::built::{Pick, Programs, programs};
use crate::workspace::Workspace;

/// Survivors that no test can kill, with the reason.
const EXPLANATIONS: &str = "xtask/data/mutants.json";

/// Killed mutants in a hundred, at least.
const ENOUGH: f64 = 95.0;

/// Break the kernels of attn-wgpu, one line at a time, and see whether a test turns red.
///
/// A mutant is a kernel file with one mistake in it: a mask off by one, a stride of the neighbour, a missing
/// barrier, a reduction without a term; --mutators lists all kinds. The built tests run against it with
/// ATTN_MUTANT (feature `bench` of attn-wgpu), which replaces the text of one file without a rebuild. A red test, a
/// crash, or a test that takes over ten times its time without a mutant plus 20 seconds kills the mutant.
/// Survivors are printed with their lines. The command fails if fewer than 95 of 100 mutants are killed.
///
/// Not counted are mutants that naga refuses, and those that change no text of the tests' devices. A survivor that
/// computes the same in every case is explained in xtask/data/mutants.json and not run (--explained runs it, and
/// expects green tests). An explanation whose line is gone is an error.
///
/// Tests come from a table (xtask/src/mutate/plan.rs): the ones for the file and the flags around the line, quick
/// ones first; a second pass runs the longer ones, and the device without optional features, against survivors.
/// Property tests run few cases with a fixed seed. Shaders are cached in target/mutate alone.
///
/// All mutants take hours on a software driver; --sample takes some of each file, and --json with --resume go on
/// where a run was interrupted.
#[derive(clap::Args)]
pub struct Args {
    /// At most N mutants of each file, by the seed
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Only files of this name; `*` stands for any text
    #[arg(long, value_name = "GLOB")]
    file: Option<String>,
    /// Only this mutant, as --list names it (may be repeated)
    #[arg(long, value_name = "ID")]
    only: Vec<String>,
    /// Print the mutants with their lines and tests, and run nothing
    #[arg(long)]
    list: bool,
    /// Print the kinds of mistakes, and run nothing
    #[arg(long)]
    mutators: bool,
    /// Tests at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    jobs: u8,
    /// Cases of each property test
    #[arg(long, value_name = "N", default_value_t = 3)]
    cases: u32,
    /// Write what became of each mutant, after each one
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the outcomes in this file, and run only what it lacks
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// With --resume: run its survivors again from the start, after tests have changed
    #[arg(long, requires = "resume")]
    retry: bool,
    /// Leave out the second pass: survivors of the first are unfinished
    #[arg(long)]
    quick: bool,
    /// Run the mutants that are explained as equivalent, and only these
    #[arg(long)]
    explained: bool,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    if args.mutators {
        MUTATORS.iter().for_each(|m| println!("{:<12} {}", m.name, m.reason));
        return Ok(());
    }
    let workspace = Workspace::load()?;
    let files = mutants::files(&workspace.root)?;
    let all = mutants::all(&files);
    let known = results::explanations(&workspace.root.join(EXPLANATIONS))?;
    let stale = results::stale(&known, &all);
    let choice = Choice {
        file: args.file.as_deref(),
        ids: &args.only,
        sample: args.sample,
        seed: args.seed,
    };
    let total = all.len();
    let chosen = mutants::chosen(all, &choice)?;
    println!("{} of {total} mutants in {} files", chosen.len(), files.len());
    let mut run = Run::new(args, &known, &chosen)?;
    if args.list {
        print!("{}", run.list());
        return Ok(());
    }
    let start = Instant::now();
    run.survey(&workspace)?;
    println!("{}", results::table(&run.outcomes));
    print!("{}", results::survivors(&run.outcomes));
    println!("{:.0} minutes", start.elapsed().as_secs_f64() / 60.0);
    run.judge(&stale)
}

/// A run over the chosen mutants.
struct Run<'a> {
    args: &'a Args,
    mutants: &'a [Mutant],
    /// Those to be run with the settings that notice them.
    effects: HashMap<&'a str, Vec<Setting>>,
    outcomes: Vec<Outcome>,
}

impl<'a> Run<'a> {
    /// Sorts out what need not be run.
    fn new(args: &'a Args, known: &[Explanation], mutants: &'a [Mutant]) -> Result<Self> {
        let texts = Texts::load()?;
        let before = args.resume.as_deref().map_or(Ok(Vec::new()), results::read)?;
        let mut run = Self { args, mutants, effects: HashMap::new(), outcomes: Vec::new() };
        let bar = bar();
        bar.set_length(mutants.len() as u64);
        bar.set_message("compiling by naga");
        for mutant in mutants {
            bar.inc(1);
            let explained = results::explained(known, mutant);
            if let Some(reason) = explained.filter(|_| !args.explained) {
                run.keep(mutant, Fate::Explained(reason.into()));
                continue;
            }
            let old = before.iter().find(|old| old.is_of(mutant));
            let again = |fate: &Fate| match fate {
                Fate::Open | Fate::Explained(_) => true,
                Fate::Survived => args.retry,
                Fate::Killed(_) | Fate::Invalid(_) => false,
            };
            if let Some(old) = old.filter(|old| !again(&old.fate)) {
                run.outcomes.push(old.clone());
                continue;
            }
            if args.explained && explained.is_none() {
                continue;
            }
            match texts.effect(mutant) {
                Effect::Invalid(reason) => run.keep(mutant, Fate::Invalid(reason)),
                Effect::Changes(settings) => {
                    run.effects.insert(&mutant.id, settings);
                    let goes_on = |old: &&Outcome| old.fate == Fate::Open && !args.retry;
                    if let Some(old) = old.filter(goes_on) {
                        run.outcomes.push(old.clone());
                    }
                }
            }
        }
        bar.finish_and_clear();
        Ok(run)
    }

    fn keep(&mut self, mutant: &Mutant, fate: Fate) {
        self.outcomes.push(Outcome::new(mutant, fate, 0.0));
    }

    /// One line a mutant, with what would be run.
    fn list(&self) -> String {
        let mut text = String::new();
        for mutant in self.mutants {
            let state = match self.outcomes.iter().find(|o| o.is_of(mutant)).map(|o| &o.fate) {
                Some(Fate::Invalid(reason)) => format!("invalid: {reason}"),
                Some(fate) => format!("{fate:?}"),
                None => {
                    let tests = tests_of(mutant);
                    let names = tests.quick.iter().chain(&tests.long).map(|t| t.to_string());
                    names.collect::<Vec<_>>().join(" ")
                }
            };
            let after = mutant.after.replace('\n', "\\n");
            let _ = writeln!(text, "{}\n  - {}\n  + {after}\n  {state}", mutant.id, mutant.before);
        }
        text
    }

    fn survey(&mut self, workspace: &Workspace) -> Result<()> {
        let bar = bar();
        let survey = Survey {
            programs: tests_built(workspace)?,
            folder: workspace.target.join("mutate"),
            jobs: self.args.jobs.into(),
            cases: self.args.cases,
            clean: Mutex::default(),
        };
        let passes: &[bool] = if self.args.quick { &[true] } else { &[true, false] };
        for &first in passes {
            let tasks: Vec<Task<'_>> =
                self.mutants.iter().filter_map(|mutant| self.task(mutant, first)).collect();
            // Long tests are only run without a mutant once a survivor has come so far.
            let steps = tasks.iter().flat_map(|task| task.steps.iter().copied());
            survey.run_clean(steps.filter(|_| first), &bar)?;
            let mut outcomes = std::mem::take(&mut self.outcomes);
            let json = self.args.json.as_deref();
            let ran = survey.run_all(&tasks, &bar, |outcome| {
                outcomes.retain(|old| old.id != outcome.id);
                outcomes.push(outcome);
                json.map_or(Ok(()), |path| results::write(path, &outcomes))
            });
            self.outcomes = outcomes;
            ran?;
        }
        bar.finish_and_clear();
        let place = |id: &str| self.mutants.iter().position(|mutant| mutant.id == id);
        self.outcomes.sort_by_key(|outcome| place(&outcome.id));
        self.args.json.as_deref().map_or(Ok(()), |path| results::write(path, &self.outcomes))
    }

    /// The first pass takes what is quick, the second what is left for survivors of the first.
    fn task(&self, mutant: &'a Mutant, first: bool) -> Option<Task<'a>> {
        let settings = self.effects.get(mutant.id.as_str())?;
        let old = self.outcomes.iter().find(|outcome| outcome.is_of(mutant));
        let open = old.is_some_and(|outcome| outcome.fate == Fate::Open);
        if open == first || (!open && old.is_some()) {
            return None;
        }
        let Tests { quick, long } = tests_of(mutant);
        let under = |setting: Setting, tests: &[plan::Test]| -> Vec<Step> {
            tests.iter().map(|&test| (setting, test)).collect()
        };
        let under = &under;
        let steps = match (first, settings.as_slice()) {
            (true, [setting, ..]) => under(*setting, &quick),
            (false, [only]) => under(*only, &long),
            (false, [usual, rest @ ..]) => {
                let all = |tests| rest.iter().flat_map(move |&setting| under(setting, tests));
                all(&quick).chain(under(*usual, &long)).chain(all(&long)).collect()
            }
            (_, []) => return None,
        };
        let survivor = if first { Fate::Open } else { Fate::Survived };
        Some(Task { mutant, steps, survivor, spent: old.map_or(0.0, |old| old.seconds) })
    }

    fn judge(&self, stale: &[String]) -> Result<()> {
        let count = results::count(&self.outcomes);
        if self.args.explained {
            if count.killed > 0 {
                bail!(
                    "{} mutants in {EXPLANATIONS} are not equivalent: tests kill them",
                    count.killed
                );
            }
            return Ok(());
        }
        if !stale.is_empty() {
            bail!("{EXPLANATIONS} explains mutants that do not exist:\n{}", stale.join("\n"));
        }
        match count.rate() {
            Some(rate) if rate < ENOUGH => {
                bail!("{rate:.1} % of the mutants are killed, not {ENOUGH} %")
            }
            _ => Ok(()),
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed} {bar:30} {pos}/{len} {wide_msg}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The test programs of attn-wgpu.
fn tests_built(workspace: &Workspace) -> Result<Vec<process::Program>> {
    let pick = Pick {
        member: "attn-wgpu".into(),
        programs: Programs::AllTests,
        args: Vec::new(),
        env: Vec::new(),
    };
    let dir = workspace.root.join("attn-wgpu");
    let built = programs(workspace, &pick)?;
    let program = |(name, path): (String, String)| process::Program {
        name,
        path: path.into(),
        dir: dir.clone(),
    };
    Ok(built.into_iter().map(program).collect())
}
