//! Results of `model needle`, as JSON and as text.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::facts::Needle;
use crate::bench::table::markdown;
use crate::model::policies::{Choice, Record};
use crate::model::report::Origin;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub origin: Origin,
    pub settings: Settings,
    pub policies: Vec<PolicyResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether prompts are conversations by the model's template.
    pub chat_template: bool,
    /// Of whole prompts, in tokens.
    pub lengths: Vec<usize>,
    /// In percent.
    pub depths: Vec<u32>,
    pub needles: usize,
    pub repeats: usize,
    pub seed: u64,
    pub answer_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyResult {
    pub label: String,
    pub policy: Record,
    /// Mean over all questions.
    pub recall: f64,
    /// Share of answers that hold the fact word for word.
    pub exact: f64,
    pub seconds: f64,
    pub cells: Vec<Cell>,
}

/// All questions of one length and depth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub length: usize,
    pub depth: u32,
    pub recall: f64,
    pub exact: f64,
    pub asked: Vec<Asked>,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub repeat: usize,
    pub needle: Needle,
    /// Where in the text the needle begins, in percent of its bytes.
    pub place: f64,
    pub prompt_tokens: usize,
    pub answer: String,
    /// Share of the words of the needle's answer.
    pub recall: f64,
    /// Whether the needle's answer is in it word for word.
    pub exact: bool,
}

impl Cell {
    /// Adds questions to the cell of this length and depth.
    pub fn add(cells: &mut Vec<Cell>, length: usize, depth: u32, asked: Vec<Asked>) {
        let at = cells.iter().position(|cell| cell.length == length && cell.depth == depth);
        let at = at.unwrap_or_else(|| {
            cells.push(Cell { length, depth, recall: 0.0, exact: 0.0, asked: Vec::new() });
            cells.len() - 1
        });
        let cell = &mut cells[at];
        cell.asked.extend(asked);
        (cell.recall, cell.exact) = means(cell.asked.iter());
    }
}

/// Mean recall, and the share of answers that are exact.
fn means<'a>(asked: impl Iterator<Item = &'a Asked> + Clone) -> (f64, f64) {
    let count = asked.clone().count().max(1) as f64;
    let recall: f64 = asked.clone().map(|asked| asked.recall).sum();
    let exact = asked.filter(|asked| asked.exact).count() as f64;
    (recall / count, exact / count)
}

impl PolicyResult {
    pub fn new(choice: &Choice, cells: Vec<Cell>, seconds: f64) -> Self {
        let (recall, exact) = means(cells.iter().flat_map(|cell| &cell.asked));
        let (label, policy) = (choice.label.clone(), choice.record.clone());
        PolicyResult { label, policy, recall, exact, seconds, cells }
    }

    pub fn cell(&self, length: usize, depth: u32) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.length == length && cell.depth == depth)
    }

    /// Recall and exact answers of all questions.
    pub fn summary(&self) -> String {
        let count: usize = self.cells.iter().map(|cell| cell.asked.len()).sum();
        let exact = (self.exact * count as f64).round();
        format!(
            "recall {}, {exact} of {count} answers word for word, {:.0} s",
            percent(self.recall),
            self.seconds
        )
    }
}

impl Report {
    /// For a terminal.
    pub fn text(&self) -> String {
        let Report { origin, settings, policies } = self;
        let mut text = format!("{}: {}\n", origin.model.name, self.what());
        for policy in policies {
            let header = settings.lengths.iter().map(|length| format!("{length} tokens"));
            let row = |depth: &u32| {
                let cells = settings.lengths.iter().map(|length| {
                    policy.cell(*length, *depth).map_or("-".into(), |cell| percent(cell.recall))
                });
                std::iter::once(format!("{depth} %")).chain(cells).collect()
            };
            let header = std::iter::once("depth".to_string()).chain(header).collect();
            let table = markdown(header, settings.depths.iter().map(row).collect(), 0);
            let _ = write!(text, "\n{}: {}\n{table}\n", policy.label, policy.summary());
        }
        text
    }

    /// What was asked.
    pub fn what(&self) -> String {
        let Settings { needles, repeats, seed, .. } = self.settings;
        let many = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        format!(
            "{} in {}, {} of each length and depth, seed {seed}",
            many(needles, "needle"),
            self.origin.text.file,
            many(repeats, "text"),
        )
    }
}

pub fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
pub mod tests {
    use super::super::facts::needles;
    use super::*;
    use crate::model::report::tests::origin;

    fn asked(recall: f64, exact: bool) -> Asked {
        Asked {
            repeat: 0,
            needle: needles(1, 0).unwrap().remove(0),
            place: 12.5,
            prompt_tokens: 250,
            answer: "a <b> & c".into(),
            recall,
            exact,
        }
    }

    /// Two policies, two lengths, three depths; one cell has no answer.
    pub fn sample() -> Report {
        let policy = |label: &str| {
            let mut cells = Vec::new();
            for (number, (length, depth)) in
                [(256, 0), (256, 50), (256, 100), (512, 0), (512, 50)].into_iter().enumerate()
            {
                Cell::add(
                    &mut cells,
                    length,
                    depth,
                    vec![asked(1.0 - 0.25 * number as f64, number == 0)],
                );
            }
            Cell::add(&mut cells, 256, 0, vec![asked(0.5, false)]);
            PolicyResult::new(&label.parse().unwrap(), cells, 3.0)
        };
        Report {
            origin: origin(),
            settings: Settings {
                chat_template: true,
                lengths: vec![256, 512],
                depths: vec![0, 50, 100],
                needles: 1,
                repeats: 2,
                seed: 0,
                answer_tokens: 32,
            },
            policies: vec![policy("dense"), policy(r#"sink-window:{"window":99}"#)],
        }
    }

    #[test]
    fn json_and_back() {
        let report = sample();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn means_are_over_questions() {
        let policy = &sample().policies[0];
        let cell = policy.cell(256, 0).unwrap();
        assert_eq!((cell.recall, cell.exact, cell.asked.len()), (0.75, 0.5, 2));
        assert_eq!((policy.recall, policy.exact), (0.5, 1.0 / 6.0));
        assert_eq!(policy.summary(), "recall 50 %, 1 of 6 answers word for word, 3 s");
    }

    #[test]
    fn text_has_a_table_for_each_policy() {
        let text = sample().text();
        assert!(
            text.starts_with("a model: 1 needle in a <text>, 2 texts of each length"),
            "{text}"
        );
        assert_eq!(text.matches("| depth").count(), 2);
        assert!(text.contains("100 %") && text.contains("sink-window:{\"window\":99}: recall"));
        let row = text.lines().find(|line| line.starts_with("| 100 %")).unwrap();
        assert_eq!(row.replace(' ', ""), "|100%|50%|-|");
    }
}
