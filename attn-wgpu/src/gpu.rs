//! The device handle: choosing an adapter, recording, submitting, reading back.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::bind_groups::{BindGroups, Range};
use crate::capabilities::{Capabilities, DeviceKind};
use crate::error::{Error, Result};
use crate::guard::{self, Health, guarded, lock, panic_message};
use crate::kernel::KernelCache;
use crate::pool::{MemoryStats, Pool, Storage};
use crate::profile::{Profile, Timer};
use crate::settings::{Settings, SettingsFile};
use crate::stream::{Command, Copy, Stream, StreamStats};

/// A device, its command stream, its memory and its kernels. Cloning gives another handle to the
/// same device.
///
/// Operations on tensors only record; [`Gpu::flush`] or reading a tensor submits. Operations may
/// be called from any thread and are executed in the order in which they were recorded.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    description: AdapterDescription,
    capabilities: Capabilities,
    health: Health,
    pool: Arc<Pool>,
    stream: Mutex<Stream>,
    staging: Mutex<Option<wgpu::Buffer>>,
    kernels: KernelCache,
    groups: Arc<BindGroups>,
    options: Options,
}

#[derive(Debug, Clone)]
struct Options {
    poison: bool,
    max_work: f64,
    timeout: Duration,
    budget: Option<u64>,
}

/// An adapter, as lists and reports show it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterDescription {
    /// Position in [`Gpu::adapters`], the number that `ATTN_ADAPTER` takes.
    pub index: usize,
    /// The driver's name of the device.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// Kind of device.
    pub kind: DeviceKind,
    /// Driver and version.
    pub driver: String,
    /// PCI vendor id, 0 where there is none.
    pub vendor: u32,
}

impl AdapterDescription {
    fn new(index: usize, info: &wgpu::AdapterInfo) -> Self {
        AdapterDescription {
            index,
            name: info.name.clone(),
            backend: info.backend.to_string(),
            kind: DeviceKind::of(info.device_type),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            vendor: info.vendor,
        }
    }
}

impl fmt::Display for AdapterDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AdapterDescription { index, name, backend, kind, driver, .. } = self;
        write!(f, "{index}: {name} ({kind:?}, {backend}, {driver})")
    }
}

/// What [`Gpu::warm_up`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WarmUp {
    /// Pipelines that were made.
    pub pipelines: usize,
    /// How long it took.
    pub time: Duration,
}

/// Chooses adapter, features and limits of a new [`Gpu`].
///
/// Defaults come from the environment: `ATTN_ADAPTER` (index or part of the name),
/// `ATTN_DISABLE` (comma-separated: `subgroup`, `f16`, `immediates`, `timestamps`), `ATTN_LIMITS`
/// (`webgpu` for WebGPU's default limits), `ATTN_POISON` (`1` fills new buffers with NaN),
/// `ATTN_EXPECT_ADAPTER` (opening any adapter whose name lacks this text is an error), `ATTN_TUNE`
/// (file of measured settings, see [`crate::settings`]).
#[derive(Debug, Clone)]
pub struct GpuBuilder {
    adapter: Option<String>,
    backends: wgpu::Backends,
    disabled: Vec<String>,
    limits: LimitsChoice,
    expect: Option<String>,
    tune: Option<PathBuf>,
    settings: Option<Settings>,
    options: Options,
}

#[derive(Debug, Clone)]
enum LimitsChoice {
    Adapter,
    WebGpu,
    Custom(Box<wgpu::Limits>),
}

/// Where compute kernels of this crate run.
const BACKENDS: wgpu::Backends =
    wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);

impl Default for GpuBuilder {
    fn default() -> Self {
        let text = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let disabled = text("ATTN_DISABLE").unwrap_or_default();
        let webgpu = text("ATTN_LIMITS").is_some_and(|value| value == "webgpu");
        GpuBuilder {
            adapter: text("ATTN_ADAPTER"),
            backends: BACKENDS,
            disabled: disabled.split(',').map(|name| name.trim().to_lowercase()).collect(),
            limits: if webgpu { LimitsChoice::WebGpu } else { LimitsChoice::Adapter },
            expect: text("ATTN_EXPECT_ADAPTER"),
            tune: text("ATTN_TUNE").map(PathBuf::from),
            settings: None,
            options: Options::from_env(),
        }
    }
}

