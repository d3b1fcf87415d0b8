//! The JSON report. Everything that later reads, merges or draws results goes through these types.
//!
//! A number that cannot be given (an infinite error, a time of a wrong result) is `null`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::choice::Choice;
use super::kernels::KernelRow;

/// Raised whenever a reader of older reports would misunderstand a newer one.
pub const SCHEMA: u32 = 3;

/// One run of `cargo xtask bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    /// UTC, as `2026-01-31T12:00:00Z`.
    pub date: String,
    /// The command as a shell would take it.
    pub command: String,
    pub seconds: f64,
    pub host: Host,
    /// The file of the `layer..` problems.
    pub capture: CaptureFile,
    pub adapters: Vec<AdapterReport>,
    pub warnings: Vec<String>,
}

/// Where and from what the program was built and ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Hash of the commit, with `+changes` where files differ from it.
    pub commit: Option<String>,
    pub rustc: Option<String>,
    /// Overflow and other checks in the code on the host, kernels not included.
    pub debug_assertions: bool,
    pub os: String,
    pub arch: String,
    pub cpu: Option<String>,
    pub cores: usize,
    /// Variables that change what runs.
    pub environment: BTreeMap<String, String>,
}

/// The captured queries, keys and values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptureFile {
    pub file: String,
    /// How many tokens of it were used at most.
    pub tokens: Option<usize>,
}

/// All results of one device, or of the reference on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterReport {
    pub adapter: Adapter,
    /// Why the device was given up.
    pub error: Option<String>,
    pub cold_start: Option<ColdStart>,
    /// Plain multiply-adds, four chains of them: the yardstick that shares refer to. It is not the peak.
    pub fma_yardstick: Option<Probe>,
    /// Multiply-adds in the form that runs fastest on x86 processors.
    pub fma_peak: Option<Probe>,
    pub copy: Option<Probe>,
    pub rows: Vec<Row>,
    /// General kernels.
    pub kernels: Vec<KernelRow>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Adapter {
    /// Number in the list of adapters; none for the reference.
    pub index: Option<usize>,
    pub name: String,
    pub backend: String,
    /// `discrete`, `integrated`, `other`, `cpu` or `reference`.
    pub kind: String,
    pub driver: String,
    /// PCI vendor id.
    pub vendor: u32,
    /// What the kernels use of the device; none before it was opened.
    pub capabilities: Option<DeviceCapabilities>,
    pub features: Vec<String>,
    pub limits: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceCapabilities {
    /// Smallest and largest subgroup.
    pub subgroups: Option<[u32; 2]>,
    pub f16: bool,
    pub timestamps: bool,
    pub immediate_bytes: u32,
}

/// From nothing to the first result of the first problem. Shader caches of the driver are as they were found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColdStart {
    pub problem: String,
    pub mechanism: String,
    /// Opening the device.
    pub open_seconds: f64,
    /// First call: pipelines made, shaders compiled, one run.
    pub first_call_seconds: f64,
    /// From before the opening to the output on the host.
    pub first_result_seconds: f64,
    pub pipelines: usize,
}

/// The speed of a simple kernel, measured before and after all rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// GFLOP/s or GB/s.
    pub before: f64,
    pub after: Option<f64>,
    /// Mean of the two, which the shares refer to.
    pub mean: f64,
    /// Times of both measurements.
    pub timings: Vec<Timing>,
}

/// One problem by one mechanism.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub problem: String,
    pub source: Source,
    /// Name of the mask.
    pub mask: String,
    pub mechanism: String,
    /// Type that inputs and results are stored in.
    pub dtype: String,
    /// Whether it is a point of the plots over the number of keys.
    pub in_series: bool,
    /// Extents in the order batch, heads, key heads, queries, keys, dimension of queries and keys, dimension of
    /// values.
    pub shape: [usize; 7],
    pub scale: f64,
    pub outcome: Outcome,
    /// Kernel variant, or `f64` for the reference.
    pub variant: Option<String>,
    pub gate: Option<Gate>,
    /// First call of this row on the device: pipelines and shaders that were new, and one run.
    pub first_call_seconds: Option<f64>,
    /// Pipelines that this row was the first to need.
    pub new_pipelines: Option<usize>,
    pub submissions_per_run: Option<u64>,
    pub dispatches_per_run: Option<u64>,
    pub memory: Option<Memory>,
    /// One run, kernel by kernel.
    pub kernels: Vec<KernelTime>,
    pub timing: Option<Timing>,
    /// Queries that were timed, where not all were: times are scaled to all.
    pub timed_rows: Option<usize>,
    pub flops: f64,
    pub bytes: f64,
    pub gflops_per_second: Option<f64>,
    pub gigabytes_per_second: Option<f64>,
    /// Of `fma_yardstick`, not of `fma_peak`.
    pub share_of_yardstick: Option<f64>,
    pub share_of_copy: Option<f64>,
    /// With few queries: keys and values, each read once, over the time, and the same for one core where the clock
    /// counts cores.
    pub kv_gigabytes_per_second: Option<f64>,
    pub kv_gigabytes_per_second_per_core: Option<f64>,
    /// Of mechanisms that choose keys; `flops` are then those of the chosen pairs.
    #[serde(default)]
    pub choice: Option<Choice>,
}

