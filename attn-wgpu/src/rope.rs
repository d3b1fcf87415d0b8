//! Rotary position embedding.

use std::f64::consts::PI;
use std::sync::{Arc, Mutex};

use crate::error::Result;
use crate::gpu::Gpu;
use crate::guard::lock;
use crate::kernel::{Call, Constants, KernelSource};
use crate::rows::{self, Extents, Place, row_kernel};
use crate::tensor::{DType, Tensor};

pub(crate) const ROPE: KernelSource = row_kernel!("rope");

/// Which elements of a head form pairs that rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Layout {
    /// Element `i` of the first half of the rotated elements with element `i` of the second.
    #[default]
    Half,
    /// Neighbours: elements `2 i` and `2 i + 1`.
    Interleaved,
}

/// Angles of a rotary position embedding: pair `i` at position `p` turns by `p * frequencies[i]`,
/// and is multiplied by `attention_factor`.
///
/// With `pairs` frequencies the first `2 * pairs` elements of a head rotate; the rest pass through.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position, of each pair.
    pub frequencies: Vec<f64>,
    /// Factor of the rotated elements, 1 but for YaRN.
    pub attention_factor: f64,
    /// Which elements form pairs.
    pub layout: Layout,
}

/// Frequency-dependent scaling as Llama 3 uses it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3 {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// Frequencies with fewer turns than this in the original length are low.
    pub low_freq_factor: f64,
    /// Frequencies with more turns than this in the original length stay as they are.
    pub high_freq_factor: f64,
    /// Length that the model was trained for at first.
    pub original_length: f64,
}

/// Frequency-dependent scaling of YaRN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// Length that the model was trained for at first.
    pub original_length: f64,
    /// Pairs with more turns than this in the original length stay as they are; usually 32.
    pub beta_fast: f64,
    /// Pairs with fewer turns than this are divided by the factor; usually 1.
    pub beta_slow: f64,
    /// Factor of the rotated elements; `None`: `0.1 ln(factor) + 1`.
    pub attention_factor: Option<f64>,
}

impl Rope {
    /// `frequencies[i] = theta^(-2 i / dims)` for `dims` rotated elements.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if `dims` is odd or 0, or `theta` is not positive.
    pub fn new(dims: usize, theta: f64) -> Result<Rope> {
        if dims == 0 || !dims.is_multiple_of(2) {
            return Err(attn_core::Error::config("dims", "an even number above 0", dims).into());
        }
        check_positive("theta", theta)?;
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / dims as f64);
        let frequencies = (0..dims / 2).map(frequency).collect();
        Ok(Rope { frequencies, attention_factor: 1.0, layout: Layout::Half })
    }

    /// All frequencies divided by `factor`.
    ///
    /// # Errors
    /// As [`Rope::new`], and for a factor that is not positive.
    pub fn linear(dims: usize, theta: f64, factor: f64) -> Result<Rope> {
        check_positive("factor", factor)?;
        let mut rope = Rope::new(dims, theta)?;
        rope.frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
        Ok(rope)
    }

    /// With `turns` of a frequency `f` in the original length and
    /// `r = clamp((turns - low) / (high - low), 0, 1)`: `f <- (1 - r) f / factor + r f`.
    ///
    /// # Errors
    /// As [`Rope::new`], and for parameters that are not positive or `high <= low`.
    pub fn llama3(dims: usize, theta: f64, scaling: &Llama3) -> Result<Rope> {
        let Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_length } =
            *scaling;
        check_positive("factor", factor)?;
        check_positive("original_length", original_length)?;
        if high.is_nan() || low.is_nan() || high <= low {
            let expected = format!("above low_freq_factor {low}");
            return Err(attn_core::Error::config("high_freq_factor", expected, high).into());
        }
        let mut rope = Rope::new(dims, theta)?;
        for frequency in &mut rope.frequencies {
            let turns = original_length * *frequency / (2.0 * PI);
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            *frequency = (1.0 - kept) * *frequency / factor + kept * *frequency;
        }
        Ok(rope)
    }

    /// With `d(turns) = dims ln(original / (2 pi turns)) / (2 ln theta)` the pair that turns so
    /// often in the original length: pairs before `floor(d(beta_fast))` stay, those behind
    /// `ceil(d(beta_slow))` are divided by `factor`, between them the share falls linearly.
    ///
    /// # Errors
    /// As [`Rope::new`], and for parameters that are not positive, or `theta` of at most 1.
    pub fn yarn(dims: usize, theta: f64, scaling: &Yarn) -> Result<Rope> {
        let Yarn { factor, original_length, beta_fast, beta_slow, attention_factor } = *scaling;
        for (arg, value) in [
            ("factor", factor),
            ("original_length", original_length),
            ("beta_fast", beta_fast),
            ("beta_slow", beta_slow),
        ] {
            check_positive(arg, value)?;
        }
        if theta.is_nan() || theta <= 1.0 {
            return Err(attn_core::Error::config("theta", "above 1", theta).into());
        }
        let mut rope = Rope::new(dims, theta)?;
        let pair = |turns: f64| {
            dims as f64 * (original_length / (2.0 * PI * turns)).ln() / (2.0 * theta.ln())
        };
        let low = pair(beta_fast).floor().max(0.0);
        let high = pair(beta_slow).ceil().min(dims as f64 - 1.0);
        // Where both ends meet the share is a step.
        let width = if high > low { high - low } else { 1e-3 };
        for (i, frequency) in rope.frequencies.iter_mut().enumerate() {
            let kept = 1.0 - ((i as f64 - low) / width).clamp(0.0, 1.0);
            *frequency = *frequency / factor * (1.0 - kept) + *frequency * kept;
        }
        rope.attention_factor = attention_factor.unwrap_or(0.1 * factor.ln() + 1.0);
        Ok(rope)
    }

    /// With pairs in another layout.
    pub fn with_layout(mut self, layout: Layout) -> Rope {
        self.layout = layout;
        self
    }

    /// Cosines, then sines, of all pairs at a position, as kernels read them.
    fn row(&self, position: usize) -> impl Iterator<Item = f32> + '_ {
        let angle = move |frequency: &f64| position as f64 * frequency;
        let value = move |value: f64| (value * self.attention_factor) as f32;
        let cosines = self.frequencies.iter().map(move |f| value(angle(f).cos()));
        cosines.chain(self.frequencies.iter().map(move |f| value(angle(f).sin())))
    }
}

