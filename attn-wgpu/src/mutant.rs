//! Mutation testing (feature `bench`): another text for one kernel file, without a rebuild.
//!
//! `ATTN_MUTANT=some/folder/attention_forward.wgsl` makes the loader take that file's text instead of
//! the one of the kernel or snippet `attention_forward`, wherever it is loaded or imported. The
//! variable is read once in a process, since compiled kernels are cached by name. A path that cannot
//! be read fails every kernel, so that a wrong path is not taken for a mutant without effect.
//!
//! Without the feature neither the variable nor this module exists.

use std::path::Path;
use std::sync::OnceLock;

const VARIABLE: &str = "ATTN_MUTANT";

struct Mutant {
    name: String,
    text: String,
}

impl Mutant {
    fn read(path: &Path) -> Result<Mutant, String> {
        let failed =
            |what: &dyn std::fmt::Display| format!("{VARIABLE}={}: {what}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        let stem = path.file_stem().ok_or_else(|| failed(&"no file name"))?;
        Ok(Mutant { name: stem.to_string_lossy().into_owned(), text })
    }
}

/// The text to expand for the kernel or snippet `name`.
pub(crate) fn text<'a>(name: &str, text: &'a str) -> Result<&'a str, String> {
    static MUTANT: OnceLock<Option<Result<Mutant, String>>> = OnceLock::new();
    let read = || std::env::var_os(VARIABLE).map(|path| Mutant::read(Path::new(&path)));
    match MUTANT.get_or_init(read) {
        Some(Ok(mutant)) if mutant.name == name => Ok(&mutant.text),
        Some(Err(message)) => Err(message.clone()),
        _ => Ok(text),
    }
}
