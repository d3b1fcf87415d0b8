//! Causal attention with grouped heads on the best adapter, compared with the f64 reference.

use attn_wgpu::attention::{Attention, Inputs};
use attn_wgpu::attn_core::{Mask, dense};
use attn_wgpu::ndarray::Array4;
use attn_wgpu::{Error, Gpu, Result, Tensor};

fn main() -> Result<()> {
    let gpu = match Gpu::new() {
        Err(error @ Error::NoAdapter { .. }) => {
            println!("nothing was computed: {error}");
            return Ok(());
        }
        other => other?,
    };
    println!("adapter {}", gpu.adapter());

    // Nine query heads share three key heads: [batch, heads, tokens, dim].
    let wave = |heads, speed: f32| {
        Array4::from_shape_fn((1, heads, 300, 64), |(_, h, t, d)| {
            (speed * (h * 97 + t * 13 + d * 31) as f32).sin()
        })
    };
    let (q, k, v) = (wave(9, 0.11), wave(3, 0.23), wave(3, 0.37));

    let upload = |x: &Array4<f32>| Tensor::from_array(&gpu, &x.view().into_dyn());
    let config = dense::Config::new().with_mask(Mask::Causal);
    let attention = Attention::new(&gpu, config.clone())?;
    let (q_gpu, k_gpu, v_gpu) = (upload(&q)?, upload(&k)?, upload(&v)?);
    let inputs = Inputs::new(&q_gpu, &k_gpu, &v_gpu);
    let output = attention.forward(inputs)?; // only records
    let out = output.out.to_vec::<f32>()?; // submits, waits, copies back

    let (q, k, v) = (q.mapv(f64::from), k.mapv(f64::from), v.mapv(f64::from));
    let inputs = dense::Inputs::new(q.view(), k.view(), v.view());
    let want = dense::forward(inputs, &config)?.out;
    let differences = out.iter().zip(&want).map(|(&got, &want)| (f64::from(got) - want).abs());
    let largest = differences.max_by(f64::total_cmp).unwrap_or_default();
    println!("{} elements, largest difference from the f64 reference {largest:.1e}", out.len());
    assert!(largest < 1e-5, "the result is wrong");
    Ok(())
}
