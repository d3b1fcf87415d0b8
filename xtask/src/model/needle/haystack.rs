//! A text as sentences, and needles between them.

use anyhow::{Result, bail};

/// Words with a full stop that ends no sentence.
const SHORT: [&str; 7] = ["Mr", "Mrs", "Ms", "Dr", "St", "No", "vs"];

/// A sentence, with the white space behind it, and how many tokens it has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sentence<'a> {
    pub text: &'a str,
    pub tokens: usize,
}

/// A text with needles in it.
#[derive(Debug, PartialEq)]
pub struct Hidden {
    pub text: String,
    /// Where each needle begins, in bytes.
    pub starts: Vec<usize>,
}

/// The sentences of a text, which together are the text.
pub fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (space, sign) in text.char_indices() {
        let gap = text[space..].len() - text[space..].trim_start().len();
        // Only where white space begins, and something stands behind it.
        let is_gap = sign.is_whitespace() && !text[..space].ends_with(char::is_whitespace);
        if !is_gap || space + gap == text.len() {
            continue;
        }
        let is_paragraph = text[space..space + gap].matches('\n').count() > 1;
        if is_paragraph || is_end(&text[start..space], &text[space + gap..]) {
            sentences.push(&text[start..space + gap]);
            start = space + gap;
        }
    }
    if start < text.len() {
        sentences.push(&text[start..]);
    }
    sentences
}

/// Whether a sentence ends between the two.
fn is_end(before: &str, behind: &str) -> bool {
    let bare = before.trim_end_matches(['"', '\'', ')', ']', '\u{201d}', '\u{2019}']);
    let word = bare.trim_end_matches('.').rsplit(|sign: char| !sign.is_alphanumeric()).next();
    let word = word.unwrap_or_default();
    // An initial, as in J. Smith.
    let is_short = bare.ends_with('.')
        && (SHORT.contains(&word) || (word.chars().count() == 1 && word != "I"));
    bare.ends_with(['.', '!', '?']) && !is_short && !behind.starts_with(char::is_lowercase)
}

/// As many whole sentences as have `tokens` tokens at most.
pub fn cut<'s, 't>(all: &'s [Sentence<'t>], tokens: usize) -> Result<&'s [Sentence<'t>]> {
    let sum: usize = all.iter().map(|sentence| sentence.tokens).sum();
    if sum < tokens {
        bail!(
            "the text has {sum} tokens, and {tokens} are wanted: take a longer text or smaller --lengths"
        );
    }
    let mut left = tokens;
    let fits = |sentence: &&Sentence<'_>| {
        let fits = sentence.tokens <= left;
        left = left.saturating_sub(if fits { sentence.tokens } else { 0 });
        fits
    };
    Ok(&all[..all.iter().take_while(fits).count()])
}

