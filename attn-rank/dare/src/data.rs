//! Data for experiments (feature `data`): users' histories with their splits, and the area under the curve.
//!
//! A [`Sample`] is a candidate and what its user did before it. Samples of validation lie before those of
//! testing in every user's time, so that nothing that is chosen by validation has seen a test event. Negatives
//! are drawn by popularity and are never an item of the user's history. Equal seeds give equal data.

mod insteval;
mod movielens;
mod synthetic;

use attn_core::{Error, Result};
use fastrand::Rng;
use ndarray::{Array1, Array2};

pub use self::insteval::insteval;
pub use self::movielens::movielens;
pub use self::synthetic::{Synthetic, synthetic};

use crate::reference::Batch;

/// Something that a user did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event {
    /// Above 0, which is padding.
    pub item: u32,
    /// Above 0.
    pub category: u32,
}

/// A candidate at a moment of a user's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sample {
    /// Which user.
    pub user: usize,
    /// Events of the user before the candidate.
    pub before: usize,
    /// What is shown.
    pub candidate: Event,
    /// Whether it was chosen.
    pub clicked: bool,
}

/// Users' events, and samples of them in three splits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dataset {
    /// Rows of a table of items, with that of padding.
    pub items: usize,
    /// Rows of a table of categories, with that of padding.
    pub categories: usize,
    /// Behaviours that a history is cut or filled up to, N.
    pub length: usize,
    /// Events of each user, the oldest first.
    pub users: Vec<Vec<Event>>,
    /// To learn from.
    pub train: Vec<Sample>,
    /// To choose by: before the test events of the same user.
    pub valid: Vec<Sample>,
    /// To report.
    pub test: Vec<Sample>,
}

impl Dataset {
    /// Rows of the tables: items, categories, and time slots.
    pub fn rows(&self) -> [usize; 3] {
        [self.items, self.categories, self.length + 1]
    }

    /// Samples as inputs of the model, and their classes: 0 for a click, 1 for none. Histories are filled up in
    /// front.
    pub fn batch(&self, samples: &[Sample]) -> (Batch, Array1<u32>) {
        let shape = (samples.len(), self.length);
        let (mut items, mut categories) = (Array2::zeros(shape), Array2::zeros(shape));
        for (b, sample) in samples.iter().enumerate() {
            let events = self.users.get(sample.user).map_or(&[][..], Vec::as_slice);
            let before = events.get(..sample.before).unwrap_or(events);
            let newest = before.iter().rev().take(self.length);
            for (slot, event) in newest.enumerate() {
                let place = self.length - 1 - slot;
                items[[b, place]] = event.item;
                categories[[b, place]] = event.category;
            }
        }
        let item = samples.iter().map(|sample| sample.candidate.item).collect();
        let category = samples.iter().map(|sample| sample.candidate.category).collect();
        let label = samples.iter().map(|sample| u32::from(!sample.clicked)).collect();
        (Batch::new(item, category, items, categories), label)
    }

    /// The samples of training in another order.
    pub fn shuffled(&self, rng: &mut Rng) -> Vec<Sample> {
        let mut samples = self.train.clone();
        rng.shuffle(&mut samples);
        samples
    }

    /// Adds the event at `place` of a user, and so many events that were not.
    fn add(&mut self, split: Split, (user, place): (usize, usize), others: &mut Negatives<'_>) {
        let Some(&candidate) = self.users.get(user).and_then(|events| events.get(place)) else {
            return;
        };
        let samples = match split {
            Split::Train => &mut self.train,
            Split::Valid => &mut self.valid,
            Split::Test => &mut self.test,
        };
        samples.push(Sample { user, before: place, candidate, clicked: true });
        let own = &self.users[user];
        for candidate in others.draw(own) {
            samples.push(Sample { user, before: place, candidate, clicked: false });
        }
    }
}

/// Where a sample goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Train,
    Valid,
    Test,
}

/// Events that might have been, drawn in proportion to how often their item occurs.
struct Negatives<'a> {
    /// All events of all users.
    pool: Vec<Event>,
    count: usize,
    rng: &'a mut Rng,
}

