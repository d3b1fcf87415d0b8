//! Everything that is measured on one device.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;
use attn_core::plan::SparsePlan;
use attn_wgpu::bench::{CopyProbe, FmaProbe, KernelCase, Mechanism};
use attn_wgpu::{AdapterDescription, DeviceKind, Error, Gpu};

use super::cases::Case;
use super::choice::{self, Choice};
use super::gate::{self, Expected, Got};
use super::kernels;
use super::measure::{Effort, on_device};
use super::report::{
    Adapter, AdapterReport, Clock, ColdStart, DeviceCapabilities, KernelTime, Memory, Outcome,
    Probe, Row, Timing,
};

/// A probe that moved by more says that the machine was not quiet.
const UNSTEADY: f64 = 0.15;
/// Up to so many queries, reading keys and values is what counts.
const FEW_QUERIES: usize = 8;
/// Samples of long problems.
const FEW_SAMPLES: usize = 3;

/// What runs on every adapter.
pub struct Plan {
    pub cases: Vec<Case>,
    pub mechanisms: Vec<Box<dyn Mechanism>>,
    pub kernels: Vec<KernelCase>,
    pub effort: Effort,
    /// Told what comes next, before each row.
    pub progress: Box<dyn Fn(&str)>,
    /// Whether results are wanted again by another adapter.
    pub several: bool,
}

impl Plan {
    /// Pairs of case and mechanism, in the order of the report.
    pub fn pairs(&self) -> impl Iterator<Item = (&Case, &dyn Mechanism)> {
        let all =
            self.cases.iter().flat_map(|case| self.mechanisms.iter().map(move |m| (case, &**m)));
        all.filter(|(case, mechanism)| {
            let suits = mechanism.is_for(&case.inputs.shape, &case.config);
            suits && mechanism.is_stream() == case.is_stream
        })
    }

    pub fn effort(&self, case: &Case) -> Effort {
        let samples = if case.is_long() { FEW_SAMPLES } else { self.effort.samples };
        Effort { samples, ..self.effort }
    }
}

/// References, computed when the first adapter needs them.
#[derive(Default)]
pub struct References {
    known: HashMap<usize, Rc<Expected>>,
}

impl References {
    /// That of the pair with this number.
    fn get(
        &mut self,
        index: usize,
        plan: &Plan,
        case: &Case,
        mechanism: &dyn Mechanism,
        chosen: Option<&SparsePlan>,
    ) -> Result<Rc<Expected>> {
        if chosen.is_some() {
            // Another adapter may choose otherwise.
            return Ok(Rc::new(Expected::compute(mechanism, case, chosen)?));
        }
        if let Some(expected) = self.known.get(&index) {
            return Ok(Rc::clone(expected));
        }
        let expected = Rc::new(Expected::compute(mechanism, case, None)?);
        if plan.several {
            self.known.insert(index, Rc::clone(&expected));
        }
        Ok(expected)
    }
}

impl Adapter {
    pub fn of(description: &AdapterDescription) -> Self {
        Adapter {
            index: Some(description.index),
            name: description.name.clone(),
            backend: description.backend.clone(),
            kind: format!("{:?}", description.kind).to_lowercase(),
            driver: description.driver.clone(),
            vendor: description.vendor,
            ..Adapter::default()
        }
    }

    /// Fills in what only an opened device tells.
    pub fn opened(&mut self, gpu: &Gpu) {
        let capabilities = gpu.capabilities();
        self.capabilities = Some(DeviceCapabilities {
            subgroups: capabilities.subgroups.map(|subgroups| [subgroups.min, subgroups.max]),
            f16: capabilities.f16,
            timestamps: capabilities.timestamps,
            immediate_bytes: capabilities.immediate_bytes,
        });
        self.features =
            gpu.device().features().iter_names().map(|(name, _)| name.to_string()).collect();
        let limits = gpu.device().limits();
        self.limits = [
            ("max_bind_groups", limits.max_bind_groups.into()),
            ("max_buffer_size", limits.max_buffer_size),
            (
                "max_compute_invocations_per_workgroup",
                limits.max_compute_invocations_per_workgroup.into(),
            ),
            ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x.into()),
            (
                "max_compute_workgroup_storage_size",
                limits.max_compute_workgroup_storage_size.into(),
            ),
            (
                "max_compute_workgroups_per_dimension",
                limits.max_compute_workgroups_per_dimension.into(),
            ),
            ("max_immediate_size", limits.max_immediate_size.into()),
            ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size),
            (
                "max_storage_buffers_per_shader_stage",
                limits.max_storage_buffers_per_shader_stage.into(),
            ),
            ("max_uniform_buffer_binding_size", limits.max_uniform_buffer_binding_size),
            (
                "min_storage_buffer_offset_alignment",
                limits.min_storage_buffer_offset_alignment.into(),
            ),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into();
    }
}

