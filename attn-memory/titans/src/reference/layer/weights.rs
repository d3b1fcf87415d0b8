//! What a layer learns.

use std::path::Path;

use attn_core::{ArrayFile, Error, Result};
use ndarray::{Array1, Array2, Array3, ArrayViewD, ArrayViewMutD};

use super::super::expect;
use crate::{Combination, LayerConfig};

/// A gate of every head: `sigmoid(x g^T + b)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// `[heads, d_model]`.
    pub g: Array2<f64>,
    /// `[heads]`.
    pub b: Array1<f64>,
}

/// Projections of attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Queries `[heads * dim, d_model]`.
    pub q: Array2<f64>,
    /// Keys `[heads * dim, d_model]`.
    pub k: Array2<f64>,
    /// Values `[heads * dim, d_model]`.
    pub v: Array2<f64>,
    /// Out `[d_model, heads * dim]`.
    pub o: Array2<f64>,
}

/// What comes behind the memory's heads: `(RMSNorm(y) * gain * silu(x Wgate^T)) Wout^T`.
#[derive(Debug, Clone, PartialEq)]
pub struct Readout {
    /// `[heads * dim_v, d_model]`.
    pub gate: Array2<f64>,
    /// `[d_model, heads * dim_v]`.
    pub out: Array2<f64>,
    /// `[heads * dim_v]`.
    pub gain: Array1<f64>,
}

/// Weights of a layer; those of linear maps are `[out, in]`, without a bias.
///
/// A memory alone has a `readout`, as context has `attention` and `norms`, as gate has all three, as layer
/// has `attention` and `readout`. What is not of the combination must not be there.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Queries, keys and values of the memory, `[heads * dim_qk, d_model]`, twice, and
    /// `[heads * dim_v, d_model]`.
    pub projections: [Array2<f64>; 3],
    /// Kernels of the convolutions of queries, keys and values, `[kernel, features]`; row 0 is the token's
    /// own.
    pub conv: Option<[Array2<f64>; 3]>,
    /// Step, momentum and forgetting.
    pub gates: [Gate; 3],
    /// The memory before the first token, by layer `[heads, in, out]`.
    pub memory: Vec<Array3<f64>>,
    /// Learned tokens in front of every sequence `[persistent, d_model]`; there may be none.
    pub persistent: Array2<f64>,
    /// Attention beside the memory.
    pub attention: Option<Attention>,
    /// What comes behind the memory.
    pub readout: Option<Readout>,
    /// Gains `[d_model]` of the norms of attention and memory, of which one gates the other.
    pub norms: Option<[Array1<f64>; 2]>,
}

/// What the file of weights says it is.
const KIND: &str = "attn-titans weights";
const PROJECTIONS: [&str; 3] = ["w_q", "w_k", "w_v"];
const CONV: [&str; 3] = ["conv_q", "conv_k", "conv_v"];
const GATES: [[&str; 2]; 3] =
    [["g_theta", "gb_theta"], ["g_eta", "gb_eta"], ["g_alpha", "gb_alpha"]];
const MEMORY: [&str; 2] = ["m_w0", "m_w1"];
const PERSISTENT: &str = "persist";
const ATTENTION: [&str; 4] = ["a_q", "a_k", "a_v", "a_o"];
const READOUT: [&str; 3] = ["w_gate", "w_out", "g_out"];
const NORMS: [&str; 2] = ["gam_y", "gam_m"];

/// Whether there is attention, a readout and norms.
fn parts(combination: &Combination) -> [bool; 3] {
    match combination {
        Combination::Alone => [false, true, false],
        Combination::Context { .. } | Combination::LiteralContext { .. } => [true, false, true],
        Combination::Gate { .. } => [true, true, true],
        Combination::Layer { .. } => [true, true, false],
    }
}

