//! The second part of the benchmark: general kernels, each by itself on a few problems.

use std::collections::HashSet;

use attn_wgpu::bench::{KernelCase, PreparedKernel, kernel_cases};
use attn_wgpu::{Error, Gpu};
use serde::{Deserialize, Serialize};

use super::comparable::Run;
use super::compare::Change;
use super::device::{is_fatal, outcome_of};
use super::gate;
use super::measure::{Effort, on_device};
use super::report::{AdapterReport, Clock, Outcome, Timing, finite};
use super::table::{NONE, digits, milliseconds};

/// Columns with words, in front of those with numbers.
pub const WORDS: usize = 2;

/// One kernel on one problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelRow {
    pub name: String,
    pub problem: String,
    pub outcome: Outcome,
    pub check: Option<Check>,
    /// First call on the device: pipelines and shaders that were new, and one run.
    pub first_call_seconds: Option<f64>,
    /// Labels of the kernels of one run.
    pub kernels: Vec<String>,
    pub timing: Option<Timing>,
    pub flops: f64,
    pub bytes: f64,
    pub gflops_per_second: Option<f64>,
    pub gigabytes_per_second: Option<f64>,
    pub share_of_yardstick: Option<f64>,
    /// Nanoseconds for each weight that is read, of one core where the clock counts cores.
    pub nanoseconds_per_weight: Option<f64>,
}

/// The comparison with the f64 reference that a row has to pass before it is timed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub elements: usize,
    pub max_abs: Option<f64>,
    /// Largest share of what is allowed at an element.
    pub of_bound: Option<f64>,
}

/// Cases whose problem or name contains one of the texts, or all.
pub fn cases(quick: bool, only: &[String]) -> Vec<KernelCase> {
    let wanted = |case: &KernelCase| {
        only.is_empty()
            || only.iter().any(|text| case.problem.contains(text) || case.name.contains(text))
    };
    kernel_cases(quick).into_iter().filter(wanted).collect()
}

/// Runs one case. Only what leaves nothing to expect of the device is an error.
pub fn run(gpu: &Gpu, case: &KernelCase, effort: Effort) -> (KernelRow, Option<Error>) {
    let mut row = KernelRow::new(case);
    let outcome = measure(gpu, case, effort, &mut row);
    let fatal = outcome.as_ref().err().filter(|error| is_fatal(error)).cloned();
    row.outcome = outcome.unwrap_or_else(|error| outcome_of(&error));
    (row, fatal)
}

fn measure(
    gpu: &Gpu,
    case: &KernelCase,
    effort: Effort,
    row: &mut KernelRow,
) -> Result<Outcome, Error> {
    let prepared = case.prepare(gpu)?;
    gpu.sync()?;
    let start = std::time::Instant::now();
    let result = prepared.record()?;
    gpu.sync()?;
    row.first_call_seconds = Some(start.elapsed().as_secs_f64());
    let first = gate::read(&[(case.name, result)])?;
    let got = &first[0].data;
    let deviation = prepared.check(got);
    row.check = Some(Check {
        elements: deviation.elements,
        max_abs: finite(deviation.max_abs),
        of_bound: finite(deviation.of_bound),
    });
    if deviation.of_bound.is_nan() || deviation.of_bound > 1.0 {
        return Ok(Outcome::Wrong(format!(
            "max error {:.1e}, {:.1} times what is allowed",
            deviation.max_abs, deviation.of_bound
        )));
    }
    row.kernels = labels(gpu, &prepared)?;
    let timing = on_device(gpu, effort, &|| prepared.record().map(drop))?;
    let last = gate::read(&[(case.name, prepared.record()?)])?;
    let bits = |data: &[f32]| data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    if bits(&last[0].data) != bits(got) {
        return Ok(Outcome::Wrong("two runs on the same inputs gave different bits".into()));
    }
    row.timed(timing, case.weights);
    Ok(Outcome::Right)
}

fn labels(gpu: &Gpu, prepared: &PreparedKernel) -> Result<Vec<String>, Error> {
    let (_, profile) = gpu.profile(|| prepared.record())?;
    Ok(profile.kernels.into_iter().map(|kernel| kernel.kernel).collect())
}

