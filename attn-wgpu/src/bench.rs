//! What a benchmark needs to know of a mechanism (feature `bench`), and the probes that its speed
//! is compared with; and clocks. Samples and their statistics are the business of callers.

mod clock;
mod kernels;
mod packed;
mod plans;
mod rows;
mod stream;
#[cfg(feature = "criterion")]
mod timed;

pub use clock::{Clock, best_seconds, cores, cpu_time};
pub use kernels::{Deviation, KernelCase, PreparedKernel, kernel_cases};
pub use packed::quantized;
pub use plans::{RandomPlan, reference_on_plan, simple_on_plan};
pub use stream::{DenseStream, STREAM_TOKENS, Stream, Streamed, tokens};
#[cfg(feature = "criterion")]
pub use timed::{Timed, with_criterion};

use attn_core::dense::{self, Config};
use attn_core::ndarray::Array4;
use attn_core::plan::SparsePlan;
use attn_core::testing::{Budget, HostArrays, HostInputs, simple_f32};
use attn_core::{AttentionShape, BitMask, Mask};
use half::{bf16, f16};

use crate::attention::{Attention, Inputs};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Call, Constants, KernelSource};
use crate::ops::{self, SNIPPETS};
use crate::tensor::{DType, Tensor};

/// A mechanism that benchmarks can run: one registry line a paper.
pub trait Mechanism: Send + Sync {
    /// Name in tables and reports.
    fn name(&self) -> &'static str;

    /// Type that inputs and results are stored in. Inputs come rounded to it.
    fn dtype(&self) -> DType {
        DType::F32
    }

    /// Whether a run on these extents, under this mask, says anything about the mechanism.
    fn is_for(&self, _shape: &AttentionShape, _config: &Config) -> bool {
        true
    }

    /// Whether it reads tokens one by one behind a text: see [`Streamed`]. Such mechanisms have problems
    /// of their own.
    fn is_stream(&self) -> bool {
        false
    }

    /// Uploads the inputs and compiles what is needed.
    ///
    /// # Errors
    /// Those of the device, and of inputs that the mechanism does not take.
    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, config: &Config)
    -> Result<Box<dyn Prepared>>;

    /// What [`Prepared::record`] returns, in f64. A mechanism that chooses keys does it on those that a run
    /// has `chosen`, or on its own choice where there are none: a choice that rounding turned is one thing,
    /// and attention on what was chosen another.
    ///
    /// # Errors
    /// Those of inputs that the mechanism does not take.
    fn reference(
        &self,
        inputs: &HostArrays,
        config: &Config,
        rows: &[usize],
        chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference>;

    /// The same results by a simple implementation in f32, row-major, where there is one: the
    /// yardstick of their error budget. Otherwise fixed bounds apply.
    ///
    /// # Errors
    /// Those of inputs that the mechanism does not take.
    fn simple(
        &self,
        _inputs: &HostInputs,
        _config: &Config,
        _rows: &[usize],
        _chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        Ok(None)
    }

    /// The keys that the f64 reference chooses, where the mechanism chooses any.
    ///
    /// # Errors
    /// Those of inputs that the mechanism does not take.
    fn choice(
        &self,
        _inputs: &HostArrays,
        _config: &Config,
    ) -> attn_core::Result<Option<SparsePlan>> {
        Ok(None)
    }

    /// What dense attention would be given in its place: the mass that a choice keeps is of that.
    ///
    /// # Errors
    /// Those of inputs that the mechanism does not take.
    fn dense(
        &self,
        inputs: &HostArrays,
        config: &Config,
    ) -> attn_core::Result<(HostArrays, Config)> {
        Ok((inputs.clone(), config.clone()))
    }

    /// Floating-point operations of one run; of all pairs that the mask allows, where the mechanism chooses
    /// among them.
    fn flops(&self, shape: &AttentionShape, config: &Config) -> f64;

    /// Bytes that one run has to move at least: inputs read once, outputs written once.
    fn bytes(&self, shape: &AttentionShape, config: &Config) -> f64;
}

