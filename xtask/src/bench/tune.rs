//! `cargo xtask tune`: measures how attention kernels should split their work on the adapters of this machine.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use attn_core::dense::Config;
use attn_core::testing::{HostInputs, Values};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::attention::Variant;
use attn_wgpu::bench::{DenseAttention, Mechanism};
use attn_wgpu::settings::{DeviceRules, KernelKind, Rule, Setting, Settings, SettingsFile};
use attn_wgpu::{AdapterDescription, Capabilities, DeviceKind, Error, Gpu};

use super::cases::Case;
use super::dense_backward::DenseBackward;
use super::gate::{self, Expected};
use super::measure::{Effort, on_device};
use super::report::Source;
use super::table::markdown;
use super::{chosen_adapters, progress_bar};
use crate::driver::install;

/// A setting is taken only if it is faster by so much: less is noise.
const GAIN: f64 = 0.03;
/// Walks over all values of a setting at most.
const ROUNDS: usize = 4;

/// Measure the settings of the attention kernels on this machine's adapters.
///
/// From the shipped setting of each kernel, one value at a time is halved or doubled, and the change is kept while it
/// makes the kernel faster. Every setting is compared with the f64 reference before it is timed; one that is wrong, or
/// that the device cannot run, is passed over and told. The result is a file that programs load with
/// `ATTN_TUNE=FILE` or `GpuBuilder::settings`; adapters that the file does not name keep the shipped settings.
///
/// Settings of devices without subgroups are measured with ATTN_DISABLE=subgroup. Takes about 10 minutes on a software
/// driver, which compiles each kernel for seconds.
#[derive(clap::Args)]
pub struct Args {
    /// Only adapters of this number, or whose name contains this text (default: ATTN_ADAPTER, or all)
    #[arg(long, value_name = "INDEX|NAME")]
    adapter: Option<String>,
    /// Head dimensions to measure; each stands for the ones below it, the last also for those above
    #[arg(long, value_name = "DIM", value_delimiter = ',', default_value = "64,128")]
    dims: Vec<u32>,
    /// Only this kernel (may be repeated): forward, decode or backward
    #[arg(long, value_name = "NAME")]
    kernel: Vec<String>,
    /// The file to write; rules of other adapters in it are kept
    #[arg(long, value_name = "FILE", default_value = "attn-tune.json")]
    out: PathBuf,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let kernels = kernels(&args.kernel)?;
    let dims = dims(&args.dims)?;
    let mut file =
        if args.out.exists() { SettingsFile::load(&args.out)? } else { SettingsFile::new() };
    let adapters = chosen_adapters(args.adapter.clone())?;
    if adapters.is_empty() {
        bail!("no adapter was found\n{}", install::advice());
    }
    let bar = progress_bar();
    bar.set_length((adapters.len() * kernels.len() * dims.len()) as u64);
    for adapter in &adapters {
        bar.set_prefix(adapter.name.clone());
        let mut found = Vec::new();
        for (kernel, dim) in
            kernels.iter().flat_map(|kernel| dims.iter().map(move |dim| (*kernel, *dim)))
        {
            let name = format!("{}, head dimension {dim}", kernel.name());
            let said = |text: &str| bar.set_message(format!("{name}: {text}"));
            let tuned = tune(adapter, kernel, dim, &said).with_context(|| name.clone())?;
            bar.suspend(|| tuned.notes.iter().for_each(|note| println!("{name}: {note}")));
            found.push(tuned);
            bar.inc(1);
        }
        bar.suspend(|| println!("{}\n{}", adapter.name, table(&found)));
        keep(&mut file, adapter, &found, *dims.last().unwrap_or(&0));
        // After each adapter, so that a failure of the next one loses nothing.
        write(&args.out, &file)?;
    }
    bar.finish_and_clear();
    println!("Settings: {0}\nUse them: ATTN_TUNE={0}", args.out.display());
    Ok(())
}

fn kernels(names: &[String]) -> Result<Vec<KernelKind>> {
    let known = |name: &String| {
        let kernel = KernelKind::ALL.into_iter().find(|kernel| kernel.name() == name);
        kernel.with_context(|| {
            format!("there is no kernel `{name}`; there are forward, decode, backward")
        })
    };
    if names.is_empty() { Ok(KernelKind::ALL.to_vec()) } else { names.iter().map(known).collect() }
}

