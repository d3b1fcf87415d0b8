//! Finds the objects of photos from attention maps, and draws boxes, masks, points and maps.
//!
//! There is no vision-language model in here: the attention is synthetic, a Gaussian a box of a file
//! `boxes.json` (`{"images": {"photo.png": [{"label": "cup", "box": [x0, y0, x1, y1]}]}}`). All that
//! comes after the attention is the method.
//!
//! ```text
//! cargo run -p attn-vlsam --example detect -- [PHOTO or FOLDER] [--boxes FILE] [--out FOLDER]
//!     [--multi-scale] [--masks 1..] [--sam WEIGHTS.safetensors]
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use attn_vlsam::detect::{Detections, Detector};
use attn_vlsam::image::{CocoImage, coco, load, picture, save_png};
use attn_vlsam::prompt::{PixelBox, PromptConfig, match_boxes};
use attn_vlsam::segment::{RandomWalker, Scripted, Segmenter};
use serde_json::Value;

type Failure = Box<dyn std::error::Error>;
type Truth = Vec<(String, PixelBox)>;

struct Options {
    photos: Vec<PathBuf>,
    boxes: PathBuf,
    out: PathBuf,
    config: PromptConfig,
    sam: Option<PathBuf>,
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, Failure> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut photo = None;
    let mut boxes = None;
    let mut out = std::env::temp_dir().join("attn-detect");
    let mut config = PromptConfig::default();
    let mut sam = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--boxes" => boxes = Some(PathBuf::from(value()?)),
            "--out" => out = PathBuf::from(value()?),
            "--multi-scale" => config = config.with_multi_scale(true),
            "--masks" => config.max_iter = value()?.parse()?,
            "--sam" => sam = Some(PathBuf::from(value()?)),
            _ if photo.is_none() && !arg.starts_with('-') => photo = Some(PathBuf::from(arg)),
            _ => return Err(format!("unknown argument {arg}").into()),
        }
    }
    let photo = photo.unwrap_or_else(|| data.join("coins.png"));
    let folder = if photo.is_dir() { &photo } else { photo.parent().unwrap_or(Path::new(".")) };
    let boxes = boxes.unwrap_or_else(|| folder.join("boxes.json"));
    let mut photos = vec![photo.clone()];
    if photo.is_dir() {
        photos = std::fs::read_dir(&photo)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_, Failure>>()?;
        let kinds = ["png", "jpg", "jpeg"];
        photos.retain(|path| path.extension().is_some_and(|e| kinds.iter().any(|&kind| e == kind)));
        photos.sort();
    }
    Ok(Options { photos, boxes, out, config, sam })
}

fn run(options: &Options) -> Result<(), Failure> {
    let text = std::fs::read_to_string(&options.boxes)
        .map_err(|error| format!("{}: {error}", options.boxes.display()))?;
    let boxes: Value = serde_json::from_str(&text)?;
    std::fs::create_dir_all(&options.out)?;
    for photo in &options.photos {
        let name = photo.file_name().unwrap_or_default().to_string_lossy();
        let truth = truth(&boxes["images"][&*name]);
        if truth.is_empty() {
            println!("{name}: no boxes in {}", options.boxes.display());
            continue;
        }
        let found = match &options.sam {
            None => detect(photo, &truth, RandomWalker::default(), options)?,
            Some(weights) => detect(photo, &truth, sam(weights)?, options)?,
        };
        report(&name, &truth, &found);
    }
    println!("pictures and JSON: {}", options.out.display());
    Ok(())
}

fn truth(list: &Value) -> Truth {
    let object = |value: &Value| {
        let side = |index: usize| u32::try_from(value["box"][index].as_u64()?).ok();
        let bounds = PixelBox::new(side(0)?, side(1)?, side(2)?, side(3)?);
        Some((value["label"].as_str()?.to_owned(), bounds))
    };
    list.as_array().map(|list| list.iter().filter_map(object).collect()).unwrap_or_default()
}

fn detect<S: Segmenter>(
    photo: &Path,
    truth: &Truth,
    segmenter: S,
    options: &Options,
) -> Result<Detections, Failure> {
    let image = load(photo)?;
    let mut detector =
        Detector::new(Scripted::new(truth.clone()), segmenter, options.config.clone())?;
    let found = detector.detect(&image)?;
    let stem = photo.file_stem().unwrap_or_default().to_string_lossy();
    save_png(&picture(&image, &found), options.out.join(format!("{stem}.png")))?;
    let name = photo.file_name().unwrap_or_default().to_string_lossy();
    let size = (image.height(), image.width());
    let images = [CocoImage { id: 1, file_name: &name, size, detections: &found.objects }];
    let json = serde_json::to_string(&coco(&images))?;
    std::fs::write(options.out.join(format!("{stem}.json")), json)?;
    Ok(found)
}

fn report(name: &str, truth: &Truth, found: &Detections) {
    let true_boxes: Vec<PixelBox> = truth.iter().map(|(_, bounds)| *bounds).collect();
    let boxes: Vec<PixelBox> = found.objects.iter().map(|object| object.bounds).collect();
    let at_half = match_boxes(&boxes, &true_boxes, 0.5).iter().flatten().count();
    println!(
        "{name}: {at_half} of {} boxes at IoU 0.5; {} masks, {} after suppression",
        truth.len(),
        found.candidates,
        boxes.len()
    );
    for (label, bounds) in truth {
        let best = boxes.iter().map(|found| found.iou(bounds)).fold(0.0, f64::max);
        println!("  {label:14} best IoU {best:.2}");
    }
}

#[cfg(feature = "sam")]
fn sam(weights: &Path) -> Result<attn_vlsam::segment::Sam, Failure> {
    Ok(attn_vlsam::segment::Sam::load(weights, attn_vlsam::segment::SamConfig::default())?)
}

#[cfg(not(feature = "sam"))]
fn sam(_: &Path) -> Result<RandomWalker, Failure> {
    Err("--sam needs the feature `sam`".into())
}
