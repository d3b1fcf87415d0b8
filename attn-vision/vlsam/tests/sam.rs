//! Segment Anything with seeded random weights: shapes, prompts, batches, and wrong files. No trained
//! weights are in any package, so that nothing here says how good masks are.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use attn_vlsam::AttentionMap;
use attn_vlsam::image::image_crate::{Rgb, RgbImage};
use attn_vlsam::prompt::{Point, PromptConfig, refine};
use attn_vlsam::segment::{Prompt, Sam, SamConfig, SamModel, Segment, Segmenter};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::init::Init;
use candle_nn::var_builder::SimpleBackend;

type Weights = Arc<Mutex<HashMap<String, Tensor>>>;

/// Random numbers for whatever weight is asked for, by its name, and a record of them.
struct Random(Weights);

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let seed = name.bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
        let mut random = fastrand::Rng::with_seed(seed);
        // Small enough that no layer saturates; scales of norms, and variances, stay near 1.
        let positive =
            name.ends_with("running_var") || shape.rank() == 1 && name.ends_with("weight");
        let inputs = shape.elem_count() / shape.dims().first().copied().unwrap_or(1).max(1);
        let width = if shape.rank() > 1 { (3.0 / inputs as f32).sqrt() } else { 0.1 };
        let mut number = || width * (2.0 * random.f32() - 1.0) + if positive { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..shape.elem_count()).map(|_| number()).collect();
        let tensor = Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?;
        self.0.lock().unwrap().insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("the shape of {name} is unknown")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn small() -> SamConfig {
    let global = vec![1];
    SamConfig::new(SamModel::Vit { side: 128, dim: 32, depth: 2, heads: 2, global })
}

fn random(config: SamConfig) -> (Sam, Weights) {
    let weights = Weights::default();
    let backend = Box::new(Random(weights.clone()));
    let vars = VarBuilder::from_backend(backend, DType::F32, Device::Cpu);
    (Sam::new(vars, config).unwrap(), weights)
}

fn image(height: u32, width: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(7 * x) as u8, (5 * y) as u8, (x * y) as u8]))
}

fn point(y: f64, x: f64, positive: bool) -> Point {
    Point { y, x, positive }
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("attn-vlsam-{}-{name}", std::process::id()))
}

fn fails<T>(result: attn_core::Result<T>, part: &str) {
    let error = result.err().expect("no error").to_string();
    assert!(error.contains(part), "{error:?} lacks {part:?}");
}

#[test]
fn masks_have_the_size_of_the_image() {
    let (mut sam, _) = random(small());
    let points = [point(10.0, 20.0, true), point(0.0, 0.0, false)];
    for (height, width) in [(60, 90), (300, 40), (1, 1), (1, 400), (128, 128)] {
        sam.set_image(&image(height, width)).unwrap();
        assert_eq!(sam.size(), Some((height, width)));
        assert_eq!(sam.embedding().unwrap().dims(), [1, 256, 8, 8]);
        let first = sam.segment(&Prompt { points: &points, mask: None }).unwrap();
        assert_eq!(first.len(), 3);
        for segment in &first {
            assert_eq!(segment.mask.size(), (height, width));
            assert!(segment.score.is_finite());
            let memory = segment.memory.as_ref().unwrap();
            assert_eq!((memory.size, memory.values.len()), ((32, 32), 1024));
        }
        let second = sam.segment(&Prompt { points: &points, mask: Some(&first[0]) }).unwrap();
        assert_eq!(second.len(), 1);
        // The mask from before, and each point, tell.
        let again = sam.segment(&Prompt { points: &points, mask: Some(&first[1]) }).unwrap();
        assert_ne!(second[0].memory, again[0].memory);
        let alone = sam.segment(&Prompt { points: &points[..1], mask: None }).unwrap();
        assert_ne!(alone[0].memory, first[0].memory);
        // A mask from another segmenter does as well.
        let bare = Segment::new(first[0].mask.clone(), 1.0);
        assert_eq!(sam.segment(&Prompt { points: &points, mask: Some(&bare) }).unwrap().len(), 1);
    }
    let (mut one, _) = random(small().with_multimask(false));
    one.set_image(&image(30, 20)).unwrap();
    assert_eq!(one.segment(&Prompt { points: &points, mask: None }).unwrap().len(), 1);
}

