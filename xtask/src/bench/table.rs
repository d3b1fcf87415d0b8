//! Results as text for a terminal.

use std::fmt::Write;

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

use super::report::{Adapter, AdapterReport, Clock, Gate, Outcome, Probe, Row};
use super::series::base_name;
use super::{choice, kernels};

/// Where there is no number.
pub const NONE: &str = "-";
/// Columns with words, in front of those with numbers.
pub const WORDS: usize = 3;

impl Adapter {
    /// One line.
    pub fn title(&self) -> String {
        let Adapter { name, backend, kind, driver, .. } = self;
        match self.index {
            Some(index) => format!("adapter {index}: {name} ({kind}, {backend}, {driver})"),
            None => format!("{name} ({driver})"),
        }
    }
}

/// Everything about one adapter.
pub fn adapter(report: &AdapterReport) -> String {
    let mut text = format!("{}\n", report.adapter.title());
    for line in head(report) {
        let _ = writeln!(text, "{line}");
    }
    if !report.rows.is_empty() {
        let _ = writeln!(text, "{}", table(&report.rows));
    }
    for line in decode_lines(&report.rows) {
        let _ = writeln!(text, "{line}");
    }
    for line in stream_lines(&report.rows) {
        let _ = writeln!(text, "{line}");
    }
    for (what, why) in reasons(&report.rows) {
        let _ = writeln!(text, "{what}: {why}");
    }
    if let Some((header, cells)) = choice::columns(&report.rows) {
        let table = markdown(header, cells, WORDS);
        let _ = writeln!(text, "\nwhat mechanisms chose ({})\n{table}", choice::NOTE);
    }
    if !report.kernels.is_empty() {
        let (header, cells) = kernels::columns(&report.kernels);
        let _ = writeln!(text, "\ngeneral kernels\n{}", markdown(header, cells, kernels::WORDS));
    }
    for (what, why) in kernels::reasons(&report.kernels) {
        let _ = writeln!(text, "{what}: {why}");
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if let Some(error) = &report.error {
        let _ = writeln!(text, "DEVICE FAILED: {error}");
    }
    text
}

/// Cold start, probes and clocks, a line each.
pub fn head(report: &AdapterReport) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(cold) = &report.cold_start {
        lines.push(format!(
            "cold start: {:.2} s from opening the device to the first result ({}, {}); of it {:.2} s to open, {:.2} \
             s for the first call, {} pipelines",
            cold.first_result_seconds,
            cold.problem,
            cold.mechanism,
            cold.open_seconds,
            cold.first_call_seconds,
            cold.pipelines,
        ));
    }
    for (name, unit, probe) in report.probes() {
        if let Some(Probe { before, after, mean, .. }) = probe {
            let after = after.map_or("none".into(), |after| format!("{after:.1}"));
            let note = match name {
                "FMA yardstick" => ": plain multiply-adds, what shares refer to",
                "FMA peak" => ": multiply-adds in the fastest form known",
                _ => "",
            };
            lines.push(format!(
                "{name} probe: {mean:.1} {unit} (before {before:.1}, after {after}){note}"
            ));
        }
    }
    let clocks = clocks(&report.rows);
    if !clocks.is_empty() {
        lines.push(format!("clock: {}", clocks.join("; ")));
    }
    lines
}

/// How fast keys and values are read where there are few queries.
pub fn decode_lines(rows: &[Row]) -> Vec<String> {
    let line = |row: &Row| {
        let rate = digits(row.kv_gigabytes_per_second?);
        let core = row.kv_gigabytes_per_second_per_core;
        let core = core.map_or(String::new(), |rate| format!(", {} GB/s a core", digits(rate)));
        Some(format!("{}, {}: keys and values at {rate} GB/s{core}", row.problem, row.mechanism))
    };
    rows.iter().filter_map(line).collect()
}