impl KernelRow {
    fn new(case: &KernelCase) -> Self {
        KernelRow {
            name: case.name.into(),
            problem: case.problem.clone(),
            outcome: Outcome::Failed("not run".into()),
            check: None,
            first_call_seconds: None,
            kernels: Vec::new(),
            timing: None,
            flops: case.flops,
            bytes: case.bytes,
            gflops_per_second: None,
            gigabytes_per_second: None,
            share_of_yardstick: None,
            nanoseconds_per_weight: None,
        }
    }

    fn timed(&mut self, timing: Timing, weights: Option<f64>) {
        let seconds = timing.seconds.median;
        self.gflops_per_second = finite(self.flops / seconds / 1e9);
        self.gigabytes_per_second = finite(self.bytes / seconds / 1e9);
        let cores = match timing.clock {
            Clock::ProcessCpu { cores } => cores as f64,
            _ => 1.0,
        };
        self.nanoseconds_per_weight =
            weights.and_then(|weights| finite(1e9 * seconds * cores / weights));
        self.timing = Some(timing);
    }
}

const HEADER: [&str; 9] = [
    "kernel",
    "problem",
    "max error",
    "median ms",
    "q20..q80 ms",
    "GFLOP/s",
    "of yardstick",
    "GB/s",
    "ns a weight",
];

/// Header and cells of the table of a device.
pub fn columns(rows: &[KernelRow]) -> (Vec<String>, Vec<Vec<String>>) {
    (HEADER.map(String::from).to_vec(), rows.iter().map(cells).collect())
}

fn cells(row: &KernelRow) -> Vec<String> {
    let show = |value: Option<f64>, shown: &dyn Fn(f64) -> String| value.map_or(NONE.into(), shown);
    let seconds = row.timing.as_ref().map(|timing| timing.seconds);
    let median = match &row.outcome {
        Outcome::Right => show(seconds.map(|s| s.median), &milliseconds),
        Outcome::Wrong(_) => "WRONG".into(),
        Outcome::Failed(_) => "FAILED".into(),
        Outcome::Unsupported(_) => "not supported".into(),
        Outcome::TooLarge(_) => "does not fit".into(),
    };
    let spread =
        |s: super::report::Summary| format!("{}..{}", milliseconds(s.q20), milliseconds(s.q80));
    vec![
        row.name.clone(),
        row.problem.clone(),
        show(row.check.as_ref().and_then(|check| check.max_abs), &|x| format!("{x:.1e}")),
        median,
        seconds.map_or(NONE.into(), spread),
        show(row.gflops_per_second, &digits),
        show(row.share_of_yardstick, &|x| format!("{:.0} %", 100.0 * x)),
        show(row.gigabytes_per_second, &digits),
        show(row.nanoseconds_per_weight, &digits),
    ]
}

/// Why rows have no times.
pub fn reasons(rows: &[KernelRow]) -> Vec<(&'static str, String)> {
    let reason = |row: &KernelRow| {
        let (what, why) = row.outcome.reason()?;
        Some((what, format!("{}, {}: {why}", row.name, row.problem)))
    };
    rows.iter().filter_map(reason).collect()
}

/// Times of two runs on one device: header and cells of kernels that both have.
pub fn changes(
    base: &AdapterReport,
    now: &AdapterReport,
) -> Option<(Vec<String>, Vec<Vec<String>>)> {
    let header = ["kernel", "problem", "then ms", "now ms", "change", "noise", ""];
    let line = |row: &KernelRow| {
        let old = find(base, row)?.timing.as_ref()?;
        let new = row.timing.as_ref().filter(|timing| timing.clock == old.clock)?;
        let change = Change::of(old.seconds, new.seconds)?;
        let mut cells = vec![
            row.name.clone(),
            row.problem.clone(),
            milliseconds(old.seconds.median),
            milliseconds(new.seconds.median),
        ];
        cells.extend(change.cells());
        Some(cells)
    };
    let cells: Vec<_> = now.kernels.iter().filter_map(line).collect();
    (!cells.is_empty()).then(|| (header.map(String::from).to_vec(), cells))
}

