//! `cargo xtask report`: results of several machines side by side.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::comparable::{Run, devices, load, pair_refusal, row_refusal, run_refusal, title};
use super::html::svg::{Line, Plot, Point, Scale};
use super::html::{escape, html_table, legend, page, report as report_page};
use super::kernels;
use super::report::{Report, Row, Summary};
use super::table::{NONE, WORDS, digits, markdown, milliseconds};
use crate::workspace::Workspace;

/// Put the results of several machines side by side: Markdown on the terminal, plots in a page.
///
/// Takes the JSON files of `cargo xtask bench`. Only what is the same task on the same inputs, judged alike and
/// right, is compared; what is left out is listed with the reason. With one file, its page is written again.
#[derive(clap::Args)]
pub struct Args {
    /// JSON files of `cargo xtask bench`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the page goes (default: report.html in target/bench)
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let reports = args.files.iter().map(|file| load(file)).collect::<Result<Vec<_>>>()?;
    let html = match &args.html {
        Some(file) => file.clone(),
        None => Workspace::load()?.target.join("bench").join("report.html"),
    };
    let merged = Merged::of(&reports)?;
    let text = match &reports[..] {
        [one] => report_page(one),
        _ => merged.page(),
    };
    if let Some(dir) = html.parent() {
        fs::create_dir_all(dir).with_context(|| format!("folder {}", dir.display()))?;
    }
    fs::write(&html, text).with_context(|| format!("writing {}", html.display()))?;
    print!("{}\nPlots: {}\n", merged.markdown(), html.display());
    Ok(())
}

/// Rows that are the same task on all machines that have them.
struct Merged<'a> {
    runs: Vec<Run<'a>>,
    /// For each task the row of each machine.
    rows: Vec<Vec<Option<&'a Row>>>,
    /// What was left out, and why.
    refused: Vec<String>,
}

impl<'a> Merged<'a> {
    fn of(reports: &'a [Report]) -> Result<Self> {
        let mut merged = Merged { runs: Vec::new(), rows: Vec::new(), refused: Vec::new() };
        for report in reports {
            for run in devices(report) {
                match run_refusal(report) {
                    None => merged.runs.push(run),
                    Some(why) => merged.refused.push(format!("{}: {why}", machine(run))),
                }
            }
        }
        let mut done = Vec::new();
        for run in merged.runs.clone() {
            for row in &run.adapter.rows {
                let key = (&row.problem, &row.mask, &row.mechanism);
                if !done.contains(&key) {
                    done.push(key);
                    merged.add(run, row);
                }
            }
        }
        if merged.rows.is_empty() {
            let reasons: String = merged.refused.iter().map(|why| format!("\n    {why}")).collect();
            bail!("nothing can be compared{reasons}");
        }
        Ok(merged)
    }

    /// Adds the task of a row, or the reason why not.
    fn add(&mut self, owner: Run<'a>, task: &Row) {
        let mut line: Vec<Option<&'a Row>> = Vec::new();
        let mut first: Option<(Run<'a>, &'a Row)> = None;
        for &run in &self.runs {
            let Some(row) = run.find(task) else {
                // The same name may stand for another task there.
                let same = |other: &&Row| {
                    (&other.problem, &other.mechanism) == (&task.problem, &task.mechanism)
                        && owner.find(other).is_none()
                };
                if let Some(other) = run.adapter.rows.iter().find(same) {
                    let why = format!("no mask {} there, but {}", task.mask, other.mask);
                    self.refused.push(format!("{} on {}: {why}", title(task), machine(run)));
                }
                line.push(None);
                continue;
            };
            let refusal = row_refusal(row).or_else(|| pair_refusal(first?, (run, row)));
            if let Some(why) = refusal {
                self.refused.push(format!("{} on {}: {why}", title(task), machine(run)));
                line.push(None);
                continue;
            }
            first = first.or(Some((run, row)));
            line.push(Some(row));
        }
        if first.is_some() {
            self.rows.push(line);
        }
    }

