//! InstEval: how students rate lecturers.

use std::collections::HashMap;
use std::path::Path;

use attn_core::{Error, Result};

use super::{Dataset, Event, Sample, text};

/// From this rating on a lecture counts as liked.
const LIKED: u32 = 4;
const COLUMNS: [&str; 8] =
    ["student", "lecturer", "studage", "lectage", "service", "dept", "rating", "split"];

/// Reads a table with tabs between the columns student, lecturer, studage, lectage, service, dept, rating and
/// split, the oldest lecture of each student first. A click is a rating of 4 or more; a history holds the
/// lectures before that the student liked, so that items are lecturers, categories departments, and there is
/// nothing to draw. Students without anything liked before a lecture have an empty history.
///
/// # Errors
/// [`Error::File`] where the file cannot be read or is another one; [`Error::Config`] for a length of 0.
pub fn insteval(path: impl AsRef<Path>, length: usize) -> Result<Dataset> {
    if length == 0 {
        return Err(Error::config("length", "at least 1", length));
    }
    let path = path.as_ref();
    let text = text(path)?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    if header != COLUMNS {
        return Err(Error::file(path, format!("columns {header:?}, expected {COLUMNS:?}")));
    }
    let mut lecturers: HashMap<&str, u32> = HashMap::new();
    let mut departments: HashMap<&str, u32> = HashMap::new();
    let mut students: HashMap<&str, usize> = HashMap::new();
    let mut set = Dataset {
        items: 0,
        categories: 0,
        length,
        users: Vec::new(),
        train: Vec::new(),
        valid: Vec::new(),
        test: Vec::new(),
    };
    for (row, line) in lines.enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        let bad = || Error::file(path, format!("line {}: {line}", row + 2));
        let &[student, lecturer, _, _, _, department, rating, split] = &fields[..] else {
            return Err(bad());
        };
        let rating: u32 = rating.parse().map_err(|_| bad())?;
        let number = |known: &HashMap<&str, u32>| known.len() as u32 + 1;
        let (item, category) = (number(&lecturers), number(&departments));
        let candidate = Event {
            item: *lecturers.entry(lecturer).or_insert(item),
            category: *departments.entry(department).or_insert(category),
        };
        let next = students.len();
        let user = *students.entry(student).or_insert(next);
        if user == set.users.len() {
            set.users.push(Vec::new());
        }
        let (before, clicked) = (set.users[user].len(), rating >= LIKED);
        let sample = Sample { user, before, candidate, clicked };
        match split {
            "train" => set.train.push(sample),
            "valid" => set.valid.push(sample),
            "test" => set.test.push(sample),
            _ => return Err(bad()),
        }
        if clicked {
            set.users[user].push(candidate);
        }
    }
    (set.items, set.categories) = (lecturers.len() + 1, departments.len() + 1);
    Ok(set)
}
