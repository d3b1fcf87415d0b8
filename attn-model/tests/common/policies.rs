//! Policies that are only good for tests.

use std::sync::{Arc, Mutex};

use attn_model::attn_wgpu::attention::Inputs;
use attn_model::attn_wgpu::cache::KvCache;
use attn_model::attn_wgpu::{DType, Tensor};
use attn_model::policy::{Dense, KeyForm, Layer, ModelShape, Phase};
use attn_model::{AttentionPolicy, Result};

/// The model's own attention, from keys that are rotated anew in every pass.
#[derive(Debug, Clone)]
pub struct Raw;

impl AttentionPolicy for Raw {
    fn keys(&self) -> KeyForm {
        KeyForm::Raw
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        let out = layer.output()?;
        let q = layer.rotate(layer.q(), layer.query_positions())?;
        let k = layer.rotate(&layer.keys()?, layer.positions())?;
        layer.attention().forward_into(Inputs::new(&q, &k, &layer.values()?), &out, None)?;
        Ok(out)
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}

/// The model's own attention, from keys and values of its own: right only as long as it follows its
/// sequence through forks, truncation and passes that fail.
#[derive(Debug, Default)]
pub struct Remembering(Vec<KvCache>);

impl AttentionPolicy for Remembering {
    fn begin(&mut self, shape: &ModelShape) -> Result<()> {
        let (heads, dim) = (shape.heads_kv, shape.head_dim);
        let cache = || KvCache::new(&shape.gpu, 1, heads, dim, dim, shape.dtype, 0);
        self.0 = (0..shape.layers()).map(|_| cache()).collect::<std::result::Result<_, _>>()?;
        Ok(())
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        let own = &mut self.0[layer.index()];
        let (keys, values) = (layer.keys()?, layer.values()?);
        let (all, new) = (layer.positions().len(), layer.query_positions().len());
        own.append(&keys.narrow(2, all - new, new)?, &values.narrow(2, all - new, new)?)?;
        let (out, q) = (layer.output()?, layer.rotated_q()?);
        layer.attention().forward_into(
            Inputs::new(&q, &own.keys()?, &own.values()?),
            &out,
            None,
        )?;
        Ok(out)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        // Layers that a failed pass did not reach are shorter.
        self.0.iter_mut().filter(|own| own.len() > len).try_for_each(|own| Ok(own.truncate(len)?))
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(Remembering(self.0.iter().map(KvCache::fork).collect())))
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wrong {
    Nothing,
    Shape,
    Dtype,
    /// The policy gives up in this layer.
    Fails(usize),
    /// It also cannot forget.
    Forgets,
}

/// The model's own attention, until it is told to go wrong; keeps a record of phases.
#[derive(Debug, Clone)]
pub struct Unruly {
    pub wrong: Arc<Mutex<Wrong>>,
    pub phases: Arc<Mutex<Vec<(usize, Phase)>>>,
    inner: Arc<Mutex<Remembering>>,
}

impl Unruly {
    pub fn new() -> Self {
        Unruly {
            wrong: Arc::new(Mutex::new(Wrong::Nothing)),
            phases: Arc::default(),
            inner: Arc::default(),
        }
    }
}

impl AttentionPolicy for Unruly {
    fn begin(&mut self, shape: &ModelShape) -> Result<()> {
        self.inner.lock().unwrap().begin(shape)
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        if layer.index() == 0 {
            let entry = (layer.query_positions().len(), layer.phase());
            self.phases.lock().unwrap().push(entry);
        }
        let out = self.inner.lock().unwrap().attend(layer)?;
        let gave_up = || attn_core::Error::config("test", "nothing", "a policy that gives up");
        match *self.wrong.lock().unwrap() {
            Wrong::Nothing => Ok(out),
            Wrong::Shape => Ok(out.narrow(3, 0, 2)?),
            Wrong::Dtype => Ok(Tensor::zeros(layer.gpu(), out.shape(), DType::U32)?),
            Wrong::Fails(number) if number != layer.index() => Ok(out),
            Wrong::Fails(_) | Wrong::Forgets => Err(gave_up().into()),
        }
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        if *self.wrong.lock().unwrap() == Wrong::Forgets {
            return Err(attn_core::Error::config("test", "memory", "none").into());
        }
        self.inner.lock().unwrap().truncate(len)
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Dense.fork()
    }
}
