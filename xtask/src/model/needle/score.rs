//! How much of an expected answer is in what a model said.

/// Share of the words of `expected` that are in `answer`, each as often as it occurs there; upper and lower case are
/// alike.
pub fn recall(expected: &str, answer: &str) -> f64 {
    let (expected, mut said) = (words(expected), words(answer));
    let total = expected.len();
    let found = expected.into_iter().filter(|word| {
        let at = said.iter().position(|other| other == word);
        at.map(|at| said.swap_remove(at)).is_some()
    });
    found.count() as f64 / total.max(1) as f64
}

/// Whether the words of `expected` follow each other in `answer`.
pub fn contains(expected: &str, answer: &str) -> bool {
    let (expected, said) = (words(expected), words(answer));
    expected.is_empty() || said.windows(expected.len()).any(|part| part == expected)
}

fn words(text: &str) -> Vec<String> {
    let parts = text.split(|sign: char| !sign.is_alphanumeric());
    parts.filter(|part| !part.is_empty()).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_count_as_often_as_they_occur() {
        assert_eq!(recall("smoked plum pie", "It is Smoked, PLUM-pie!"), 1.0);
        assert_eq!(recall("smoked plum pie", "a plum"), 1.0 / 3.0);
        assert_eq!(recall("very very old", "very old"), 2.0 / 3.0);
        assert_eq!((recall("plum pie", ""), recall("plum pie", "plumpie")), (0.0, 0.0));
    }

    #[test]
    fn containment_needs_the_order() {
        assert!(contains("smoked plum pie", "The dish is \"smoked plum pie\"."));
        assert!(!contains("smoked plum pie", "plum pie, smoked"));
        assert!(!contains("plum pie", "plum") && !contains("plum", "plums"));
    }
}