/// Tokens that come one by one: time of each, memory before the first, and both against a cache of keys and
/// values.
pub fn stream_lines(rows: &[Row]) -> Vec<String> {
    let seconds = |row: &Row| Some(row.timing.as_ref()?.seconds.median / row.shape[3] as f64);
    let bytes = |row: &Row| Some(row.memory.as_ref()?.input_bytes as f64);
    let line = |row: &Row| {
        let base = base_name(&row.mechanism);
        let (time, memory) = (seconds(row)?, bytes(row)?);
        let mut line = format!(
            "{}, {}: {} us a token, {} MB",
            row.problem,
            row.mechanism,
            digits(1e6 * time),
            digits(1e-6 * memory),
        );
        let cache = |other: &&Row| other.problem == row.problem && other.mechanism == base;
        if let Some(cache) = rows.iter().find(cache).filter(|_| row.mechanism != base) {
            let (times, less) = (seconds(cache)? / time, bytes(cache)? / memory);
            let _ = write!(
                line,
                "; {} times as fast as a cache, in {} of its memory",
                digits(times),
                digits(1.0 / less)
            );
        }
        Some(line)
    };
    let streams = rows.iter().filter(|row| row.mechanism.ends_with("-stream"));
    streams.filter_map(line).collect()
}

/// Why rows have no times.
pub fn reasons(rows: &[Row]) -> Vec<(&'static str, String)> {
    let reason = |row: &Row| {
        let (what, why) = row.outcome.reason()?;
        Some((what, format!("{}, {}, {}: {why}", row.problem, row.mask, row.mechanism)))
    };
    rows.iter().filter_map(reason).collect()
}

fn clocks(rows: &[Row]) -> Vec<String> {
    let mut clocks: Vec<Clock> = Vec::new();
    for timing in rows.iter().filter_map(|row| row.timing.as_ref()) {
        if !clocks.contains(&timing.clock) {
            clocks.push(timing.clock);
        }
    }
    clocks.iter().map(ToString::to_string).collect()
}

const HEADER: [&str; 11] = [
    "problem",
    "mask",
    "mechanism",
    "max error",
    "rms error",
    "median ms",
    "q20..q80 ms",
    "GFLOP/s",
    "of yardstick",
    "GB/s",
    "peak MiB",
];

/// Header and cells without the columns that have no number: the reference has no error of its own, no probe and
/// no device memory.
pub fn columns(rows: &[Row]) -> (Vec<String>, Vec<Vec<String>>) {
    let cells: Vec<_> = rows.iter().map(cells).collect();
    let shown = |at: usize| cells.iter().any(|row| row[at] != NONE);
    let kept = |row: &[String; 11]| {
        let row = row.iter().enumerate();
        row.filter(|(at, _)| shown(*at)).map(|(_, cell)| cell.clone()).collect::<Vec<_>>()
    };
    (kept(&HEADER.map(String::from)), cells.iter().map(kept).collect())
}

fn table(rows: &[Row]) -> Table {
    let (header, cells) = columns(rows);
    markdown(header, cells, WORDS)
}

/// A table whose first `words` columns hold text.
pub fn markdown(header: Vec<String>, cells: Vec<Vec<String>>, words: usize) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(words) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.add_rows(cells);
    table
}