/// Results of a reference.
#[derive(Debug, Clone)]
pub struct Reference {
    /// In the order of [`Prepared::record`]. A result with a row for each query holds the rows that
    /// were asked for; others are whole.
    pub results: Vec<Array4<f64>>,
    /// Magnitude of the logits, which the error budget depends on; 0 if there are none.
    pub logits: f64,
}

/// A mechanism with its inputs on a device.
pub trait Prepared {
    /// Records one run and returns its results with their names: tensors of rank 4, f32 or a half
    /// type, queries or keys in dimension 2.
    ///
    /// # Errors
    /// Those of the device.
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>>;

    /// The variant that runs, as kernel labels spell it.
    fn variant(&self) -> String;

    /// Reads back which keys a run attends to, where the mechanism chooses any.
    ///
    /// # Errors
    /// Those of the device.
    fn chosen(&self) -> Result<Option<SparsePlan>> {
        Ok(None)
    }

    /// Records one stage of a run alone, `false` where there is no such stage.
    ///
    /// # Errors
    /// Those of the device.
    fn stage(&self, _stage: Stage) -> Result<bool> {
        Ok(false)
    }
}

/// Stages of mechanisms that choose keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Finds the keys.
    Select,
    /// Attends to keys that were chosen before.
    Attend,
}

/// The mask of the queries `rows` alone, as explicit bits: with it a few queries of a long sequence
/// are a problem of their own.
pub fn mask_of_rows(shape: &AttentionShape, mask: &Mask, rows: &[usize]) -> Mask {
    let allows = |row: usize, key| mask.allows(shape.lengths(), rows[row], key);
    Mask::Bits(BitMask::from_fn(rows.len(), shape.keys, allows))
}

/// The queries `rows` of every head of `data` `[batch, heads, queries, dim]`.
pub fn pick_rows<T: Copy>(data: &[T], shape: [usize; 4], rows: &[usize]) -> Vec<T> {
    let [batch, heads, queries, dim] = shape;
    let starts = (0..batch * heads)
        .flat_map(|head| rows.iter().map(move |row| (head * queries + row) * dim));
    starts.filter_map(|start| data.get(start..start + dim)).flatten().copied().collect()
}

/// Uploads `data` as a tensor of type `dtype`: f32, or rounded to a half type.
///
/// # Errors
/// As [`Tensor::from_slice`]; [`attn_core::Error::Data`] for a type of integers.
pub fn upload(gpu: &Gpu, dtype: DType, data: &[f32], shape: &[usize]) -> Result<Tensor> {
    match dtype {
        DType::F32 => Tensor::from_slice(gpu, data, shape),
        DType::F16 => Tensor::from_slice(
            gpu,
            &data.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>(),
            shape,
        ),
        DType::BF16 => Tensor::from_slice(
            gpu,
            &data.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(),
            shape,
        ),
        _ => Err(attn_core::Error::data("dtype", "a floating-point type", dtype.name()).into()),
    }
}

/// Uploads queries, keys and values, see [`upload`].
///
/// # Errors
/// As [`upload`].
pub fn upload_inputs(gpu: &Gpu, dtype: DType, inputs: &HostInputs) -> Result<[Tensor; 3]> {
    let HostInputs { shape, q, k, v, .. } = inputs;
    Ok([
        upload(gpu, dtype, q, &shape.q())?,
        upload(gpu, dtype, k, &shape.k())?,
        upload(gpu, dtype, v, &shape.v())?,
    ])
}

/// That logits are scaled products and nothing more, for mechanisms that are defined on these alone.
///
/// # Errors
/// [`attn_core::Error::Config`] for a soft-cap or a modifier.
pub fn plain_logits(config: &Config) -> attn_core::Result<()> {
    if let Some(cap) = config.soft_cap {
        return Err(attn_core::Error::config("soft_cap", "none", cap));
    }
    match &config.modifier {
        None => Ok(()),
        Some(modifier) => Err(attn_core::Error::config("modifier", "none", modifier.name())),
    }
}