/// Where the inputs come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Source {
    Capture { layer: usize },
    Random { seed: u64 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "reason", rename_all = "kebab-case")]
pub enum Outcome {
    Right,
    /// Too far from the reference, or two runs differ. Never timed.
    Wrong(String),
    /// The mechanism does not take this problem.
    Unsupported(String),
    /// The device is too small for it.
    TooLarge(String),
    Failed(String),
}

impl Outcome {
    /// Whether something is broken, in contrast to out of reach.
    pub fn is_bad(&self) -> bool {
        matches!(self, Outcome::Wrong(_) | Outcome::Failed(_))
    }

    /// Why there is no time: what happened, and the reason.
    pub fn reason(&self) -> Option<(&'static str, &str)> {
        match self {
            Outcome::Right => None,
            Outcome::Wrong(why) => Some(("WRONG", why)),
            Outcome::Unsupported(why) => Some(("not supported", why)),
            Outcome::TooLarge(why) => Some(("does not fit", why)),
            Outcome::Failed(why) => Some(("FAILED", why)),
        }
    }
}

/// The comparison with the f64 reference that a row has to pass before it is timed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Queries of each head that were compared; all elements are looked at for NaN and infinity.
    pub rows_checked: usize,
    /// What is required, in words.
    pub rule: String,
    /// Every result by its name.
    pub results: Vec<Checked>,
    /// Whether a run after the timing gave the bits of the first one.
    pub repeatable: Option<bool>,
}

impl Gate {
    /// Largest error of all results; inside, `None` where one is not finite.
    pub fn max_abs(&self) -> Option<Option<f64>> {
        largest(self.results.iter().map(|result| result.max_abs))
    }

    /// The same of the root mean squares.
    pub fn rms(&self) -> Option<Option<f64>> {
        largest(self.results.iter().map(|result| result.rms))
    }
}

fn largest(errors: impl Iterator<Item = Option<f64>>) -> Option<Option<f64>> {
    errors.reduce(|a, b| Some(a?.max(b?)))
}

/// One result in comparison with its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    pub name: String,
    pub max_abs: Option<f64>,
    pub rms: Option<f64>,
    pub rel_l2: Option<f64>,
    pub tolerance: Tolerance,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Tolerance {
    /// `factor` times the error of a simple f32 implementation on the same rows, rounded to the type of the
    /// result, plus `floor_ulps + logits` times f32's epsilon times the largest reference value.
    Budget {
        factor: f64,
        floor_ulps: f64,
        logits: f64,
        simple_max_abs: Option<f64>,
        simple_rms: Option<f64>,
    },
    /// There is no simple implementation: fixed bounds, `max_abs` already multiplied by the largest reference
    /// value.
    Fixed { max_abs: f64, rel_l2: f64 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub input_bytes: u64,
    /// Inputs, outputs and scratch memory at the worst moment.
    pub peak_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KernelTime {
    pub name: String,
    pub seconds: f64,
    pub clock: Clock,
}

/// Which clock the headline figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Clock {
    /// Timestamps of the device, summed over kernels.
    Device,
    /// CPU seconds of the process over the number of cores that the work is spread on: what an idle machine
    /// would need.
    ProcessCpu { cores: usize },
    /// Time of day.
    Wall,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clock::Device => write!(f, "device timestamps"),
            Clock::ProcessCpu { cores: 1 } => write!(f, "CPU seconds of the process"),
            Clock::ProcessCpu { cores } => write!(f, "CPU seconds of the process / {cores} cores"),
            Clock::Wall => write!(f, "wall"),
        }
    }
}

/// Raw samples of one measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    pub clock: Clock,
    /// Seconds of one run by `clock`.
    pub seconds: Summary,
    /// Seconds of one run by the wall clock, launching and waiting included.
    pub wall: Summary,
    pub samples: Vec<Sample>,
}

/// One sample: sums over its runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub runs: u32,
    pub wall_seconds: f64,
    pub cpu_seconds: Option<f64>,
    /// Runs of the device's own measurement, which is taken apart from the others.
    pub device_runs: u32,
    pub device_seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub median: f64,
    /// 20 % quantile.
    pub q20: f64,
    /// 80 % quantile.
    pub q80: f64,
    pub min: f64,
}

