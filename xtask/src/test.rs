//! `cargo xtask test`: the tests as users run them, and with `--all` as continuous integration does.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::built;
use crate::cmd::Cmd;
use crate::driver::folder::Folder;
use crate::driver::{self, Found, install};
use crate::stages::{Budget, Host, Needs, SHORT, Stage, Step, stages};
use crate::workspace::Workspace;

/// Run the tests on this machine's default driver.
///
/// Without options: makes sure that there is a Vulkan driver, then runs every test and every quickstart
/// example. Nothing is downloaded except that driver, and only as root on Debian or Ubuntu. Where there is no
/// driver, the tests that need none run, and the end of the output says so.
///
/// With --all: everything that continuous integration runs, in stages, with a table of minutes at the end.
///
/// Variables are passed on to the tests: ATTN_ADAPTER picks an adapter, ATTN_GOLDEN_DIR and ATTN_MODELS_DIR
/// add test data. MESA_SHADER_CACHE_DIR is where shaders compiled by Mesa are kept between runs, in one folder
/// for each lane width (default: target/mesa-cache).
#[derive(clap::Args)]
pub struct Args {
    /// Run every stage of continuous integration
    #[arg(long)]
    all: bool,
    /// List the stages and their commands, and run nothing
    #[arg(long)]
    list: bool,
    /// Run only this stage of --all (may be repeated)
    #[arg(long, value_name = "NAME")]
    stage: Vec<String>,
    /// Go on after a stage that failed
    #[arg(long)]
    keep_going: bool,
    /// Fail where stages are left out for want of a Vulkan driver
    #[arg(long)]
    require_driver: bool,
    /// Install the software Vulkan driver where there is none, with sudo when not root
    #[arg(long)]
    install_driver: bool,
    /// Run tests on the driver in this folder, see `cargo xtask driver install --help`
    #[arg(long, value_name = "DIR")]
    driver: Option<PathBuf>,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::load()?;
    let folder = args.driver.as_deref().map(Folder::open).transpose()?;
    let mut host = Host::here(&workspace);
    if let Some(folder) = &folder {
        host.shader_cache = folder.shader_cache();
    }
    let every = stages(&workspace, &host);
    if args.list {
        print!("{}", manual(&every));
        return Ok(());
    }
    let whole = args.all || !args.stage.is_empty();
    let chosen = choose(every, args)?;
    // With --all the first stage does it, among other packages.
    if folder.is_none() && (!whole || args.install_driver) {
        install::driver(args.install_driver)?;
    }
    let ways = Ways { keep_going: args.keep_going, whole, folder };
    let (reports, errors) = run(&chosen, &workspace, &ways)?;
    print!("\n{}", table(&reports));
    let left_out: Vec<_> =
        reports.iter().filter(|r| r.outcome == Outcome::NoDriver).map(|r| r.name).collect();
    if !left_out.is_empty() {
        let names = left_out.join(", ");
        println!("\nNO GPU TEST RAN: there is no usable Vulkan driver. Left out: {names}.");
        println!("{}", install::advice());
    }
    if !errors.is_empty() {
        bail!("{}", errors.join("\n"));
    }
    if args.require_driver && !left_out.is_empty() {
        bail!("a Vulkan driver was required");
    }
    Ok(())
}

fn choose(every: Vec<Stage>, args: &Args) -> Result<Vec<Stage>> {
    let names: Vec<&str> = every.iter().map(|s| s.name).collect();
    for name in &args.stage {
        if !names.contains(&name.as_str()) {
            bail!("there is no stage `{name}`; the stages are {}", names.join(", "));
        }
    }
    let wanted = |stage: &Stage| {
        if args.stage.is_empty() {
            args.all || SHORT.contains(&stage.name)
        } else {
            args.stage.iter().any(|name| name == stage.name)
        }
    };
    let mut chosen: Vec<_> = every.into_iter().filter(wanted).collect();
    for stage in &mut chosen {
        // Asked for by name, a stand-in runs beside a driver too.
        if !args.stage.is_empty() && stage.needs == Needs::NoDriver {
            stage.needs = Needs::Nothing;
        }
    }
    Ok(chosen)
}

fn manual(stages: &[Stage]) -> String {
    let mut text = String::new();
    for stage in stages {
        let _ = writeln!(text, "{}: {}", stage.name, stage.why);
        for step in &stage.steps {
            let _ = match step {
                Step::Run(cmd) => writeln!(text, "    {cmd}"),
                Step::Built(pick) => writeln!(text, "    {pick}"),
                Step::Call(name, _) => writeln!(text, "    {name}"),
                Step::Skip(why) => writeln!(text, "    skipped: {why}"),
            };
        }
    }
    text
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Skipped,
    NoDriver,
    Failed,
    NotReached,
}

struct Report {
    name: &'static str,
    budget: Budget,
    outcome: Outcome,
    time: Duration,
}

