//! Which results of two runs may stand side by side.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::report::{AdapterReport, Checked, Outcome, Report, Row, SCHEMA, Source, Tolerance};

/// Reads a report of this program's schema.
pub fn load(path: &Path) -> Result<Report> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("reading {name}"))?;
    parse(&text).with_context(|| name.to_string())
}

fn parse(text: &str) -> Result<Report> {
    let json: serde_json::Value = serde_json::from_str(text).context("not JSON")?;
    match json["schema"].as_u64() {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(other) => bail!("schema {other}, expected {SCHEMA}: measure again with this version"),
        None => bail!("no report of `cargo xtask bench`: there is no schema"),
    }
    serde_json::from_value(json).context("not a report of this schema")
}

/// One device of one report.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub report: &'a Report,
    pub adapter: &'a AdapterReport,
}

/// All devices of a report; the reference on the host is none.
pub fn devices(report: &Report) -> impl Iterator<Item = Run<'_>> {
    let devices = report.adapters.iter().filter(|adapter| adapter.adapter.index.is_some());
    devices.map(move |adapter| Run { report, adapter })
}

impl<'a> Run<'a> {
    /// Its row of the same problem, mask and mechanism.
    pub fn find(&self, wanted: &Row) -> Option<&'a Row> {
        self.adapter.rows.iter().find(|row| {
            (&row.problem, &row.mask, &row.mechanism)
                == (&wanted.problem, &wanted.mask, &wanted.mechanism)
        })
    }
}

/// What a row is about, in one line.
pub fn title(row: &Row) -> String {
    format!("{}, {}, {}", row.problem, row.mask, row.mechanism)
}

/// Why times of the whole run mean something else than usual.
pub fn run_refusal(report: &Report) -> Option<String> {
    let poison = report.host.environment.contains_key("ATTN_POISON");
    poison.then(|| "ATTN_POISON was set: times contain the filling of outputs".into())
}

/// Why a single row has no time that could be compared.
pub fn row_refusal(row: &Row) -> Option<String> {
    match &row.outcome {
        Outcome::Right if row.timing.is_some() => None,
        Outcome::Right => Some("not timed".into()),
        Outcome::Wrong(why) => Some(format!("WRONG: {why}")),
        Outcome::Unsupported(why) => Some(format!("not supported: {why}")),
        Outcome::TooLarge(why) => Some(format!("does not fit: {why}")),
        Outcome::Failed(why) => Some(format!("FAILED: {why}")),
    }
}

/// Why two rows of one name are not the same task, judged alike.
pub fn pair_refusal(a: (Run<'_>, &Row), b: (Run<'_>, &Row)) -> Option<String> {
    let ((run_a, a), (run_b, b)) = (a, b);
    let differ = |what: &str, a: String, b: String| Some(format!("{what} differ: {a} and {b}"));
    if a.shape != b.shape {
        return differ("shapes", format!("{:?}", a.shape), format!("{:?}", b.shape));
    }
    if a.mask != b.mask {
        return differ("masks", a.mask.clone(), b.mask.clone());
    }
    if a.dtype != b.dtype {
        return differ("types", a.dtype.clone(), b.dtype.clone());
    }
    if a.scale != b.scale || a.flops != b.flops || a.bytes != b.bytes {
        return Some("scales or counts of operations and bytes differ".into());
    }
    if a.source != b.source {
        return differ("inputs", format!("{:?}", a.source), format!("{:?}", b.source));
    }
    // How many tokens were cut off does not matter: the shape says how many are left.
    let captured = matches!(a.source, Source::Capture { .. });
    let files = [&run_a.report.capture.file, &run_b.report.capture.file];
    if captured && files[0] != files[1] {
        return differ("captured inputs", files[0].clone(), files[1].clone());
    }
    let judged = |row: &Row| {
        let gate = row.gate.as_ref()?;
        Some((
            gate.rows_checked,
            gate.rule.clone(),
            gate.results.iter().map(bound).collect::<Vec<_>>(),
        ))
    };
    (judged(a) != judged(b)).then(|| "tolerances or numbers of compared rows differ".into())
}

/// What of a tolerance does not depend on the host that computed it.
fn bound(checked: &Checked) -> (String, Option<[f64; 2]>) {
    let kind = match checked.tolerance {
        Tolerance::Budget { factor, floor_ulps, .. } => Some([factor, floor_ulps]),
        Tolerance::Fixed { .. } => None,
    };
    (checked.name.clone(), kind)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn other_schemas_are_refused() {
        let refused = |text: &str| parse(text).unwrap_err().to_string();
        let text = serde_json::to_string(&sample()).unwrap();
        assert!(parse(&text).is_ok());
        let old = text.replacen(&format!("\"schema\":{SCHEMA}"), "\"schema\":1", 1);
        assert_eq!(refused(&old), "schema 1, expected 3: measure again with this version");
        assert!(refused("{}").starts_with("no report"));
        assert_eq!(refused("x"), "not JSON");
    }

    #[test]
    fn wrong_rows_are_refused() {
        let rows = sample().adapters.remove(0).rows;
        assert_eq!(row_refusal(&rows[0]), None);
        assert_eq!(row_refusal(&rows[1]).unwrap(), "WRONG: out: max error 1e0");
        assert_eq!(title(&rows[1]), "layer11-n1024, causal, dense");
    }

    /// Whether a changed row is refused, and why.
    fn changed(change: impl Fn(&mut Report)) -> Option<String> {
        let (a, mut b) = (sample(), sample());
        change(&mut b);
        let [run_a, run_b] = [&a, &b].map(|report| devices(report).next().unwrap());
        pair_refusal((run_a, &run_a.adapter.rows[0]), (run_b, &run_b.adapter.rows[0]))
    }

    #[test]
    fn other_tasks_are_refused_with_the_reason() {
        type Change = fn(&mut Report);
        let cases: [(Change, &str); 7] = [
            (|r| r.adapters[0].rows[0].shape[4] = 9, "shapes differ"),
            (|r| r.adapters[0].rows[0].mask = "full".into(), "masks differ: causal and full"),
            (|r| r.adapters[0].rows[0].dtype = "f16".into(), "types differ: f32 and f16"),
            (|r| r.adapters[0].rows[0].scale = 1.0, "scales or counts"),
            (|r| r.adapters[0].rows[0].source = Source::Random { seed: 1 }, "inputs differ"),
            (|r| r.capture.file = "b".into(), "captured inputs differ"),
            (
                |r| {
                    let gate = r.adapters[0].rows[0].gate.as_mut().unwrap();
                    gate.results[0].tolerance = Tolerance::Fixed { max_abs: 1.0, rel_l2: 1.0 };
                },
                "tolerances or numbers",
            ),
        ];
        for (change, reason) in cases {
            let why = changed(change).unwrap_or_default();
            assert!(why.starts_with(reason), "{why:?}, expected {reason}");
        }
        assert_eq!(changed(|r| r.host.cores = 64), None);
    }

    #[test]
    fn poisoned_runs_are_refused() {
        let mut report = sample();
        assert_eq!(run_refusal(&report), None);
        report.host.environment.insert("ATTN_POISON".into(), "1".into());
        assert!(run_refusal(&report).is_some());
    }
}
