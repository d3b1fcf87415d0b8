//! `cargo xtask check`: every kernel, in every variant that devices get, through two shader compilers.
//!
//! No device is needed. naga, the compiler inside wgpu, must accept each text and translate it for Vulkan, Metal
//! and Direct3D 12: for the last two this is the only check on a machine that has neither. Tint, the compiler of
//! Chromium, is a second opinion: it refuses barriers in control flow that is not uniform, which naga accepts.

mod compile;
mod diff;
mod limits;
mod snapshots;
mod texts;
mod tint;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::texts::Text;
use crate::workspace::Workspace;

/// Check every kernel in the variants that devices get with naga and Tint, and compare snapshots.
///
/// naga parses and validates each expanded text and translates it to SPIR-V, MSL and HLSL. Workgroup memory,
/// storage buffers and workgroup sizes are compared with what the device that gets the variant has.
///
/// Tint comes from the npm package `webgpu`, which is put below the target folder. Without node, npm or the
/// package it is left out, and the reason is printed.
///
/// One expanded text a kernel is kept in xtask/snapshots, so that a change of the loader or of a snippet shows in
/// a review as what it does to the kernels.
#[derive(clap::Args)]
pub struct Args {
    /// Rewrite the snapshots instead of comparing them
    #[arg(long)]
    bless: bool,
    /// Look only at kernels whose name contains this
    #[arg(long, value_name = "NAME")]
    kernel: Option<String>,
    /// Leave out the second opinion
    #[arg(long)]
    no_tint: bool,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    run(&Workspace::load()?, args)
}

/// The stage of `cargo xtask test --all`.
pub fn check(workspace: &Workspace) -> Result<()> {
    run(workspace, &Args { bless: false, kernel: None, no_tint: false })
}

fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let wanted = |kernel: &str| args.kernel.as_deref().is_none_or(|part| kernel.contains(part));
    let mut texts = texts::all()?;
    let mut complaints = missing(workspace, &texts)?;
    texts.retain(|text| wanted(text.kernel));
    if texts.is_empty() {
        bail!("no kernel is called so");
    }
    println!("{}", texts::summary(&texts));

    let start = Instant::now();
    let found = by_naga(&texts);
    println!("naga: {} texts in {:.1} s", texts.len(), start.elapsed().as_secs_f64());
    for notice in &found.notices {
        println!("notice: {notice}");
    }
    complaints.extend(found.complaints);
    if args.no_tint {
        println!("Tint: left out, as asked");
    } else {
        complaints.extend(tint::check(workspace, &texts)?);
    }
    complaints.extend(snapshots::check(&workspace.root, &wanted, args.bless)?);

    for complaint in &complaints {
        println!("\n{complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} complaints", complaints.len());
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    complaints: Vec<String>,
    notices: Vec<String>,
}

/// Compiles everything, on all cores.
fn by_naga(texts: &[Text]) -> Found {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut outcomes = Vec::new();
        while let Some((index, text)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, texts.get(i)?)))
        {
            outcomes.push((index, compile::compile(&text.text, text.device.subgroups)));
        }
        outcomes
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut outcomes: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
    });
    outcomes.sort_by_key(|(index, _)| *index);

    let mut found = Found::default();
    if outcomes.len() != texts.len() {
        found.complaints.push("a worker stopped before its work was done".into());
    }
    let mut grouped = Grouped::default();
    let mut notices = Grouped::default();
    for (index, outcome) in outcomes {
        let text = &texts[index];
        match outcome {
            Err(message) => grouped.add(text, message),
            Ok(facts) => {
                let judged = limits::judge(&facts, &text.device);
                judged.errors.into_iter().for_each(|message| grouped.add(text, message));
                judged.notices.into_iter().for_each(|message| notices.add(text, message));
            }
        }
    }
    found.complaints.extend(grouped.show());
    found.notices.extend(notices.show());
    found
}

/// Messages by kernel, each once, with the first variant that has it.
#[derive(Default)]
struct Grouped(BTreeMap<(&'static str, String), (String, usize)>);

impl Grouped {
    fn add(&mut self, text: &Text, message: String) {
        let first = || (text.name(), 0);
        self.0.entry((text.kernel, message)).or_insert_with(first).1 += 1;
    }

    fn show(&self) -> Vec<String> {
        let line = |((_, message), (first, count)): (&(&str, String), &(String, usize))| {
            let more =
                if *count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
            format!("{first}{more}:\n{message}")
        };
        self.0.iter().map(line).collect()
    }
}

/// Kernel files that no catalogue lists: they would go unchecked.
fn missing(workspace: &Workspace, texts: &[Text]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for member in &workspace.members {
        for folder in ["kernels", "src/kernels"] {
            let folder = Path::new(&member.dir).join(folder);
            let Ok(files) = fs::read_dir(workspace.root.join(&folder)) else { continue };
            for file in files {
                let path = file?.path();
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                if path.extension().is_none_or(|extension| extension != "wgsl") {
                    continue;
                }
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                if text.contains("@compute") && !texts.iter().any(|text| text.kernel == name) {
                    let place = folder.join(&name);
                    found.push(format!("{}.wgsl: no catalogue lists this kernel", place.display()));
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kernel: &'static str, variant: &str, text: &str) -> Text {
        Text::sample(kernel, variant, text)
    }

    #[test]
    fn complaints_name_kernel_variant_and_reason() {
        let good = "@compute @workgroup_size(1) fn main() {}";
        let texts = [text("a", "x", good), text("b", "y", "fn f( {}"), text("b", "z", "fn f( {}")];
        let found = by_naga(&texts);
        assert_eq!(found.complaints.len(), 1, "{:?}", found.complaints);
        assert!(found.complaints[0].starts_with("b (some device, y) (and 1 more):\n"));
        assert!(found.notices.is_empty());
    }

    #[test]
    fn every_kernel_of_the_workspace_is_listed() {
        let workspace = Workspace::load().unwrap();
        let texts = texts::all().unwrap();
        assert_eq!(missing(&workspace, &texts).unwrap(), [""; 0]);
        let some = missing(&workspace, &texts[..1]).unwrap();
        assert!(some.iter().any(|line| line.contains("attention_decode.wgsl")), "{some:?}");
    }
}