    /// Letters that stand for machines in headers.
    fn letter(at: usize) -> String {
        char::from_u32('A' as u32 + at as u32)
            .filter(|_| at < 26)
            .map_or(at.to_string(), String::from)
    }

    fn machines(&self) -> Vec<String> {
        let line = |(at, &run): (usize, &Run<'_>)| {
            let mut text = format!("{}: {}", Self::letter(at), machine(run));
            if let Some(probe) = &run.adapter.fma_yardstick {
                let _ = write!(text, ", yardstick {:.0} GFLOP/s", probe.mean);
            }
            if let Some(probe) = &run.adapter.fma_peak {
                let _ = write!(text, ", peak {:.0} GFLOP/s", probe.mean);
            }
            if let Some(timing) = run.adapter.rows.iter().find_map(|row| row.timing.as_ref()) {
                let _ = write!(text, ", times by {}", timing.clock);
            }
            text
        };
        self.runs.iter().enumerate().map(line).collect()
    }

    fn table(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let mut header = ["problem", "mask", "mechanism"].map(String::from).to_vec();
        for at in 0..self.runs.len() {
            let letter = Self::letter(at);
            header
                .extend(["ms", "GFLOP/s", "of yardstick"].map(|what| format!("{letter}: {what}")));
        }
        let cells = |line: &Vec<Option<&Row>>| {
            let task = line.iter().flatten().next();
            let mut cells: Vec<String> = task
                .map(|row| vec![row.problem.clone(), row.mask.clone(), row.mechanism.clone()])
                .unwrap_or_default();
            for row in line {
                let show = |value: Option<f64>, shown: fn(f64) -> String| {
                    value.map_or(NONE.to_string(), shown)
                };
                let seconds = row.and_then(|row| row.timing.as_ref()).map(|t| t.seconds.median);
                cells.push(show(seconds, milliseconds));
                cells.push(show(row.and_then(|row| row.gflops_per_second), digits));
                let share = row.and_then(|row| row.share_of_yardstick);
                cells.push(show(share, |share| format!("{:.0} %", 100.0 * share)));
            }
            cells
        };
        (header, self.rows.iter().map(cells).collect())
    }

    fn markdown(&self) -> String {
        let (header, cells) = self.table();
        let machines: String = self.machines().iter().map(|line| format!("- {line}\n")).collect();
        let mut text = format!("{machines}\n{}\n", markdown(header, cells, WORDS));
        if let Some((header, cells)) = kernels::merged(&self.runs, Self::letter) {
            let _ = writeln!(text, "\n{}", markdown(header, cells, kernels::WORDS));
        }
        if !self.refused.is_empty() {
            let _ = writeln!(text, "\nNot compared:");
            self.refused.iter().for_each(|why| {
                let _ = writeln!(text, "- {why}");
            });
        }
        text
    }

    fn page(&self) -> String {
        let items = |all: &[String]| {
            let items: String =
                all.iter().map(|item| format!("<li>{}</li>\n", escape(item))).collect();
            format!("<ul class=\"plain\">\n{items}</ul>\n")
        };
        let (header, cells) = self.table();
        let mut body = items(&self.machines());
        body.push_str(&self.plots());
        body.push_str("<h2>All results</h2>\n");
        body.push_str(&html_table(&header, &cells, WORDS));
        if let Some((header, cells)) = kernels::merged(&self.runs, Self::letter) {
            body.push_str("<h2>General kernels</h2>\n");
            body.push_str(&html_table(&header, &cells, kernels::WORDS));
        }
        if !self.refused.is_empty() {
            body.push_str("<h2>Not compared</h2>\n");
            body.push_str(&items(&self.refused));
        }
        page("Attention mechanisms on several machines", &body)
    }