#[test]
fn a_batch_gives_what_each_prompt_gives() {
    let (mut sam, _) = random(small());
    sam.set_image(&image(80, 100)).unwrap();
    let points: Vec<Vec<Point>> = (0..20)
        .map(|i| {
            let place = |k: i32| point(f64::from(i * 3 + k), f64::from((i * 17 + k) % 100), k == 0);
            (0..1 + i % 3).map(place).collect()
        })
        .collect();
    let first = sam.segment(&Prompt { points: &points[0], mask: None }).unwrap().remove(0);
    let prompts: Vec<Prompt<'_>> = points
        .iter()
        .enumerate()
        .map(|(i, points)| Prompt { points, mask: (i % 2 == 0).then_some(&first) })
        .collect();
    let all = sam.segment_all(&prompts).unwrap();
    assert_eq!(all.len(), 20);
    for (prompt, together) in prompts.iter().zip(&all) {
        let alone = sam.segment(prompt).unwrap();
        assert_eq!(alone.len(), together.len());
        for (a, b) in alone.iter().zip(together) {
            assert!((a.score - b.score).abs() < 1e-4, "{} and {}", a.score, b.score);
            let (a, b) = (a.memory.as_ref().unwrap(), b.memory.as_ref().unwrap());
            let far =
                a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let largest = a.values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            assert!(far <= 1e-4 * largest.max(1.0), "{far} of {largest}");
        }
    }
    assert!(sam.segment_all(&[]).unwrap().is_empty());
}

#[test]
fn weights_come_from_a_file() {
    let (mut sam, weights) = random(small());
    let path = file("sam.safetensors");
    candle_core::safetensors::save(&weights.lock().unwrap(), &path).unwrap();
    let mut loaded = Sam::load(&path, small()).unwrap();
    let points = [point(10.0, 20.0, true), point(50.0, 70.0, false)];
    let ask = |sam: &mut Sam| {
        sam.set_image(&image(60, 90)).unwrap();
        sam.segment(&Prompt { points: &points, mask: None }).unwrap()
    };
    assert_eq!(ask(&mut loaded), ask(&mut sam));

    // The weights of a model of another size, then of none.
    let wide = SamModel::Vit { side: 128, dim: 64, depth: 2, heads: 2, global: vec![] };
    fails(Sam::load(&path, SamConfig::new(wide)), "shape mismatch");
    let deep = SamModel::Vit { side: 128, dim: 32, depth: 3, heads: 2, global: vec![1] };
    fails(Sam::load(&path, SamConfig::new(deep)), "image_encoder.blocks.2");
    fails(Sam::load(&path, SamConfig::default()), "cannot find tensor");
    std::fs::write(&path, b"no weights").unwrap();
    fails(Sam::load(&path, small()), "sam.safetensors");
    std::fs::remove_file(&path).unwrap();
    fails(Sam::load(&path, small()), "sam.safetensors");
}

#[test]
fn the_weights_of_mobile_sam_have_their_names() {
    let (sam, weights) = random(SamConfig::default());
    assert!(sam.embedding().is_none());
    let weights = weights.lock().unwrap();
    let count = |part: &str| {
        let mine = weights.iter().filter(|(name, _)| name.starts_with(part));
        mine.map(|(_, tensor)| tensor.elem_count()).sum::<usize>()
    };
    for name in [
        "image_encoder.patch_embed.seq.0.c.weight",
        "image_encoder.layers.3.blocks.1.mlp.fc2.weight",
        "image_encoder.neck.3.bias",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.mask_downscaling.6.weight",
        "mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.bias",
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight",
    ] {
        assert!(weights.contains_key(name), "{name}");
    }
    // The paper counts about 6 million in the encoder and 4 in the decoder.
    println!("{} {} {}", count("image_encoder"), count("prompt_encoder"), count("mask_decoder"));
    assert!((5_000_000..7_000_000).contains(&count("image_encoder")));
    assert!((3_500_000..4_500_000).contains(&count("mask_decoder")));
}

#[test]
fn a_map_is_refined() {
    let (mut sam, _) = random(small());
    sam.set_image(&image(64, 64)).unwrap();
    let raw = (0..64).map(|i| (i % 13) as f32).collect();
    let map = AttentionMap::from_raw((8, 8), raw).unwrap();
    for found in refine(&map, &mut sam, &PromptConfig::default()).unwrap() {
        assert_eq!(found.mask.size(), (64, 64));
        assert_eq!(found.points.len(), 2);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut sam, _) = random(small());
    let on = point(0.0, 0.0, true);
    fails(sam.segment(&Prompt { points: &[on], mask: None }), "an image");
    fails(sam.set_image(&RgbImage::new(0, 3)), "pixels");
    sam.set_image(&image(8, 8)).unwrap();
    fails(sam.segment(&Prompt { points: &[], mask: None }), "at least one point");
    fails(sam.segment(&Prompt { points: &[point(f64::NAN, 0.0, true)], mask: None }), "finite");
    for far in [-1e300, 1e300] {
        let points = [point(far, far, true)];
        assert_eq!(sam.segment(&Prompt { points: &points, mask: None }).unwrap().len(), 3);
    }
    let vit = |side, dim, heads| {
        SamConfig::new(SamModel::Vit { side, dim, depth: 1, heads, global: vec![] }).validate()
    };
    fails(vit(0, 32, 2), "side");
    fails(vit(100, 32, 2), "side");
    fails(vit(8192, 32, 2), "side");
    fails(vit(64, 0, 2), "dim");
    fails(vit(64, 32, 0), "heads");
    fails(vit(64, 32, 5), "heads");
    vit(64, 32, 4).unwrap();
}
