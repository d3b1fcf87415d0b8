//! Ranking tasks out of paragraphs: which of six beginnings holds the rarest words of one of them.

use std::collections::{HashMap, HashSet};

use fastrand::Rng;

use crate::wiki::Article;

/// Candidates of a prompt, of different articles.
pub const DOCUMENTS: usize = 6;
/// Words of a candidate.
const WORDS: usize = 14;
/// Words of a query.
const QUERY: usize = 3;
/// Letters that a word of a query has at least.
const LETTERS: usize = 4;

pub struct Task {
    pub documents: Vec<String>,
    pub query: String,
    /// The document that the query is of.
    pub positive: usize,
}

/// Tasks of two kinds, to learn from and to be judged by: no article gives paragraphs to both.
pub fn tasks(articles: &[Article], train: usize, test: usize, seed: u64) -> [Vec<Task>; 2] {
    let frequency = frequencies(articles);
    let mut random = Rng::with_seed(seed);
    let mut order: Vec<&Article> = articles.iter().collect();
    random.shuffle(&mut order);
    let (learned, held_back) = order.split_at(order.len() * 2 / 3);
    [(learned, train), (held_back, test)].map(|(articles, count)| {
        let candidates: Vec<Vec<Vec<&str>>> = articles.iter().map(|one| beginnings(one)).collect();
        let mut draw = || task(&candidates, &frequency, &mut random);
        std::iter::from_fn(|| Some(draw())).flatten().take(count).collect()
    })
}

/// In how many paragraphs a word is.
fn frequencies(articles: &[Article]) -> HashMap<String, usize> {
    let mut frequency = HashMap::new();
    for paragraph in articles.iter().flat_map(|article| &article.paragraphs) {
        let words: HashSet<String> = paragraph.split_whitespace().map(normal).collect();
        for word in words {
            *frequency.entry(word).or_default() += 1;
        }
    }
    frequency
}

fn bare(word: &str) -> &str {
    word.trim_matches(|letter: char| !letter.is_alphanumeric())
}

fn normal(word: &str) -> String {
    bare(word).to_lowercase()
}

/// The first words of each paragraph that has so many.
fn beginnings(article: &Article) -> Vec<Vec<&str>> {
    let words = article.paragraphs.iter().map(|text| text.split(' ').take(WORDS).collect());
    words.filter(|words: &Vec<&str>| words.len() == WORDS).collect()
}

/// None where the drawn document has too few words for a query.
fn task(
    candidates: &[Vec<Vec<&str>>],
    frequency: &HashMap<String, usize>,
    random: &mut Rng,
) -> Option<Task> {
    let articles: Vec<_> = candidates.iter().filter(|one| !one.is_empty()).collect();
    let articles = random.choose_multiple(articles, DOCUMENTS);
    let mut documents: Vec<_> =
        articles.into_iter().map(|article| &article[random.usize(..article.len())]).collect();
    random.shuffle(&mut documents);
    let positive = random.usize(..documents.len());
    let of = |word: &str| frequency.get(&normal(word)).copied().unwrap_or_default();
    let mut words: Vec<&str> = documents[positive].iter().copied().map(bare).collect();
    words.retain(|word| word.chars().filter(|letter| letter.is_alphabetic()).count() >= LETTERS);
    words.sort_by_cached_key(|word| (of(word), normal(word)));
    words.dedup_by_key(|word| normal(word));
    let query = words.get(..QUERY)?.join(" ");
    let documents = documents.into_iter().map(|words| words.join(" ")).collect();
    Some(Task { documents, query, positive })
}
