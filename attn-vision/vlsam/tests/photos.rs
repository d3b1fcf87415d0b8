//! A photo, from synthetic attention to objects, pictures and JSON.

use std::path::{Path, PathBuf};

use attn_vlsam::detect::{Detections, Detector};
use attn_vlsam::image::image_crate::{Rgb, RgbImage};
use attn_vlsam::image::{
    CocoImage, coco, coco_results, heat_map, load, overlay, picture, rle, rle_decode, rle_text,
    save_png,
};
use attn_vlsam::prompt::{PixelBox, PromptConfig, match_boxes};
use attn_vlsam::segment::{PixelMask, RandomWalker, Scripted};
use proptest::prelude::*;
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn coins() -> Vec<(String, PixelBox)> {
    let text = std::fs::read_to_string(data("boxes.json")).unwrap();
    let boxes: Value = serde_json::from_str(&text).unwrap();
    let object = |value: &Value| {
        let side = |index: usize| value["box"][index].as_u64().unwrap() as u32;
        let bounds = PixelBox::new(side(0), side(1), side(2), side(3));
        (value["label"].as_str().unwrap().to_owned(), bounds)
    };
    boxes["images"]["coins.png"].as_array().unwrap().iter().map(object).collect()
}

fn detect(image: &RgbImage, truth: &[(String, PixelBox)]) -> Detections {
    let scripted = Scripted::new(truth.to_vec());
    let config = PromptConfig::default();
    Detector::new(scripted, RandomWalker::default(), config).unwrap().detect(image).unwrap()
}

