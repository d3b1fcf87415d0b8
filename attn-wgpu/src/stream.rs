//! The command stream: operations record, a flush encodes and submits.
//!
//! Commands are kept as plain data until the flush, so that recording never touches the driver, all
//! errors of the driver come up at one place, and consecutive dispatches share one compute pass.

use std::sync::Arc;

use crate::profile::{self, KernelTime};

/// One slot of the parameter ring; the largest alignment that WebGPU asks of a dynamic offset.
pub(crate) const PARAMS_SLOT: u64 = 256;
/// Slots in the parameter ring: dispatches with parameters in one batch, as many as a token of a
/// language model of 60 layers takes.
pub(crate) const PARAMS_SLOTS: u64 = 1024;
/// Commands in one batch at most: bounds the memory that recording holds.
const MAX_COMMANDS: usize = 1024;

/// How a dispatch gets its parameters.
pub(crate) enum Params {
    None,
    Immediate(Vec<u8>),
    /// Offset in the ring.
    Ring(u32),
}

/// How many workgroups a dispatch has.
pub(crate) enum Groups {
    Known([u32; 3]),
    /// Three words at this offset of a buffer, as the device finds them there.
    Indirect(wgpu::Buffer, u64),
}

pub(crate) struct Dispatch {
    pub(crate) label: Arc<str>,
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) bind_group: wgpu::BindGroup,
    pub(crate) params: Params,
    pub(crate) groups: Groups,
    /// Estimated floating-point operations.
    pub(crate) work: f64,
}

pub(crate) struct Copy {
    pub(crate) source: wgpu::Buffer,
    pub(crate) source_offset: u64,
    pub(crate) target: wgpu::Buffer,
    pub(crate) target_offset: u64,
    pub(crate) bytes: u64,
}

pub(crate) enum Command {
    Dispatch(Dispatch),
    Copy(Copy),
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StreamStats {
    /// Submissions to the queue.
    pub submissions: u64,
    /// Kernel dispatches.
    pub dispatches: u64,
    /// Bind groups created; a program that repeats itself creates none after its first rounds.
    pub bind_groups: u64,
}

pub(crate) struct Stream {
    commands: Vec<Command>,
    /// Parameters of the recorded dispatches, at their offsets in the ring.
    params: Vec<u8>,
    ring: Option<(wgpu::Buffer, wgpu::BindGroup)>,
    work: f64,
    /// Number of the batch that is being recorded, from 1.
    pub(crate) batch: u64,
    pub(crate) stats: StreamStats,
    /// `Some` while profiling.
    pub(crate) profile: Option<Vec<KernelTime>>,
}

impl Stream {
    pub(crate) fn new() -> Self {
        Stream {
            commands: Vec::new(),
            params: Vec::new(),
            ring: None,
            work: 0.0,
            batch: 1,
            stats: StreamStats::default(),
            profile: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Whether the batch must be submitted before a command of `work` operations is recorded.
    pub(crate) fn is_full(&self, work: f64, max_work: f64) -> bool {
        !self.is_empty()
            && (self.commands.len() >= MAX_COMMANDS
                || self.work + work > max_work
                || self.params.len() as u64 >= PARAMS_SLOT * PARAMS_SLOTS)
    }

    pub(crate) fn push(&mut self, command: Command) {
        if let Command::Dispatch(dispatch) = &command {
            self.work += dispatch.work;
            self.stats.dispatches += 1;
        }
        self.commands.push(command);
    }

    /// Puts parameters into the ring's image; at most [`PARAMS_SLOT`] bytes.
    pub(crate) fn place_params(&mut self, bytes: &[u8]) -> u32 {
        let offset = self.params.len();
        self.params.extend_from_slice(bytes);
        self.params.resize(offset + PARAMS_SLOT as usize, 0);
        offset as u32
    }

    /// The ring, made on first use, with the bind group that the loader binds as group 1.
    pub(crate) fn ring(&mut self, device: &wgpu::Device, layout: &wgpu::BindGroupLayout) {
        if self.ring.is_some() {
            return;
        }
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: PARAMS_SLOT * PARAMS_SLOTS,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let binding = wgpu::BufferBinding {
            buffer: &buffer,
            offset: 0,
            size: wgpu::BufferSize::new(PARAMS_SLOT),
        };
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("params"),
            layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(binding),
            }],
        });
        self.ring = Some((buffer, group));
    }

    /// Encodes and submits all recorded commands. Runs inside a guard.
    pub(crate) fn submit(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
    ) -> Option<wgpu::SubmissionIndex> {
        if self.commands.is_empty() {
            return None;
        }
        if let (Some((ring, _)), false) = (&self.ring, self.params.is_empty()) {
            queue.write_buffer(ring, 0, &self.params);
        }
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut commands = self.commands.iter().peekable();
        while let Some(command) = commands.next() {
            match command {
                Command::Copy(copy) => encoder.copy_buffer_to_buffer(
                    &copy.source,
                    copy.source_offset,
                    &copy.target,
                    copy.target_offset,
                    copy.bytes,
                ),
                Command::Dispatch(first) => {
                    let mut pass =
                        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                    self.encode(&mut pass, first);
                    while let Some(Command::Dispatch(next)) =
                        commands.next_if(|command| matches!(command, Command::Dispatch(_)))
                    {
                        self.encode(&mut pass, next);
                    }
                }
            }
        }
        let submission = queue.submit([encoder.finish()]);
        self.reset();
        Some(submission)
    }

    /// Like [`Stream::submit`], one dispatch after another, each timed.
    pub(crate) fn submit_timed(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        timer: &profile::Timer,
    ) -> Vec<KernelTime> {
        if let (Some((ring, _)), false) = (&self.ring, self.params.is_empty()) {
            queue.write_buffer(ring, 0, &self.params);
        }
        let mut times = Vec::new();
        for command in &self.commands {
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            match command {
                Command::Copy(copy) => {
                    encoder.copy_buffer_to_buffer(
                        &copy.source,
                        copy.source_offset,
                        &copy.target,
                        copy.target_offset,
                        copy.bytes,
                    );
                    queue.submit([encoder.finish()]);
                }
                Command::Dispatch(dispatch) => {
                    let time =
                        timer.run(device, queue, encoder, |pass| self.encode(pass, dispatch));
                    times.push(KernelTime { kernel: dispatch.label.to_string(), ..time });
                }
            }
        }
        self.reset();
        times
    }

    fn reset(&mut self) {
        self.commands.clear();
        self.params.clear();
        self.work = 0.0;
        self.batch += 1;
        self.stats.submissions += 1;
    }

    /// Forgets everything recorded; used when a submission failed.
    pub(crate) fn discard(&mut self) {
        self.commands.clear();
        self.params.clear();
        self.work = 0.0;
        self.batch += 1;
    }

    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, dispatch: &Dispatch) {
        pass.set_pipeline(&dispatch.pipeline);
        pass.set_bind_group(0, &dispatch.bind_group, &[]);
        match (&dispatch.params, &self.ring) {
            (Params::Immediate(bytes), _) => pass.set_immediates(0, bytes),
            (Params::Ring(offset), Some((_, group))) => pass.set_bind_group(1, group, &[*offset]),
            _ => {}
        }
        match &dispatch.groups {
            Groups::Known([x, y, z]) => pass.dispatch_workgroups(*x, *y, *z),
            Groups::Indirect(buffer, offset) => pass.dispatch_workgroups_indirect(buffer, *offset),
        }
    }
}
