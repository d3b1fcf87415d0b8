//! Results in the JSON of the COCO data set.

use std::collections::BTreeMap;

use attn_core::{Error, Result};
use serde_json::{Value, json};

use crate::detect::Detection;
use crate::segment::PixelMask;

/// An image and what was found in it.
#[derive(Debug, Clone, Copy)]
pub struct CocoImage<'a> {
    /// Number of the image.
    pub id: u64,
    /// Name of its file.
    pub file_name: &'a str,
    /// Rows and columns of pixels.
    pub size: (u32, u32),
    /// What was found.
    pub detections: &'a [Detection],
}

/// A document with `images`, `categories` and `annotations`. Names become categories 1, 2, .. in
/// alphabetical order; annotations also have `score` and, under `points`, the points `[x, y, label]`
/// that gave them. Masks are run lengths, which COCO marks by `iscrowd` 1.
pub fn coco(images: &[CocoImage<'_>]) -> Value {
    let categories = categories(images);
    let list = |image: &CocoImage<'_>| {
        json!({
            "id": image.id, "file_name": image.file_name,
            "height": image.size.0, "width": image.size.1,
        })
    };
    let mut annotations = Vec::new();
    for image in images {
        for detection in image.detections {
            let points = detection.points.iter();
            let points = points.map(|point| json!([point.x, point.y, u8::from(point.positive)]));
            let mut annotation = entry(image.id, detection, &categories);
            annotation["id"] = json!(annotations.len() + 1);
            annotation["area"] = json!(detection.mask.area());
            annotation["iscrowd"] = json!(1);
            annotation["points"] = points.collect();
            annotation["segmentation"] = json!({
                "size": [image.size.0, image.size.1],
                "counts": rle(&detection.mask),
            });
            annotations.push(annotation);
        }
    }
    let categories = categories.iter().map(|(name, id)| json!({ "id": id, "name": name }));
    json!({
        "images": images.iter().map(list).collect::<Vec<_>>(),
        "categories": categories.collect::<Vec<_>>(),
        "annotations": annotations,
    })
}

/// The list of results that COCO's evaluation takes: `image_id`, `category_id`, `bbox`, `score`, and
/// the mask as run lengths in text. Categories are numbered as in [`coco()`].
pub fn coco_results(images: &[CocoImage<'_>]) -> Value {
    let categories = categories(images);
    let mut results = Vec::new();
    for image in images {
        for detection in image.detections {
            let mut result = entry(image.id, detection, &categories);
            result["segmentation"] = json!({
                "size": [image.size.0, image.size.1],
                "counts": rle_text(&rle(&detection.mask)),
            });
            results.push(result);
        }
    }
    Value::Array(results)
}

fn categories(images: &[CocoImage<'_>]) -> BTreeMap<String, usize> {
    let names = images.iter().flat_map(|image| image.detections).map(|found| found.name.clone());
    let mut categories: BTreeMap<String, usize> = names.map(|name| (name, 0)).collect();
    for (id, category) in (1..).zip(categories.values_mut()) {
        *category = id;
    }
    categories
}

fn entry(image: u64, found: &Detection, categories: &BTreeMap<String, usize>) -> Value {
    let bounds = found.bounds;
    json!({
        "image_id": image,
        "category_id": categories.get(&found.name),
        "bbox": [bounds.x0, bounds.y0, bounds.width(), bounds.height()],
        "score": found.score,
    })
}

/// Run lengths of a mask column by column: first the pixels that are not in it (possibly 0), then those
/// that are, and so on in turn.
pub fn rle(mask: &PixelMask) -> Vec<u64> {
    let (height, width) = mask.size();
    let mut runs = vec![0];
    let mut inside = false;
    for x in 0..width {
        for y in 0..height {
            if mask.at(y, x) != inside {
                inside = !inside;
                runs.push(0);
            }
            if let Some(run) = runs.last_mut() {
                *run += 1;
            }
        }
    }
    runs
}

/// The mask of `(height, width)` pixels with these run lengths, as [`rle`] gives them.
///
/// # Errors
/// [`Error::Data`] where the lengths do not add up to the number of pixels.
pub fn rle_decode(size: (u32, u32), runs: &[u64]) -> Result<PixelMask> {
    let pixels = u64::from(size.0) * u64::from(size.1);
    let total = runs.iter().try_fold(0_u64, |sum, &run| sum.checked_add(run));
    if total != Some(pixels) {
        let got = total.map_or("more".to_owned(), |total| total.to_string());
        return Err(Error::data("runs", format!("lengths with the sum {pixels}"), got));
    }
    let turns = runs.iter().zip([false, true].into_iter().cycle());
    let columns: Vec<bool> =
        turns.flat_map(|(&run, set)| std::iter::repeat_n(set, run as usize)).collect();
    let height = size.0 as usize;
    Ok(PixelMask::from_fn(size, |y, x| columns[x as usize * height + y as usize]))
}

/// Run lengths as COCO packs them into text. From the fourth on, a length counts from the one two
/// before it; a number goes into digits of 5 bits, the lowest first, of which all but the last have the
/// bit 32, and the last one's highest bit is the sign. A digit d is the character 48 + d.
pub fn rle_text(runs: &[u64]) -> String {
    let mut text = String::new();
    for (index, &run) in runs.iter().enumerate() {
        let before = if index > 2 { runs[index - 2] } else { 0 };
        let mut number = i128::from(run) - i128::from(before);
        loop {
            let digit = (number & 31) as u8;
            number >>= 5;
            let last = number == if digit & 16 != 0 { -1 } else { 0 };
            text.push(char::from(48 + digit + if last { 0 } else { 32 }));
            if last {
                break;
            }
        }
    }
    text
}
