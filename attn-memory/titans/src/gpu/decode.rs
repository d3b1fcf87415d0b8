//! Token by token: a memory whose state changes in place.

use attn_core::Error;
use attn_wgpu::{Binding, Call, Capabilities, Constants, DType, DeviceKind, Result, Tensor, ops};

use super::kernels::{PACK, Run, TOKEN, with_snippets};
use super::state::{check_tensor, copied};
use super::{Inputs, State, Titans};
use crate::{Activation, Config};

/// Smallest number of vec4s in workgroup memory that the kernel of tokens is compiled for.
pub(super) const LEAST_ROOM: usize = 64;

/// A stream: the same as [`Titans::forward`] with single tokens, up to rounding. Its state lies side by side on
/// the device and changes in place, so that a token costs two dispatches and no memory, at any position.
#[derive(Debug)]
pub struct Decoder {
    titans: Titans,
    /// `[batch, heads, ..]`: weights, momentum, and the weights at the start of the chunk, all layers each.
    data: Tensor,
    position: usize,
}

impl Titans {
    /// A stream that goes on from `state`, which stays as it is.
    ///
    /// # Errors
    /// [`attn_core::Error`] for a state of another configuration, and for a bound of norms, which single tokens
    /// do not have; [`attn_wgpu::Error::Limit`] for memories
    /// whose vectors do not fit workgroup memory (some thousand elements in all) or whose matrices take one
    /// workgroup too many steps; those of the device.
    pub fn decoder(&self, state: &State) -> Result<Decoder> {
        let batch = state.w.first().map_or(0, |layer| layer.shape()[0]);
        self.check_state(state, batch)?;
        self.check_token()?;
        let shape = [batch, self.config.heads, 3 * weights(&self.config)];
        let data = Tensor::uninit(&self.gpu, &shape, DType::F32)?;
        let decoder = Decoder { titans: self.clone(), data, position: state.position };
        for (part, layers) in [&state.w, &state.s, &state.start].into_iter().enumerate() {
            for (layer, view) in layers.iter().zip(decoder.layers(part)?) {
                ops::copy(layer, &view)?;
            }
        }
        Ok(decoder)
    }

    /// The output of the next tokens, one or more, `[batch, heads, new, dim_v]`. The state goes on; where the
    /// call fails it is as before. For many single tokens a [`Decoder`] costs less.
    ///
    /// # Errors
    /// As [`Titans::forward`].
    pub fn decode(&self, state: &mut State, inputs: Inputs<'_>) -> Result<Tensor> {
        let output = self.forward(inputs, state)?;
        *state = output.state;
        Ok(output.y)
    }

    fn check_token(&self) -> Result<()> {
        if let Some(norm) = self.config.max_grad_norm {
            return Err(Error::config("max_grad_norm", "none in a stream", norm).into());
        }
        let capabilities = self.gpu.capabilities();
        capabilities.check_steps("`titans_token`".into(), steps(&self.config, capabilities))?;
        let kernel = constants(capabilities, activation(&self.config), room(&self.config));
        self.gpu.kernel(&TOKEN, kernel).map(drop)
    }

