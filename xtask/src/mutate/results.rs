//! What became of the mutants: the file of results, survivors explained as equivalent, the table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::mutants::{FOLDER, Mutant};
use crate::bench::table::markdown;

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Does not compile, or changes nothing: not counted.
    Invalid(String),
    /// The first test that was red, or how else it ended.
    Killed(String),
    /// Survived the quick tests; the others are still to come.
    Open,
    Survived,
    /// Not run: known to be equivalent, for this reason.
    Explained(String),
}

/// A line of the file of results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub id: String,
    pub file: String,
    pub line: usize,
    pub mutator: String,
    pub before: String,
    pub after: String,
    pub fate: Fate,
    pub seconds: f64,
}

impl Outcome {
    pub fn new(mutant: &Mutant, fate: Fate, seconds: f64) -> Self {
        Self {
            id: mutant.id.clone(),
            file: mutant.file.clone(),
            line: mutant.line,
            mutator: mutant.mutator.into(),
            before: mutant.before.clone(),
            after: mutant.after.clone(),
            fate,
            seconds,
        }
    }

    /// Whether this is the outcome of that mutant, also if lines have moved.
    pub fn is_of(&self, mutant: &Mutant) -> bool {
        self.id == mutant.id && self.before == mutant.before && self.after == mutant.after
    }
}

pub fn read(path: &Path) -> Result<Vec<Outcome>> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("in {}", path.display()))
}

/// Writes the file anew, by a second one, so that an interrupted run leaves a whole one.
pub fn write(path: &Path, outcomes: &[Outcome]) -> Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, serde_json::to_vec_pretty(outcomes)?)
        .and_then(|()| fs::rename(&part, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// A survivor that no test can kill.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    file: String,
    before: String,
    after: String,
    /// Which one, where the file has the same line several times.
    #[serde(default = "first")]
    occurrence: usize,
    /// Why the kernel computes the same.
    reason: String,
}

fn first() -> usize {
    1
}

pub fn explanations(path: &Path) -> Result<Vec<Explanation>> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("in {}", path.display()))
}

/// The reason why a mutant is equivalent, if it is known.
pub fn explained<'a>(known: &'a [Explanation], mutant: &Mutant) -> Option<&'a str> {
    known.iter().find(|known| known.is_of(mutant)).map(|known| known.reason.as_str())
}

impl Explanation {
    fn is_of(&self, mutant: &Mutant) -> bool {
        self.file == mutant.file
            && self.before == mutant.before
            && self.after == mutant.after
            && self.occurrence == mutant.occurrence
    }
}

/// Explanations of mutants that do not exist: their line has changed, and they have to be thought over.
pub fn stale(known: &[Explanation], mutants: &[Mutant]) -> Vec<String> {
    let gone = |known: &&Explanation| !mutants.iter().any(|mutant| known.is_of(mutant));
    known
        .iter()
        .filter(gone)
        .map(|known| format!("{}: `{}` -> `{}`", known.file, known.before, known.after))
        .collect()
}

/// Numbers of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub invalid: usize,
    pub killed: usize,
    pub open: usize,
    pub survived: usize,
    pub explained: usize,
}

impl Count {
    fn add(&mut self, fate: &Fate) {
        *match fate {
            Fate::Invalid(_) => &mut self.invalid,
            Fate::Killed(_) => &mut self.killed,
            Fate::Open => &mut self.open,
            Fate::Survived => &mut self.survived,
            Fate::Explained(_) => &mut self.explained,
        } += 1;
    }

    /// Killed ones in a hundred of those that a test could kill; nothing where there are none.
    pub fn rate(&self) -> Option<f64> {
        let all = self.killed + self.open + self.survived;
        (all > 0).then(|| 100.0 * self.killed as f64 / all as f64)
    }
}

pub fn count(outcomes: &[Outcome]) -> Count {
    let mut count = Count::default();
    outcomes.iter().for_each(|outcome| count.add(&outcome.fate));
    count
}