/// Draws before a user who knows almost everything gets fewer negatives.
const TRIES: usize = 200;

impl<'a> Negatives<'a> {
    fn new(users: &[Vec<Event>], count: usize, rng: &'a mut Rng) -> Self {
        Negatives { pool: users.concat(), count, rng }
    }

    /// None of them an item of the user.
    fn draw(&mut self, own: &[Event]) -> Vec<Event> {
        let mut found = Vec::new();
        for _ in 0..TRIES {
            if found.len() == self.count || self.pool.is_empty() {
                break;
            }
            let event = self.pool[self.rng.usize(..self.pool.len())];
            if own.iter().all(|known| known.item != event.item) {
                found.push(event);
            }
        }
        found
    }
}

/// The area under the curve of scores: how probable it is that a click's score is above that of none, equal
/// ones counted half. `None` without clicks or without others.
///
/// # Errors
/// [`Error`] where the lengths differ or a score is no number.
pub fn auc(scores: &[f32], clicked: &[bool]) -> Result<Option<f64>> {
    if scores.len() != clicked.len() {
        let expected = format!("[{}]", scores.len());
        return Err(Error::shape("clicked", expected, &[clicked.len()]));
    }
    if let Some(score) = scores.iter().find(|score| score.is_nan()) {
        return Err(Error::data("scores", "numbers", score));
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // -0 equals 0.
    let key = |i: usize| scores[i] + 0.0;
    order.sort_by(|&i, &j| key(i).total_cmp(&key(j)));
    let clicks = clicked.iter().filter(|clicked| **clicked).count();
    let others = clicked.len() - clicks;
    let (mut wins, mut below) = (0.0, 0);
    for equal in order.chunk_by(|&i, &j| key(i) == key(j)) {
        let own = equal.iter().filter(|&&i| clicked[i]).count();
        let rest = equal.len() - own;
        wins += own as f64 * (below as f64 + 0.5 * rest as f64);
        below += rest;
    }
    let pairs = clicks as f64 * others as f64;
    Ok((pairs > 0.0).then(|| wins / pairs))
}

/// The text of a file, for readers of data.
fn text(path: &std::path::Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::file(path, error))?;
    // Titles may be in an older encoding.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_under_curves() {
        let of = |scores: &[f32], clicked: &[bool]| auc(scores, clicked).unwrap();
        assert_eq!(of(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]), Some(0.75));
        assert_eq!(of(&[0.5, 0.5, 0.5], &[true, false, false]), Some(0.5));
        assert_eq!(of(&[-0.0, 0.0], &[true, false]), Some(0.5));
        assert_eq!(of(&[1.0, 0.0], &[true, false]), Some(1.0));
        assert_eq!(of(&[1.0], &[true]), None);
        assert_eq!(of(&[], &[]), None);
        assert!(auc(&[1.0], &[]).is_err());
        assert!(auc(&[f32::NAN], &[true]).unwrap_err().to_string().contains("`scores`"));
    }

    /// The same seed, the same data; validation before test; histories filled up in front; negatives unknown.
    #[test]
    fn data_that_is_made_up() {
        let config = Synthetic { users: 40, ..Synthetic::new(3) };
        let set = synthetic(&config).unwrap();
        assert_eq!(set, synthetic(&config).unwrap());
        assert_ne!(set, synthetic(&Synthetic { seed: 4, ..config }).unwrap());
        for user in 0..40 {
            let last = |samples: &[Sample]| {
                samples.iter().filter(|s| s.user == user).map(|s| s.before).max().unwrap()
            };
            let first = set.test.iter().filter(|s| s.user == user).map(|s| s.before).min().unwrap();
            assert!(last(&set.train) < last(&set.valid) && last(&set.valid) < first);
        }
        let samples = [&set.train[..], &set.valid, &set.test].concat();
        for sample in &samples {
            let own = &set.users[sample.user];
            let known = own.iter().any(|event| event.item == sample.candidate.item);
            assert_eq!(known, sample.clicked);
            assert!((sample.candidate.item as usize) < set.items);
            assert!((sample.candidate.category as usize) < set.categories);
        }
        let (batch, label) = set.batch(&samples);
        batch.check(set.rows()).unwrap();
        let clicks = label.iter().filter(|label| **label == 0).count();
        assert!(clicks * 3 == label.len(), "two others for each");
        let short = Sample { before: 2, ..samples[0] };
        let (batch, _) = set.batch(&[short]);
        let row = batch.history_item.row(0).to_vec();
        assert!(row[..set.length - 2].iter().all(|&item| item == 0));
        assert_eq!(row[set.length - 1], set.users[short.user][1].item);
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("attn-dare-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A click is a good rating; what was liked before is the history.
    #[test]
    fn ratings_of_lecturers() {
        let path = folder("insteval").join("ratings.tsv");
        let head = "student\tlecturer\tstudage\tlectage\tservice\tdept\trating\tsplit\n";
        let rows = "s\ta\t2\t2\t0\t7\t5\ttrain\ns\tb\t2\t2\t0\t8\t2\ttrain\n\
                    s\tc\t2\t1\t0\t7\t4\tvalid\ns\ta\t2\t1\t0\t7\t1\ttest\n";
        std::fs::write(&path, format!("{head}{rows}")).unwrap();
        let set = insteval(&path, 3).unwrap();
        assert_eq!(set.rows(), [4, 3, 4]);
        assert_eq!((set.train.len(), set.valid.len(), set.test.len()), (2, 1, 1));
        let (batch, label) = set.batch(&[set.train[1], set.test[0]]);
        assert_eq!(label.to_vec(), [1, 1]);
        assert_eq!(batch.history_item, ndarray::arr2(&[[0, 0, 1], [0, 1, 3]]));
        assert_eq!(batch.history_category, ndarray::arr2(&[[0, 0, 1], [0, 1, 1]]));
        assert!(insteval(&path, 0).unwrap_err().to_string().contains("`length` is 0"));
        for bad in [
            "other\n".to_owned(),
            format!("{head}s\ta\n"),
            format!("{head}{}", rows.replace("valid", "x")),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(insteval(&path, 3), Err(Error::File { .. })));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(insteval(&path, 3), Err(Error::File { .. })));
    }

    /// Users with enough ratings, in the order of time; the first genre is the category.
    #[test]
    fn ratings_of_films() {
        let folder = folder("movielens");
        let films: String = (0..200)
            .map(|film| {
                format!(
                    "{film}\tTitle {film}\t1995\t{} Drama\n",
                    if film % 2 > 0 { "War" } else { "Crime" }
                )
            })
            .collect();
        // The first user rates backwards in time; the second has too few.
        let ratings: String = (0..70)
            .map(|i| format!("u\t{i}\t3\t{}\n", 1000 - i))
            .chain((70..100).map(|i| format!("v\t{i}\t3\t{i}\n")))
            .collect();
        std::fs::write(
            folder.join("ml-100k.item"),
            format!("item_id\tmovie_title\trelease_year\tclass\n{films}"),
        )
        .unwrap();
        let inter = folder.join("ml-100k.inter");
        std::fs::write(&inter, format!("user_id\titem_id\trating\ttimestamp\n{ratings}")).unwrap();
        let set = movielens(&folder, 50, 1).unwrap();
        assert_eq!((set.users.len(), set.items, set.categories), (1, 101, 3));
        assert_eq!(set.users[0][0], Event { item: 70, category: 2 });
        let clicks = |samples: &[Sample]| samples.iter().filter(|sample| sample.clicked).count();
        assert_eq!([&set.train, &set.valid, &set.test].map(|split| clicks(split)), [20, 1, 5]);
        assert!(movielens(&folder, 0, 1).is_err());
        std::fs::write(&inter, "user_id\n\tx").unwrap();
        assert!(matches!(movielens(&folder, 50, 1), Err(Error::File { .. })));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