    /// One plot for each mechanism and mask, one line for each machine.
    fn plots(&self) -> String {
        let mut tasks: BTreeMap<(usize, String), Vec<Line>> = BTreeMap::new();
        let mut order: Vec<String> = Vec::new();
        for line in &self.rows {
            let Some(task) = line.iter().flatten().find(|row| row.in_series) else { continue };
            let name = format!("{}, {}", task.mechanism, task.mask);
            let place = order.iter().position(|known| *known == name).unwrap_or_else(|| {
                order.push(name.clone());
                order.len() - 1
            });
            let lines = tasks.entry((place, name)).or_insert_with(|| {
                let line =
                    |at| Line { name: Self::letter(at), colour: at, dash: at, points: Vec::new() };
                (0..self.runs.len()).map(line).collect()
            });
            for (at, row) in line.iter().enumerate() {
                let Some(row) = row else { continue };
                let Some(timing) = &row.timing else { continue };
                let Summary { median, q20, q80, .. } = timing.seconds;
                let spread = Some((1e3 * q20, 1e3 * q80));
                lines[at].points.push(Point { x: row.shape[4] as f64, y: 1e3 * median, spread });
            }
        }
        let Some(names) = tasks.values().next() else { return String::new() };
        let mut text =
            format!("<h2>Time of one run</h2>\n{}<div class=\"plots\">\n", legend(names));
        for ((_, name), lines) in &mut tasks {
            lines.iter_mut().for_each(|line| line.points.sort_by(|a, b| a.x.total_cmp(&b.x)));
            let plot =
                Plot { x_label: "keys", y_label: "ms", scale: Scale::Log, level: None, lines };
            if let Some(drawing) = plot.svg() {
                let _ = writeln!(text, "<figure><h3>{}</h3>\n{drawing}</figure>", escape(name));
            }
        }
        text.push_str("</div>\n");
        text
    }
}

/// Device, driver, system and day.
fn machine(run: Run<'_>) -> String {
    let about = &run.adapter.adapter;
    let day = run.report.date.split('T').next().unwrap_or_default();
    format!("{} ({}, {}), {}, {day}", about.name, about.backend, about.driver, run.report.host.os)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    fn two() -> [Report; 2] {
        let mut other = sample();
        other.adapters[0].adapter.name = "other".into();
        [sample(), other]
    }

    #[test]
    fn machines_side_by_side() {
        let reports = two();
        let merged = Merged::of(&reports).unwrap();
        let text = merged.markdown();
        assert!(text.contains("- A: a device") && text.contains("- B: other"), "{text}");
        assert!(text.contains("| layer11-n1024 | causal | dense     |  2.00 |"), "{text}");
        let page = merged.page();
        assert!(page.contains("<svg") && !page.contains("NaN"), "{page}");
    }

    #[test]
    fn what_differs_is_left_out_and_told() {
        let mut reports = two();
        reports[1].adapters[0].rows[0].shape[0] = 2;
        let merged = Merged::of(&reports).unwrap();
        assert_eq!(merged.rows[0].iter().flatten().count(), 1);
        assert!(
            merged.markdown().contains("Not compared:\n- layer11-n1024, causal, dense on other")
        );
        assert!(merged.refused[0].contains("shapes differ"), "{:?}", merged.refused);
        reports[1].adapters[0].rows[0].mask = "full".into();
        reports[1].adapters[0].rows.truncate(1);
        let merged = Merged::of(&reports).unwrap();
        assert!(
            merged.refused[0].contains("no mask causal there, but full"),
            "{:?}",
            merged.refused
        );
    }

    #[test]
    fn nothing_left_is_an_error() {
        let mut reports = two();
        for report in &mut reports {
            report.adapters[0].rows.remove(0);
        }
        let error = Merged::of(&reports).err().unwrap().to_string();
        assert!(error.starts_with("nothing can be compared") && error.contains("WRONG"), "{error}");
    }
}