/// JSON has no infinity and no NaN.
pub fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn timing() -> Timing {
        let seconds = Summary { median: 2e-3, q20: 1.5e-3, q80: 2.5e-3, min: 1e-3 };
        let sample = Sample {
            runs: 3,
            wall_seconds: 0.1,
            cpu_seconds: Some(0.2),
            device_runs: 0,
            device_seconds: None,
        };
        Timing {
            clock: Clock::ProcessCpu { cores: 2 },
            seconds,
            wall: seconds,
            samples: vec![sample; 7],
        }
    }

    /// A report with one right and one wrong row.
    pub fn sample() -> Report {
        let right = Row {
            problem: "layer11-n1024".into(),
            source: Source::Capture { layer: 11 },
            mask: "causal".into(),
            mechanism: "dense".into(),
            dtype: "f32".into(),
            in_series: true,
            shape: [1, 9, 3, 1024, 1024, 64, 64],
            scale: 0.125,
            outcome: Outcome::Right,
            variant: Some("dims 64/64".into()),
            gate: Some(Gate {
                rows_checked: 1024,
                rule: "close".into(),
                results: vec![Checked {
                    name: "out".into(),
                    max_abs: Some(1e-6),
                    rms: Some(1e-7),
                    rel_l2: Some(1e-7),
                    tolerance: Tolerance::Budget {
                        factor: 4.0,
                        floor_ulps: 4.0,
                        logits: 9.0,
                        simple_max_abs: Some(1e-6),
                        simple_rms: Some(1e-7),
                    },
                }],
                repeatable: Some(true),
            }),
            first_call_seconds: Some(0.5),
            new_pipelines: Some(1),
            submissions_per_run: Some(1),
            dispatches_per_run: Some(1),
            memory: Some(Memory { input_bytes: 1 << 20, peak_bytes: 3 << 20 }),
            kernels: vec![KernelTime {
                name: "attention_forward".into(),
                seconds: 2e-3,
                clock: Clock::Device,
            }],
            timing: Some(timing()),
            timed_rows: None,
            flops: 1e9,
            bytes: 1e7,
            gflops_per_second: Some(500.0),
            gigabytes_per_second: Some(5.0),
            share_of_yardstick: Some(0.5),
            share_of_copy: Some(0.25),
            kv_gigabytes_per_second: None,
            kv_gigabytes_per_second_per_core: None,
            choice: None,
        };
        let wrong = Row {
            outcome: Outcome::Wrong("out: max error 1e0".into()),
            source: Source::Random { seed: 3 },
            gate: None,
            timing: None,
            gflops_per_second: None,
            gigabytes_per_second: None,
            share_of_yardstick: None,
            share_of_copy: None,
            ..right.clone()
        };
        let adapter = AdapterReport {
            adapter: Adapter {
                index: Some(0),
                name: "a device".into(),
                capabilities: Some(DeviceCapabilities {
                    subgroups: Some([4, 64]),
                    f16: true,
                    timestamps: true,
                    immediate_bytes: 128,
                }),
                features: vec!["SUBGROUP".into()],
                limits: [("max_buffer_size".to_string(), u64::MAX)].into(),
                ..Adapter::default()
            },
            error: None,
            cold_start: None,
            fma_peak: None,
            fma_yardstick: Some(Probe {
                before: 70.0,
                after: Some(71.0),
                mean: 70.5,
                timings: vec![timing()],
            }),
            copy: None,
            kernels: super::super::kernels::tests::rows(&timing()),
            rows: vec![right, wrong],
            warnings: vec![],
        };
        Report {
            schema: SCHEMA,
            date: "2026-01-31T12:00:00Z".into(),
            command: "cargo xtask bench".into(),
            seconds: 12.0,
            host: Host {
                commit: None,
                rustc: Some("rustc 1.95.0".into()),
                debug_assertions: true,
                os: "linux".into(),
                arch: "x86_64".into(),
                cpu: None,
                cores: 2,
                environment: BTreeMap::new(),
            },
            capture: CaptureFile { file: "a.safetensors".into(), tokens: Some(256) },
            adapters: vec![adapter],
            warnings: vec!["one".into()],
        }
    }

    #[test]
    fn json_and_back() {
        let report = sample();
        let text = serde_json::to_string_pretty(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(text.contains(r#""kind": "process-cpu""#), "{text}");
    }

    #[test]
    fn only_what_is_broken_is_bad() {
        let bad = [Outcome::Wrong(String::new()), Outcome::Failed(String::new())];
        assert!(bad.iter().all(Outcome::is_bad));
        let fine =
            [Outcome::Right, Outcome::Unsupported(String::new()), Outcome::TooLarge(String::new())];
        assert!(!fine.iter().any(Outcome::is_bad));
    }

    #[test]
    fn infinity_is_no_number() {
        assert_eq!((finite(1.0), finite(f64::INFINITY), finite(f64::NAN)), (Some(1.0), None, None));
    }
}