impl Options {
    fn from_env() -> Self {
        Options {
            poison: std::env::var("ATTN_POISON").is_ok_and(|value| value == "1"),
            max_work: f64::INFINITY,
            timeout: Duration::from_secs(120),
            budget: None,
        }
    }
}

impl GpuBuilder {
    /// Takes the adapter of this index in [`Gpu::adapters`], or the first whose name contains the
    /// text (upper and lower case alike).
    pub fn adapter(mut self, index_or_name: impl Into<String>) -> Self {
        self.adapter = Some(index_or_name.into());
        self
    }

    /// Makes opening any adapter whose name lacks this text an error: tests that are meant for one
    /// device must not pass on another.
    pub fn expect_adapter(mut self, name: impl Into<String>) -> Self {
        self.expect = Some(name.into());
        self
    }

    /// Looks at these backends only, of Vulkan, Metal and DirectX 12.
    pub fn backends(mut self, backends: wgpu::Backends) -> Self {
        self.backends = backends;
        self
    }

    /// Does without an optional feature: `subgroup`, `f16`, `immediates` or `timestamps`.
    pub fn disable(mut self, feature: &str) -> Self {
        self.disabled.push(feature.to_lowercase());
        self
    }

    /// Asks for WebGPU's default limits instead of the adapter's own.
    pub fn webgpu_limits(mut self) -> Self {
        self.limits = LimitsChoice::WebGpu;
        self
    }

    /// Asks for these limits instead of the adapter's own.
    pub fn limits(mut self, limits: wgpu::Limits) -> Self {
        self.limits = LimitsChoice::Custom(Box::new(limits));
        self
    }

    /// Fills every new buffer with NaN: tests use it to find elements that no kernel wrote.
    pub fn poison(mut self, poison: bool) -> Self {
        self.options.poison = poison;
        self
    }

    /// Bytes that tensors may take. Default: half of the memory on CPU adapters, none on GPUs.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.options.budget = Some(bytes);
        self
    }

    /// Estimated floating-point operations that one submission, and so one dispatch, may hold.
    /// Operating systems reset a GPU that is busy for about two seconds; work above the cap is
    /// split. Default: 2e11 on discrete GPUs, 4e10 on others, none on CPU adapters.
    pub fn max_work_per_dispatch(mut self, operations: f64) -> Self {
        self.options.max_work = operations;
        self
    }

    /// Longest wait for the device. Default: 120 seconds.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = limit;
        self
    }

    /// Uses these settings of kernels instead of the shipped ones, or of those in `ATTN_TUNE`.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = Some(settings);
        self
    }

    /// Opens the device. Blocks; see [`GpuBuilder::build_async`].
    ///
    /// # Errors
    /// [`Error::NoAdapter`] if none fits, [`Error::Kernel`] if the driver refuses,
    /// [`attn_core::Error::File`] if the file in `ATTN_TUNE` is unusable.
    pub fn build(self) -> Result<Gpu> {
        pollster::block_on(self.build_async())
    }

    /// Opens the device.
    ///
    /// # Errors
    /// As [`GpuBuilder::build`].
    pub async fn build_async(self) -> Result<Gpu> {
        let adapters = sorted_adapters(self.backends).await;
        let descriptions: Vec<_> = adapters
            .iter()
            .enumerate()
            .map(|(index, adapter)| AdapterDescription::new(index, &adapter.get_info()))
            .collect();
        let chosen = match &self.adapter {
            None => descriptions.first(),
            Some(wanted) => descriptions.iter().find(|description| match wanted.parse::<usize>() {
                Ok(index) => description.index == index,
                Err(_) => contains(&description.name, wanted),
            }),
        };
        let unfit = |wanted: &Option<String>| Error::NoAdapter {
            wanted: wanted.clone(),
            tried: descriptions.iter().map(ToString::to_string).collect(),
        };
        // An adapter that was expected must not be missed as if nobody had asked for one.
        let wanted = if self.adapter.is_some() { &self.adapter } else { &self.expect };
        let description = chosen.ok_or_else(|| unfit(wanted))?.clone();
        if self.expect.as_ref().is_some_and(|expected| !contains(&description.name, expected)) {
            return Err(unfit(&self.expect));
        }
        let settings = match (self.settings, &self.tune) {
            (Some(settings), _) => settings,
            (None, Some(path)) => SettingsFile::load(path)?.settings_of(&description.name),
            (None, None) => Settings::default(),
        };
        let adapter = &adapters[description.index];
        let limits = match &self.limits {
            LimitsChoice::Adapter => adapter.limits(),
            LimitsChoice::WebGpu => wgpu::Limits::default(),
            LimitsChoice::Custom(limits) => (**limits).clone(),
        };
        let (device, queue) =
            open(adapter, wanted_features(adapter, &self.disabled), limits).await?;
        let health = Health::default();
        health.install(&device);
        Ok(Gpu::assemble(device, queue, description, health, self.options, settings))
    }
}