/// Runs everything on one adapter. A device that fails is given up, and what it did until then is kept.
pub fn run(
    description: &AdapterDescription,
    plan: &Plan,
    references: &mut References,
) -> AdapterReport {
    let mut report = AdapterReport::new(Adapter::of(description));
    if let Err(error) = measure(description, plan, references, &mut report) {
        report.error = Some(error.to_string());
    }
    report.finish();
    report
}

fn measure(
    description: &AdapterDescription,
    plan: &Plan,
    references: &mut References,
    report: &mut AdapterReport,
) -> Result<(), Error> {
    (plan.progress)("cold start");
    let start = Instant::now();
    let gpu = Gpu::builder().adapter(description.index.to_string()).build()?;
    let open_seconds = start.elapsed().as_secs_f64();
    report.adapter.opened(&gpu);
    if let Some((case, mechanism)) = plan.pairs().next() {
        match cold_start(&gpu, start, open_seconds, case, mechanism) {
            Ok(cold) => report.cold_start = Some(cold),
            // The row of this problem tells the reason.
            Err(error) if !is_fatal(&error) => {}
            Err(error) => return Err(error),
        }
    }
    (plan.progress)("probes");
    let [yardstick, peak, copy] = probes(&gpu, plan.effort)?;
    report.fma_yardstick = Some(Probe::before(yardstick));
    report.fma_peak = Some(Probe::before(peak));
    report.copy = Some(Probe::before(copy));
    for (index, (case, mechanism)) in plan.pairs().enumerate() {
        (plan.progress)(&format!(
            "{}, {}, {}",
            case.name,
            case.config.mask.name(),
            mechanism.name()
        ));
        let mut row = Row::new(case, mechanism);
        let expected =
            |chosen: Option<&SparsePlan>| references.get(index, plan, case, mechanism, chosen);
        let outcome = measure_row(&gpu, case, mechanism, plan.effort(case), expected, &mut row);
        let fatal = outcome.as_ref().err().filter(|error| is_fatal(error)).cloned();
        row.outcome = outcome.unwrap_or_else(|error| outcome_of(&error));
        report.rows.push(row);
        if let Some(error) = fatal {
            return Err(error);
        }
    }
    for case in &plan.kernels {
        (plan.progress)(&format!("{}, {}", case.name, case.problem));
        let (row, fatal) = kernels::run(&gpu, case, plan.effort);
        report.kernels.push(row);
        if let Some(error) = fatal {
            return Err(error);
        }
    }
    (plan.progress)("probes");
    let after = probes(&gpu, plan.effort)?;
    let probes = [&mut report.fma_yardstick, &mut report.fma_peak, &mut report.copy];
    for (probe, after) in probes.into_iter().zip(after) {
        if let Some(probe) = probe {
            probe.add_after(after);
        }
    }
    Ok(())
}

fn cold_start(
    gpu: &Gpu,
    start: Instant,
    open_seconds: f64,
    case: &Case,
    mechanism: &dyn Mechanism,
) -> Result<ColdStart, Error> {
    let call = Instant::now();
    let results = mechanism.prepare(gpu, &case.inputs, &case.config)?.record()?;
    gpu.sync()?;
    let first_call_seconds = call.elapsed().as_secs_f64();
    gate::read(&results)?;
    Ok(ColdStart {
        problem: case.name.clone(),
        mechanism: mechanism.name().into(),
        open_seconds,
        first_call_seconds,
        first_result_seconds: start.elapsed().as_secs_f64(),
        pipelines: gpu.pipelines(),
    })
}