fn check_positive(arg: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(attn_core::Error::config(arg, "a positive number", value).into())
}

/// A [`Rope`] on a device: cosines and sines of all positions so far asked for, computed in f64.
/// Clones share the table.
///
/// Positions are on the device, so nothing can check them when they are applied: [`reserve`]
/// guarantees that the table has them. A position beyond the table gives NaN.
///
/// [`reserve`]: RopeTable::reserve
#[derive(Debug, Clone)]
pub struct RopeTable {
    gpu: Gpu,
    rope: Arc<Rope>,
    max_positions: usize,
    /// `[positions, 2 * pairs]`.
    table: Arc<Mutex<Option<Tensor>>>,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    extents: Extents,
    x: Place,
    out: Place,
    positions: Place,
    pairs: u32,
    table_rows: u32,
    nan: u32,
}

impl RopeTable {
    /// An empty table that may grow to `max_positions`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for no frequency, or numbers that are not finite.
    pub fn new(gpu: &Gpu, rope: Rope, max_positions: usize) -> Result<RopeTable> {
        let finite = rope.frequencies.iter().chain([&rope.attention_factor]).all(|f| f.is_finite());
        if rope.frequencies.is_empty() || !finite {
            let got = format!("{:?}", rope.frequencies);
            return Err(attn_core::Error::config("frequencies", "finite numbers", got).into());
        }
        let table = Arc::new(Mutex::new(None));
        Ok(RopeTable { gpu: gpu.clone(), rope: Arc::new(rope), max_positions, table })
    }

    /// The angles.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Makes sure that the table has the positions `0..positions`. It grows to powers of two.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] beyond the maximum; allocation errors.
    pub fn reserve(&self, positions: usize) -> Result<()> {
        if positions > self.max_positions {
            let expected = format!("at most {}", self.max_positions);
            return Err(attn_core::Error::config("positions", expected, positions).into());
        }
        let mut table = lock(&self.table);
        if table.as_ref().is_some_and(|table| table.shape()[0] >= positions) {
            return Ok(());
        }
        let rows = positions.next_power_of_two().max(64).min(self.max_positions);
        let data: Vec<f32> = (0..rows).flat_map(|position| self.rope.row(position)).collect();
        *table = Some(Tensor::from_slice(&self.gpu, &data, &[rows, data.len() / rows.max(1)])?);
        Ok(())
    }

    /// Positions that the table has.
    pub fn positions(&self) -> usize {
        lock(&self.table).as_ref().map_or(0, |table| table.shape()[0])
    }

