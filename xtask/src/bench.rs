//! `cargo xtask bench`: is every mechanism right, and how fast is it, on every adapter of this machine?

mod cases;
pub mod choice;
mod comparable;
mod compare;
mod dense_backward;
mod device;
mod gate;
mod host;
pub mod html;
mod kernels;
pub mod machine;
mod measure;
pub mod merge;
mod readme;
mod registry;
pub mod report;
mod series;
pub mod table;
pub mod tune;

use std::fmt::Write;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use attn_core::testing::Capture;
use attn_wgpu::bench::Mechanism;
use attn_wgpu::{AdapterDescription, Gpu};
use indicatif::{ProgressBar, ProgressStyle};

use self::cases::{Case, Choice, cases};
use self::device::{Plan, References};
use self::measure::Effort;
use self::report::{AdapterReport, CaptureFile, Host, Outcome, Report, SCHEMA};
use crate::cmd::Cmd;
use crate::driver::install;
use crate::workspace::Workspace;

/// Queries, keys and values of a real model that come with this crate.
const CAPTURE: &str = "xtask/data/smollm2-moby-1024.safetensors";

/// Measure every mechanism on every adapter, each after a comparison with its f64 reference.
///
/// Inputs are queries, keys and values of two layers of a real language model, and random ones at sizes where
/// speed matters. Behind them come general kernels, matrix products for one. A result that is too far from the f64 reference is reported as WRONG, is not timed, and makes
/// the command fail. The reference itself is timed as well, on the host.
///
/// Speeds on a software driver are counted in CPU seconds of the process over the number of cores, so that waiting
/// for other programs is left out; those on a GPU in timestamps of the device. Beside GFLOP/s stands the share of
/// what plain multiply-adds in registers reach in the same run: a yardstick, not the peak, which is printed too.
///
/// Everything, raw samples included, goes into a JSON file, and with plots into a page beside it. Takes a minute or two on two cores without a GPU.
#[derive(clap::Args)]
pub struct Args {
    /// Only adapters of this number, or whose name contains this text (default: ATTN_ADAPTER, or all)
    #[arg(long, value_name = "INDEX|NAME")]
    adapter: Option<String>,
    /// Captured queries, keys and values: safetensors with `layer<L>.q`, `.k` and `.v`
    #[arg(long, value_name = "FILE")]
    qkv: Option<PathBuf>,
    /// Only the first N tokens of the captured sequences
    #[arg(long, value_name = "N")]
    tokens: Option<NonZeroUsize>,
    /// Only problems whose name contains this text, or general kernels of such a name (may be repeated)
    #[arg(long, value_name = "TEXT")]
    problem: Vec<String>,
    /// Only this mechanism (may be repeated)
    #[arg(long, value_name = "NAME")]
    mechanism: Vec<String>,
    /// One layer, one mask and 256 tokens, in some seconds: does everything work?
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// All named random problems, plots over one head of up to 32768 keys, and tokens one by one behind up to 65536
    #[arg(long)]
    full: bool,
    /// Where the JSON goes (default: a file named by date in target/bench)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the page with plots goes (default: beside the JSON)
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Show what changed since the run of this JSON file, with what the spreads explain
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Write the figures between the markers of this file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "README.md")]
    readme: Option<PathBuf>,
    /// Install the software Vulkan driver where there is none, with sudo when not root
    #[arg(long)]
    install_driver: bool,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let (start, date) = (Instant::now(), machine::now());
    let workspace = Workspace::load()?;
    // What the user gave is looked at before anything takes time.
    let file = args.qkv.clone().unwrap_or_else(|| workspace.root.join(CAPTURE));
    let tokens = args.tokens.map(NonZeroUsize::get).or(args.quick.then_some(256));
    let mut capture = Capture::load(&file)?;
    if let Some(tokens) = tokens {
        capture = capture.truncated(tokens);
    }
    // Whoever asks for a mechanism does not want the general kernels.
    let kernels = match args.mechanism[..] {
        [] => kernels::cases(args.quick, &args.problem),
        _ => Vec::new(),
    };
    let (quick, full, only) = (args.quick, args.full, &args.problem);
    let choice = Choice { quick, full, only, or_none: !kernels.is_empty() };
    let base = args.compare.as_deref().map(comparable::load).transpose()?;
    if let Some(readme) = &args.readme {
        // A file without markers is told now, and not after minutes.
        readme::replace(&read(readme)?, "").with_context(|| readme.display().to_string())?;
    }
    let (cases, mechanisms) = (cases(&capture, &choice)?, mechanisms(&args.mechanism)?);
    let json = args.json.clone().unwrap_or_else(|| {
        workspace.target.join("bench").join(format!("{}.json", date.replace(':', "-")))
    });
    let html = args.html.clone().unwrap_or_else(|| json.with_extension("html"));
    for dir in [&json, &html].into_iter().filter_map(|file| file.parent()) {
        fs::create_dir_all(dir).with_context(|| format!("folder {}", dir.display()))?;
    }

    install::driver(args.install_driver)?;
    let adapters = chosen_adapters(args.adapter.clone())?;
    let mut report = Report {
        schema: SCHEMA,
        date,
        command: command().to_string(),
        seconds: 0.0,
        host: Host::here(&workspace.root),
        capture: CaptureFile { file: shown(&file, &workspace.root), tokens },
        adapters: Vec::new(),
        warnings: Vec::new(),
    };
    if adapters.is_empty() {
        report.warnings.push("NO ADAPTER: only the reference on the host was measured".into());
        println!(
            "No adapter was found: going on with the reference on the host.\n{}\n",
            install::advice()
        );
    }
    if report.host.environment.contains_key("ATTN_POISON") {
        report.warnings.push("ATTN_POISON is set: times contain the filling of outputs".into());
    }

    let effort = match args.quick {
        false => Effort { samples: 7, sample: Duration::from_millis(60) },
        true => Effort { samples: 7, sample: Duration::from_millis(20) },
    };
    // For each adapter its rows, the cold start and two rounds of probes.
    let bar = progress_bar();
    let plan = Plan {
        cases,
        mechanisms,
        kernels,
        effort,
        progress: said_by(&bar),
        several: adapters.len() > 1,
    };
    let rows = plan.pairs().count() + plan.kernels.len();
    bar.set_length((host::pairs(&plan).count() + adapters.len() * (rows + 3)) as u64);
    let mut references = References::default();
    let cpu = report.host.cpu.clone();
    let mut keep = |adapter: AdapterReport| {
        bar.suspend(|| println!("{}", table::adapter(&adapter)));
        report.adapters.push(adapter);
    };
    for adapter in &adapters {
        bar.set_prefix(adapter.name.clone());
        keep(device::run(adapter, &plan, &mut references));
    }
    bar.set_prefix("host");
    keep(host::run(&plan, cpu.as_deref()));
    bar.finish_and_clear();

    report.seconds = start.elapsed().as_secs_f64();
    let text = serde_json::to_string_pretty(&report).context("the report as JSON")?;
    write(&json, &(text + "\n"))?;
    write(&html, &html::report(&report))?;
    let files = [&json, &html].map(|file| shown(file, &workspace.root));
    print!("{}", note(&report, &plan.cases, &files));
    if let Some(base) = &base {
        println!("\n{}", compare::compare(base, &report));
    }
    verdict(&report, args.adapter.is_some())?;
    if let Some(readme) = &args.readme {
        write(readme, &readme::replace(&read(readme)?, &readme::figures(&report)?)?)?;
        println!("Figures: {}", readme.display());
    }
    Ok(())
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

