//! Rules for every text file.

use super::Finding;

/// Longer files are worth splitting.
const LONG: usize = 900;

/// Put together here so that this file passes its own rule.
const PLACES: [&str; 2] = [concat!("/", "work"), concat!("/", "tmp")];

/// Data sets hold other people's text.
fn is_data(path: &str) -> bool {
    path.split('/').any(|part| part == "data")
}

/// No em dash: sentences are split or take a comma.
pub fn dash(path: &str, text: &str) -> Vec<Finding> {
    if is_data(path) {
        return Vec::new();
    }
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| line.contains('\u{2014}'))
        .map(|(i, _)| Finding::new(path, i + 1, "em dash (U+2014)"))
        .collect()
}

/// No path that exists on one machine only.
pub fn absolute_paths(path: &str, text: &str) -> Vec<Finding> {
    if is_data(path) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        for place in PLACES {
            let mut starts = line.match_indices(place);
            if starts.any(|(at, _)| stands_alone(line, at, place.len())) {
                let message = format!("absolute path {place}");
                found.push(Finding::new(path, i + 1, message));
            }
        }
    }
    found
}

/// Whether a path starts at `at` and its first part ends `len` bytes later: not so in `target` followed by
/// the place, in a URL, or where the word goes on.
fn stands_alone(line: &str, at: usize, len: usize) -> bool {
    let before = line[..at].chars().next_back();
    let after = line[at + len..].chars().next();
    let starts = before.is_none_or(|c| c.is_whitespace() || "\"'`([{<=:,;>|".contains(c));
    starts && after.is_none_or(|c| !(c.is_alphanumeric() || "_-.".contains(c)))
}

/// Notes files that have grown long.
pub fn length(path: &str, text: &str) -> Vec<Finding> {
    let lines = text.lines().count();
    let code = [".rs", ".wgsl", ".py", ".js", ".md"];
    if lines <= LONG || !code.iter().any(|end| path.ends_with(end)) || is_data(path) {
        return Vec::new();
    }
    let message = format!("{lines} lines; consider splitting above {LONG}");
    vec![Finding::notice(path, 1, message)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn em_dashes() {
        let found = dash("README.md", "fine - so\nnot \u{2014} so\n");
        assert_eq!(found, [Finding::new("README.md", 2, "em dash (U+2014)")]);
        assert!(dash("README.md", "a - b, c \u{2013} d").is_empty());
        assert!(dash("x/tests/data/book.txt", "a \u{2014} b").is_empty());
    }

    #[test]
    fn paths_of_one_machine() {
        let [work, tmp] = PLACES;
        for bad in [
            format!("see {work}/main"),
            format!("\"{tmp}\""),
            format!("ROOT={tmp}/x"),
            format!("{work}\n"),
        ] {
            assert_eq!(absolute_paths("a.rs", &bad).len(), 1, "{bad}");
        }
        for good in [
            format!("target{tmp}/x"),
            format!("https://example.org{work}/"),
            format!("{work}groups"),
            format!("{work}-split"),
            format!("net{work}"),
        ] {
            assert!(absolute_paths("a.rs", &good).is_empty(), "{good}");
        }
    }

    #[test]
    fn long_files_are_noticed() {
        let found = length("a.rs", &"x\n".repeat(LONG + 1));
        assert!(found.len() == 1 && found[0].notice);
        assert!(length("a.rs", &"x\n".repeat(LONG)).is_empty());
        assert!(length("Cargo.lock", &"x\n".repeat(LONG + 1)).is_empty());
    }
}