fn find<'a>(report: &'a AdapterReport, wanted: &KernelRow) -> Option<&'a KernelRow> {
    let same = |row: &&KernelRow| (&row.name, &row.problem) == (&wanted.name, &wanted.problem);
    report.kernels.iter().find(same)
}

/// Times and speeds of several machines; `letters` name them in the header.
pub fn merged(
    runs: &[Run<'_>],
    letters: impl Fn(usize) -> String,
) -> Option<(Vec<String>, Vec<Vec<String>>)> {
    let mut header = ["kernel", "problem"].map(String::from).to_vec();
    for at in 0..runs.len() {
        header.extend(["ms", "GFLOP/s"].map(|what| format!("{}: {what}", letters(at))));
    }
    let mut done = HashSet::new();
    let tasks = runs.iter().flat_map(|run| &run.adapter.kernels);
    let tasks = tasks.filter(|row| done.insert((row.name.clone(), row.problem.clone())));
    let line = |task: &KernelRow| {
        let mut cells = vec![task.name.clone(), task.problem.clone()];
        for run in runs {
            let row = find(run.adapter, task);
            let seconds = row.and_then(|row| row.timing.as_ref()).map(|t| t.seconds.median);
            let speed = row.and_then(|row| row.gflops_per_second);
            cells.push(seconds.map_or(NONE.into(), milliseconds));
            cells.push(speed.map_or(NONE.into(), digits));
        }
        cells
    };
    let cells: Vec<_> = tasks.map(line).collect();
    (!cells.is_empty()).then_some((header, cells))
}

#[cfg(test)]
pub mod tests {
    use super::super::report::tests::sample;
    use super::*;

    /// A right row that took 2 ms, and a wrong one.
    pub fn rows(timing: &Timing) -> Vec<KernelRow> {
        let case = &kernel_cases(true)[0];
        let mut right = KernelRow { outcome: Outcome::Right, ..KernelRow::new(case) };
        right.timed(timing.clone(), Some(1e6));
        let wrong = Outcome::Wrong("max error 1".into());
        vec![right, KernelRow { outcome: wrong, problem: "other".into(), ..KernelRow::new(case) }]
    }

    #[test]
    fn rates_and_cells() {
        let report = sample().adapters.remove(0);
        let (_, cells) = columns(&report.kernels);
        // 2 * 512^3 operations in 2 ms; two cores and 10^6 weights.
        assert_eq!(cells[0][3], "2.00");
        assert_eq!(cells[0][5], "134");
        assert_eq!(cells[0][8], "4.00");
        assert_eq!(cells[1][3], "WRONG");
        let names: Vec<_> = reasons(&report.kernels).into_iter().map(|(what, _)| what).collect();
        assert_eq!(names, ["WRONG"]);
    }

    #[test]
    fn two_runs_and_two_machines() {
        let base = sample();
        let mut now = sample();
        let timing = now.adapters[0].kernels[0].timing.as_mut().unwrap();
        timing.seconds = timing.seconds.scaled(2.0);
        let (_, cells) = changes(&base.adapters[0], &now.adapters[0]).unwrap();
        assert_eq!((cells.len(), cells[0][4].as_str()), (1, "+100.0 %"));
        let run = |report| Run { report, adapter: &report.adapters[0] };
        let (header, cells) = merged(&[run(&base), run(&now)], |at| at.to_string()).unwrap();
        assert_eq!((header.len(), cells.len()), (6, 2));
        assert_eq!((cells[0][2].as_str(), cells[0][4].as_str()), ("2.00", "4.00"));
    }

    #[test]
    fn names_are_unique() {
        for quick in [true, false] {
            let cases = kernel_cases(quick);
            let names: HashSet<_> = cases.iter().map(|case| (case.name, &case.problem)).collect();
            assert_eq!(names.len(), cases.len());
        }
        let chosen = cases(false, &["matvec".into()]);
        assert!(!chosen.is_empty() && chosen.iter().all(|case| case.name.contains("matvec")));
    }
}