fn measure_row(
    gpu: &Gpu,
    case: &Case,
    mechanism: &dyn Mechanism,
    effort: Effort,
    expected: impl FnOnce(Option<&SparsePlan>) -> Result<Rc<Expected>>,
    row: &mut Row,
) -> Result<Outcome, Error> {
    gpu.sync()?;
    let (unused, pipelines) = (gpu.memory().in_use, gpu.pipelines());
    gpu.reset_peak();
    let start = Instant::now();
    let prepared = mechanism.prepare(gpu, &case.inputs, &case.config)?;
    let input_bytes = gpu.memory().in_use - unused;
    let results = prepared.record()?;
    gpu.sync()?;
    row.first_call_seconds = Some(start.elapsed().as_secs_f64());
    row.new_pipelines = Some(gpu.pipelines() - pipelines);
    row.memory = Some(Memory { input_bytes, peak_bytes: gpu.memory().peak - unused });
    row.variant = Some(prepared.variant());
    let first = gate::read(&results)?;
    drop(results);

    let chosen = prepared.chosen()?;
    let expected = match expected(chosen.as_ref()) {
        Ok(expected) => expected,
        Err(error) => return Ok(Outcome::Failed(format!("reference: {error:#}"))),
    };
    let (gate, wrong) = expected.check(&case.inputs.shape, &first);
    row.gate = Some(gate);
    if let Some(wrong) = wrong {
        return Ok(Outcome::Wrong(wrong));
    }
    if let Some(plan) = &chosen {
        let choice = match Choice::of(mechanism, case, plan, &first) {
            Ok(choice) => choice,
            Err(error) => return Ok(Outcome::Failed(format!("what was chosen: {error}"))),
        };
        row.flops *= choice.density;
        let wrong = choice.wrong();
        row.choice = Some(choice);
        if let Some(wrong) = wrong {
            return Ok(Outcome::Wrong(wrong));
        }
    }

    let (_, profile) = gpu.profile(|| prepared.record())?;
    row.kernels = profile.kernels.into_iter().map(kernel_time).collect();

    let timing = on_device(gpu, effort, &|| prepared.record().map(drop))?;
    let before = gpu.stream_stats();
    let results = prepared.record()?;
    gpu.sync()?;
    let after = gpu.stream_stats();
    row.submissions_per_run = Some(after.submissions - before.submissions);
    row.dispatches_per_run = Some(after.dispatches - before.dispatches);
    let last = gate::read(&results)?;
    let same = bits(&last) == bits(&first);
    if let Some(gate) = &mut row.gate {
        gate.repeatable = Some(same);
    }
    if !same {
        return Ok(Outcome::Wrong("two runs on the same inputs gave different bits".into()));
    }
    row.timed(timing, true);
    if let Some(choice) = &mut row.choice {
        choice.time(gpu, effort, &*prepared)?;
    }
    Ok(Outcome::Right)
}

fn bits(results: &[Got]) -> Vec<u32> {
    results.iter().flat_map(|got| &got.data).map(|x| x.to_bits()).collect()
}

fn kernel_time(kernel: attn_wgpu::KernelTime) -> KernelTime {
    let clock = match kernel.clock {
        attn_wgpu::Clock::Device => Clock::Device,
        _ => Clock::Wall,
    };
    KernelTime { name: kernel.kernel, seconds: kernel.time.as_secs_f64(), clock }
}

pub fn outcome_of(error: &Error) -> Outcome {
    match error {
        Error::Core(_) => Outcome::Unsupported(error.to_string()),
        Error::Limit { .. } | Error::OutOfMemory { .. } => Outcome::TooLarge(error.to_string()),
        _ => Outcome::Failed(error.to_string()),
    }
}

/// Whether nothing more is to be expected of the device.
pub fn is_fatal(error: &Error) -> bool {
    matches!(error, Error::DeviceLost { .. } | Error::Timeout { .. } | Error::NoAdapter { .. })
}

/// A rate in GFLOP/s or GB/s with its times.
type Rate = (f64, Timing);