/// One row a file, and one for all.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut files: BTreeMap<&str, Count> = BTreeMap::new();
    outcomes.iter().for_each(|o| files.entry(&o.file).or_default().add(&o.fate));
    files.insert("~", count(outcomes));
    let mut rows = Vec::new();
    for (file, c) in files {
        let all = c.invalid + c.killed + c.open + c.survived + c.explained;
        let rate = c.rate().map_or("-".into(), |rate| format!("{rate:.1} %"));
        let name = if file == "~" { "all".into() } else { format!("{file}.wgsl") };
        let numbers = [all, c.invalid, c.killed, c.survived, c.open, c.explained];
        rows.push([name].into_iter().chain(numbers.map(|n| n.to_string())).chain([rate]).collect());
    }
    let header = [
        "file",
        "mutants",
        "invalid",
        "killed",
        "survived",
        "unfinished",
        "equivalent",
        "kill rate",
    ];
    markdown(header.map(String::from).into(), rows, 1).to_string()
}

/// Every survivor with its line before and after.
pub fn survivors(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes.iter().filter(|o| matches!(o.fate, Fate::Survived | Fate::Open)) {
        let Outcome { id, file, line, mutator, before, after, .. } = outcome;
        let state = if outcome.fate == Fate::Open { ", not all tests have run" } else { "" };
        let _ = writeln!(text, "{FOLDER}/{file}.wgsl:{line}: {mutator}{state} (--only {id})");
        let _ = writeln!(text, "  - {before}\n  + {}", after.replace('\n', "\n  + "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(after: &str) -> Mutant {
        Mutant {
            file: "a".into(),
            line: 3,
            mutator: "sum",
            id: format!("a:3:sum:{after}"),
            before: "x + y".into(),
            after: after.into(),
            occurrence: 1,
            text: String::new(),
        }
    }

    fn outcomes() -> Vec<Outcome> {
        let fates = [
            Fate::Killed("golden::x".into()),
            Fate::Invalid("no".into()),
            Fate::Survived,
            Fate::Killed("crash".into()),
            Fate::Explained("same".into()),
            Fate::Killed("golden::x".into()),
        ];
        fates.into_iter().map(|fate| Outcome::new(&mutant("x - y"), fate, 1.5)).collect()
    }

    #[test]
    fn rates_leave_out_what_cannot_be_killed() {
        let count = count(&outcomes());
        assert_eq!(count.rate(), Some(75.0));
        assert_eq!((count.invalid, count.explained), (1, 1));
        assert_eq!(Count::default().rate(), None);
        let table = table(&outcomes());
        assert!(table.contains("a.wgsl") && table.contains("75.0 %"), "{table}");
        let survivors = survivors(&outcomes());
        assert_eq!(
            survivors,
            "attn-wgpu/kernels/a.wgsl:3: sum (--only a:3:sum:x - y)\n  - x + y\n  + x - y\n"
        );
    }

    #[test]
    fn results_come_back() {
        let path = std::env::temp_dir().join(format!("xtask-mutate-{}.json", std::process::id()));
        write(&path, &outcomes()).unwrap();
        assert_eq!(read(&path).unwrap(), outcomes());
        assert!(outcomes()[0].is_of(&mutant("x - y")) && !outcomes()[0].is_of(&mutant("y")));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn explanations_go_stale() {
        let text = r#"[{"file": "a", "before": "x + y", "after": "x - y", "reason": "y is 0"}]"#;
        let known: Vec<Explanation> = serde_json::from_str(text).unwrap();
        assert_eq!(explained(&known, &mutant("x - y")), Some("y is 0"));
        assert_eq!(explained(&known, &mutant("x")), None);
        let again = Mutant { occurrence: 2, ..mutant("x - y") };
        assert_eq!(explained(&known, &again), None);
        assert_eq!(stale(&known, &[mutant("x"), mutant("x - y")]), [""; 0]);
        assert_eq!(stale(&known, &[mutant("x")]), ["a: `x + y` -> `x - y`"]);
    }
}
