//! Time per kernel.

use std::time::{Duration, Instant};

/// Where a time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clock {
    /// Timestamps written by the device.
    Device,
    /// The host's clock around one submission: the device has no timestamps, or they were not
    /// usable (zero or falling, as some drivers give).
    Wall,
}

/// Time of one dispatch.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct KernelTime {
    /// Name of the kernel with its variant.
    pub kernel: String,
    /// How long it ran.
    pub time: Duration,
    /// Where the time comes from.
    pub clock: Clock,
}

/// What [`Gpu::profile`](crate::Gpu::profile) measured, in the order of execution.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Profile {
    /// One entry a dispatch.
    pub kernels: Vec<KernelTime>,
}

impl Profile {
    /// Sum over all kernels.
    pub fn total(&self) -> Duration {
        self.kernels.iter().map(|kernel| kernel.time).sum()
    }
}

/// Times single dispatches.
pub(crate) struct Timer {
    queries: Option<Queries>,
    limit: Duration,
}

struct Queries {
    set: wgpu::QuerySet,
    resolve: wgpu::Buffer,
    read: wgpu::Buffer,
    nanoseconds_per_tick: f64,
}

impl Timer {
    pub(crate) fn new(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        timestamps: bool,
        limit: Duration,
    ) -> Self {
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: 16,
                usage,
                mapped_at_creation: false,
            })
        };
        let queries = timestamps.then(|| Queries {
            set: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolve: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            read: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            nanoseconds_per_tick: f64::from(queue.get_timestamp_period()),
        });
        Timer { queries, limit }
    }

    /// Submits one pass and waits for it.
    pub(crate) fn run(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        mut encoder: wgpu::CommandEncoder,
        encode: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) -> KernelTime {
        let timestamp_writes =
            self.queries.as_ref().map(|queries| wgpu::ComputePassTimestampWrites {
                query_set: &queries.set,
                beginning_of_pass_write_index: Some(0),
                end_of_pass_write_index: Some(1),
            });
        encode(
            &mut encoder
                .begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes }),
        );
        if let Some(queries) = &self.queries {
            encoder.resolve_query_set(&queries.set, 0..2, &queries.resolve, 0);
            encoder.copy_buffer_to_buffer(&queries.resolve, 0, &queries.read, 0, 16);
        }
        let start = Instant::now();
        let submission = queue.submit([encoder.finish()]);
        let wait = || wgpu::PollType::Wait {
            submission_index: Some(submission.clone()),
            timeout: Some(self.limit),
        };
        // A time-out or a lost device shows at the check after the whole submission.
        let _ = device.poll(wait());
        let wall = start.elapsed();
        let device_time = self.queries.as_ref().and_then(|queries| queries.read(device, wait()));
        let (time, clock) = match device_time {
            Some(time) => (time, Clock::Device),
            None => (wall, Clock::Wall),
        };
        KernelTime { kernel: String::new(), time, clock }
    }
}

impl Queries {
    /// `None` where the interval is not positive.
    fn read(&self, device: &wgpu::Device, wait: wgpu::PollType) -> Option<Duration> {
        self.read.map_async(wgpu::MapMode::Read, .., |_| {});
        let _ = device.poll(wait);
        let ticks = {
            let view = self.read.get_mapped_range(..).ok()?;
            let word = |at: usize| Some(u64::from_le_bytes(view.get(at..at + 8)?.try_into().ok()?));
            word(8)?.checked_sub(word(0)?)
        };
        self.read.unmap();
        let nanoseconds = ticks? as f64 * self.nanoseconds_per_tick;
        (nanoseconds > 0.0).then(|| Duration::from_nanos(nanoseconds as u64))
    }
}