/// Speed of arithmetic, plain and in its fastest form, and of memory.
fn probes(gpu: &Gpu, effort: Effort) -> Result<[Rate; 3], Error> {
    let probe = |work: &dyn Fn() -> Result<(), Error>, amount: f64| {
        work()?;
        let timing = on_device(gpu, effort, work)?;
        Ok::<_, Error>((amount / timing.seconds.median / 1e9, timing))
    };
    let (yardstick, peak) = (FmaProbe::yardstick(gpu)?, FmaProbe::peak(gpu)?);
    let copy = CopyProbe::new(gpu)?;
    Ok([
        probe(&|| yardstick.record(), yardstick.flops())?,
        probe(&|| peak.record(), peak.flops())?,
        probe(&|| copy.record(), copy.bytes())?,
    ])
}

impl Probe {
    fn before((rate, timing): Rate) -> Self {
        Probe { before: rate, after: None, mean: rate, timings: vec![timing] }
    }

    fn add_after(&mut self, (rate, timing): Rate) {
        self.after = Some(rate);
        self.mean = (self.before + rate) / 2.0;
        self.timings.push(timing);
    }

    /// Whether the two measurements differ by more than a quiet machine would let them.
    pub fn is_unsteady(&self) -> bool {
        self.after.is_some_and(|after| (after - self.before).abs() > UNSTEADY * self.mean)
    }
}

impl Row {
    /// A row before anything was done.
    pub fn new(case: &Case, mechanism: &dyn Mechanism) -> Self {
        let shape = case.inputs.shape;
        Row {
            problem: case.name.clone(),
            source: case.source.clone(),
            mask: case.config.mask.name(),
            mechanism: mechanism.name().into(),
            dtype: mechanism.dtype().name().into(),
            in_series: case.in_series,
            shape: [
                shape.batch,
                shape.heads,
                shape.heads_kv,
                shape.queries,
                shape.keys,
                shape.dim_qk,
                shape.dim_v,
            ],
            scale: case.config.scale_for(shape.dim_qk),
            outcome: Outcome::Failed("not run".into()),
            variant: None,
            gate: None,
            first_call_seconds: None,
            new_pipelines: None,
            submissions_per_run: None,
            dispatches_per_run: None,
            memory: None,
            kernels: Vec::new(),
            timing: None,
            timed_rows: None,
            flops: mechanism.flops(&shape, &case.config),
            bytes: mechanism.bytes(&shape, &case.config),
            gflops_per_second: None,
            gigabytes_per_second: None,
            share_of_yardstick: None,
            share_of_copy: None,
            kv_gigabytes_per_second: None,
            kv_gigabytes_per_second_per_core: None,
            choice: None,
        }
    }

    /// Bytes of keys and values.
    fn kv_bytes(&self) -> f64 {
        let [batch, _, heads_kv, _, keys, dim_qk, dim_v] = self.shape;
        let bytes = if self.dtype == "f32" { 4 } else { 2 };
        (bytes * batch * heads_kv * keys * (dim_qk + dim_v)) as f64
    }

    /// Adds times and the rates that follow from them. `bytes`: whether the inputs were as counted.
    pub fn timed(&mut self, timing: Timing, bytes: bool) {
        let rate = |amount: f64| super::report::finite(amount / timing.seconds.median / 1e9);
        self.gflops_per_second = rate(self.flops);
        self.gigabytes_per_second = rate(self.bytes).filter(|_| bytes);
        if bytes && self.shape[3] <= FEW_QUERIES {
            self.kv_gigabytes_per_second = rate(self.kv_bytes());
            self.kv_gigabytes_per_second_per_core = match timing.clock {
                Clock::ProcessCpu { cores } => rate(self.kv_bytes() / cores as f64),
                _ => None,
            };
        }
        self.timing = Some(timing);
    }
}