    /// Whether the device computes memories of this size token by token.
    pub(super) fn has_tokens(&self) -> Result<bool> {
        if self.config.max_grad_norm.is_some() {
            return Ok(false);
        }
        match self.check_token() {
            Err(attn_wgpu::Error::Limit { .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }
}

impl Decoder {
    /// What the next tokens read, one or more, `[batch, heads, new, dim_v]`.
    ///
    /// # Errors
    /// As [`Titans::forward`]; the stream stays as it was then.
    pub fn decode(&mut self, inputs: Inputs<'_>) -> Result<Tensor> {
        let [batch, heads, tokens] = self.titans.check_inputs(inputs)?;
        let (gpu, dim_v) = (self.titans.gpu.clone(), self.titans.config.dim_v);
        if batch != self.data.shape()[0] {
            let expected = format!("a batch of {}", self.data.shape()[0]);
            return Err(Error::shape("q", expected, inputs.q.shape()).into());
        }
        let dtype = inputs.q.dtype();
        if batch * heads * tokens == 0 {
            return Tensor::zeros(&gpu, &[batch, heads, tokens, dim_v], dtype);
        }
        let rows = |width| Tensor::uninit(&gpu, &[batch, heads, tokens, width], DType::F32);
        let [depth, _, width] = chunks(&self.titans.config);
        let packed = rows(4 * (2 * depth + width + 1))?;
        let y = rows(4 * width)?;
        self.pack(inputs, &packed)?;
        let most = self.tokens_at_once(batch * heads);
        for first in (0..tokens).step_by(most) {
            self.run(&packed, &y, first, most.min(tokens - first))?;
        }
        let y = y.narrow(3, 0, dim_v)?;
        ops::convert(&y, dtype)
    }

    /// [`Decoder::decode`] into `out` `[batch, heads, new, dim_v]`, of any strides with a contiguous last
    /// dimension, of the queries' type.
    ///
    /// # Errors
    /// As [`Decoder::decode`], and for another `out`, before the stream goes on.
    pub fn decode_into(&mut self, inputs: Inputs<'_>, out: &Tensor) -> Result<()> {
        let [batch, heads, tokens] = self.titans.check_inputs(inputs)?;
        let expected = [batch, heads, tokens, self.titans.config.dim_v];
        check_tensor("out", out, &self.titans.gpu, &expected)?;
        if out.dtype() != inputs.q.dtype() {
            let (expected, got) = (inputs.q.dtype().name().into(), out.dtype().name().into());
            return Err(Error::Dtype { arg: "out", expected, got }.into());
        }
        ops::copy(&self.decode(inputs)?, out)
    }

    /// The state behind the last token, a copy.
    ///
    /// # Errors
    /// Those of allocations.
    pub fn state(&self) -> Result<State> {
        let part = |part| copied(&self.layers(part)?);
        // In chunks of one token the weights at their starts are not kept.
        let start = if self.titans.config.chunk == 1 { 0 } else { 2 };
        Ok(State { w: part(0)?, s: part(1)?, start: part(start)?, position: self.position })
    }

    /// Tokens since the start of the chunk.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes on the device; they do not grow.
    pub fn bytes(&self) -> usize {
        4 * self.data.len()
    }

    /// A copy that goes its own way.
    ///
    /// # Errors
    /// Those of allocations.
    pub fn fork(&self) -> Result<Decoder> {
        let data = Tensor::uninit(self.data.gpu(), self.data.shape(), DType::F32)?;
        ops::copy(&self.data, &data)?;
        Ok(Decoder { titans: self.titans.clone(), data, position: self.position })
    }

    /// The layers of one part of the state, as views `[batch, heads, in, out]`.
    fn layers(&self, part: usize) -> Result<Vec<Tensor>> {
        let mut start = part * weights(&self.titans.config);
        let layer = |[rows, columns]: [usize; 2]| {
            let view = self.data.narrow(2, start, rows * columns)?;
            start += rows * columns;
            view.split(2, &[rows, columns])
        };
        padded(&self.titans.config).into_iter().map(layer).collect()
    }

    fn pack(&self, inputs: Inputs<'_>, packed: &Tensor) -> Result<()> {
        let config = &self.titans.config;
        let given = [inputs.k, inputs.q, inputs.v, inputs.theta, inputs.eta, inputs.alpha];
        let tensors = given.map(|x| ops::convert(x, DType::F32));
        let mut bound = Vec::new();
        let tokens = packed.shape()[2];
        // Behind the count, up to what four numbers are aligned to.
        let mut params = [config.heads, tokens, config.dim_qk, config.dim_v, 0, 0, 0].to_vec();
        for tensor in tensors {
            let tensor = tensor?;
            params.push(tensor.binding().1);
            params.extend(&tensor.strides()[..3]);
            bound.push(tensor);
        }
        bound.push(packed.clone());
        let run = Run {
            source: &PACK,
            activation: None,
            tensors: &bound.iter().collect::<Vec<_>>(),
            count: packed.len() / 4,
            params: &params.into_iter().map(|number| number as u32).collect::<Vec<_>>(),
            steps: 4,
            work: 8,
        };
        run.record(&self.titans.gpu)
    }

    fn run(&mut self, packed: &Tensor, y: &Tensor, first: usize, length: usize) -> Result<()> {
        let (gpu, config) = (&self.titans.gpu, &self.titans.config);
        let capabilities = gpu.capabilities();
        let [depth, hidden, width] = chunks(config);
        let planes = packed.shape()[0] * packed.shape()[1];
        let numbers = [
            planes,
            packed.shape()[2],
            first,
            length,
            config.chunk.min(u32::MAX as usize),
            self.position,
            depth,
            hidden,
            width,
        ];
        let mut params: Vec<u32> = numbers.into_iter().map(|number| number as u32).collect();
        params.push((config.coefficient as f32).to_bits());
        let bindings: Vec<Binding> =
            [packed, &self.data, y].into_iter().map(|tensor| tensor.binding().0).collect();
        let call = Call {
            bindings: &bindings,
            params: bytemuck::cast_slice(&params),
            groups: planes as u64,
            work: length as f64 * work(config, planes),
        };
        let kernel = constants(capabilities, activation(config), room(config));
        gpu.kernel(&TOKEN, kernel)?.dispatch(gpu, &call)?;
        self.position = (self.position + length) % config.chunk;
        Ok(())
    }

    /// Tokens in one dispatch.
    fn tokens_at_once(&self, planes: usize) -> usize {
        let (gpu, config) = (&self.titans.gpu, &self.titans.config);
        let steps = steps(config, gpu.capabilities());
        let by_steps = (gpu.capabilities().max_loop_steps - 1) / steps;
        let by_work = gpu.max_work_per_dispatch() / work(config, planes);
        by_steps.min(by_work as usize).max(1)
    }
}

/// Rows and columns of every layer, filled up.
fn padded(config: &Config) -> Vec<[usize; 2]> {
    let fill = |extents: [usize; 2]| extents.map(|extent| extent.next_multiple_of(4));
    config.layers().into_iter().map(fill).collect()
}

/// Weights of a memory, with those that fill it up.
fn weights(config: &Config) -> usize {
    padded(config).iter().map(|[rows, columns]| rows * columns).sum()
}

/// vec4s of keys, of what is between the layers, and of values.
fn chunks(config: &Config) -> [usize; 3] {
    [config.dim_qk, config.hidden.unwrap_or(0), config.dim_v].map(|extent| extent.div_ceil(4))
}

fn activation(config: &Config) -> Option<Activation> {
    config.hidden.map(|_| config.activation)
}

/// Operations of a token.
fn work(config: &Config, planes: usize) -> f64 {
    12.0 * (weights(config) * planes) as f64
}

/// vec4s in workgroup memory.
fn room(config: &Config) -> usize {
    let [depth, hidden, width] = chunks(config);
    (2 * depth + 3 * hidden + width).next_power_of_two().max(LEAST_ROOM)
}

/// Lanes with columns of their own, and those that share the rows of each.
fn lanes(capabilities: &Capabilities) -> [u32; 2] {
    match capabilities.kind {
        DeviceKind::Cpu => [8, 1],
        _ => [16, 16.min(capabilities.max_workgroup_threads / 16).max(1)],
    }
}

/// Steps of all loops of an invocation for a token. Twice as many as there are: the one that a loop ends with
/// counts, too, and a memory of 4 x 4 elements was measured at 13 where 11 are written.
fn steps(config: &Config, capabilities: &Capabilities) -> usize {
    let [columns, parts] = lanes(capabilities).map(|lanes| lanes as usize);
    let gathering = if parts > 1 { parts + 1 } else { 0 };
    let product = |[rows, out]: [usize; 2]| {
        1 + (out / 4).div_ceil(columns) * ((rows / 4).div_ceil(parts) + 2 + gathering)
    };
    let layers = padded(config);
    let back = layers.get(1).map_or(0, |&[rows, out]| product([out, rows]));
    let loads = 1 + (2 * chunks(config)[0]).div_ceil(columns * parts);
    2 * (1 + loads + back + 2 * layers.into_iter().map(product).sum::<usize>())
}

pub(super) fn constants(
    capabilities: &Capabilities,
    activation: Option<Activation>,
    room: usize,
) -> Constants {
    let [columns, parts] = lanes(capabilities);
    let constants = Constants::new()
        .int("COLUMNS", columns)
        .int("PARTS", parts)
        .int("ROOM", u32::try_from(room).unwrap_or(u32::MAX))
        .flag("SHARED", parts > 1);
    with_snippets(constants, activation)
}
