//! `cargo xtask bench --readme`: the figures between two markers of a Markdown file.

use std::fmt::Write;

use anyhow::{Result, bail};

use super::choice;
use super::report::{AdapterReport, Outcome, Report, Row};
use super::table;

pub const BEGIN: &str = "<!-- bench:begin -->";
pub const END: &str = "<!-- bench:end -->";

/// Options that say where results go: no part of what a reader repeats.
const OUTPUTS: [&str; 4] = ["--json", "--html", "--readme", "--compare"];

/// The file with `figures` between the markers, and everything else as it was.
pub fn replace(text: &str, figures: &str) -> Result<String> {
    for marker in [BEGIN, END] {
        match text.matches(marker).count() {
            1 => {}
            0 => bail!("the marker `{marker}` is missing"),
            count => bail!("the marker `{marker}` occurs {count} times"),
        }
    }
    let (before, rest) = text.split_once(BEGIN).unwrap_or_default();
    let Some((_, after)) = rest.split_once(END) else {
        bail!("the marker `{END}` stands before `{BEGIN}`");
    };
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", figures.trim_end()))
}

/// Figures of every device with what made them.
pub fn figures(report: &Report) -> Result<String> {
    let devices = || report.adapters.iter().filter(|adapter| adapter.adapter.index.is_some());
    if let Some(row) = devices().flat_map(|a| &a.rows).find(|row| row.outcome.is_bad()) {
        bail!("a result is wrong or failed, so no figures: {}, {}", row.problem, row.mechanism);
    }
    if devices().all(|adapter| adapter.rows.is_empty()) {
        bail!("no device was measured, so there are no figures");
    }
    let texts: Vec<_> = devices().map(|adapter| device(report, adapter)).collect();
    Ok(texts.join("\n"))
}

fn device(report: &Report, adapter: &AdapterReport) -> String {
    let about = &adapter.adapter;
    let day = report.date.split('T').next().unwrap_or_default();
    let mut text = format!(
        "{} ({}, {}, driver {}), {day}, `{}`:\n\n",
        about.name,
        about.kind,
        about.backend,
        about.driver,
        command(&report.command)
    );
    // Points of plots that are no problem of their own would make the table long.
    let longest = adapter.rows.iter().filter(|row| row.in_series).map(|row| row.shape[4]).max();
    let shown = |row: &&Row| !row.in_series || Some(row.shape[4]) == longest;
    let right = adapter.rows.iter().filter(|row| row.outcome == Outcome::Right).filter(shown);
    let rows: Vec<Row> = right.cloned().collect();
    let (header, cells) = table::columns(&rows);
    let _ = writeln!(text, "{}", table::markdown(header, cells, table::WORDS));
    if let Some((header, cells)) = choice::columns(&rows) {
        let chosen = table::markdown(header, cells, table::WORDS);
        let _ = writeln!(text, "\nWhat mechanisms chose: {}\n\n{chosen}", choice::NOTE);
    }
    if let Some(probe) = &adapter.fma_yardstick {
        let peak = adapter.fma_peak.as_ref();
        let peak = peak.map_or(String::new(), |peak| {
            format!(" (in their fastest form: {:.0} GFLOP/s)", peak.mean)
        });
        let _ = writeln!(
            text,
            "\nThe yardstick is {:.0} GFLOP/s: plain multiply-adds in registers, in the same run{peak}.",
            probe.mean
        );
    }
    for line in table::head(adapter).iter().filter(|line| line.starts_with("clock")) {
        let _ = writeln!(text, "Times by {line}.");
    }
    text.replace("Times by clock: ", "Times: ")
}

/// The command without where its results went.
fn command(whole: &str) -> String {
    let mut kept = Vec::new();
    let mut words = whole.split(' ').peekable();
    while let Some(word) = words.next() {
        if OUTPUTS.contains(&word) {
            words.next_if(|value| !value.starts_with("--"));
        } else if !OUTPUTS.iter().any(|option| word.starts_with(&format!("{option}="))) {
            kept.push(word);
        }
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn only_the_part_between_the_markers_changes() {
        let text = format!("# a\r\n{BEGIN}\nold\n{END}\nrest, no newline");
        let new = replace(&text, "new\n").unwrap();
        assert_eq!(new, format!("# a\r\n{BEGIN}\nnew\n{END}\nrest, no newline"));
        assert_eq!(replace(&new, "new").unwrap(), new);
    }

    #[test]
    fn markers_have_to_be_there_once_and_in_order() {
        let refused = |text: String| replace(&text, "x").unwrap_err().to_string();
        assert!(refused(END.into()).contains("`<!-- bench:begin -->` is missing"));
        assert!(refused(BEGIN.into()).contains("`<!-- bench:end -->` is missing"));
        assert!(refused(format!("{BEGIN}{BEGIN}{END}")).contains("occurs 2 times"));
        assert!(refused(format!("{END}{BEGIN}")).contains("stands before"));
    }

    #[test]
    fn figures_name_what_made_them() {
        let mut report = sample();
        assert!(figures(&report).unwrap_err().to_string().starts_with("a result is wrong"));
        report.adapters[0].rows.truncate(1);
        report.command = "cargo xtask bench --json a.json --quick --readme".into();
        report.adapters[0].adapter.driver = "a driver".into();
        let text = figures(&report).unwrap();
        for part in ["a device", "driver a driver", "2026-01-31,", "`cargo xtask bench --quick`"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.contains("| layer11-n1024 | causal | dense"), "{text}");
        report.adapters.clear();
        assert!(figures(&report).unwrap_err().to_string().starts_with("no device"));
    }
}
