//! Models, and attention that says what the policy should compute.

use std::path::{Path, PathBuf};

use attn_blockrank::{Config, Segments, Tensor, reference};
use attn_model::policy::Layer;
use attn_model::{AttentionPolicy, Model, Options, Result, Source, Tokenizer};
use attn_wgpu::testing::gpu;
use ndarray::{Array4, Ix4};

pub fn folder(name: &str) -> PathBuf {
    let models = "../../attn-model/tests/data/models";
    Path::new(env!("CARGO_MANIFEST_DIR")).join(models).join(name)
}

pub fn model(name: &str) -> Option<Model> {
    Some(Model::load(&gpu()?, &folder(name), Options::exact()).unwrap())
}

pub fn tokenizer() -> Tokenizer {
    Source::open(folder("tiny-llama")).unwrap().tokenizer().unwrap().unwrap()
}

pub fn text(len: usize, vocabulary: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect()
}

pub fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub fn positions(segments: &Segments, config: &Config) -> Vec<u32> {
    segments.positions(config.query_offset).unwrap().into_iter().collect()
}

/// Attention by the reference on the host, in f64: the rule, and nothing of the device.
#[derive(Debug, Clone)]
pub struct OnTheHost(pub Segments);

impl AttentionPolicy for OnTheHost {
    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        let host = |x: Tensor| -> Result<Array4<f64>> {
            let x = x.to_array::<f32>()?.mapv(f64::from);
            Ok(x.into_dimensionality::<Ix4>().unwrap())
        };
        let (q, k, v) = (host(layer.rotated_q()?)?, host(layer.keys()?)?, host(layer.values()?)?);
        let inputs = reference::Inputs::new(q.view(), k.view(), v.view());
        let config = Config::new().with_scale(layer.scale());
        let out = reference::forward(inputs, &self.0, &config)?.out.mapv(|x| x as f32);
        Ok(Tensor::from_array(layer.gpu(), &out.view().into_dyn())?)
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}