impl Weights {
    /// Zeros, and gains of 1, for [`Weights::named_mut`] to fill: tokens of `d_model` elements, convolutions
    /// of `kernel` tokens or none for 0, `persistent` tokens, and attention in heads of `dim_v` elements.
    ///
    /// # Errors
    /// As [`LayerConfig::validate`]; [`Error::Config`] for a `d_model` of 0, and [`Error::Shape`], where the
    /// memory is context, for one that is not `heads * dim_v`.
    pub fn new(
        config: &LayerConfig,
        d_model: usize,
        kernel: usize,
        persistent: usize,
    ) -> Result<Self> {
        config.validate()?;
        let memory = &config.memory;
        if d_model == 0 {
            return Err(Error::config("d_model", "at least 1", d_model));
        }
        let (queries, values) = (memory.heads * memory.dim_qk, memory.heads * memory.dim_v);
        let features = [queries, queries, values];
        let gate =
            || Gate { g: Array2::zeros((memory.heads, d_model)), b: Array1::zeros(memory.heads) };
        let rows = |rows: usize| Array2::zeros((rows, d_model));
        let [attention, readout, norms] = parts(&config.combination);
        let weights = Weights {
            projections: features.map(rows),
            conv: (kernel > 0).then(|| features.map(|features| Array2::zeros((kernel, features)))),
            gates: [gate(), gate(), gate()],
            memory: memory
                .layers()
                .into_iter()
                .map(|[m, n]| Array3::zeros((memory.heads, m, n)))
                .collect(),
            persistent: rows(persistent),
            attention: attention.then(|| Attention {
                q: rows(values),
                k: rows(values),
                v: rows(values),
                o: Array2::zeros((d_model, values)),
            }),
            readout: readout.then(|| Readout {
                gate: rows(values),
                out: Array2::zeros((d_model, values)),
                gain: Array1::ones(values),
            }),
            norms: norms.then(|| [Array1::ones(d_model), Array1::ones(d_model)]),
        };
        weights.check(config)?;
        Ok(weights)
    }

    /// Reads a safetensors file of this crate or of anybody: `w_q`, `w_k`, `w_v`; where there are any,
    /// `conv_q`, `conv_k`, `conv_v`; `g_theta`, `gb_theta`, `g_eta`, `gb_eta`, `g_alpha`, `gb_alpha`; `m_w0`
    /// and, for depth 2, `m_w1`; where there are any, `persist`, then `a_q`, `a_k`, `a_v`, `a_o`, then
    /// `w_gate`, `w_out`, `g_out`, then `gam_y`, `gam_m`; each with `prefix` before its name. Numbers may be
    /// f16, bf16, f32 or f64.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be read, or a tensor is missing or of another rank.
    pub fn load(path: impl AsRef<Path>, prefix: &str) -> Result<Self> {
        let file = ArrayFile::open(path)?;
        let name = |name: &str| format!("{prefix}{name}");
        let matrix = |at: &str| file.get(&name(at));
        let vector = |at: &str| file.get(&name(at));
        let has = |at: &str| file.contains(&name(at));
        let matrices = |names: [&str; 3]| -> Result<[Array2<f64>; 3]> {
            Ok([matrix(names[0])?, matrix(names[1])?, matrix(names[2])?])
        };
        let gate =
            |[g, b]: [&str; 2]| -> Result<Gate> { Ok(Gate { g: matrix(g)?, b: vector(b)? }) };
        let projections = matrices(PROJECTIONS)?;
        let none = Array2::zeros((0, projections[0].ncols()));
        let mut memory = vec![file.get(&name(MEMORY[0]))?];
        if has(MEMORY[1]) {
            memory.push(file.get(&name(MEMORY[1]))?);
        }
        let attention = || -> Result<Attention> {
            let [q, k, v, o] = ATTENTION.map(matrix);
            Ok(Attention { q: q?, k: k?, v: v?, o: o? })
        };
        let readout = || -> Result<Readout> {
            let [gate, out, gain] = READOUT;
            Ok(Readout { gate: matrix(gate)?, out: matrix(out)?, gain: vector(gain)? })
        };
        let norms = || -> Result<[Array1<f64>; 2]> { Ok([vector(NORMS[0])?, vector(NORMS[1])?]) };
        Ok(Weights {
            conv: has(CONV[0]).then(|| matrices(CONV)).transpose()?,
            gates: [gate(GATES[0])?, gate(GATES[1])?, gate(GATES[2])?],
            memory,
            persistent: if has(PERSISTENT) { matrix(PERSISTENT)? } else { none },
            attention: has(ATTENTION[0]).then(attention).transpose()?,
            readout: has(READOUT[0]).then(readout).transpose()?,
            norms: has(NORMS[0]).then(norms).transpose()?,
            projections,
        })
    }