/// How stages are run.
struct Ways {
    /// After a stage that failed, too.
    keep_going: bool,
    /// As continuous integration does.
    whole: bool,
    /// On another driver than the system's.
    folder: Option<Folder>,
}

impl Ways {
    fn found(&self) -> Found {
        self.folder.as_ref().map_or_else(driver::here, Folder::found)
    }
}

fn run(stages: &[Stage], workspace: &Workspace, ways: &Ways) -> Result<(Vec<Report>, Vec<String>)> {
    let mut reports = Vec::new();
    let mut errors = Vec::new();
    for stage in stages {
        // Asked each time, since the first stage may install one.
        let found = ways.found();
        if stage.needs == Needs::NoDriver && found.usable() {
            continue;
        }
        let start = Instant::now();
        let outcome = if !errors.is_empty() && !ways.keep_going {
            Outcome::NotReached
        } else if stage.needs == Needs::Driver && !found.usable() {
            println!("\n== {}: skipped, there is no usable Vulkan driver", stage.name);
            Outcome::NoDriver
        } else {
            println!("\n== {}: {}", stage.name, stage.why);
            let chosen = (stage.needs == Needs::Driver).then_some(&found);
            match run_steps(stage, workspace, ways, chosen) {
                Ok(outcome) => outcome,
                Err(error) => {
                    println!("FAILED: {error:#}");
                    errors.push(format!("stage `{}`: {error:#}", stage.name));
                    Outcome::Failed
                }
            }
        };
        reports.push(Report {
            name: stage.name,
            budget: stage.budget,
            outcome,
            time: start.elapsed(),
        });
    }
    Ok((reports, errors))
}

/// `driver` is the one that the stage needs, if it needs any.
fn run_steps(
    stage: &Stage,
    workspace: &Workspace,
    ways: &Ways,
    driver: Option<&Found>,
) -> Result<Outcome> {
    let variables = ["ATTN_EXPECT_ADAPTER", "ATTN_ADAPTER"];
    let chosen = variables.iter().any(|name| std::env::var_os(name).is_some());
    let expected = driver.filter(|_| ways.whole || ways.folder.is_some());
    let expected = expected.and_then(|found| expected_adapter(found, chosen));
    let folder = driver.and(ways.folder.as_ref());
    let mut outcome = Outcome::Skipped;
    let mut picks = Vec::new();
    for step in &stage.steps {
        match step {
            Step::Skip(why) => println!("skipped: {why}"),
            Step::Call(name, call) => {
                println!("({name})");
                call(workspace)?;
                outcome = Outcome::Ok;
            }
            Step::Run(cmd) => {
                prepare(cmd.clone(), expected, folder)?.run(&workspace.root)?;
                outcome = Outcome::Ok;
            }
            Step::Built(pick) => picks.push(pick),
        }
    }
    if picks.is_empty() {
        return Ok(outcome);
    }
    let built = built::commands(workspace, &picks)?;
    let commands = built.into_iter().map(|cmd| prepare(cmd, expected, folder));
    let commands: Vec<_> = commands.collect::<Result<_>>()?;
    // A test program keeps little more than one core busy: the compiler of the software driver, behind one lock. On
    // hardware they would share its memory.
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let at_once = if driver.is_some_and(Found::software_only) { cores.min(4) } else { 1 };
    side_by_side(&commands, at_once, |cmd| cmd.run_aside(&workspace.root))?;
    Ok(Outcome::Ok)
}

/// Does all of the work, so many pieces at once and in this order, up to the first failure, which it returns.
fn side_by_side<T: Sync>(
    work: &[T],
    at_once: usize,
    run: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(|| {
                while failed().is_none() {
                    let Some(piece) = work.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    if let Err(error) = run(piece) {
                        failed().get_or_insert(error);
                    }
                }
            });
        }
    });
    let failure = failed().take();
    failure.map_or(Ok(()), Err)
}

/// The command in its final form.
fn prepare(mut cmd: Cmd, expected: Option<&str>, folder: Option<&Folder>) -> Result<Cmd> {
    if let Some(cache) = cmd.value("MESA_SHADER_CACHE_DIR") {
        // Mesa creates the last folder only.
        std::fs::create_dir_all(cache).with_context(|| format!("creating {cache}"))?;
    }
    if let Some(adapter) = expected {
        cmd = cmd.env("ATTN_EXPECT_ADAPTER", adapter);
    }
    if let Some(folder) = folder {
        cmd = folder.wrap(cmd);
    }
    Ok(cmd)
}

/// The adapter on which continuous integration insists, so that tests cannot pass on a device nobody meant.
/// Only where we know it: no GPU, and nothing chosen by the caller.
fn expected_adapter(found: &Found, chosen: bool) -> Option<&'static str> {
    (found.software_only() && !chosen).then_some("llvmpipe")
}

