//! Tint's opinion, by way of the npm package `webgpu` and its back-end without a device.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Grouped;
use super::texts::Text;
use crate::cmd::Cmd;
use crate::workspace::Workspace;

/// The npm package, pinned: another version may know other errors.
const PACKAGE: &str = "webgpu";
const VERSION: &str = "0.6.2";

/// Must be refused. If Tint lets it pass, its silence about the others says nothing.
const WRONG: &str =
    "@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
  if i > 3u { workgroupBarrier(); }
}";

/// Texts a process: the package crashes after some thousands.
const BATCH: usize = 500;

/// Times that a batch is tried: now and then the package crashes at no text in particular, or waits for ever.
const TRIES: usize = 5;

/// A batch takes some seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Reads the texts and prints what Tint says.
const SCRIPT: &str = "xtask/check-tint/check.mjs";

#[derive(Serialize)]
struct Input<'a> {
    id: usize,
    wgsl: &'a str,
}

/// One line that the script prints.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Output {
    Said { id: usize, messages: Vec<Message> },
    Done { checked: usize },
}

#[derive(Debug, Deserialize)]
struct Message {
    r#type: String,
    line: usize,
    message: String,
}

/// Complaints about the texts; none, with a printed reason, where Tint cannot be had.
pub fn check(workspace: &Workspace, texts: &[Text]) -> Result<Vec<String>> {
    let folder = workspace.target.join("check-tint");
    let script = workspace.root.join(SCRIPT);
    let script = Cmd::new("node").arg(script.to_string_lossy()).arg(folder.to_string_lossy());
    if let Err(error) = install(&folder, &script) {
        println!("Tint: skipped: {error:#}");
        return Ok(Vec::new());
    }
    let start = Instant::now();
    // Both forms of the parameters are the same kernel; the uniform one is plain WGSL.
    let chosen: Vec<_> = texts.iter().filter(|text| !text.immediate).collect();
    let mut complaints = Vec::new();
    for batch in chosen.chunks(BATCH) {
        complaints.extend(check_batch(workspace, &folder, &script, batch)?);
    }
    println!("Tint: {} texts in {:.1} s", chosen.len(), start.elapsed().as_secs_f64());
    Ok(complaints)
}

/// What one process of the script says.
fn check_batch(
    workspace: &Workspace,
    folder: &Path,
    script: &Cmd,
    texts: &[&Text],
) -> Result<Vec<String>> {
    let input = folder.join("input.jsonl");
    let mut file = BufWriter::new(fs::File::create(&input)?);
    let adapted = texts.iter().map(|text| adapt(&text.text, text.device.subgroups));
    for (id, wgsl) in std::iter::once(WRONG.to_string()).chain(adapted).enumerate() {
        serde_json::to_writer(&mut file, &Input { id, wgsl: &wgsl })?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    drop(file);
    let script = script.clone().arg(input.to_string_lossy());
    let mut said = script.read_within(&workspace.root, LIMIT);
    for _ in 1..TRIES {
        let Err(error) = &said else { break };
        println!("Tint, once more: {error:#}");
        said = script.read_within(&workspace.root, LIMIT);
    }
    fs::remove_file(&input)?;
    collect(&said?, texts)
}

/// WGSL as the standard has it. In front of the first line, so that lines keep their numbers.
fn adapt(text: &str, subgroups: bool) -> String {
    // naga refuses this line, and takes the operations without.
    let enable = if subgroups { "enable subgroups; " } else { "" };
    format!("{enable}{text}")
}

/// What Tint said of the texts, which follow the wrong one.
fn collect(said: &str, texts: &[&Text]) -> Result<Vec<String>> {
    let mut grouped = Grouped::default();
    let (mut checked, mut refused) = (0, false);
    for line in said.lines() {
        let output: Output = serde_json::from_str(line)
            .with_context(|| format!("the script printed {line:?}, which is not understood"))?;
        match output {
            Output::Done { checked: count } => checked = count,
            Output::Said { id: 0, .. } => refused = true,
            Output::Said { id, messages } => {
                let text = texts.get(id - 1).context("Tint spoke of a text it was not given")?;
                grouped.add(text, format!("Tint:\n{}", show(&text.text, &messages)));
            }
        }
    }
    ensure!(refused, "Tint did not refuse a barrier in control flow that is not uniform");
    ensure!(checked == texts.len() + 1, "Tint looked at {checked} of {} texts", texts.len() + 1);
    Ok(grouped.show())
}

fn show(text: &str, messages: &[Message]) -> String {
    let line = |message: &Message| {
        let code = text.lines().nth(message.line.saturating_sub(1)).unwrap_or_default().trim();
        format!("  {}: {}\n    at: {code}\n", message.r#type, message.message)
    };
    messages.iter().map(line).collect()
}

/// Makes sure that the package is in the folder, and that it works.
fn install(folder: &Path, script: &Cmd) -> Result<()> {
    let here = Path::new(".");
    Cmd::new("node --version").read(here).context("node is missing")?;
    if installed(folder).as_deref() != Some(VERSION) {
        fs::create_dir_all(folder)?;
        let npm = npm(folder);
        println!("$ {npm}");
        npm.read(here).context("the npm package cannot be had")?;
    }
    // Without input it only opens its device. The package holds machine code for some systems only.
    script.read_within(here, LIMIT).context("the npm package does not work here")?;
    Ok(())
}

fn npm(folder: &Path) -> Cmd {
    // On Windows npm is a script.
    let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
    Cmd::new(npm)
        .arg("install")
        .arg("--prefix")
        .arg(folder.to_string_lossy())
        .args(["--no-save", "--no-audit", "--no-fund", "--ignore-scripts"].map(String::from))
        .arg(format!("{PACKAGE}@{VERSION}"))
}

/// The version of the package in the folder.
fn installed(folder: &Path) -> Option<String> {
    let manifest: PathBuf = folder.join("node_modules").join(PACKAGE).join("package.json");
    let manifest: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(manifest).ok()?).ok()?;
    Some(manifest["version"].as_str()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subgroups_are_enabled_without_moving_lines() {
        assert_eq!(adapt("a\nb", false), "a\nb");
        assert_eq!(adapt("a\nb", true), "enable subgroups; a\nb");
    }

    #[test]
    fn what_tint_says_is_told_once_a_kernel() {
        let texts = ["x", "y"].map(|variant| Text::sample("k", variant, "one\n  two();\n"));
        let said = r#"{"id":0,"messages":[{"type":"error","line":2,"message":"no barrier"}]}
{"id":1,"messages":[{"type":"error","line":2,"message":"no"}]}
{"id":2,"messages":[{"type":"error","line":2,"message":"no"}]}
{"checked":3}"#;
        assert_eq!(
            collect(said, &[&texts[0], &texts[1]]).unwrap(),
            ["k (some device, x) (and 1 more):\nTint:\n  error: no\n    at: two();\n"]
        );
        assert!(collect("?", &[]).is_err());
        let missing = collect(said, &[&texts[0], &texts[1], &texts[0]]).unwrap_err();
        assert_eq!(missing.to_string(), "Tint looked at 3 of 4 texts");
        assert!(collect(r#"{"checked":1}"#, &[]).unwrap_err().to_string().contains("barrier"));
    }

    #[test]
    fn the_package_is_pinned_and_stays_below_its_folder() {
        assert_eq!(
            npm(Path::new("target/x")).to_string(),
            "npm install --prefix target/x --no-save --no-audit --no-fund --ignore-scripts webgpu@0.6.2"
        );
    }
}
