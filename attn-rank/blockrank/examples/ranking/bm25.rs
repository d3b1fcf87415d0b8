//! The retriever that finds candidates: BM25 with k1 = 1.2 and b = 0.75.

use std::collections::HashMap;

/// Frequencies of words in documents.
pub struct Bm25 {
    /// Documents that have a word, and how often.
    found: HashMap<String, Vec<(usize, f64)>>,
    lengths: Vec<f64>,
    mean: f64,
}

/// Runs of letters, digits and underscores, in lower case.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(move |c| !word(c)).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

impl Bm25 {
    pub fn new<'a>(documents: impl IntoIterator<Item = &'a str>) -> Bm25 {
        let (mut found, mut lengths) = (HashMap::new(), Vec::new());
        for (number, text) in documents.into_iter().enumerate() {
            let mut counts: HashMap<String, f64> = HashMap::new();
            words(text).for_each(|word| *counts.entry(word).or_default() += 1.0);
            lengths.push(counts.values().sum());
            for (word, count) in counts {
                found.entry(word).or_insert_with(Vec::new).push((number, count));
            }
        }
        let mean = lengths.iter().sum::<f64>() / (lengths.len() as f64).max(1.0);
        Bm25 { found, lengths, mean }
    }

    /// Scores of all documents.
    pub fn scores(&self, query: &str) -> Vec<f64> {
        let mut scores = vec![0.0; self.lengths.len()];
        let all = self.lengths.len() as f64;
        for word in words(query) {
            let Some(found) = self.found.get(&word) else { continue };
            let df = found.len() as f64;
            let idf = (1.0 + (all - df + 0.5) / (df + 0.5)).ln();
            for &(number, count) in found {
                let length = 1.0 - 0.75 + 0.75 * self.lengths[number] / self.mean;
                scores[number] += idf * count * 2.2 / (count + 1.2 * length);
            }
        }
        scores
    }
}