fn cells(row: &Row) -> [String; 11] {
    let show = |value: Option<f64>, shown: &dyn Fn(f64) -> String| value.map_or(NONE.into(), shown);
    let error = |value: Option<Option<f64>>| match value {
        None => NONE.into(),
        Some(None) => "not finite".into(),
        Some(Some(error)) => format!("{error:.1e}"),
    };
    let seconds = row.timing.as_ref().map(|timing| timing.seconds);
    let median = match &row.outcome {
        Outcome::Right => show(seconds.map(|s| s.median), &milliseconds),
        Outcome::Wrong(_) => "WRONG".into(),
        Outcome::Failed(_) => "FAILED".into(),
        Outcome::Unsupported(_) => "not supported".into(),
        Outcome::TooLarge(_) => "does not fit".into(),
    };
    let spread = seconds
        .map_or(NONE.into(), |s| format!("{}..{}", milliseconds(s.q20), milliseconds(s.q80)));
    let peak = row.memory.as_ref().map(|memory| memory.peak_bytes as f64 / f64::from(1 << 20));
    [
        row.problem.clone(),
        row.mask.clone(),
        row.mechanism.clone(),
        error(row.gate.as_ref().and_then(Gate::max_abs)),
        error(row.gate.as_ref().and_then(Gate::rms)),
        median,
        spread,
        show(row.gflops_per_second, &|x| digits(x)),
        show(row.share_of_yardstick, &|x| format!("{:.0} %", 100.0 * x)),
        show(row.gigabytes_per_second, &|x| digits(x)),
        show(peak, &|x| format!("{x:.1}")),
    ]
}

pub fn milliseconds(seconds: f64) -> String {
    digits(1e3 * seconds)
}

/// Three digits, or all in front of the point.
pub fn digits(x: f64) -> String {
    let places = match x.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        x if x >= 0.9995 => 2,
        x if x >= 0.09995 => 3,
        _ => 4,
    };
    format!("{x:.places$}")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn streams_stand_beside_a_cache() {
        let stream = |mechanism: &str, factor: f64| {
            let mut row = sample().adapters[0].rows[0].clone();
            (row.problem, row.mechanism) = ("stream-n512".into(), mechanism.into());
            row.shape[3] = 64;
            if let (Some(timing), Some(memory)) = (&mut row.timing, &mut row.memory) {
                timing.seconds = timing.seconds.scaled(factor);
                memory.input_bytes = (4e6 * factor) as u64;
            }
            row
        };
        let lines = stream_lines(&[stream("dense-stream", 1.0), stream("x-stream", 0.25)]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("stream-n512, dense-stream: "), "{}", lines[0]);
        assert!(lines[0].ends_with("us a token, 4.00 MB"), "{}", lines[0]);
        let end = "1.00 MB; 4.00 times as fast as a cache, in 0.250 of its memory";
        assert!(lines[1].ends_with(end), "{}", lines[1]);
        assert!(stream_lines(&sample().adapters[0].rows).is_empty());
    }

    #[test]
    fn right_and_wrong_rows() {
        let text = adapter(&sample().adapters[0]);
        let line = |start: &str| text.lines().find(|line| line.contains(start)).unwrap();
        let right = line("| layer11-n1024 ");
        for cell in [
            "| causal",
            "| dense",
            "1.0e-6 |",
            " 2.00 |",
            "1.50..2.50 |",
            " 500 |",
            " 50 % |",
            " 3.0 |",
        ] {
            assert!(right.contains(cell), "{cell} in {right}");
        }
        let wrong = text.lines().find(|line| line.contains("WRONG |")).unwrap();
        assert!(!wrong.contains("500"), "no speed of a wrong result: {wrong}");
        assert!(text.contains("WRONG: layer11-n1024, causal, dense: out: max error 1e0"));
        assert!(text.contains("clock: CPU seconds of the process / 2 cores"));
        assert!(text.contains("FMA yardstick probe: 70.5 GFLOP/s (before 70.0, after 71.0)"));
    }

    #[test]
    fn columns_without_any_number_are_left_out() {
        let mut report = sample().adapters.remove(0);
        report.rows.iter_mut().for_each(|row| row.memory = None);
        let text = adapter(&report);
        assert!(!text.contains("peak MiB") && text.contains("GFLOP/s |"), "{text}");
    }

    #[test]
    fn significant_digits() {
        let shown: Vec<_> = [1234.5, 99.97, 12.34, 1.234, 0.1234, 0.01234, 0.0].map(digits).into();
        assert_eq!(shown, ["1234", "100", "12.3", "1.23", "0.123", "0.0123", "0.0000"]);
    }
}