impl AdapterReport {
    pub fn new(adapter: Adapter) -> Self {
        AdapterReport {
            adapter,
            error: None,
            cold_start: None,
            fma_yardstick: None,
            fma_peak: None,
            copy: None,
            rows: Vec::new(),
            kernels: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Of all rows, of mechanisms and of kernels.
    pub fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        let kernels = self.kernels.iter().map(|row| &row.outcome);
        self.rows.iter().map(|row| &row.outcome).chain(kernels)
    }

    /// Names, units and values of the probes.
    pub fn probes(&self) -> [(&'static str, &'static str, &Option<Probe>); 3] {
        [
            ("FMA yardstick", "GFLOP/s", &self.fma_yardstick),
            ("FMA peak", "GFLOP/s", &self.fma_peak),
            ("copy", "GB/s", &self.copy),
        ]
    }

    /// Shares of the probes, which are known when all is done.
    fn finish(&mut self) {
        let share = |rate: Option<f64>, probe: &Option<Probe>| {
            rate.zip(probe.as_ref())
                .and_then(|(rate, probe)| super::report::finite(rate / probe.mean))
        };
        for row in &mut self.rows {
            row.share_of_yardstick = share(row.gflops_per_second, &self.fma_yardstick);
            row.share_of_copy = share(row.gigabytes_per_second, &self.copy);
        }
        for row in &mut self.kernels {
            row.share_of_yardstick = share(row.gflops_per_second, &self.fma_yardstick);
        }
        choice::compare_with_dense(&mut self.rows);
        let unsteady = self.probes().into_iter().filter_map(|(name, unit, probe)| {
            let Probe { before, after, .. } = probe.as_ref().filter(|probe| probe.is_unsteady())?;
            Some(format!(
                "the {name} probe gave {before:.1} {unit} before and {:.1} {unit} after: the machine was not quiet, \
                 or its clock changed",
                (*after)?
            ))
        });
        let unsteady: Vec<_> = unsteady.collect();
        self.warnings.extend(unsteady);
        let gpu = self.adapter.kind != format!("{:?}", DeviceKind::Cpu).to_lowercase();
        let wall =
            |row: &Row| row.timing.as_ref().is_some_and(|timing| timing.clock == Clock::Wall);
        if gpu && self.rows.iter().any(wall) {
            self.warnings
                .push("some times are wall times: the device gave no usable timestamps".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn shares_refer_to_the_mean_of_the_probes() {
        let mut report = sample().adapters.remove(0);
        report.rows[0].gflops_per_second = Some(35.25);
        report.finish();
        assert_eq!(report.rows[0].share_of_yardstick, Some(0.5));
        assert_eq!((report.rows[0].share_of_copy, report.rows[1].share_of_yardstick), (None, None));
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }

    #[test]
    fn moving_probes_are_told() {
        let mut report = sample().adapters.remove(0);
        let timing = report.rows[0].timing.clone().unwrap();
        let mut probe = Probe::before((70.0, timing.clone()));
        assert!(!probe.is_unsteady());
        probe.add_after((50.0, timing));
        assert_eq!((probe.mean, probe.is_unsteady()), (60.0, true));
        report.fma_yardstick = Some(probe);
        report.finish();
        assert!(report.warnings[0].contains("70.0 GFLOP/s before and 50.0 GFLOP/s after"));
    }

    #[test]
    fn rates() {
        let mut row = sample().adapters[0].rows[1].clone();
        let timing = sample().adapters[0].rows[0].timing.clone().unwrap();
        row.timed(timing.clone(), true);
        assert_eq!((row.gflops_per_second, row.gigabytes_per_second), (Some(500.0), Some(5.0)));
        row.timed(timing.clone(), false);
        assert_eq!((row.gigabytes_per_second, row.kv_gigabytes_per_second), (None, None));
        // 3 heads of 1000 keys and values of 64 elements in 2 ms by two cores.
        row.shape = [1, 9, 3, 1, 1000, 64, 64];
        row.timed(timing, true);
        assert_eq!(row.kv_gigabytes_per_second, Some(0.768));
        assert_eq!(row.kv_gigabytes_per_second_per_core, Some(0.384));
    }

    #[test]
    fn errors_by_whose_fault_they_are() {
        let refused = attn_core::Error::config("scale", "a finite number", f64::NAN);
        assert!(matches!(outcome_of(&refused.into()), Outcome::Unsupported(_)));
        let memory = Error::OutOfMemory { requested: 1, in_use: 0, budget: 0 };
        assert!(matches!(outcome_of(&memory), Outcome::TooLarge(_)));
        let lost = Error::DeviceLost { reason: "gone".into() };
        assert!(is_fatal(&lost) && !is_fatal(&memory));
        assert!(matches!(outcome_of(&lost), Outcome::Failed(_)));
    }
}