fn table(reports: &[Report]) -> String {
    let minutes = |time: Duration| time.as_secs_f64() / 60.0;
    let mut text = String::from("stage       minutes  outcome\n");
    for report in reports {
        let outcome = match report.outcome {
            Outcome::Ok => "ok",
            Outcome::Skipped => "skipped",
            Outcome::NoDriver => "skipped: no driver",
            Outcome::Failed => "FAILED",
            Outcome::NotReached => "not reached",
        };
        let spent = minutes(report.time);
        let _ = writeln!(text, "{:10} {spent:8.1}  {outcome}", report.name);
    }
    text.push_str("\nbudget on two cores               minutes    of\n");
    for budget in Budget::ALL {
        let of_budget = reports.iter().filter(|r| r.budget == budget);
        let spent = minutes(of_budget.map(|r| r.time).sum());
        let (name, limit) = budget.limit();
        let over = if spent > limit { "  over budget" } else { "" };
        let _ = writeln!(text, "{name:32} {spent:8.1} {limit:5.0}{over}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(name: &'static str, needs: Needs, steps: Vec<Step>) -> Stage {
        Stage { name, why: "", budget: Budget::Build, needs, steps }
    }

    fn works(_: &Workspace) -> Result<()> {
        Ok(())
    }

    fn breaks(_: &Workspace) -> Result<()> {
        bail!("broken on purpose")
    }

    fn outcomes(keep_going: bool) -> Vec<Outcome> {
        let stages = [
            stage("a", Needs::Nothing, vec![Step::Call("works", works)]),
            stage("b", Needs::Nothing, vec![Step::Skip("no reason".into())]),
            stage("c", Needs::Nothing, vec![Step::Call("breaks", breaks)]),
            stage("d", Needs::Nothing, vec![Step::Call("works", works)]),
        ];
        let ways = Ways { keep_going, whole: true, folder: None };
        let (reports, errors) = run(&stages, &Workspace::default(), &ways).unwrap();
        assert_eq!(errors, ["stage `c`: broken on purpose"]);
        reports.iter().map(|r| r.outcome).collect()
    }

    #[test]
    fn a_failed_stage_ends_the_run_unless_told_to_go_on() {
        use Outcome::{Failed, NotReached, Ok, Skipped};
        assert_eq!(outcomes(false), [Ok, Skipped, Failed, NotReached]);
        assert_eq!(outcomes(true), [Ok, Skipped, Failed, Ok]);
    }

    #[test]
    fn side_by_side_everything_is_done_up_to_a_failure() {
        for at_once in [1, 3, 20] {
            let done = Mutex::new(Vec::new());
            let work: Vec<_> = (0..10).collect();
            let note = |n: &usize| {
                done.lock().unwrap().push(*n);
                if *n == 4 { bail!("four") } else { Ok(()) }
            };
            side_by_side(&work[..4], at_once, note).unwrap();
            let mut first = std::mem::take(&mut *done.lock().unwrap());
            first.sort();
            assert_eq!(first, [0, 1, 2, 3]);
            let error = side_by_side(&work, at_once, note).unwrap_err();
            assert_eq!(error.to_string(), "four");
            assert!(done.lock().unwrap().contains(&4));
        }
        let rest = Mutex::new(0);
        let fails = |n: &usize| {
            *rest.lock().unwrap() += 1;
            if *n == 4 { bail!("four") } else { Ok(()) }
        };
        side_by_side(&(0..10).collect::<Vec<_>>(), 1, fails).unwrap_err();
        assert_eq!(*rest.lock().unwrap(), 5, "nothing is begun behind a failure");
    }

    #[test]
    fn table_shows_budget_and_overrun() {
        let report = |name, budget, minutes: u64| Report {
            name,
            budget,
            outcome: Outcome::Ok,
            time: Duration::from_secs(60 * minutes),
        };
        let text = table(&[
            report("clippy", Budget::Build, 10),
            report("docs", Budget::Build, 9),
            report("tests", Budget::Tests, 11),
        ]);
        assert!(text.contains("clippy         10.0  ok"), "{text}");
        let line = |start| text.lines().find(|l| l.starts_with(start)).unwrap();
        assert!(line("build,").ends_with("19.0    18  over budget"), "{text}");
        assert!(line("tests at").ends_with("11.0    12"), "{text}");
    }

    #[test]
    fn software_is_expected_only_where_nothing_else_can_answer() {
        let mut found = Found {
            loader: Some("libvulkan.so.1".into()),
            drivers: vec!["lvp_icd.x86_64.json".into()],
            ..Found::default()
        };
        assert_eq!(expected_adapter(&found, false), Some("llvmpipe"));
        assert_eq!(expected_adapter(&found, true), None);
        found.hardware = true;
        assert_eq!(expected_adapter(&found, false), None);
    }
}