#[test]
fn coins_are_found() {
    let (image, truth) = (load(data("coins.png")).unwrap(), coins());
    assert_eq!((image.dimensions(), truth.len()), ((384, 303), 24));
    let found = detect(&image, &truth);
    let boxes: Vec<PixelBox> = found.objects.iter().map(|object| object.bounds).collect();
    let true_boxes: Vec<PixelBox> = truth.iter().map(|(_, bounds)| *bounds).collect();
    let matched: Vec<_> = match_boxes(&boxes, &true_boxes, 0.5).into_iter().flatten().collect();
    let mean = matched.iter().map(|(_, iou)| iou).sum::<f64>() / matched.len() as f64;
    println!(
        "{} of 24 coins at IoU 0.5 (mean {mean:.2}), {} masks, {} after suppression",
        matched.len(),
        found.candidates,
        boxes.len()
    );
    assert!(matched.len() >= 20, "{} of 24 coins", matched.len());

    // Pictures show what was found, and change nothing that was not.
    let drawn = overlay(&image, &found.objects, 1);
    assert_eq!(drawn.dimensions(), image.dimensions());
    let inside = |x: u32, y: u32| found.objects.iter().any(|object| object.mask.at(y, x));
    let changed = image.enumerate_pixels().filter(|&(x, y, p)| drawn.get_pixel(x, y) != p);
    assert!(changed.clone().filter(|&(x, y, _)| inside(x, y)).count() > 10_000);
    assert!(changed.filter(|&(x, y, _)| !inside(x, y)).count() < 30_000);
    let both = picture(&image, &found);
    assert_eq!(both.dimensions(), (2 * 768 + 8, 606));
    let folder = std::env::temp_dir().join(format!("attn-vlsam-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    save_png(&both, folder.join("coins.png")).unwrap();
    assert_eq!(load(folder.join("coins.png")).unwrap(), both);
    std::fs::remove_dir_all(&folder).unwrap();

    json_is_complete(&image, &found);
}

fn json_is_complete(image: &RgbImage, found: &Detections) {
    let size = (image.height(), image.width());
    let entry = CocoImage { id: 7, file_name: "coins.png", size, detections: &found.objects };
    let document = coco(&[entry]);
    assert_eq!(document["images"][0]["height"], json!(303));
    assert_eq!(document["categories"], json!([{ "id": 1, "name": "coin" }]));
    let annotations = document["annotations"].as_array().unwrap();
    assert_eq!(annotations.len(), found.objects.len());
    let results = coco_results(&[entry]);
    for ((object, annotation), result) in
        found.objects.iter().zip(annotations).zip(results.as_array().unwrap())
    {
        let runs: Vec<u64> =
            serde_json::from_value(annotation["segmentation"]["counts"].clone()).unwrap();
        assert_eq!(rle_decode(size, &runs).unwrap(), object.mask);
        let b = object.bounds;
        let bounds = json!([b.x0, b.y0, b.x1 - b.x0, b.y1 - b.y0]);
        assert_eq!((&annotation["bbox"], &result["bbox"]), (&bounds, &bounds));
        assert_eq!(annotation["area"], json!(object.mask.area()));
        assert_eq!(result["image_id"], json!(7));
        assert_eq!(result["segmentation"]["counts"], json!(rle_text(&rle(&object.mask))));
    }
}

/// Text as COCO's own tools give it, unpacked.
fn unpack(text: &str) -> Vec<u64> {
    let mut runs: Vec<i128> = Vec::new();
    let (mut number, mut shift) = (0_i128, 0);
    for digit in text.bytes().map(|byte| i128::from(byte) - 48) {
        number |= (digit & 31) << shift;
        shift += 5;
        if digit & 32 == 0 {
            if digit & 16 != 0 {
                number -= 1 << shift;
            }
            let before = if runs.len() > 2 { runs[runs.len() - 2] } else { 0 };
            runs.push(number + before);
            (number, shift) = (0, 0);
        }
    }
    runs.iter().map(|&run| u64::try_from(run).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn run_lengths_come_back(size in (0_u32..40, 0_u32..40), seed: u64, share in 0.0_f64..1.0) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mask = PixelMask::from_fn(size, |_, _| random.f64() < share);
        let runs = rle(&mask);
        prop_assert_eq!(rle_decode(size, &runs).unwrap(), mask);
        prop_assert_eq!(unpack(&rle_text(&runs)), runs);
    }
}

#[test]
fn run_lengths_go_down_the_columns() {
    let mask = PixelMask::from_fn((2, 3), |y, x| y == 0 && x < 2);
    assert_eq!(rle(&mask), [0, 1, 1, 1, 3]);
    assert_eq!(rle(&PixelMask::empty((2, 3))), [6]);
    for runs in [vec![5], vec![7], vec![], vec![u64::MAX, 7]] {
        let error = rle_decode((2, 3), &runs).unwrap_err().to_string();
        assert!(error.contains("sum 6"), "{error}");
    }
}

#[test]
fn pictures_of_anything() {
    for (height, width) in [(0, 0), (1, 1), (1, 500), (3, 2)] {
        let image = RgbImage::from_pixel(width, height, Rgb([200, 100, 50]));
        assert_eq!(overlay(&image, &[], 0).dimensions(), (width, height));
        assert_eq!(heat_map(&image, &[], 2).dimensions(), (2 * width, 2 * height));
        if height > 0 {
            let bounds = PixelBox::new(0, 0, width, height);
            let found = detect(
                &image,
                &[("a name, \u{e9}, of 40 or more characters, is cut".into(), bounds)],
            );
            picture(&image, &found);
        }
    }
}

#[test]
fn wrong_files_are_refused() {
    for (name, part) in [("none.png", "none.png"), ("boxes.json", "boxes.json"), (".", "data")] {
        let error = load(data(name)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = save_png(&RgbImage::new(1, 1), data("no/folder.png")).unwrap_err().to_string();
    assert!(error.contains("folder.png"), "{error}");
    // A file that ends too early.
    let path = std::env::temp_dir().join(format!("attn-vlsam-cut-{}.png", std::process::id()));
    let bytes = std::fs::read(data("coins.png")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = load(&path);
    std::fs::remove_file(&path).unwrap();
    assert!(error.is_err());
}
