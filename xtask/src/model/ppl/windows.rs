//! Cutting a text into windows.

use anyhow::{Result, bail};

use crate::model::loaded::Tokens;

/// What of a text is used, in tokens.
pub struct Plan {
    pub skip: usize,
    /// All that are left where it is none.
    pub tokens: Option<usize>,
    /// A window, with its prompt and with what the model wants in front.
    pub window: usize,
    pub prompt: usize,
}

/// A sequence of its own.
#[derive(Debug, PartialEq)]
pub struct Window {
    /// Number of its first token in the text.
    pub first: usize,
    pub tokens: Vec<u32>,
}

impl Plan {
    /// Whole windows; tokens that do not fill one are left out.
    pub fn cut(&self, tokens: &Tokens) -> Result<Vec<Window>> {
        let Plan { skip, window, prompt, .. } = *self;
        let (front, text) = (&tokens.front, &tokens.text);
        let Some(rest) = text.get(skip..) else {
            bail!("--skip {skip} is more than the {} tokens of the text", text.len());
        };
        if window < 2 || window <= front.len() {
            let least = (front.len() + 1).max(2);
            bail!("--window {window} leaves no token to score, expected at least {least}");
        }
        // Behind a prompt, one token has to run before another one is predicted.
        if prompt > 0 && prompt + 2 > window {
            bail!("--prompt {prompt} leaves no token of --window {window} to score");
        }
        let used = match self.tokens {
            None => rest,
            Some(count) if count <= rest.len() => &rest[..count],
            Some(count) => {
                bail!("the text has {} tokens behind the first {skip}, not {count}", rest.len())
            }
        };
        let step = window - front.len();
        if used.len() < step {
            let got = used.len();
            bail!(
                "{got} tokens of the text do not fill a window of {step}: take a smaller --window"
            );
        }
        let one = |(number, part): (usize, &[u32])| Window {
            first: skip + number * step,
            tokens: [front, part].concat(),
        };
        Ok(used.chunks_exact(step).enumerate().map(one).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { skip: 0, tokens: None, window: 4, prompt: 0 };

    fn cut(plan: &Plan, front: &[u32], text: u32) -> Result<Vec<Window>> {
        plan.cut(&Tokens { front: front.to_vec(), text: (10..10 + text).collect() })
    }

    fn error(plan: &Plan, front: &[u32], text: u32) -> String {
        cut(plan, front, text).unwrap_err().to_string()
    }

    #[test]
    fn whole_windows_side_by_side() {
        let expected = |first: usize, tokens: [u32; 4]| Window { first, tokens: tokens.to_vec() };
        let windows = cut(&PLAN, &[], 11).unwrap();
        assert_eq!(windows, [expected(0, [10, 11, 12, 13]), expected(4, [14, 15, 16, 17])]);
        let later = Plan { skip: 3, tokens: Some(7), ..PLAN };
        assert_eq!(cut(&later, &[], 11).unwrap(), [expected(3, [13, 14, 15, 16])]);
        let windows = cut(&PLAN, &[1], 7).unwrap();
        assert_eq!(windows, [expected(0, [1, 10, 11, 12]), expected(3, [1, 13, 14, 15])]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let text = error(&PLAN, &[], 3);
        assert_eq!(text, "3 tokens of the text do not fill a window of 4: take a smaller --window");
        let text = error(&Plan { skip: 12, ..PLAN }, &[], 11);
        assert_eq!(text, "--skip 12 is more than the 11 tokens of the text");
        let text = error(&Plan { skip: 2, tokens: Some(10), ..PLAN }, &[], 11);
        assert_eq!(text, "the text has 9 tokens behind the first 2, not 10");
        let text = error(&Plan { window: 1, ..PLAN }, &[], 11);
        assert_eq!(text, "--window 1 leaves no token to score, expected at least 2");
        let text = error(&Plan { window: 2, ..PLAN }, &[1, 2], 11);
        assert_eq!(text, "--window 2 leaves no token to score, expected at least 3");
        let text = error(&Plan { prompt: 3, ..PLAN }, &[], 11);
        assert_eq!(text, "--prompt 3 leaves no token of --window 4 to score");
    }
}