fn dims(wanted: &[u32]) -> Result<Vec<u32>> {
    let mut dims = wanted.to_vec();
    dims.sort_unstable();
    dims.dedup();
    match dims.iter().find(|dim| !(1..=256).contains(*dim)) {
        Some(dim) => bail!("head dimension {dim}, expected 1 to 256"),
        None => Ok(dims),
    }
}

/// What was found for one kernel and head dimension.
struct Tuned {
    rule: Rule,
    shipped: Setting,
    /// Seconds of a run with the shipped and with the new setting.
    seconds: [f64; 2],
    tried: usize,
    notes: Vec<String>,
}

/// The problem that a kernel is measured on.
fn problem(kernel: KernelKind, dim: u32, on_cpu: bool) -> Case {
    let (queries, keys) = match (kernel, on_cpu) {
        (KernelKind::Decode, true) => (1, 2048),
        (KernelKind::Decode, false) => (1, 16 << 10),
        (KernelKind::Backward, true) => (256, 256),
        (_, true) => (512, 512),
        (_, false) => (2048, 2048),
    };
    let dim = dim as usize;
    // Three queries share a key, as in many models.
    let shape =
        AttentionShape { batch: 1, heads: 6, heads_kv: 2, queries, keys, dim_qk: dim, dim_v: dim };
    let seed = 1;
    let inputs = HostInputs::random(shape, seed, Values::Normal);
    let config = Config::new().with_mask(Mask::Causal);
    let name = format!("{}-d{dim}", kernel.name());
    Case {
        name,
        source: Source::Random { seed },
        inputs,
        config,
        in_series: false,
        is_stream: false,
    }
}

