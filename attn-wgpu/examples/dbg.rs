//! Times.
use attn_wgpu::*;
use std::time::Duration;
fn cpu() -> f64 { let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime); t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9 }
fn time(gpu: &Gpu, name: &str, elements: f64, bytes: f64, f: &dyn Fn()) {
    f(); gpu.sync().unwrap(); f(); gpu.sync().unwrap();
    let mut best = f64::MAX;
    for _ in 0..5 { let s = cpu(); let n = 4; for _ in 0..n { f(); } gpu.sync().unwrap(); best = best.min((cpu() - s) / n as f64); }
    println!("{name:44} {:9.3} ms cpu {:7.2} ns/elem {:7.2} GB/s (2 cores)", best * 1e3, best * 1e9 / elements, bytes / (best / 2.0) * 1e-9);
}
fn main() {
    let gpu = Gpu::builder().timeout(Duration::from_secs(100)).build().unwrap();
    let filter = std::env::args().nth(1).unwrap_or_default();
    let t = |name: &str, e: f64, b: f64, f: &dyn Fn()| if name.contains(&filter) { time(&gpu, name, e, b, f) };
    let probe = bench::CopyProbe::new(&gpu).unwrap();
    t("probe", probe.bytes() / 8.0, probe.bytes(), &|| probe.record().unwrap());
    let f = |shape: &[usize], dtype: DType| { let n = shape.iter().product(); let d: Vec<f32> = (0..n).map(|i: usize| ((i * 7919 + i / 13) % 1000) as f32 * 0.01 - 5.0).collect(); bench::upload(&gpu, dtype, &d, shape).unwrap() };
    let m = 1024.0 * 1024.0;
    for d in [DType::F32, DType::F16, DType::BF16] {
        let b = d.bytes() as f64;
        let x = f(&[1024, 1024], d); let y = f(&[1024, 1024], d);
        let w = f(&[1024], DType::F32);
        let n = d.name();
        t(&format!("softmax 1024x1024 {n}"), m, 2.0 * b * m, &|| { softmax::softmax(&x).unwrap(); });
        t(&format!("lse 1024x1024 {n}"), m, b * m, &|| { softmax::log_sum_exp(&x).unwrap(); });
        t(&format!("rms 1024x1024 {n}"), m, 2.0 * b * m, &|| { norm::rms_norm(&x, &w, &norm::RmsNorm::new(1e-5)).unwrap(); });
        t(&format!("rms_add 1024x1024 {n}"), m, 4.0 * b * m, &|| { norm::rms_norm_add(&x, &y, &w, &norm::RmsNorm::new(1e-5)).unwrap(); });
        t(&format!("layer 1024x1024 {n}"), m, 2.0 * b * m, &|| { norm::layer_norm(&x, &w, &w, 1e-5).unwrap(); });
        t(&format!("add 1024x1024 {n}"), m, 3.0 * b * m, &|| { ops::add(&x, &y).unwrap(); });
        t(&format!("gated silu 1024x1024 {n}"), m, 3.0 * b * m, &|| { ops::gated(&x, &y, Activation::Silu).unwrap(); });
        t(&format!("convert to f16 1024x1024 {n}"), m, (b + 2.0) * m, &|| { ops::convert(&x, if d == DType::F16 { DType::F32 } else { DType::F16 }).unwrap(); });
        let heads = x.reshape(&[1, 1024, 16, 64]).unwrap();
        let w64 = f(&[64], DType::F32);
        t(&format!("rms heads 64 {n}"), m, 2.0 * b * m, &|| { norm::rms_norm(&heads, &w64, &norm::RmsNorm::new(1e-5)).unwrap(); });
        let heads = heads.permute(&[0, 2, 1, 3]).unwrap();
        let table = rope::RopeTable::new(&gpu, rope::Rope::new(64, 1e4).unwrap(), 4096).unwrap(); table.reserve(1024).unwrap();
        let ids = Tensor::from_slice(&gpu, &(0..1024u32).collect::<Vec<_>>(), &[1024]).unwrap();
        t(&format!("rope 16x1024x64 {n}"), m, 2.0 * b * m, &|| { table.apply(&heads, &ids).unwrap(); });
        t(&format!("gather 1024 of 1024 {n}"), m, 2.0 * b * m, &|| { embedding::gather_rows(&x, &ids, 1.0, d).unwrap(); });
    }
    for v in [49152usize, 262144] {
        let l = f(&[1, v], DType::F32); let e = v as f64;
        let u = Tensor::from_slice(&gpu, &[0.4f32], &[1]).unwrap();
        t(&format!("argmax {v}"), e, 4.0 * e, &|| { sample::argmax(&l).unwrap(); });
        t(&format!("top_k 50 {v}"), e, 4.0 * e, &|| { sample::top_k(&l, 50).unwrap(); });
        t(&format!("sample plain {v}"), e, 4.0 * e, &|| { sample::sample(&l, &sample::Sampling::default(), &u).unwrap(); });
        t(&format!("sample k p {v}"), e, 4.0 * e, &|| { sample::sample(&l, &sample::Sampling { top_k: Some(50), top_p: 0.9, ..Default::default() }, &u).unwrap(); });
        let ids = Tensor::from_slice(&gpu, &[3u32; 16], &[16]).unwrap();
        let l = f(&[16, v], DType::F32);
        t(&format!("log_softmax_gather 16x{v}"), 16.0 * e, 64.0 * e, &|| { softmax::log_softmax_gather(&l, &ids, None).unwrap(); });
        t(&format!("argmax 16x{v}"), 16.0 * e, 64.0 * e, &|| { sample::argmax(&l).unwrap(); });
    }
}
