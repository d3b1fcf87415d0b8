//! Differences between two texts, line by line.

/// Lines around a change that are shown.
const AROUND: usize = 2;

/// At most this many lines are shown.
const SHOWN: usize = 80;

#[derive(Clone, Copy)]
enum Edit {
    Same(usize),
    Gone(usize),
    New(usize),
}

/// Lines that are gone (`-`) and new (`+`), with a few around them.
pub fn diff(before: &str, now: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (before.lines().collect(), now.lines().collect());
    let edits = edits(&old, &new);
    let changed = |at: usize| !matches!(edits[at], Edit::Same(_));
    let near = |at: usize| {
        let end = (at + AROUND + 1).min(edits.len());
        (at.saturating_sub(AROUND)..end).any(changed)
    };
    let mut text = String::new();
    let (mut line, mut shown, mut hidden, mut gap) = (0, 0, 0, true);
    for (at, edit) in edits.iter().enumerate() {
        let (sign, content) = match *edit {
            Edit::Same(i) => (' ', old[i]),
            Edit::Gone(i) => ('-', old[i]),
            Edit::New(i) => ('+', new[i]),
        };
        line += usize::from(sign != '-');
        if !near(at) {
            gap = true;
        } else if shown == SHOWN {
            hidden += usize::from(sign != ' ');
        } else {
            if gap {
                text += &format!("line {}\n", line.max(1));
            }
            text += &format!("{sign} {content}\n");
            gap = false;
            shown += 1;
        }
    }
    if hidden > 0 {
        text += &format!(".. and {hidden} more changed lines\n");
    }
    text
}

/// The shortest way from one text to the other, by a table of longest common tails.
fn edits(old: &[&str], new: &[&str]) -> Vec<Edit> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (rows, columns) = (old.len() - head, new.len() - head);
    let mut common = vec![0u32; (rows + 1) * (columns + 1)];
    let at = |i: usize, j: usize| i * (columns + 1) + j;
    for i in (0..rows).rev() {
        for j in (0..columns).rev() {
            common[at(i, j)] = if old[head + i] == new[head + j] {
                common[at(i + 1, j + 1)] + 1
            } else {
                common[at(i + 1, j)].max(common[at(i, j + 1)])
            };
        }
    }
    let mut edits: Vec<_> = (0..head).map(Edit::Same).collect();
    let (mut i, mut j) = (0, 0);
    while i < rows || j < columns {
        if i < rows && j < columns && old[head + i] == new[head + j] {
            edits.push(Edit::Same(head + i));
            (i, j) = (i + 1, j + 1);
        } else if j == columns || (i < rows && common[at(i + 1, j)] >= common[at(i, j + 1)]) {
            edits.push(Edit::Gone(head + i));
            i += 1;
        } else {
            edits.push(Edit::New(head + j));
            j += 1;
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_with_their_surroundings() {
        let text = diff("a\nb\nc\nd\ne\nf\ng\n", "a\nb\nc\nd\nx\ny\nf\ng\n");
        assert_eq!(text, "line 3\n  c\n  d\n- e\n+ x\n+ y\n  f\n  g\n");
        assert_eq!(diff("a\n", "a\na\n"), "line 1\n  a\n+ a\n");
        assert_eq!(diff("", "a\n"), "line 1\n+ a\n");
        assert_eq!(diff("a\n", "a\n"), "");
    }

    #[test]
    fn distant_changes_are_apart() {
        let text = diff("a\nb\nc\nd\ne\nf\ng\nh\n", "b\nc\nd\ne\nf\ng\n");
        assert_eq!(text, "line 1\n- a\n  b\n  c\nline 5\n  f\n  g\n- h\n");
    }

    #[test]
    fn long_differences_are_cut() {
        let text = diff(&"x\n".repeat(100), &"y\n".repeat(100));
        assert_eq!(text.lines().count(), 1 + SHOWN + 1);
        assert!(text.ends_with(".. and 120 more changed lines\n"));
    }
}
