//! Runs tests against mutants until one is red.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

use super::effect::Setting;
use super::mutants::Mutant;
use super::plan::Test;
use super::process::{Ending, Program};
use super::results::{Fate, Outcome};

/// One test under one setting.
pub type Step = (Setting, Test);

/// A mutant and what is to be run against it, in order.
pub struct Task<'a> {
    pub mutant: &'a Mutant,
    pub steps: Vec<Step>,
    /// What it is if all are green.
    pub survivor: Fate,
    /// Seconds that were spent on it before.
    pub spent: f64,
}

/// What all runs share.
pub struct Survey {
    pub programs: Vec<Program>,
    /// Folder for mutants and compiled shaders.
    pub folder: PathBuf,
    pub jobs: usize,
    /// Cases of each property test.
    pub cases: u32,
    /// Time of each step without a mutant, as far as known.
    pub clean: Mutex<HashMap<Step, Duration>>,
}

impl Survey {
    /// Runs the steps without a mutant.
    pub fn run_clean(
        &self,
        steps: impl IntoIterator<Item = Step>,
        bar: &ProgressBar,
    ) -> Result<()> {
        let steps: BTreeSet<Step> = steps.into_iter().collect();
        bar.set_length(steps.len() as u64);
        bar.set_position(0);
        for (setting, test) in steps {
            bar.set_message(format!("{test}, {} device, no mutant", setting.name()));
            self.clean((setting, test))?;
            bar.inc(1);
        }
        Ok(())
    }

    /// How long a step takes without a mutant: the measure for hanging ones. It must be green.
    fn clean(&self, step: Step) -> Result<Duration> {
        let known = |times: &HashMap<Step, Duration>| times.get(&step).copied();
        if let Some(time) = self.clean.lock().ok().and_then(|times| known(&times)) {
            return Ok(time);
        }
        let (setting, test) = step;
        let (ending, time) = self.run(setting, test, None, Duration::from_secs(1200))?;
        if ending != Ending::Passed {
            bail!("{test} is not green without a mutant ({} device): {ending:?}", setting.name());
        }
        if let Ok(mut times) = self.clean.lock() {
            times.insert(step, time);
        }
        Ok(time)
    }

    /// All tasks, `jobs` at a time; `done` gets each outcome when it is known.
    pub fn run_all(
        &self,
        tasks: &[Task<'_>],
        bar: &ProgressBar,
        done: impl FnMut(Outcome) -> Result<()> + Send,
    ) -> Result<()> {
        bar.set_length(tasks.len() as u64);
        bar.set_position(0);
        let next = AtomicUsize::new(0);
        let done = Mutex::new(done);
        let work = |job: usize| -> Result<()> {
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                bar.set_message(task.mutant.id.clone());
                let outcome = self.run_task(task, job);
                // Other jobs stop as well, after what they are at.
                let finish = |outcome| match done.lock() {
                    Ok(mut done) => done(outcome),
                    Err(_) => bail!("another job has stopped"),
                };
                if let Err(error) = outcome.and_then(finish) {
                    next.store(tasks.len(), Ordering::Relaxed);
                    return Err(error);
                }
                bar.inc(1);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let work = &work;
            let jobs: Vec<_> = (0..self.jobs).map(|job| scope.spawn(move || work(job))).collect();
            jobs.into_iter().try_for_each(|job| match job.join() {
                Ok(result) => result,
                Err(_) => bail!("a job has stopped"),
            })
        })
    }

    fn run_task(&self, task: &Task<'_>, job: usize) -> Result<Outcome> {
        let start = Instant::now();
        // Two runs at the same time must not see each other's mutants.
        let folder = self.folder.join(format!("job-{}-{job}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}.wgsl", task.mutant.file));
        fs::write(&path, &task.mutant.text).with_context(|| path.display().to_string())?;
        let mut fate = task.survivor.clone();
        for &(setting, test) in &task.steps {
            let limit = 10 * self.clean((setting, test))? + Duration::from_secs(20);
            let (ending, _) = self.run(setting, test, Some(&path), limit)?;
            let how = match ending {
                Ending::Passed => continue,
                Ending::Failed => "",
                Ending::TimedOut => ", time-out",
                Ending::Crashed => ", crash",
            };
            fate = Fate::Killed(format!("{test} ({}{how})", setting.name()));
            break;
        }
        fs::remove_dir_all(&folder)?;
        Ok(Outcome::new(task.mutant, fate, task.spent + start.elapsed().as_secs_f64()))
    }

    fn run(
        &self,
        setting: Setting,
        test: Test,
        mutant: Option<&PathBuf>,
        limit: Duration,
    ) -> Result<(Ending, Duration)> {
        let program = self.programs.iter().find(|program| program.name == test.program);
        let program = program.with_context(|| format!("no tests {}", test.program))?;
        let text = |(name, value): (&str, &str)| (name.to_string(), value.to_string());
        let cache = self.folder.join("shaders");
        fs::create_dir_all(&cache)?;
        let mut env: Vec<(String, String)> = [
            ("ATTN_POISON", "1"),
            ("LP_NATIVE_VECTOR_WIDTH", "256"),
            // A mutant is compiled for a few small runs.
            ("GALLIVM_PERF", "nopt"),
            // The same cases in every run, and no files of failures beside the sources.
            ("PROPTEST_RNG_SEED", "1"),
            ("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1"),
            // Nobody reads it, and its names take longer to look up than the test runs.
            ("RUST_BACKTRACE", "0"),
        ]
        .into_iter()
        .chain(setting.env().iter().copied())
        .map(text)
        .collect();
        env.push(("PROPTEST_CASES".into(), self.cases.to_string()));
        env.push(("MESA_SHADER_CACHE_DIR".into(), cache.display().to_string()));
        env.extend(mutant.map(|path| ("ATTN_MUTANT".into(), path.display().to_string())));
        program.run(test.name, &env, limit)
    }
}