fn mechanisms(only: &[String]) -> Result<Vec<Box<dyn Mechanism>>> {
    let all = registry::mechanisms();
    let names: Vec<_> = all.iter().map(|mechanism| mechanism.name()).collect();
    if let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no mechanism `{unknown}`; there are {}", names.join(", "));
    }
    let wanted = |name| only.is_empty() || only.iter().any(|wanted| wanted == name);
    Ok(all.into_iter().filter(|mechanism| wanted(mechanism.name())).collect())
}

fn chosen_adapters(wanted: Option<String>) -> Result<Vec<AdapterDescription>> {
    let wanted =
        wanted.or_else(|| std::env::var("ATTN_ADAPTER").ok().filter(|text| !text.is_empty()));
    let all = Gpu::adapters();
    let Some(wanted) = wanted else { return Ok(all) };
    let fits = |adapter: &&AdapterDescription| match wanted.parse::<usize>() {
        Ok(index) => adapter.index == index,
        Err(_) => adapter.name.to_lowercase().contains(&wanted.to_lowercase()),
    };
    let chosen: Vec<_> = all.iter().filter(fits).cloned().collect();
    if chosen.is_empty() {
        let list: Vec<_> = all.iter().map(|adapter| format!("\n    {adapter}")).collect();
        bail!("no adapter fits `{wanted}`; there are {}{}", all.len(), list.concat());
    }
    Ok(chosen)
}