impl Gpu {
    /// Opens the best adapter: discrete GPUs before integrated ones, software last.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] where there is none.
    pub fn new() -> Result<Gpu> {
        Gpu::builder().build()
    }

    /// Like [`Gpu::new`], without blocking.
    ///
    /// # Errors
    /// As [`Gpu::new`].
    pub async fn new_async() -> Result<Gpu> {
        Gpu::builder().build_async().await
    }

    /// Choices about adapter, features, limits and memory.
    pub fn builder() -> GpuBuilder {
        GpuBuilder::default()
    }

    /// All adapters, the one that [`Gpu::new`] takes first.
    pub fn adapters() -> Vec<AdapterDescription> {
        let adapters = pollster::block_on(sorted_adapters(BACKENDS));
        let describe = |(index, adapter): (usize, &wgpu::Adapter)| {
            AdapterDescription::new(index, &adapter.get_info())
        };
        adapters.iter().enumerate().map(describe).collect()
    }

    /// Uses a caller's device and queue, with whatever features and limits the device has.
    ///
    /// The device's error and lost handlers stay the caller's. Call [`Gpu::flush`] before a submit
    /// of your own that depends on results of this crate.
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue) -> Gpu {
        let description = AdapterDescription::new(0, &device.adapter_info());
        let (health, options) = (Health::default(), Options::from_env());
        Gpu::assemble(device, queue, description, health, options, Settings::default())
    }

    /// The same device with other settings of kernels, for devices from [`Gpu::from_wgpu`]: no
    /// tensor or kernel is shared with this handle.
    pub fn with_settings(&self, settings: Settings) -> Gpu {
        let Inner { device, queue, description, health, options, .. } = &*self.inner;
        let (device, queue, description) = (device.clone(), queue.clone(), description.clone());
        Gpu::assemble(device, queue, description, health.clone(), options.clone(), settings)
    }

    /// Features and limits that this crate makes use of on `adapter`, for callers that open the
    /// device themselves. None of them is required.
    pub fn wanted(adapter: &wgpu::Adapter) -> (wgpu::Features, wgpu::Limits) {
        let features = wanted_features(adapter, &[]);
        (features, limits_with(features, adapter.limits()))
    }

    fn assemble(
        device: wgpu::Device,
        queue: wgpu::Queue,
        description: AdapterDescription,
        health: Health,
        mut options: Options,
        settings: Settings,
    ) -> Gpu {
        let capabilities = Capabilities { settings, ..Capabilities::of(&device) };
        let cpu = description.kind == DeviceKind::Cpu;
        if options.max_work.is_infinite() && !cpu {
            options.max_work = if description.kind == DeviceKind::Discrete { 2e11 } else { 4e10 };
        }
        let budget = options.budget.unwrap_or_else(|| match (cpu, memory_of_host()) {
            (true, Some(bytes)) => bytes / 2,
            _ => u64::MAX,
        });
        let max_buffer = capabilities.max_buffer_bytes;
        let groups = Arc::<BindGroups>::default();
        let pool =
            Pool::new(device.clone(), health.clone(), max_buffer, budget, Arc::clone(&groups));
        Gpu {
            inner: Arc::new(Inner {
                kernels: KernelCache::default(),
                stream: Mutex::new(Stream::new()),
                staging: Mutex::new(None),
                device,
                queue,
                description,
                capabilities,
                health,
                pool: Arc::new(pool),
                groups,
                options,
            }),
        }
    }

    /// The adapter this device belongs to.
    pub fn adapter(&self) -> &AdapterDescription {
        &self.inner.description
    }

    /// What kernels can use on this device.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// The wgpu device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The wgpu queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// Whether two handles are of one device.
    pub fn is_same(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Memory held by tensors and by the pool.
    pub fn memory(&self) -> MemoryStats {
        self.inner.pool.stats()
    }

    /// Starts a new measurement of the peak.
    pub fn reset_peak(&self) {
        self.inner.pool.reset_peak();
    }

    /// Submissions and dispatches so far.
    pub fn stream_stats(&self) -> StreamStats {
        lock(&self.inner.stream).stats
    }

    /// Number of compiled pipelines.
    pub fn pipelines(&self) -> usize {
        self.inner.kernels.pipelines()
    }

    /// Estimated operations that one submission may hold.
    pub fn max_work_per_dispatch(&self) -> f64 {
        self.inner.options.max_work
    }

    /// Submits everything recorded so far. Returns before the device is done.
    ///
    /// # Errors
    /// Whatever the device reported since the last flush. The recorded commands are gone then.
    pub fn flush(&self) -> Result<()> {
        self.flush_stream(&mut lock(&self.inner.stream)).map(|_| ())
    }

    /// Submits everything and waits until the device is done.
    ///
    /// # Errors
    /// As [`Gpu::flush`], and [`Error::Timeout`].
    pub fn sync(&self) -> Result<()> {
        let submission = self.flush_stream(&mut lock(&self.inner.stream))?;
        guard::wait(&self.inner.device, &self.inner.health, submission, self.inner.options.timeout)
    }

    /// Runs `work` and measures each kernel that it records, one after another; the result is the
    /// device's time where it has timestamps, see [`Clock`](crate::Clock).
    ///
    /// # Errors
    /// Those of `work`, and of the device.
    pub fn profile<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Profile)> {
        self.sync()?;
        lock(&self.inner.stream).profile = Some(Vec::new());
        let outcome = work();
        let mut stream = lock(&self.inner.stream);
        let flushed = self.flush_stream(&mut stream);
        let kernels = stream.profile.take().unwrap_or_default();
        flushed?;
        Ok((outcome?, Profile { kernels }))
    }

    /// Runs `work` and waits for it, so that what it needs is compiled before the first call that
    /// matters. Drivers compile a kernel when it is dispatched first, so `work` has to make calls
    /// like the later ones; small tensors do, since lengths are not compiled into kernels.
    /// [`crate::attention::Attention::warm_up`] makes those of attention.
    ///
    /// # Errors
    /// Those of `work`, and of the device.
    pub fn warm_up(&self, work: impl FnOnce() -> Result<()>) -> Result<WarmUp> {
        let (start, before) = (Instant::now(), self.pipelines());
        work()?;
        self.sync()?;
        Ok(WarmUp { pipelines: self.pipelines() - before, time: start.elapsed() })
    }

    pub(crate) fn kernels(&self) -> &KernelCache {
        &self.inner.kernels
    }

    pub(crate) fn guarded<T>(&self, what: &str, work: impl FnOnce() -> T) -> Result<T> {
        guarded(&self.inner.device, &self.inner.health, what, work)
    }

    /// The bind group of `ranges`, of an earlier dispatch if one bound the same.
    pub(crate) fn bind_group(
        &self,
        label: &str,
        layout: &wgpu::BindGroupLayout,
        ranges: &[Range],
        stream: &mut Stream,
    ) -> Result<wgpu::BindGroup> {
        let create = || {
            let numbered = ranges.iter().zip(0u32..);
            let entries: Vec<_> = numbered
                .map(|(range, binding)| wgpu::BindGroupEntry {
                    binding,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: &range.storage.buffer,
                        offset: range.offset,
                        size: wgpu::BufferSize::new(range.bytes),
                    }),
                })
                .collect();
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
            self.guarded(label, || self.device().create_bind_group(&descriptor))
        };
        let (group, new) = self.inner.groups.get(layout, ranges, create)?;
        stream.stats.bind_groups += u64::from(new);
        Ok(group)
    }

    /// A buffer for the result of a kernel.
    pub(crate) fn allocate(&self, bytes: u64) -> Result<Arc<Storage>> {
        self.poisoned(self.inner.pool.acquire(bytes, None)?)
    }

    /// As [`Gpu::allocate`], in a buffer that is no larger than it must be.
    pub(crate) fn allocate_resident(&self, bytes: u64) -> Result<Arc<Storage>> {
        self.poisoned(self.inner.pool.acquire_resident(bytes)?)
    }

    fn poisoned(&self, storage: Storage) -> Result<Arc<Storage>> {
        let storage = Arc::new(storage);
        if self.inner.options.poison {
            crate::ops::poison(self, &storage)?;
        }
        Ok(storage)
    }

    /// A buffer with `bytes` in front.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<Arc<Storage>> {
        let mut stream = lock(&self.inner.stream);
        let storage = self.inner.pool.acquire(bytes.len() as u64, Some(stream.batch))?;
        self.guarded("upload", || {
            let whole = bytes.len() / 4 * 4;
            if whole > 0 {
                self.inner.queue.write_buffer(&storage.buffer, 0, &bytes[..whole]);
            }
            if whole < bytes.len() {
                let mut last = [0; 4];
                last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
                self.inner.queue.write_buffer(&storage.buffer, whole as u64, &last);
            }
        })?;
        // The write belongs to the batch that is being recorded.
        storage.used_in.store(stream.batch, Ordering::Relaxed);
        if stream.is_empty() {
            stream.batch += 1;
        }
        Ok(Arc::new(storage))
    }

    /// Overwrites a part of a buffer, in place and of whole words, behind everything recorded so far.
    pub(crate) fn write(&self, storage: &Storage, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut stream = lock(&self.inner.stream);
        // Writes from the host overtake commands that are not yet submitted.
        self.flush_stream(&mut stream)?;
        let queue = &self.inner.queue;
        self.guarded("upload", || {
            queue.write_buffer(&storage.buffer, offset, bytes);
            // Hands the copy over, so that many of them do not pile up.
            queue.submit([]);
        })?;
        storage.used_in.store(stream.batch, Ordering::Relaxed);
        stream.batch += 1;
        Ok(())
    }

    /// Records with the stream locked, after making room for a command of `work` operations.
    pub(crate) fn record<T>(
        &self,
        work: f64,
        record: impl FnOnce(&mut Stream) -> Result<T>,
    ) -> Result<T> {
        self.inner.health.check()?;
        let mut stream = lock(&self.inner.stream);
        if stream.is_full(work, self.inner.options.max_work) {
            self.flush_stream(&mut stream)?;
        }
        record(&mut stream)
    }

    fn flush_stream(&self, stream: &mut Stream) -> Result<Option<wgpu::SubmissionIndex>> {
        let Inner { device, queue, health, options, capabilities, .. } = &*self.inner;
        let outcome = if stream.profile.is_some() {
            self.guarded("profile", || {
                let timer = Timer::new(device, queue, capabilities.timestamps, options.timeout);
                let times = stream.submit_timed(device, queue, &timer);
                if let Some(profile) = &mut stream.profile {
                    profile.extend(times);
                }
                None
            })
        } else {
            self.guarded("submit", || stream.submit(device, queue))
        };
        if outcome.is_err() {
            stream.discard();
        }
        let submission = outcome?;
        guard::poll(device, health)?;
        Ok(submission)
    }

    /// Reads `bytes` bytes of `storage` from `offset`; both multiples of 4.
    pub(crate) fn read(&self, storage: &Storage, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        if bytes == 0 {
            self.flush()?;
            return Ok(Vec::new());
        }
        let readback = self.start_read(storage, offset, bytes)?;
        let Inner { device, health, options, .. } = &*self.inner;
        guard::wait(device, health, readback.submission.clone(), options.timeout)?;
        // Another thread's poll may have taken our callback and be about to run it.
        readback.signal.wait(options.timeout);
        readback.finish(self)
    }

    /// Like [`Gpu::read`], without blocking.
    pub(crate) async fn read_async(
        &self,
        storage: &Storage,
        offset: u64,
        bytes: u64,
    ) -> Result<Vec<u8>> {
        if bytes == 0 {
            self.flush()?;
            return Ok(Vec::new());
        }
        let readback = self.start_read(storage, offset, bytes)?;
        // Someone has to drive the device's callbacks while the caller does other things.
        let (gpu, submission) = (self.clone(), readback.submission.clone());
        let signal = Arc::clone(&readback.signal);
        let drive = move || {
            let Inner { device, health, options, .. } = &*gpu.inner;
            if let Err(error) = guard::wait(device, health, submission, options.timeout) {
                signal.set(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("attn-read".into()).spawn(drive);
        thread
            .map_err(|error| Error::Kernel { kernel: "read".into(), reason: error.to_string() })?;
        Mapped(&readback.signal).await?;
        readback.finish(self)
    }

    fn start_read(&self, storage: &Storage, offset: u64, bytes: u64) -> Result<Readback> {
        let Inner { device, health, .. } = &*self.inner;
        let cached = lock(&self.inner.staging).take().filter(|buffer| buffer.size() >= bytes);
        let staging = match cached {
            Some(buffer) => buffer,
            None => self.guarded("allocate", || {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("staging"),
                    size: bytes.next_power_of_two().max(4096),
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })?,
        };
        let mut stream = lock(&self.inner.stream);
        stream.push(Command::Copy(Copy {
            source: storage.buffer.clone(),
            source_offset: offset,
            target: staging.clone(),
            target_offset: 0,
            bytes,
        }));
        let submission = self.flush_stream(&mut stream)?;
        drop(stream);
        let signal = Arc::new(Signal::default());
        let (callback, health) = (Arc::clone(&signal), health.clone());
        self.guarded("read", || {
            staging.map_async(wgpu::MapMode::Read, 0..bytes, move |mapped| {
                // A buffer of our own that cannot be mapped means that the device is gone; on a
                // caller's device this is the only sign of it that reaches us.
                callback.set(mapped.map_err(|error| {
                    health.set_lost(format!("a result could not be read: {error}"));
                    Error::DeviceLost { reason: error.to_string() }
                }));
            });
        })?;
        Ok(Readback { staging, bytes, submission, signal })
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("adapter", &self.inner.description).finish_non_exhaustive()
    }
}

/// A copy on its way to the host.
struct Readback {
    staging: wgpu::Buffer,
    bytes: u64,
    submission: Option<wgpu::SubmissionIndex>,
    signal: Arc<Signal>,
}

impl Readback {
    fn finish(self, gpu: &Gpu) -> Result<Vec<u8>> {
        let limit = gpu.inner.options.timeout;
        self.signal.take().unwrap_or(Err(Error::Timeout { limit }))?;
        let contents =
            self.staging.get_mapped_range(0..self.bytes).map(|view| view.to_vec()).map_err(
                |error| Error::Kernel { kernel: "read".into(), reason: error.to_string() },
            )?;
        self.staging.unmap();
        *lock(&gpu.inner.staging) = Some(self.staging);
        Ok(contents)
    }
}

/// Outcome of a mapping, and who waits for it.
#[derive(Default)]
struct Signal {
    state: Mutex<(Option<Result<()>>, Option<Waker>)>,
    changed: Condvar,
}

impl Signal {
    fn set(&self, outcome: Result<()>) {
        let mut state = lock(&self.state);
        state.0.get_or_insert(outcome);
        self.changed.notify_all();
        if let Some(waker) = state.1.take() {
            waker.wake();
        }
    }

    /// Returns when the signal is set, or after `limit`.
    fn wait(&self, limit: Duration) {
        let state = lock(&self.state);
        let _ = self.changed.wait_timeout_while(state, limit, |state| state.0.is_none());
    }

    fn take(&self) -> Option<Result<()>> {
        lock(&self.state).0.take()
    }
}

/// Ready when the signal is set; leaves the outcome in the signal.
struct Mapped<'a>(&'a Signal);

impl Future for Mapped<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = lock(&self.0.state);
        match &state.0 {
            Some(outcome) => Poll::Ready(outcome.clone()),
            None => {
                state.1 = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The instance of this process, which is never dropped; none where no backend was compiled in.
///
/// NVIDIA's driver for Linux does not bear more: instances made by several threads at once end in
/// deadlocks, and after some dozens made and dropped one after the other it finds no adapter.
fn instance() -> Option<&'static wgpu::Instance> {
    static INSTANCE: OnceLock<Option<wgpu::Instance>> = OnceLock::new();
    let create = || {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = BACKENDS;
        wgpu::Instance::new(descriptor)
    };
    // Without a backend it panics.
    INSTANCE.get_or_init(|| catch_unwind(create).ok()).as_ref()
}

async fn sorted_adapters(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    let Some(instance) = instance() else { return Vec::new() };
    let mut adapters = instance.enumerate_adapters(backends).await;
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

fn wanted_features(adapter: &wgpu::Adapter, disabled: &[String]) -> wgpu::Features {
    let optional = [
        ("subgroup", wgpu::Features::SUBGROUP),
        ("f16", wgpu::Features::SHADER_F16),
        ("immediates", wgpu::Features::IMMEDIATES),
        ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
    ];
    optional
        .into_iter()
        .filter(|(name, _)| !disabled.iter().any(|disabled| disabled == name))
        .map(|(_, feature)| feature)
        .fold(wgpu::Features::empty(), |all, feature| all | feature)
        & adapter.features()
}

/// Without the feature a limit for immediates is refused.
fn limits_with(features: wgpu::Features, mut limits: wgpu::Limits) -> wgpu::Limits {
    if !features.contains(wgpu::Features::IMMEDIATES) {
        limits.max_immediate_size = 0;
    }
    limits
}

/// Opens a device; a driver that refuses what it advertises is asked again for less.
async fn open(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    limits: wgpu::Limits,
) -> Result<(wgpu::Device, wgpu::Queue)> {
    let mut refusal = String::new();
    for required_features in [features, wgpu::Features::empty()] {
        let required_limits = limits_with(required_features, limits.clone());
        let request = AssertUnwindSafe(|| {
            pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
                label: Some("attn"),
                required_features,
                required_limits,
                experimental_features: wgpu::ExperimentalFeatures::disabled(),
                memory_hints: wgpu::MemoryHints::Performance,
                trace: wgpu::Trace::Off,
            }))
        });
        match catch_unwind(request) {
            Ok(Ok(pair)) => return Ok(pair),
            Ok(Err(error)) => refusal = error.to_string(),
            Err(panic) => refusal = panic_message(panic.as_ref()),
        }
    }
    Err(Error::Kernel { kernel: "open the device".into(), reason: refusal })
}

fn contains(text: &str, part: &str) -> bool {
    text.to_lowercase().contains(&part.to_lowercase())
}

/// Physical memory, where the operating system tells it in a file.
fn memory_of_host() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}