fn tune(
    adapter: &AdapterDescription,
    kernel: KernelKind,
    dim: u32,
    said: &dyn Fn(&str),
) -> Result<Tuned> {
    let open =
        |settings| Gpu::builder().adapter(adapter.index.to_string()).settings(settings).build();
    let device = open(Settings::default())?.capabilities().clone();
    let (cpu, subgroups) = (device.kind == DeviceKind::Cpu, device.subgroups.is_some());
    let mechanism: &dyn Mechanism = match kernel {
        KernelKind::Backward => &DenseBackward,
        _ => &DenseAttention::F32,
    };
    said("reference");
    let case = problem(kernel, dim, cpu);
    let expected = Expected::compute(mechanism, &case, None)?;
    let rule = |setting| Rule { kernel, subgroups, max_dim: dim, setting };
    let measure = |setting: Setting| -> Result<Result<f64, String>> {
        said(&setting.to_string());
        let gpu = open(Settings::new(vec![rule(setting)])?)?;
        match seconds(&gpu, mechanism, &case, &expected) {
            Ok(outcome) => Ok(outcome),
            // Too large for the device, or for its compiler: another setting may do.
            Err(error @ (Error::Limit { .. } | Error::Kernel { .. })) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    };

    let shipped = Settings::default().of(kernel, cpu, subgroups, dim);
    let Ok(mut first) = measure(shipped)? else {
        bail!("the shipped setting, {shipped}, does not work on this device");
    };
    let (mut notes, mut seen) =
        (Vec::new(), HashSet::from([variant(kernel, dim, &device, shipped)]));
    let mut tried = 1;
    let best = climb(shipped, first, |setting| {
        if setting.validate().is_err() || !seen.insert(variant(kernel, dim, &device, setting)) {
            return Ok(None);
        }
        tried += 1;
        let outcome = measure(setting)?;
        Ok(outcome.map_err(|why| notes.push(format!("passed over {setting}: {why}"))).ok())
    })?;
    let (mut setting, mut last) = best;
    if setting != shipped {
        // Once more, one after the other: a machine that was busy at the start must not decide.
        for (setting, seconds) in [(shipped, &mut first), (setting, &mut last)] {
            if let Ok(again) = measure(setting)? {
                *seconds = seconds.min(again);
            }
        }
        if last > first * (1.0 - GAIN) {
            (setting, last) = (shipped, first);
        }
    }
    Ok(Tuned { rule: rule(setting), shipped, seconds: [first, last], tried, notes })
}

/// Two settings of one variant are the same kernel.
fn variant(
    kernel: KernelKind,
    dim: u32,
    device: &Capabilities,
    setting: Setting,
) -> Option<Variant> {
    let rule = Rule { kernel, subgroups: device.subgroups.is_some(), max_dim: dim, setting };
    let capabilities = Capabilities { settings: Settings::new(vec![rule]).ok()?, ..device.clone() };
    let dim = dim as usize;
    Some(match kernel {
        KernelKind::Decode => Variant::decode(dim, dim, usize::MAX, &capabilities),
        KernelKind::Backward => Variant::backward(dim, dim, &capabilities),
        _ => Variant::forward(dim, dim, &capabilities),
    })
}

/// Seconds of a run, or why its result is wrong.
fn seconds(
    gpu: &Gpu,
    mechanism: &dyn Mechanism,
    case: &Case,
    expected: &Expected,
) -> Result<Result<f64, String>, Error> {
    let effort = Effort { samples: 5, sample: Duration::from_millis(30) };
    let prepared = mechanism.prepare(gpu, &case.inputs, &case.config)?;
    let results = gate::read(&prepared.record()?)?;
    if let (_, Some(wrong)) = expected.check(&case.inputs.shape, &results) {
        return Ok(Err(format!("WRONG: {wrong}")));
    }
    let timing = on_device(gpu, effort, &|| prepared.record().map(drop))?;
    Ok(Ok(timing.seconds.median))
}

/// From `start`, changes one value at a time for as long as that is faster. `measure` gives nothing for a setting
/// that is of no use.
fn climb(
    start: Setting,
    seconds: f64,
    mut measure: impl FnMut(Setting) -> Result<Option<f64>>,
) -> Result<(Setting, f64)> {
    let mut best = (start, seconds);
    for _ in 0..ROUNDS {
        let before = best;
        for change in CHANGES {
            for larger in [false, true] {
                while let Some(setting) = change(best.0, larger) {
                    match measure(setting)? {
                        Some(seconds) if seconds < best.1 * (1.0 - GAIN) => {
                            best = (setting, seconds)
                        }
                        _ => break,
                    }
                }
            }
        }
        if best.0 == before.0 {
            break;
        }
    }
    Ok(best)
}

/// One value made smaller or larger; nothing beyond its range.
type Change = fn(Setting, bool) -> Option<Setting>;

const CHANGES: [Change; 5] = [
    |of, larger| Some(Setting { max_rows: step(&ROWS, of.max_rows, larger)?, ..of }),
    |of, larger| Some(Setting { keys: step(&POWERS[..4], of.keys, larger)?, ..of }),
    |of, larger| Some(Setting { workgroup: step(&POWERS[3..9], of.workgroup, larger)?, ..of }),
    |of, larger| {
        Some(Setting { dim_per_lane: step(&POWERS[2..7], of.dim_per_lane, larger)?, ..of })
    },
    |of, larger| Some(Setting { max_lanes: step(&POWERS[..7], of.max_lanes, larger)?, ..of }),
];

const ROWS: [u32; 11] = [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24];
const POWERS: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// The neighbour of `value` in a rising list.
fn step(list: &[u32], value: u32, larger: bool) -> Option<u32> {
    match larger {
        true => list.iter().copied().find(|&other| other > value),
        false => list.iter().copied().rev().find(|&other| other < value),
    }
}

/// Puts what was found in front of what the file knew of this adapter for other kernels and devices.
fn keep(file: &mut SettingsFile, adapter: &AdapterDescription, found: &[Tuned], last_dim: u32) {
    let rules: Vec<Rule> = found
        .iter()
        .map(|tuned| Rule {
            max_dim: if tuned.rule.max_dim == last_dim { 256 } else { tuned.rule.max_dim },
            ..tuned.rule
        })
        .collect();
    let replaced = |old: &Rule| {
        rules.iter().any(|new| new.kernel == old.kernel && new.subgroups == old.subgroups)
    };
    let at = file.devices.iter().position(|device| device.adapter == adapter.name);
    let old = at.map(|at| file.devices.remove(at).rules).unwrap_or_default();
    let others = old.into_iter().filter(|rule| !replaced(rule));
    file.devices.push(DeviceRules {
        adapter: adapter.name.clone(),
        driver: adapter.driver.clone(),
        rules: rules.iter().copied().chain(others).collect(),
    });
}

fn write(path: &Path, file: &SettingsFile) -> Result<()> {
    std::fs::write(path, file.to_text()).with_context(|| format!("writing {}", path.display()))
}

fn table(found: &[Tuned]) -> String {
    let header = ["kernel", "setting", "dim", "shipped, ms", "tuned, ms", "speed-up", "tried"];
    let cells = |tuned: &Tuned| {
        let Tuned { rule, shipped, seconds: [first, last], tried, .. } = tuned;
        let kept = rule.setting == *shipped;
        vec![
            rule.kernel.name().to_string(),
            if kept { "as shipped".into() } else { rule.setting.to_string() },
            rule.max_dim.to_string(),
            format!("{:.3}", first * 1e3),
            format!("{:.3}", last * 1e3),
            format!("{:.2}", first / last),
            tried.to_string(),
        ]
    };
    markdown(header.map(String::from).to_vec(), found.iter().map(cells).collect(), 2).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Setting =
        Setting { dim_per_lane: 16, max_lanes: 8, max_rows: 16, keys: 1, workgroup: 16 };

    #[test]
    fn climbing_finds_the_fastest() {
        let distance =
            |value: u32, best: u32| (f64::from(value).log2() - f64::from(best).log2()).abs();
        let cost = |of: Setting| {
            1.0 + distance(of.max_rows, 4)
                + distance(of.workgroup, 128)
                + distance(of.dim_per_lane, 8)
        };
        let (best, seconds) = climb(START, cost(START), |of| Ok(Some(cost(of)))).unwrap();
        assert_eq!(best, Setting { dim_per_lane: 8, max_rows: 4, workgroup: 128, ..START });
        assert_eq!(seconds, 1.0);
    }

    #[test]
    fn noise_changes_nothing() {
        let mut number = 0.0;
        let noisy = |_| {
            number += 1.0;
            Ok(Some(if number % 2.0 == 0.0 { 0.98 } else { 1.02 }))
        };
        assert_eq!(climb(START, 1.0, noisy).unwrap(), (START, 1.0));
        assert_eq!(climb(START, 1.0, |_| Ok(None)).unwrap(), (START, 1.0));
    }

    #[test]
    fn neighbours_stay_in_their_ranges() {
        let mut all = vec![START];
        let mut seen: HashSet<Setting> = all.iter().copied().collect();
        while let Some(setting) = all.pop() {
            assert_eq!(setting.validate(), Ok(()));
            let next =
                CHANGES.iter().flat_map(|change| [change(setting, false), change(setting, true)]);
            all.extend(next.flatten().filter(|setting| seen.insert(*setting)));
        }
        assert!(seen.contains(&Setting { keys: 8, max_lanes: 64, workgroup: 256, ..START }));
    }

    #[test]
    fn rules_of_other_kernels_and_adapters_are_kept() {
        let adapter = |name: &str| {
            let mut adapter = Gpu::adapters().into_iter().next()?;
            adapter.name = name.into();
            Some(adapter)
        };
        let Some((a, b)) = adapter("a").zip(adapter("b")) else {
            println!("skipped: no adapter on this machine");
            return;
        };
        let tuned = |kernel, max_dim| Tuned {
            rule: Rule { kernel, subgroups: true, max_dim, setting: START },
            shipped: START,
            seconds: [1.0, 1.0],
            tried: 1,
            notes: Vec::new(),
        };
        let mut file = SettingsFile::new();
        keep(
            &mut file,
            &a,
            &[tuned(KernelKind::Forward, 64), tuned(KernelKind::Forward, 128)],
            128,
        );
        keep(&mut file, &b, &[tuned(KernelKind::Forward, 64)], 64);
        keep(&mut file, &a, &[tuned(KernelKind::Decode, 64)], 64);
        keep(&mut file, &a, &[tuned(KernelKind::Forward, 32), tuned(KernelKind::Forward, 96)], 96);
        let rules = |name: &str| {
            let device = file.devices.iter().find(|device| device.adapter == name).unwrap();
            device.rules.iter().map(|rule| (rule.kernel, rule.max_dim)).collect::<Vec<_>>()
        };
        use KernelKind::{Decode, Forward};
        assert_eq!(rules("a"), [(Forward, 32), (Forward, 256), (Decode, 256)]);
        assert_eq!(rules("b"), [(Forward, 256)]);
    }
}
