//! Facts that no text states by chance, made from a seed.

use anyhow::{Result, bail};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// A fact to hide in a text, and the question that asks for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Needle {
    pub statement: String,
    pub question: String,
    /// Two or three words of the statement.
    pub answer: String,
}

/// Facts of one kind: about whom or what, and how each is said and asked for.
struct Kind {
    subjects: &'static [&'static str],
    statement: fn(&str, &str) -> String,
    question: fn(&str) -> String,
    /// An answer has a word of each list.
    answers: &'static [&'static [&'static str]],
}

#[rustfmt::skip]
const KINDS: &[Kind] = &[
    Kind {
        subjects: &[
            "Agnes Tolland", "Bruno Weck", "Clara Odum", "Dorian Pell", "Edith Marrow", "Felix Quist",
            "Greta Holm", "Hugo Brandt", "Iris Falk", "Jonas Reed", "Lena Varga", "Oskar Lind",
        ],
        statement: |who, what| format!("The favourite dish of {who} is {what}."),
        question: |who| format!("What is the favourite dish of {who}?"),
        answers: &[
            &["smoked", "pickled", "roasted", "sour", "cold", "sweet", "peppered", "buttered"],
            &["walnut", "herring", "pumpkin", "cabbage", "plum", "lentil", "radish", "chestnut"],
            &["soup", "pie", "salad", "stew", "dumplings", "pudding"],
        ],
    },
    Kind {
        subjects: &[
            "Arvenholt", "Bellmoor", "Castrick", "Dunmarsh", "Elverton", "Fenwick Bay",
            "Grimsund", "Hollenbeck", "Ilderby", "Jarrowfield", "Kestrel Point", "Lorne Valley",
        ],
        statement: |place, what| format!("The oldest building in {place} is the {what}."),
        question: |place| format!("What is the oldest building in {place}?"),
        answers: &[
            &["crooked", "yellow", "silent", "copper", "marble", "hidden", "painted", "wooden"],
            &["lighthouse", "windmill", "granary", "chapel", "theatre", "observatory", "bakery", "station"],
        ],
    },
    Kind {
        subjects: &[
            "Amir Castell", "Berta Nyland", "Cosmo Trent", "Dagmar Iversen", "Emil Harrow", "Flora Benning",
        ],
        statement: |who, what| format!("The secret hobby of {who} is {what}."),
        question: |who| format!("What is the secret hobby of {who}?"),
        answers: &[
            &["collecting", "repairing", "painting", "polishing", "drawing", "selling"],
            &["antique", "paper", "broken", "wooden", "silver", "tiny"],
            &["clocks", "kites", "spoons", "violins", "umbrellas", "compasses"],
        ],
    },
    Kind {
        subjects: &["Aldery", "Brackwater", "Corvale", "Dornhaven", "Eastmere", "Fallowgate"],
        statement: |place, what| format!("The village of {place} is known for its {what}."),
        question: |place| format!("What is the village of {place} known for?"),
        answers: &[
            &["floating", "striped", "frozen", "glowing", "crooked", "scented", "musical"],
            &["gardens", "bridges", "lanterns", "orchards", "fountains", "carpets", "bells"],
        ],
    },
];

/// Facts at most: no two of a text are about the same subject.
pub fn most() -> usize {
    KINDS.iter().map(|kind| kind.subjects.len()).sum()
}

/// `count` facts about different subjects, the same for the same seed.
pub fn needles(count: usize, seed: u64) -> Result<Vec<Needle>> {
    if count == 0 || count > most() {
        bail!("--needles {count} is not one of 1 to {}", most());
    }
    let mut random = Rng::with_seed(seed);
    let mut subjects: Vec<(&Kind, &str)> =
        KINDS.iter().flat_map(|kind| kind.subjects.iter().map(move |who| (kind, *who))).collect();
    random.shuffle(&mut subjects);
    let mut needle = |(kind, subject): (&Kind, &str)| {
        let words = kind.answers.iter().map(|list| list[random.usize(..list.len())]);
        let answer = words.collect::<Vec<_>>().join(" ");
        let (statement, question) = ((kind.statement)(subject, &answer), (kind.question)(subject));
        Needle { statement, question, answer }
    };
    Ok(subjects.into_iter().take(count).map(&mut needle).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_facts() {
        assert_eq!(needles(5, 7).unwrap(), needles(5, 7).unwrap());
        assert_ne!(needles(5, 7).unwrap(), needles(5, 8).unwrap());
    }

    #[test]
    fn all_are_about_different_subjects() {
        let all = needles(most(), 3).unwrap();
        let questions: std::collections::BTreeSet<_> = all.iter().map(|n| &n.question).collect();
        assert_eq!(questions.len(), most());
        for needle in &all {
            let words = needle.answer.split(' ').count();
            assert!(needle.statement.contains(&needle.answer) && (2..=3).contains(&words));
            assert!(needle.statement.ends_with('.') && needle.question.ends_with('?'));
            assert!(!needle.question.contains(&needle.answer));
        }
    }

    #[test]
    fn there_are_not_more() {
        assert!(needles(most() + 1, 0).unwrap_err().to_string().contains("not one of 1 to 36"));
        assert!(needles(0, 0).is_err());
    }
}