/// The running command as a shell would take it.
pub fn command() -> Cmd {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    let with_variable = |cmd: Cmd, (name, value): (String, String)| cmd.env(&name, value);
    machine::environment().into_iter().fold(Cmd::new("cargo xtask").args(arguments), with_variable)
}

/// A path below the root relative to it, so that reports of two checkouts look alike.
pub fn shown(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) =
        ProgressStyle::with_template("[{elapsed}] {bar:20} {pos}/{len} {prefix}: {wide_msg}")
    {
        bar.set_style(style);
    }
    bar
}

fn said_by(bar: &ProgressBar) -> Box<dyn Fn(&str)> {
    let bar = bar.clone();
    Box::new(move |what| {
        // The position counts what is done, and this is about to begin.
        bar.set_message(what.to_string());
        bar.inc(1);
    })
}

/// What was measured, and how to repeat it.
fn note(report: &Report, cases: &[Case], [json, html]: &[String; 2]) -> String {
    let Report { host, capture, .. } = report;
    let mut text: String =
        report.warnings.iter().map(|text| format!("warning: {text}\n")).collect();
    let _ = writeln!(
        text,
        "Measured: warm, with inputs on the device; a forward pass, and for dense-backward the backward pass too; of a\n\
         stream its last tokens, one by one.\n\
         layer<L>-n<N> are captured inputs from {}; the others are random.\n\
         Times of the reference are scaled from some rows to all.",
        capture.file,
    );
    if report.adapters.iter().any(|adapter| adapter.adapter.index.is_some()) {
        let _ = writeln!(
            text,
            "Before its timing, each result was compared with the f64 reference: all queries up to {} keys, at least \
             {} of\neach head above.",
            gate::ALL_ROWS,
            gate::SAMPLED_ROWS,
        );
    }
    if cases.iter().any(Case::is_long) {
        let _ = writeln!(
            text,
            "From {} keys on, one head stands for all, and samples are fewer.",
            cases::ONE_HEAD
        );
    }
    let _ = writeln!(
        text,
        "Raw samples, variants, bounds and limits: {json}\nPlots: {html}\nRepeat: {}\n{} cores, {}, {:.0} s",
        report.command,
        host.cores,
        host.cpu.as_deref().unwrap_or("unknown processor"),
        report.seconds,
    );
    text
}

/// Fails on results that are wrong and on devices that broke, not on those that could not be opened unasked.
fn verdict(report: &Report, asked: bool) -> Result<()> {
    let outcomes = || report.adapters.iter().flat_map(AdapterReport::outcomes);
    let wrong = outcomes().filter(|outcome| matches!(outcome, Outcome::Wrong(_))).count();
    let failed = outcomes().filter(|outcome| outcome.is_bad()).count() - wrong;
    let broken =
        |adapter: &&AdapterReport| adapter.error.is_some() && (asked || !adapter.rows.is_empty());
    let devices = report.adapters.iter().filter(broken).count();
    if wrong + failed + devices > 0 {
        bail!("{wrong} wrong results, {failed} failed rows, {devices} failed devices; see above");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::report::tests::sample;
    use super::*;

    #[test]
    fn wrong_results_fail_the_command() {
        let mut report = sample();
        let error = verdict(&report, false).unwrap_err().to_string();
        assert!(error.starts_with("2 wrong results, 0 failed rows, 0 failed devices"), "{error}");
        report.adapters[0].rows.truncate(1);
        report.adapters[0].kernels.truncate(1);
        assert!(verdict(&report, true).is_ok());
    }

    #[test]
    fn devices_that_cannot_be_opened_fail_only_if_asked_for() {
        let mut report = sample();
        report.adapters[0].rows.clear();
        report.adapters[0].kernels.clear();
        report.adapters[0].error = Some("refused".into());
        assert!(verdict(&report, false).is_ok());
        assert!(verdict(&report, true).is_err());
    }

    #[test]
    fn unknown_mechanisms() {
        assert_eq!(mechanisms(&[]).unwrap().len(), registry::mechanisms().len());
        assert_eq!(mechanisms(&["dense".into()]).unwrap().len(), 1);
        let error = mechanisms(&["dens".into()]).err().map(|error| error.to_string());
        assert_eq!(
            error.unwrap(),
            "there is no mechanism `dens`; there are dense, dense-f16, dense-backward, plan-blocks-32, plan-tokens, \
             flexprefill, routing, blockrank, lightning, masked-linear, aaren, flowformer, titans-linear, titans, \
             dense-stream, lightning-stream, aaren-stream, titans-stream"
        );
    }
}