    /// Rotates `x` `[batch, heads, tokens, dim]` by the angles of `positions`, u32 `[tokens]` or
    /// `[batch, tokens]`, all of them reserved.
    ///
    /// # Errors
    /// [`attn_core::Error`] for other shapes or types, or fewer elements a head than rotate.
    pub fn apply(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let positions = self.check(x, positions)?;
        rows::write(&self.gpu, x.shape(), x.dtype(), |out| self.run(x, &positions, out))
    }

    /// [`RopeTable::apply`] into a caller's tensor, whose type counts: with any strides of rows, for
    /// example room in a [`KvCache`](crate::cache::KvCache). It must not overlap `x`.
    ///
    /// # Errors
    /// As [`RopeTable::apply`], and [`attn_core::Error`] for a target of another shape.
    pub fn apply_into(&self, x: &Tensor, positions: &Tensor, out: &Tensor) -> Result<()> {
        let positions = self.check(x, positions)?;
        rows::check("out", out, &self.gpu)?;
        rows::check_form("out", out, x.shape(), out.dtype())?;
        rows::write_into(out, |out| self.run(x, &positions, out))
    }

    /// Checks a call; returns the positions as `[batch, heads, tokens, 1]`.
    fn check(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        rows::check("x", x, &self.gpu)?;
        let rotated = 2 * self.rope.frequencies.len();
        let &[batch, heads, tokens, dim] = x.shape() else {
            let expected = "[batch, heads, tokens, dim]";
            return Err(attn_core::Error::shape("x", expected, x.shape()).into());
        };
        if dim < rotated {
            let expected = format!("a last extent of at least {rotated}");
            return Err(attn_core::Error::shape("x", expected, x.shape()).into());
        }
        rows::check_device("positions", positions, &self.gpu)?;
        rows::check_form("positions", positions, positions.shape(), DType::U32)?;
        let (own, stride) = match (positions.shape(), positions.strides()) {
            (&[own], &[stride]) if own == tokens => (0, stride),
            (&[of, own], &[batch_stride, stride]) if of == batch && own == tokens => {
                (batch_stride, stride)
            }
            (shape, _) => {
                let expected = format!("[{tokens}] or [{batch}, {tokens}]");
                return Err(attn_core::Error::shape("positions", expected, shape).into());
            }
        };
        Ok(positions.with_layout(&[batch, heads, tokens, 1], &[own, 0, stride, 1]))
    }

    /// Constants of the kernel for these pairs.
    pub(crate) fn constants(
        constants: Constants,
        layout: Layout,
        pairs: usize,
        source: DType,
        target: DType,
    ) -> Constants {
        rows::storage(constants, source, Some(target))
            .flag("INTERLEAVED", layout == Layout::Interleaved)
            .flag("ALIGNED", layout == Layout::Half && pairs.is_multiple_of(4))
    }

    fn run(&self, x: &Tensor, positions: &Tensor, out: &Tensor) -> Result<()> {
        let (gpu, pairs) = (&self.gpu, self.rope.frequencies.len());
        // Without any position reserved all results are NaN; the kernel still binds a table.
        let table = lock(&self.table).clone();
        let table_rows = table.as_ref().map_or(0, |table| table.shape()[0]);
        let table = match table {
            Some(table) => table,
            None => Tensor::uninit(gpu, &[4], DType::F32)?,
        };
        let x = rows::source(x)?;
        let (constants, per_group) = rows::elementwise(gpu.capabilities());
        let constants = Self::constants(constants, self.rope.layout, pairs, x.dtype(), out.dtype());
        let kernel = gpu.kernel(&ROPE, constants)?;
        rows::windows(&[&x, positions, out], 0..3, &mut |windows| {
            let &[x, positions, out] = windows else { return Ok(()) };
            let (x_binding, x_place) = rows::bind(x);
            let (out_binding, out_place) = rows::bind_target(out, &[x, positions]);
            let (positions_binding, start) = positions.binding();
            let params = Params {
                extents: Extents::of(x, x.shape()[3] / 4),
                x: x_place,
                out: out_place,
                positions: rows::place(positions, start, 1),
                pairs: pairs as u32,
                table_rows: table_rows as u32,
                nan: f32::NAN.to_bits(),
            };
            let groups = (x.len() as u64 / 4).div_ceil(per_group);
            let bindings = [x_binding, positions_binding, table.binding().0, out_binding];
            let (params, work) = (bytemuck::bytes_of(&params), 3.0 * x.len() as f64);
            kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })
        })
    }
}
