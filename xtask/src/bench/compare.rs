//! `cargo xtask bench --compare`: what changed since an earlier run.

use std::fmt::Write;

use super::comparable::{Run, devices, pair_refusal, row_refusal, run_refusal, title};
use super::kernels;
use super::report::{Report, Row, Summary};
use super::table::{WORDS, markdown, milliseconds};

/// Changes below are never called such: what repeated runs of one program differ by on a quiet machine.
const SMALLEST: f64 = 0.02;

/// How a time moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Relative: 0.1 is a tenth slower.
    pub change: f64,
    /// Relative, to both sides: what the spreads of both runs explain.
    pub noise: f64,
}

impl Change {
    pub fn of(base: Summary, now: Summary) -> Option<Change> {
        let spread = |s: Summary| (s.q80 - s.median).max(s.median - s.q20) / s.median;
        let change = now.median / base.median - 1.0;
        let noise = (spread(base) + spread(now)).max(SMALLEST);
        (change.is_finite() && noise.is_finite()).then_some(Change { change, noise })
    }

    /// Change, noise, and what they mean.
    pub fn cells(self) -> [String; 3] {
        let percent = |x: f64| 100.0 * x;
        let (change, noise) = (percent(self.change), percent(self.noise));
        [format!("{change:+.1} %"), format!("+-{noise:.1} %"), self.verdict().into()]
    }

    fn verdict(self) -> &'static str {
        match self.change {
            change if change > self.noise => "slower",
            change if change < -self.noise => "faster",
            _ => "within noise",
        }
    }
}

/// A table for every device that both runs have, and what could not be compared.
pub fn compare(base: &Report, now: &Report) -> String {
    let mut text = format!("Compared with the run of {}:\n", base.date);
    for (report, which) in [(base, "the earlier run"), (now, "this run")] {
        if let Some(why) = run_refusal(report) {
            let _ = writeln!(text, "not comparable: {which}: {why}");
            return text;
        }
    }
    for run in devices(now) {
        let name = run.adapter.adapter.title();
        match devices(base).find(|other| other.adapter.adapter.name == run.adapter.adapter.name) {
            Some(other) => text.push_str(&device(&name, other, run)),
            None => {
                let _ = writeln!(text, "{name}: not in the earlier run");
            }
        }
    }
    text
}

fn device(name: &str, base: Run<'_>, now: Run<'_>) -> String {
    let mut text = format!("{name}\n");
    let driver = &base.adapter.adapter.driver;
    if *driver != now.adapter.adapter.driver {
        let _ = writeln!(text, "note: another driver then: {driver}");
    }
    if base.report.host.cores != now.report.host.cores {
        let _ = writeln!(text, "note: {} cores then", base.report.host.cores);
    }
    for (before, after) in base.adapter.probes().into_iter().zip(now.adapter.probes()) {
        if let ((name, unit, Some(before)), (_, _, Some(after))) = (before, after) {
            let change = 100.0 * (after.mean / before.mean - 1.0);
            let _ = writeln!(
                text,
                "{name} probe: {:.1} {unit} then, {:.1} now ({change:+.0} %)",
                before.mean, after.mean
            );
        }
    }
    let (mut cells, mut refused) = (Vec::new(), Vec::new());
    for row in &now.adapter.rows {
        match pair(base, now, row) {
            Ok(line) => cells.push(line),
            Err(why) => refused.push(format!("not compared: {}: {why}", title(row))),
        }
    }
    let header = ["problem", "mask", "mechanism", "then ms", "now ms", "change", "noise", ""];
    if !cells.is_empty() {
        let _ = writeln!(text, "{}", markdown(header.map(String::from).into(), cells, WORDS));
    }
    if let Some((header, cells)) = kernels::changes(base.adapter, now.adapter) {
        let _ = writeln!(text, "{}", markdown(header, cells, kernels::WORDS));
    }
    refused.iter().for_each(|line| {
        let _ = writeln!(text, "{line}");
    });
    text
}

fn pair(base: Run<'_>, now: Run<'_>, row: &Row) -> Result<Vec<String>, String> {
    let old = base.find(row).ok_or("not in the earlier run")?;
    for (which, row) in [("then ", old), ("", row)] {
        if let Some(why) = row_refusal(row) {
            return Err(format!("{which}{why}"));
        }
    }
    if let Some(why) = pair_refusal((base, old), (now, row)) {
        return Err(why);
    }
    let (Some(then), Some(timing)) = (&old.timing, &row.timing) else {
        return Err("not timed".into());
    };
    if then.clock != timing.clock {
        return Err(format!("clocks differ: {} and {}", then.clock, timing.clock));
    }
    let change = Change::of(then.seconds, timing.seconds).ok_or("times of 0")?;
    let mut cells = vec![
        row.problem.clone(),
        row.mask.clone(),
        row.mechanism.clone(),
        milliseconds(then.seconds.median),
        milliseconds(timing.seconds.median),
    ];
    cells.extend(change.cells());
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::super::report::Clock;
    use super::super::report::tests::sample;
    use super::*;

    fn summary(median: f64, spread: f64) -> Summary {
        let (q20, q80) = (median * (1.0 - spread), median * (1.0 + spread));
        Summary { median, q20, q80, min: q20 }
    }

    #[test]
    fn only_what_exceeds_the_spreads_is_a_change() {
        let verdict = |base, now| Change::of(base, now).unwrap().verdict();
        assert_eq!(verdict(summary(1.0, 0.05), summary(1.09, 0.05)), "within noise");
        assert_eq!(verdict(summary(1.0, 0.05), summary(1.11, 0.05)), "slower");
        assert_eq!(verdict(summary(1.0, 0.05), summary(0.89, 0.05)), "faster");
        assert_eq!(verdict(summary(1.0, 0.0), summary(1.01, 0.0)), "within noise");
        assert_eq!(Change::of(summary(0.0, 0.0), summary(1.0, 0.0)), None);
    }

    #[test]
    fn one_table_a_device() {
        let base = sample();
        let mut now = sample();
        let timing = now.adapters[0].rows[0].timing.as_mut().unwrap();
        timing.seconds = timing.seconds.scaled(2.0);
        let text = compare(&base, &now);
        assert!(text.contains("+100.0 %") && text.contains("slower"), "{text}");
        assert!(text.contains("not compared: layer11-n1024, causal, dense: "), "{text}");
        assert!(text.contains("FMA yardstick probe: 70.5 GFLOP/s then, 70.5 now (+0 %)"), "{text}");
        let timing = now.adapters[0].rows[0].timing.as_mut().unwrap();
        timing.clock = Clock::Wall;
        assert!(compare(&base, &now).contains("clocks differ"));
        now.adapters[0].adapter.name = "other".into();
        assert!(compare(&base, &now).contains("not in the earlier run"));
    }
}