/// Puts each needle behind the last sentence that ends at or before its depth, 0 to 100 percent of the tokens. Depths
/// must not fall.
pub fn hide(sentences: &[Sentence<'_>], needles: &[(&str, f64)]) -> Hidden {
    let total: usize = sentences.iter().map(|sentence| sentence.tokens).sum();
    let mut hidden = Hidden { text: String::new(), starts: Vec::with_capacity(needles.len()) };
    let mut waiting = needles.iter().peekable();
    let mut passed = 0;
    for sentence in sentences {
        let next = passed + sentence.tokens;
        while let Some((needle, _)) =
            waiting.next_if(|(_, depth)| (depth / 100.0 * total as f64).floor() < next as f64)
        {
            hidden.push(needle);
        }
        hidden.text.push_str(sentence.text);
        passed = next;
    }
    waiting.for_each(|(needle, _)| hidden.push(needle));
    hidden.text.truncate(hidden.text.trim_end().len());
    hidden
}

impl Hidden {
    fn push(&mut self, needle: &str) {
        if !self.text.is_empty() && !self.text.ends_with(char::is_whitespace) {
            self.text.push(' ');
        }
        self.starts.push(self.text.len());
        self.text.push_str(needle);
        self.text.push(' ');
    }
}

/// Depth of needle `number` of `count`, the first at `depth`: the others at even steps from there to the end.
pub fn depth_of(number: usize, count: usize, depth: f64) -> f64 {
    depth + number as f64 * (100.0 - depth) / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "CHAPTER 1. Loomings.\n\nCall me. \"Who?\" Mr. J. Smith said so! He paid 3.50 (at last.) Then \
                        went on... and I. Not he.\n";

    fn of(text: &str) -> Vec<Sentence<'_>> {
        let count = |text: &str| text.split_whitespace().count();
        sentences(text).into_iter().map(|text| Sentence { text, tokens: count(text) }).collect()
    }

    #[test]
    fn sentences_end_at_full_stops_and_paragraphs() {
        let parts = sentences(TEXT);
        assert_eq!(parts.concat(), TEXT);
        let trimmed: Vec<_> = parts.iter().map(|part| part.trim_end()).collect();
        assert_eq!(trimmed[..2], ["CHAPTER 1. Loomings.", "Call me."]);
        assert_eq!(trimmed[2..5], ["\"Who?\"", "Mr. J. Smith said so!", "He paid 3.50 (at last.)"]);
        assert_eq!(trimmed[5..], ["Then went on... and I.", "Not he."]);
        assert_eq!(sentences("no end"), ["no end"]);
        assert_eq!(sentences("a title\n\nA text"), ["a title\n\n", "A text"]);
        assert!(sentences("").is_empty());
    }

    #[test]
    fn whole_sentences_that_fit() {
        let all = of("One two. Three four five. Six.");
        assert_eq!(cut(&all, 1).unwrap(), &all[..0]);
        assert_eq!(cut(&all, 4).unwrap(), &all[..1]);
        assert_eq!(cut(&all, 5).unwrap(), &all[..2]);
        assert_eq!(cut(&all, 6).unwrap(), &all[..]);
        let error = cut(&all, 7).unwrap_err().to_string();
        assert!(error.starts_with("the text has 6 tokens, and 7 are wanted"), "{error}");
    }

    /// Needles begin behind the end of a sentence, in order, and without them the text is what it was.
    #[test]
    fn needles_stand_between_sentences() {
        let text = "One two. Three four five. Six seven! Eight nine ten eleven. Twelve.";
        let all = of(text);
        let ends: Vec<usize> = (0..=all.len())
            .map(|count| all[..count].iter().map(|sentence| sentence.tokens).sum())
            .collect();
        for first in 0..=100 {
            for count in 1..=4 {
                let depths: Vec<f64> =
                    (0..count).map(|n| depth_of(n, count, f64::from(first))).collect();
                let names: Vec<String> = (0..count).map(|n| format!("Needle {n}.")).collect();
                let needles: Vec<_> =
                    names.iter().map(String::as_str).zip(depths.iter().copied()).collect();
                let hidden = hide(&all, &needles);
                assert!(hidden.starts.is_sorted());
                let mut rest = hidden.text.clone();
                for (number, (name, depth)) in needles.iter().enumerate() {
                    let start = hidden.starts[number];
                    assert!(hidden.text[start..].starts_with(name));
                    let before = hidden.text[..start].trim_end();
                    assert!(before.is_empty() || before.ends_with(['.', '!']), "{before}");
                    // The nearest end before the depth.
                    let words = before.split_whitespace().count() - 2 * number;
                    let want = (depth / 100.0 * 12.0).floor() as usize;
                    let nearest = ends.iter().copied().filter(|end| *end <= want).max();
                    assert_eq!(Some(words), nearest, "depth {depth}");
                    rest = rest.replacen(&format!("{name} "), "", 1).replacen(name, "", 1);
                }
                assert_eq!(rest.trim_end(), text);
            }
        }
    }

    #[test]
    fn first_and_last() {
        let all = of("One two. Three.");
        assert_eq!(hide(&all, &[("N.", 0.0)]).text, "N. One two. Three.");
        assert_eq!(hide(&all, &[("N.", 100.0)]).text, "One two. Three. N.");
        let two = hide(&all, &[("N.", 100.0), ("M.", 100.0)]);
        assert_eq!((two.text.as_str(), &two.starts[..]), ("One two. Three. N. M.", &[16, 19][..]));
        assert_eq!(hide(&[], &[("N.", 50.0)]).text, "N.");
    }

    #[test]
    fn several_needles_are_spread() {
        assert_eq!([0, 1, 2, 3].map(|n| depth_of(n, 4, 20.0)), [20.0, 40.0, 60.0, 80.0]);
        assert_eq!([0, 1].map(|n| depth_of(n, 2, 100.0)), [100.0, 100.0]);
    }
}
