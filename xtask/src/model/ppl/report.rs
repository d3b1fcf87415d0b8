//! Results of `model ppl`, as JSON and as text.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Scores;
use super::windows::Plan;
use crate::bench::table::markdown;
use crate::model::policies::{Choice, Record};
use crate::model::report::Origin;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub origin: Origin,
    /// Tokens of the text in front of the first window.
    pub skip: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Of them the prompt; it and the token behind it are not scored, without one only the first token.
    pub prompt: usize,
    pub windows: usize,
    pub policies: Vec<PolicyResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyResult {
    pub label: String,
    pub policy: Record,
    pub perplexity: f64,
    /// Mean of the negative log-probability of a token, in nats.
    pub nll: f64,
    /// Of `nll`, from the spread of tokens.
    pub standard_error: f64,
    /// Of perplexities, to the first policy's.
    pub ratio: f64,
    /// Of `ratio`, from the spread of differences of each token.
    pub ratio_standard_error: f64,
    /// With a prompt, of the tokens behind it.
    pub tokens_per_second: f64,
    pub windows: Vec<WindowResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowResult {
    /// Number of the window's first token in the text.
    pub first: usize,
    pub mean: f64,
    pub standard_error: f64,
    pub prompt_seconds: f64,
    /// Of the tokens behind the prompt.
    pub seconds: f64,
    /// Tokens that ran in `seconds`.
    pub ran: usize,
    /// Negative log-probability of each token that was scored, in nats.
    pub nll: Vec<f32>,
}

impl WindowResult {
    pub fn new(first: usize, scores: Scores) -> Self {
        let Scores { nll, prompt_seconds, seconds, ran } = scores;
        let (mean, standard_error) = mean(nll.iter().map(|x| f64::from(*x)));
        WindowResult { first, mean, standard_error, prompt_seconds, seconds, ran, nll }
    }
}

impl PolicyResult {
    pub fn new(choice: &Choice, windows: Vec<WindowResult>) -> Self {
        let (nll, standard_error) = mean(scores(&windows));
        let timed = if windows.len() > 1 { &windows[1..] } else { &windows[..] };
        let seconds: f64 = timed.iter().map(|window| window.seconds).sum();
        let ran: usize = timed.iter().map(|window| window.ran).sum();
        PolicyResult {
            label: choice.label.clone(),
            policy: choice.record.clone(),
            perplexity: nll.exp(),
            nll,
            standard_error,
            ratio: 1.0,
            ratio_standard_error: 0.0,
            tokens_per_second: ran as f64 / seconds.max(1e-9),
            windows,
        }
    }

    fn compare(&mut self, base: &[f64]) {
        let differences = scores(&self.windows).zip(base).map(|(own, base)| own - base);
        let (mean, error) = mean(differences);
        self.ratio = mean.exp();
        self.ratio_standard_error = self.ratio * error;
    }
}

impl Report {
    pub fn new(origin: Origin, plan: &Plan, windows: usize, policies: Vec<PolicyResult>) -> Self {
        let Plan { skip, window, prompt, .. } = *plan;
        let mut report = Report { origin, skip, window, prompt, windows, policies };
        if let Some((first, others)) = report.policies.split_first_mut() {
            let base: Vec<f64> = scores(&first.windows).collect();
            others.iter_mut().for_each(|other| other.compare(&base));
        }
        report
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let Report { origin, skip, window, prompt, windows, .. } = self;
        let scored = self.policies.first().map_or(0, |first| scores(&first.windows).count());
        let mut text = format!(
            "{}: {windows} windows of {window} tokens from token {skip} of {} on, {scored} tokens scored",
            origin.model.name, origin.text.file
        );
        let speed = match prompt {
            0 => "tokens/s".into(),
            _ => {
                let _ = write!(text, ", each behind a prompt of {prompt}, one a pass");
                "tokens/s, one a pass".to_string()
            }
        };
        let header = ["policy", "perplexity", "ratio", "nats a token"].map(String::from);
        let row = |policy: &PolicyResult| {
            vec![
                policy.label.clone(),
                format!("{:.2}", policy.perplexity),
                format!("{:.4} +- {:.4}", policy.ratio, policy.ratio_standard_error),
                format!("{:.4} +- {:.4}", policy.nll, policy.standard_error),
                format!("{:.1}", policy.tokens_per_second),
            ]
        };
        let rows = self.policies.iter().map(row).collect();
        let header = header.into_iter().chain([speed]).collect();
        format!("{text}\n{}\n", markdown(header, rows, 1))
    }
}

fn scores(windows: &[WindowResult]) -> impl Iterator<Item = f64> {
    windows.iter().flat_map(|window| &window.nll).map(|x| f64::from(*x))
}

/// Mean and its standard error, 0 for a single number.
fn mean(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let values: Vec<f64> = values.collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::tests::origin;

    fn policy(label: &str, nll: &[&[f32]]) -> PolicyResult {
        let window = |(number, nll): (usize, &&[f32])| {
            let seconds = if number == 0 { 100.0 } else { 0.5 };
            let scores = Scores { nll: nll.to_vec(), prompt_seconds: 2.0, seconds, ran: 3 };
            WindowResult::new(number * 4, scores)
        };
        PolicyResult::new(&label.parse().unwrap(), nll.iter().enumerate().map(window).collect())
    }

    fn sample() -> Report {
        let plan = Plan { skip: 0, tokens: None, window: 4, prompt: 1 };
        let policies = vec![
            policy("dense", &[&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]]),
            policy("sink-window", &[&[1.5, 2.5, 3.5], &[1.5, 2.5, 3.5]]),
        ];
        Report::new(origin(), &plan, 2, policies)
    }

    #[test]
    fn means_and_errors() {
        assert_eq!(mean([2.0].into_iter()), (2.0, 0.0));
        let (mean, error) = mean([1.0, 2.0, 3.0].into_iter());
        assert_eq!(mean, 2.0);
        assert!((error - (1.0_f64 / 3.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn ratios_are_of_perplexities_on_the_same_tokens() {
        let report = sample();
        let [dense, other] = &report.policies[..] else { panic!("two") };
        assert!((dense.perplexity - 2.0_f64.exp()).abs() < 1e-12);
        assert_eq!((dense.ratio, dense.ratio_standard_error), (1.0, 0.0));
        assert!((other.ratio - other.perplexity / dense.perplexity).abs() < 1e-12);
        // Every token is worse by the same.
        assert_eq!(other.ratio_standard_error, 0.0);
        assert!(other.standard_error > 0.0);
        assert_eq!(dense.windows[0].mean, 2.0);
    }

    #[test]
    fn speed_is_that_of_later_windows() {
        assert_eq!(sample().policies[0].tokens_per_second, 6.0);
        assert_eq!(policy("dense", &[&[1.0]]).tokens_per_second, 3.0 / 100.0);
    }

    #[test]
    fn json_and_back() {
        let mut report = sample();
        // Numbers that a decimal fraction holds exactly.
        for policy in &mut report.policies {
            (policy.perplexity, policy.ratio) = (7.5, 1.25);
            (policy.standard_error, policy.ratio_standard_error) = (0.5, 0.25);
            policy.windows.iter_mut().for_each(|window| window.standard_error = 0.5);
        }
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(report.text().contains("2 windows of 4 tokens"), "{}", report.text());
        assert!(report.text().contains("6 tokens scored, each behind a prompt of 1"));
    }
}
