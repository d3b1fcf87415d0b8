//! Users that are made up.

use attn_core::{Error, Result};
use fastrand::Rng;

use super::{Dataset, Event, Negatives, Split};

/// What users are made up of. A user has a few categories of interest, and in each a taste, a point on a
/// circle on which the category's items lie; interests come and go, so that what a user does next follows from
/// what is similar in the history, new and old.
#[derive(Debug, Clone, PartialEq)]
pub struct Synthetic {
    /// Of everything.
    pub seed: u64,
    /// Default: 400.
    pub users: usize,
    /// Events of a user. Default: 90.
    pub events: usize,
    /// Default: 24.
    pub categories: usize,
    /// Items of a category. Default: 40.
    pub items: usize,
    /// Categories of interest of a user. Default: 4.
    pub interests: usize,
    /// How far an item may lie from the taste, of the circle. Default: 0.08.
    pub spread: f64,
    /// Share of events that follow no interest. Default: 0.1.
    pub noise: f64,
    /// Behaviours of a history. Default: 50.
    pub length: usize,
}

impl Synthetic {
    /// The defaults with a seed.
    pub fn new(seed: u64) -> Self {
        Synthetic {
            seed,
            users: 400,
            events: 90,
            categories: 24,
            items: 40,
            interests: 4,
            spread: 0.08,
            noise: 0.1,
            length: 50,
        }
    }
}

/// Events at the end of each user that are for testing, and the one before them for validation.
const TEST: usize = 5;
/// Training events of a user, every other one before those, and the events that must lie before each.
const TRAIN: usize = 20;
const BEFORE: usize = 10;
const NEGATIVES: usize = 2;

/// Makes up users, and samples of them: the last 5 events are for testing, the one before for validation,
/// every other one of those before for training, with 2 negatives each.
///
/// # Errors
/// [`Error::Config`] for numbers of which no data can be made.
pub fn synthetic(config: &Synthetic) -> Result<Dataset> {
    let positive = [
        ("categories", config.categories),
        ("items", config.items),
        ("interests", config.interests),
        ("length", config.length),
    ];
    for (arg, number) in positive {
        if number == 0 {
            return Err(Error::config(arg, "at least 1", number));
        }
    }
    if config.categories.checked_mul(config.items).is_none_or(|all| all >= u32::MAX as usize) {
        return Err(Error::config("items", "below 2^32 in all", config.items));
    }
    if config.events <= TEST + 1 + BEFORE {
        let expected = format!("more than {}", TEST + 1 + BEFORE);
        return Err(Error::config("events", expected, config.events));
    }
    let mut rng = Rng::with_seed(config.seed);
    let users: Vec<Vec<Event>> = (0..config.users).map(|_| user(config, &mut rng)).collect();
    let mut set = Dataset {
        items: config.categories * config.items + 1,
        categories: config.categories + 1,
        length: config.length,
        users,
        train: Vec::new(),
        valid: Vec::new(),
        test: Vec::new(),
    };
    fill(&mut set, &mut rng);
    Ok(set)
}

/// Samples of every user with enough events.
pub(super) fn fill(set: &mut Dataset, rng: &mut Rng) {
    let users = set.users.clone();
    let mut others = Negatives::new(&users, NEGATIVES, rng);
    for (user, events) in users.iter().enumerate() {
        let count = events.len();
        if count < TEST + 1 + BEFORE {
            continue;
        }
        for place in count - TEST..count {
            set.add(Split::Test, (user, place), &mut others);
        }
        let valid = count - TEST - 1;
        set.add(Split::Valid, (user, valid), &mut others);
        let places = (BEFORE..valid).rev().step_by(2).take(TRAIN);
        for place in places {
            set.add(Split::Train, (user, place), &mut others);
        }
    }
}

/// One user's events.
fn user(config: &Synthetic, rng: &mut Rng) -> Vec<Event> {
    let interests: Vec<(usize, f64)> =
        (0..config.interests).map(|_| (rng.usize(..config.categories), rng.f64())).collect();
    let mut current = rng.usize(..interests.len());
    let event = |_| {
        // An interest lasts for some events.
        if rng.f64() < 0.2 {
            current = rng.usize(..interests.len());
        }
        let (category, taste) = match rng.f64() < config.noise {
            true => (rng.usize(..config.categories), rng.f64()),
            false => interests[current],
        };
        let at = (taste + config.spread * (2.0 * rng.f64() - 1.0)).rem_euclid(1.0);
        let place = ((at * config.items as f64) as usize).min(config.items - 1);
        let item = (category * config.items + place + 1) as u32;
        Event { item, category: category as u32 + 1 }
    };
    (0..config.events).map(event).collect()
}
