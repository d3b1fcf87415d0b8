//! A retrieval set in the layout of BEIR, and measures of orders.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Result;

/// A document with what is searched and what the model reads.
pub struct Article {
    pub searched: String,
    pub text: String,
}

/// A query with the numbers of documents that answer it, and of those that do not count.
pub struct Query {
    pub text: String,
    pub relevant: HashSet<usize>,
    pub excluded: HashSet<usize>,
}

pub struct Set {
    pub documents: Vec<Article>,
    pub queries: Vec<Query>,
}

impl Set {
    /// The first `most` queries of a kind and split. Titles are searched in texts alone, as they are titles
    /// of the documents.
    pub fn read(folder: &Path, kind: &str, split: &str, most: usize) -> Result<Set> {
        let lines = |name: &str| -> Result<Vec<Value>> {
            let text = fs::read_to_string(folder.join(name))?;
            text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
        };
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let with_title = kind != "title";
        let mut numbers = HashMap::new();
        let mut documents = Vec::new();
        for (number, value) in lines("corpus.jsonl")?.iter().enumerate() {
            numbers.insert(text(value, "_id"), number);
            let body = text(value, "text");
            let whole = format!("{} {body}", text(value, "title"));
            let searched = if with_title { whole } else { body };
            documents.push(Article { text: searched.clone(), searched });
        }
        let mut relevant: HashMap<String, HashSet<usize>> = HashMap::new();
        for line in fs::read_to_string(folder.join("qrels.tsv"))?.lines().skip(1) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [query, document, score] = fields[..] else { continue };
            if let (Some(&number), true) = (numbers.get(document), score.trim() != "0") {
                relevant.entry(query.to_owned()).or_default().insert(number);
            }
        }
        let queries = lines("queries.jsonl")?.into_iter().filter(|query| {
            query["kind"].as_str() == Some(kind) && query["split"].as_str() == Some(split)
        });
        let queries = queries.take(most).map(|query| {
            let excluded = query["exclude"].as_array().into_iter().flatten();
            let number = |id: &Value| numbers.get(id.as_str()?).copied();
            Query {
                text: text(&query, "text"),
                relevant: relevant.get(&text(&query, "_id")).cloned().unwrap_or_default(),
                excluded: excluded.filter_map(number).collect(),
            }
        });
        let queries: Vec<Query> = queries.collect();
        if queries.is_empty() {
            return Err(format!("no query of kind {kind} and split {split}").into());
        }
        Ok(Set { documents, queries })
    }
}

/// Sums over queries.
#[derive(Default)]
pub struct Measures {
    queries: f64,
    first: f64,
    reciprocal: f64,
    gain: f64,
}

impl Measures {
    pub fn add(&mut self, order: &[usize], relevant: &HashSet<usize>) {
        let places = order.iter().enumerate().filter(|(_, number)| relevant.contains(number));
        let places: Vec<usize> = places.map(|(place, _)| place).collect();
        let discount = |place: usize| 1.0 / (place as f64 + 2.0).log2();
        let ideal: f64 = (0..relevant.len().min(10)).map(discount).sum();
        let found: f64 = places.iter().filter(|place| **place < 10).map(|&p| discount(p)).sum();
        self.queries += 1.0;
        self.first += f64::from(u8::from(places.first() == Some(&0)));
        self.reciprocal += places.first().map_or(0.0, |&place| 1.0 / (place as f64 + 1.0));
        self.gain += if ideal > 0.0 { found / ideal } else { 0.0 };
    }
}

impl fmt::Display for Measures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, reciprocal, gain] =
            [self.first, self.reciprocal, self.gain].map(|sum| sum / self.queries.max(1.0));
        write!(f, "{first:.3}   {reciprocal:.3}   {gain:.3}")
    }
}
