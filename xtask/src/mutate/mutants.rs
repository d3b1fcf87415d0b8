//! The mutants of the kernel files: each is one file with one line broken.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::line::lines;
use super::mutators::{Field, MUTATORS, fields};

/// Where the kernels are.
pub const FOLDER: &str = "attn-wgpu/kernels";

/// Kernels that benchmarks alone use: no test is expected to notice.
const PROBES: &str = "probe_";

/// One file with one line broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// Name of the file without `.wgsl`, which is the loader's.
    pub file: String,
    pub line: usize,
    pub mutator: &'static str,
    /// `file:line:mutator:number`: stays as long as the file does.
    pub id: String,
    /// The line before and after, without the spaces around it.
    pub before: String,
    pub after: String,
    /// From 1: how often the same change of the same line came up in the file so far.
    pub occurrence: usize,
    /// The whole file with the line broken.
    pub text: String,
}

/// Which mutants are wanted.
#[derive(Default)]
pub struct Choice<'a> {
    /// Pattern of the file's name, with `*`.
    pub file: Option<&'a str>,
    pub ids: &'a [String],
    /// At most so many a file.
    pub sample: Option<usize>,
    pub seed: u64,
}

/// The kernel files, by name.
pub fn files(root: &Path) -> Result<BTreeMap<String, String>> {
    let folder = root.join(FOLDER);
    let mut files = BTreeMap::new();
    for file in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = file?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "wgsl")
            && !name.starts_with(PROBES)
        {
            files.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(files)
}

/// Every mutant of every file, in the order of files, lines and mutators.
pub fn all(files: &BTreeMap<String, String>) -> Vec<Mutant> {
    let common = files.get("attention_fields").map_or("", String::as_str);
    files.iter().flat_map(|(name, text)| of_file(name, text, &params(text, common))).collect()
}

/// The fields of a file's `Params`. A snippet belongs to kernels that all have the common ones.
fn params(text: &str, common: &str) -> Vec<Field> {
    let own = text.split_once("struct Params {").and_then(|(_, rest)| rest.split_once("\n}"));
    let Some((own, _)) = own else { return fields(common) };
    let imported = if own.contains("#import \"attention_fields\"") { common } else { "" };
    fields(&format!("{imported}\n{own}"))
}

fn of_file(name: &str, text: &str, fields: &[Field]) -> Vec<Mutant> {
    let mut mutants: Vec<Mutant> = Vec::new();
    for line in lines(text) {
        let mut seen = HashSet::new();
        for mutator in MUTATORS {
            let changed = (mutator.apply)(&line, fields).into_iter();
            let fresh = changed.filter(|after| seen.insert(after.clone()));
            for (number, after) in fresh.enumerate() {
                let same = |m: &&Mutant| m.before == line.text.trim() && m.after == after.trim();
                let occurrence = 1 + mutants.iter().filter(same).count();
                mutants.push(Mutant {
                    file: name.into(),
                    line: line.number,
                    mutator: mutator.name,
                    id: format!(
                        "{name}:{}:{}:{number}",
                        line.number,
                        mutator.name.replace(' ', "-")
                    ),
                    before: line.text.trim().into(),
                    after: after.trim().into(),
                    occurrence,
                    text: with_line(text, line.number, &after),
                });
            }
        }
    }
    mutants
}

fn with_line(text: &str, number: usize, after: &str) -> String {
    let line = |(at, line)| if at + 1 == number { after } else { line };
    text.lines().enumerate().map(line).flat_map(|line| [line, "\n"]).collect()
}