    /// Writes a safetensors file of f64 that [`Weights::load`] reads.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let file = ArrayFile::new(KIND);
        self.named()
            .into_iter()
            .fold(file, |file, (name, array)| file.with(name, array))
            .write(path)
    }

    /// All of them, by the names of files.
    pub fn named(&self) -> Vec<(&'static str, ArrayViewD<'_, f64>)> {
        let mut all = Vec::new();
        all.extend(
            PROJECTIONS.into_iter().zip(self.projections.iter().map(|w| w.view().into_dyn())),
        );
        if let Some(conv) = &self.conv {
            all.extend(CONV.into_iter().zip(conv.iter().map(|w| w.view().into_dyn())));
        }
        for ([g, b], gate) in GATES.into_iter().zip(&self.gates) {
            all.extend([(g, gate.g.view().into_dyn()), (b, gate.b.view().into_dyn())]);
        }
        all.extend(MEMORY.into_iter().zip(self.memory.iter().map(|w| w.view().into_dyn())));
        all.push((PERSISTENT, self.persistent.view().into_dyn()));
        if let Some(Attention { q, k, v, o }) = &self.attention {
            all.extend(ATTENTION.into_iter().zip([q, k, v, o].map(|w| w.view().into_dyn())));
        }
        if let Some(Readout { gate, out, gain }) = &self.readout {
            let views = [gate.view().into_dyn(), out.view().into_dyn(), gain.view().into_dyn()];
            all.extend(READOUT.into_iter().zip(views));
        }
        if let Some(norms) = &self.norms {
            all.extend(NORMS.into_iter().zip(norms.iter().map(|gain| gain.view().into_dyn())));
        }
        all
    }

    /// The same to be changed, in the same order.
    pub fn named_mut(&mut self) -> Vec<(&'static str, ArrayViewMutD<'_, f64>)> {
        let names: Vec<_> = self.named().into_iter().map(|(name, _)| name).collect();
        let mut views: Vec<ArrayViewMutD<'_, f64>> = Vec::new();
        views.extend(self.projections.iter_mut().map(|w| w.view_mut().into_dyn()));
        views.extend(self.conv.iter_mut().flatten().map(|w| w.view_mut().into_dyn()));
        for gate in &mut self.gates {
            views.extend([gate.g.view_mut().into_dyn(), gate.b.view_mut().into_dyn()]);
        }
        views.extend(self.memory.iter_mut().map(|w| w.view_mut().into_dyn()));
        views.push(self.persistent.view_mut().into_dyn());
        if let Some(Attention { q, k, v, o }) = &mut self.attention {
            views.extend([q, k, v, o].map(|w| w.view_mut().into_dyn()));
        }
        if let Some(Readout { gate, out, gain }) = &mut self.readout {
            views.extend([gate.view_mut().into_dyn(), out.view_mut().into_dyn()]);
            views.push(gain.view_mut().into_dyn());
        }
        views.extend(self.norms.iter_mut().flatten().map(|gain| gain.view_mut().into_dyn()));
        names.into_iter().zip(views).collect()
    }

    /// As many zeros.
    pub(super) fn zeros(&self) -> Self {
        let mut zeros = self.clone();
        zeros.named_mut().into_iter().for_each(|(_, mut array)| array.fill(0.0));
        zeros
    }

    /// Elements of a token.
    pub fn d_model(&self) -> usize {
        self.projections[0].ncols()
    }

    // A layer asks for what its combination has, as checked.

    pub(crate) fn attention(&self) -> Result<&Attention> {
        self.attention.as_ref().ok_or_else(|| Error::config("attention", "some", "none"))
    }

    pub(super) fn attention_mut(&mut self) -> Result<&mut Attention> {
        self.attention.as_mut().ok_or_else(|| Error::config("attention", "some", "none"))
    }

    pub(crate) fn readout(&self) -> Result<&Readout> {
        self.readout.as_ref().ok_or_else(|| Error::config("readout", "some", "none"))
    }

    pub(super) fn readout_mut(&mut self) -> Result<&mut Readout> {
        self.readout.as_mut().ok_or_else(|| Error::config("readout", "some", "none"))
    }

    pub(crate) fn norms(&self) -> Result<&[Array1<f64>; 2]> {
        self.norms.as_ref().ok_or_else(|| Error::config("norms", "some", "none"))
    }

    pub(super) fn norms_mut(&mut self) -> Result<&mut [Array1<f64>; 2]> {
        self.norms.as_mut().ok_or_else(|| Error::config("norms", "some", "none"))
    }

    /// Checks that they fit together and to the configuration.
    pub(crate) fn check(&self, config: &LayerConfig) -> Result<()> {
        config.validate()?;
        let (memory, d_model) = (&config.memory, self.d_model());
        let heads = memory.heads;
        let features = [memory.dim_qk, memory.dim_qk, memory.dim_v].map(|dim| heads * dim);
        for (i, arg) in PROJECTIONS.into_iter().enumerate() {
            expect(arg, self.projections[i].shape(), &[features[i], d_model])?;
        }
        if let Some(conv) = &self.conv {
            let kernel = conv[0].nrows();
            if kernel == 0 {
                return Err(Error::shape(CONV[0], "at least one row", conv[0].shape()));
            }
            for (i, arg) in CONV.into_iter().enumerate() {
                expect(arg, conv[i].shape(), &[kernel, features[i]])?;
            }
        }
        for ([g, b], gate) in GATES.into_iter().zip(&self.gates) {
            expect(g, gate.g.shape(), &[heads, d_model])?;
            expect(b, gate.b.shape(), &[heads])?;
        }
        let layers = memory.layers();
        if self.memory.len() != layers.len() {
            return Err(Error::config(
                "m_w",
                format!("{} layers", layers.len()),
                self.memory.len(),
            ));
        }
        for ((w, [rows, columns]), arg) in self.memory.iter().zip(layers).zip(MEMORY) {
            expect(arg, w.shape(), &[heads, rows, columns])?;
        }
        expect(PERSISTENT, self.persistent.shape(), &[self.persistent.nrows(), d_model])?;
        self.check_combination(config)
    }

    fn check_combination(&self, config: &LayerConfig) -> Result<()> {
        let [attention, readout, norms] = parts(&config.combination);
        for (arg, wanted, there) in [
            ("attention", attention, self.attention.is_some()),
            ("readout", readout, self.readout.is_some()),
            ("norms", norms, self.norms.is_some()),
        ] {
            if wanted != there {
                let text = |there| if there { "some" } else { "none" };
                return Err(Error::config(arg, text(wanted), text(there)));
            }
        }
        let (memory, d_model) = (&config.memory, self.d_model());
        let features = memory.heads * memory.dim_v;
        if let Some(Attention { q, k, v, o }) = &self.attention {
            let inner = q.nrows();
            if !inner.is_multiple_of(memory.heads) {
                let expected = format!("rows of {} heads", memory.heads);
                return Err(Error::shape(ATTENTION[0], expected, q.shape()));
            }
            for (arg, w) in ATTENTION.into_iter().zip([q, k, v]) {
                expect(arg, w.shape(), &[inner, d_model])?;
            }
            expect(ATTENTION[3], o.shape(), &[d_model, inner])?;
        }
        if let Some(Readout { gate, out, gain }) = &self.readout {
            expect(READOUT[0], gate.shape(), &[features, d_model])?;
            expect(READOUT[1], out.shape(), &[d_model, features])?;
            expect(READOUT[2], gain.shape(), &[features])?;
        } else if features != d_model {
            // What the memory answers is a token among tokens.
            let expected = format!("{d_model} rows: heads * dim_v is d_model");
            return Err(Error::shape(PROJECTIONS[2], expected, self.projections[2].shape()));
        }
        for (arg, gain) in NORMS.into_iter().zip(self.norms.iter().flatten()) {
            expect(arg, gain.shape(), &[d_model])?;
        }
        Ok(())
    }
}
