//! MovieLens-100K in RecBole's files.

use std::collections::HashMap;
use std::path::Path;

use attn_core::{Error, Result};
use fastrand::Rng;

use super::{Dataset, Event, synthetic, text};

/// Events that a user must have.
const EVENTS: usize = 60;

/// Events with their times and their places in the file.
type Timed = Vec<(f64, usize, Event)>;

/// Reads `ml-100k.inter` and `ml-100k.item` from a folder: users with at least 60 ratings, sorted by time;
/// histories of `length`; the category of a film is its first genre. The last 5 events of a user are for
/// testing, the one before for validation, every other one of the 40 before those for training, with 2
/// negatives each. Nothing is stored; the data may not be passed on.
///
/// # Errors
/// [`Error::File`] where a file cannot be read or is another one; [`Error::Config`] for a length of 0.
pub fn movielens(folder: impl AsRef<Path>, length: usize, seed: u64) -> Result<Dataset> {
    if length == 0 {
        return Err(Error::config("length", "at least 1", length));
    }
    let folder = folder.as_ref();
    let (films, ratings) = (folder.join("ml-100k.item"), folder.join("ml-100k.inter"));
    let mut genres = HashMap::new();
    let mut categories = HashMap::new();
    for line in text(&films)?.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (Some(film), Some(genre)) = (fields.first(), fields.last()) else { continue };
        let genre = genre.split_whitespace().next().unwrap_or("unknown").to_owned();
        let next = categories.len() as u32 + 1;
        genres.insert((*film).to_owned(), *categories.entry(genre).or_insert(next));
    }
    let mut items: HashMap<String, u32> = HashMap::new();
    let mut users: HashMap<String, Timed> = HashMap::new();
    for (row, line) in text(&ratings)?.lines().enumerate().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let bad = || Error::file(&ratings, format!("line {}: {line}", row + 1));
        let &[user, film, _, time] = &fields[..] else { return Err(bad()) };
        let time: f64 = time.trim().parse().map_err(|_| bad())?;
        let category = *genres.get(film).ok_or_else(bad)?;
        let next = items.len() as u32 + 1;
        let item = *items.entry(film.to_owned()).or_insert(next);
        let events = users.entry(user.to_owned()).or_default();
        events.push((time, row, Event { item, category }));
    }
    let mut users: Vec<(String, Timed)> =
        users.into_iter().filter(|(_, events)| events.len() >= EVENTS).collect();
    users.sort_by(|(a, _), (b, _)| a.cmp(b));
    let sorted = |(_, mut events): (String, Timed)| {
        events.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        events.into_iter().map(|(.., event)| event).collect()
    };
    let mut set = Dataset {
        items: items.len() + 1,
        categories: categories.len() + 1,
        length,
        users: users.into_iter().map(sorted).collect(),
        train: Vec::new(),
        valid: Vec::new(),
        test: Vec::new(),
    };
    synthetic::fill(&mut set, &mut Rng::with_seed(seed));
    Ok(set)
}