/// The wanted ones, in their order.
pub fn chosen(mutants: Vec<Mutant>, choice: &Choice<'_>) -> Result<Vec<Mutant>> {
    if let Some(id) = choice.ids.iter().find(|id| !mutants.iter().any(|m| m.id == **id)) {
        bail!("no mutant is called {id}; --list shows all");
    }
    let wanted = |mutant: &Mutant| {
        choice.file.is_none_or(|pattern| matches(pattern, &mutant.file))
            && (choice.ids.is_empty() || choice.ids.contains(&mutant.id))
    };
    let mut left: Vec<_> = mutants.into_iter().filter(wanted).collect();
    if let Some(most) = choice.sample {
        let mut by_file: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
        for mutant in &left {
            let rank = (hash(choice.seed, &mutant.id), mutant.id.as_str());
            by_file.entry(&mutant.file).or_default().push(rank);
        }
        let mut keep = HashSet::new();
        for ranks in by_file.values_mut() {
            ranks.sort_unstable();
            keep.extend(ranks.iter().take(most).map(|(_, id)| id.to_string()));
        }
        left.retain(|mutant| keep.contains(&mutant.id));
    }
    Ok(left)
}

/// Whether a name fits a pattern, in which `*` stands for any text. `.wgsl` may be left out.
fn matches(pattern: &str, name: &str) -> bool {
    fn fits(pattern: &str, name: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == name,
            Some((head, rest)) => name.strip_prefix(head).is_some_and(|name| {
                (0..=name.len()).any(|at| name.is_char_boundary(at) && fits(rest, &name[at..]))
            }),
        }
    }
    fits(pattern.strip_suffix(".wgsl").unwrap_or(pattern), name)
}

/// FNV-1a, then a mix: the same on every machine.
fn hash(seed: u64, text: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed;
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(start, step);
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> BTreeMap<String, String> {
        let fields = "// common\n  queries: u32, keys: u32,\n";
        let own = "struct Params {\n#import \"attention_fields\"\n  tiles: u32,\n}\n\
                   fn f() {\n  let a = params.keys;\n  b = c + 1u; // d\n}\n";
        [("attention_fields", fields), ("kernel", own)].map(|(a, b)| (a.into(), b.into())).into()
    }

    #[test]
    fn one_line_is_broken() {
        let mutants = all(&files());
        let found: Vec<_> = mutants.iter().map(|m| (m.id.as_str(), m.after.as_str())).collect();
        assert_eq!(
            found,
            [
                ("kernel:6:field:0", "let a = params.tiles;"),
                ("kernel:7:off-by-one:0", "b = c;"),
                ("kernel:7:sum:0", "b = c - 1u;"),
                ("kernel:7:constant:0", "b = c + 2u;"),
                ("kernel:7:statement:0", ""),
            ]
        );
        assert_eq!(mutants[1].before, "b = c + 1u;");
        let twice = of_file("a", "  x = y < z;\nx = y < z;\n", &[]);
        let found: Vec<_> = twice.iter().map(|m| (m.mutator, m.occurrence)).collect();
        assert_eq!(found, [("edge", 1), ("statement", 1), ("edge", 2), ("statement", 2)]);
        let files = files();
        assert_eq!(mutants[1].text, files["kernel"].replace("b = c + 1u; // d", "b = c;"));
    }

    #[test]
    fn choices() {
        let pick = |choice: Choice<'_>| -> Vec<String> {
            chosen(all(&files()), &choice).unwrap().into_iter().map(|m| m.id).collect()
        };
        assert_eq!(pick(Choice::default()).len(), 5);
        assert_eq!(pick(Choice { file: Some("ker*"), ..Choice::default() }).len(), 5);
        assert_eq!(pick(Choice { file: Some("attention_*.wgsl"), ..Choice::default() }).len(), 0);
        let ids = ["kernel:7:sum:0".to_string()];
        assert_eq!(pick(Choice { ids: &ids, ..Choice::default() }), ids);
        let some = |seed| pick(Choice { sample: Some(2), seed, ..Choice::default() });
        assert_eq!(some(0).len(), 2);
        assert_eq!(some(0), some(0));
        assert!((1..9).any(|seed| some(seed) != some(0)));
        let unknown = ["x".to_string()];
        assert!(chosen(all(&files()), &Choice { ids: &unknown, ..Choice::default() }).is_err());
    }

    #[test]
    fn patterns() {
        assert!(matches("*", "a") && matches("a*c", "abc") && matches("abc.wgsl", "abc"));
        assert!(!matches("a", "abc") && !matches("*b", "abc") && matches("*b*", "abc"));
    }
}