/// Dense attention, the baseline of all others.
#[derive(Debug, Clone, Copy)]
pub struct DenseAttention {
    name: &'static str,
    dtype: DType,
}

impl DenseAttention {
    /// In single precision.
    pub const F32: DenseAttention = DenseAttention { name: "dense", dtype: DType::F32 };
    /// Stored in half precision. All arithmetic is in f32.
    pub const F16: DenseAttention = DenseAttention { name: "dense-f16", dtype: DType::F16 };
}

struct PreparedDense {
    attention: Attention,
    shape: AttentionShape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Mechanism for DenseAttention {
    fn name(&self) -> &'static str {
        self.name
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn prepare(
        &self,
        gpu: &Gpu,
        inputs: &HostInputs,
        config: &Config,
    ) -> Result<Box<dyn Prepared>> {
        let attention = Attention::new(gpu, config.clone())?;
        let [q, k, v] = upload_inputs(gpu, self.dtype, inputs)?;
        Ok(Box::new(PreparedDense { attention, shape: inputs.shape, q, k, v }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        config: &Config,
        rows: &[usize],
        _: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        let output = dense::forward_rows(inputs.view(), config, rows)?;
        Ok(Reference { logits: Budget::for_output(&output).logits, results: vec![output.out] })
    }

    fn simple(
        &self,
        inputs: &HostInputs,
        config: &Config,
        rows: &[usize],
        _: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        let shape = inputs.shape;
        if rows.len() == shape.queries {
            return Ok(Some(vec![simple_f32(inputs, config)?.out]));
        }
        if config.modifier.is_some() {
            // Modifiers ask for positions, which rows alone do not have.
            let whole = simple_f32(inputs, config)?.out;
            return Ok(Some(vec![pick_rows(&whole, shape.out(), rows)]));
        }
        let some = HostInputs {
            shape: AttentionShape { queries: rows.len(), ..shape },
            q: pick_rows(&inputs.q, shape.q(), rows),
            ..inputs.clone()
        };
        let config = config.clone().with_mask(mask_of_rows(&shape, &config.mask, rows));
        Ok(Some(vec![simple_f32(&some, &config)?.out]))
    }

    fn flops(&self, shape: &AttentionShape, config: &Config) -> f64 {
        shape.flops(&config.mask)
    }

    fn bytes(&self, shape: &AttentionShape, _config: &Config) -> f64 {
        let elements = |shape: [usize; 4]| shape.into_iter().product::<usize>();
        let all = [shape.q(), shape.k(), shape.v(), shape.out()].map(elements);
        let lse = shape.batch * shape.heads * shape.queries;
        (self.dtype.bytes() * all.iter().sum::<usize>() + 4 * lse) as f64
    }
}

impl Prepared for PreparedDense {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let (q, k, v) = (&self.q, &self.k, &self.v);
        Ok(vec![("out", self.attention.forward(Inputs::new(q, k, v))?.out)])
    }

    fn variant(&self) -> String {
        let (name, variant) = self.attention.variant(&self.shape);
        format!("{name}: {variant}")
    }
}

/// Independent fused multiply-adds in registers.
pub struct FmaProbe {
    gpu: Gpu,
    sums: Tensor,
    workgroup: u32,
    chains: u32,
}

/// FMAs of four elements that an invocation does in one round, and rounds: enough that the loop
/// around them does not count.
const FMAS: u32 = 60;
const ROUNDS: u32 = 512;

impl FmaProbe {
    const SOURCE: KernelSource = KernelSource {
        name: "probe_fma",
        text: include_str!("../kernels/probe_fma.wgsl"),
        imports: SNIPPETS,
    };

    /// The yardstick that speeds are given as a share of: four chains of four elements. It says how
    /// fast plain code is on this machine and driver at this moment; it is not the peak.
    ///
    /// # Errors
    /// Those of the device.
    pub fn yardstick(gpu: &Gpu) -> Result<FmaProbe> {
        FmaProbe::new(gpu, 4)
    }

    /// Three chains, which just fit the 16 registers of an x86 processor: the fastest there. On
    /// other devices the number of chains that hides the latency best may be another one.
    ///
    /// # Errors
    /// Those of the device.
    pub fn peak(gpu: &Gpu) -> Result<FmaProbe> {
        FmaProbe::new(gpu, 3)
    }

    fn new(gpu: &Gpu, chains: u32) -> Result<FmaProbe> {
        let workgroup = ops::workgroup(gpu.capabilities());
        let invocations = match gpu.capabilities().kind {
            crate::DeviceKind::Cpu => 1 << 12,
            _ => 1 << 18,
        };
        let sums = Tensor::uninit(gpu, &[invocations], DType::F32)?;
        Ok(FmaProbe { gpu: gpu.clone(), sums, workgroup, chains })
    }

    /// Records one run.
    ///
    /// # Errors
    /// Those of the device.
    pub fn record(&self) -> Result<()> {
        let constants = Constants::new()
            .int("WORKGROUP", self.workgroup)
            .int("CHAINS", self.chains)
            .int("STEPS", FMAS / self.chains);
        let kernel = self.gpu.kernel(&Self::SOURCE, constants)?;
        // Neither factor nor term may be a value that the compiler can do without.
        let params = [ROUNDS, 0.999f32.to_bits(), 0.001f32.to_bits()];
        kernel.dispatch(
            &self.gpu,
            &Call {
                bindings: &[self.sums.binding().0],
                params: bytemuck::cast_slice(&params),
                groups: (self.sums.len() / self.workgroup as usize) as u64,
                work: self.flops(),
            },
        )
    }

    /// Floating-point operations of one run: two an FMA.
    pub fn flops(&self) -> f64 {
        self.sums.len() as f64 * f64::from(FMAS * ROUNDS) * 4.0 * 2.0
    }
}

/// A copy of memory in order: the bandwidth that no kernel exceeds.
pub struct CopyProbe {
    source: Tensor,
    copied: Tensor,
}

impl CopyProbe {
    const SOURCE: KernelSource = KernelSource {
        name: "probe_copy",
        text: include_str!("../kernels/probe_copy.wgsl"),
        imports: SNIPPETS,
    };

    /// A copy of 64 MiB, or as much as one binding holds.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(gpu: &Gpu) -> Result<CopyProbe> {
        let bytes = gpu.capabilities().max_binding_bytes.min(64 << 20) as usize;
        let elements = bytes / 16 * 4;
        let source = Tensor::full(gpu, &[elements], 1f32)?;
        let copied = Tensor::uninit(gpu, &[elements], DType::F32)?;
        Ok(CopyProbe { source, copied })
    }

    /// Records one run.
    ///
    /// # Errors
    /// Those of the device.
    pub fn record(&self) -> Result<()> {
        let gpu = self.source.gpu();
        let (workgroup, items) = (ops::workgroup(gpu.capabilities()), 8);
        let constants = Constants::new().int("WORKGROUP", workgroup).int("ITEMS", items);
        let kernel = gpu.kernel(&Self::SOURCE, constants)?;
        let count = (self.source.len() / 4) as u32;
        kernel.dispatch(
            gpu,
            &Call {
                bindings: &[self.source.binding().0, self.copied.binding().0],
                params: bytemuck::bytes_of(&count),
                groups: u64::from(count.div_ceil(workgroup * items)),
                work: 0.0,
            },
        )
    }

    /// Bytes that one run reads and writes.
    pub fn bytes(&self) -> f64 {
        2.0 * 4.0 * self.source.len() as f64
    }
}
