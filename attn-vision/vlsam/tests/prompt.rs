//! From maps to points, boxes and names: vectors from the paper's equations, and laws of each step.
//! `ATTN_GOLDEN_DIR` adds a folder of more vectors.

use std::path::PathBuf;

use attn_core::Result;
use attn_core::testing::golden::{self, GoldenFile};
use attn_vlsam::AttentionMap;
use attn_vlsam::image::image_crate::RgbImage;
use attn_vlsam::prompt::{
    Components, PatchPair, PixelBox, Point, PromptConfig, Refine, View, match_boxes, nms,
    patch_centre, refine, strong, union_names, views,
};
use attn_vlsam::segment::{PixelMask, Prompt, Segment, Segmenter};
use proptest::prelude::*;

/// Tolerance of the segmenter's scores, which the file holds in f32; all else is exact.
const SCORE: f64 = 1e-6;

#[test]
fn golden_prompts() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut checked = 0;
    for file in golden::files(&folder, "vlsam").unwrap() {
        let check = if file.has(&["map", "labels", "region", "points_yx"]) {
            check_points
        } else if file.has(&["map", "object_ids", "steps", "masks", "keep"]) {
            check_loop
        } else if file.has(&["boxes_local", "boxes_full", "keep_agnostic", "keep_per_class"]) {
            check_merge
        } else {
            continue;
        };
        println!("{}", file.path().display());
        check(&file).unwrap();
        checked += 1;
    }
    assert!(checked >= 2, "the shipped files lack a loop or a merge");
}

fn integers(file: &GoldenFile, name: &str) -> Vec<i32> {
    file.i32(name).unwrap().iter().copied().collect()
}

fn indices(file: &GoldenFile, name: &str) -> Vec<usize> {
    integers(file, name).iter().map(|&index| index as usize).collect()
}

fn map_of(file: &GoldenFile) -> Result<AttentionMap> {
    let map = file.f32("map")?;
    AttentionMap::from_values((map.shape()[0], map.shape()[1]), map.iter().copied().collect())
}

fn check_points(file: &GoldenFile) -> Result<()> {
    let (map, threshold) = (map_of(file)?, file.number("threshold")?);
    let components = Components::new(map.grid(), &strong(&map, threshold))?;
    let labels: Vec<i32> = components.labels.iter().map(|&label| label as i32).collect();
    assert_eq!(labels, integers(file, "labels"));
    let pair = PatchPair::pick(&map, &vec![true; labels.len()], threshold)?.unwrap();
    let region: Vec<u8> = pair.region.iter().map(|&inside| inside.into()).collect();
    assert_eq!(region, file.u8("region")?.iter().copied().collect::<Vec<_>>());
    let (positive, negative) = (pair.positive, pair.negative.unwrap());
    let points = [positive.0, positive.1, negative.0, negative.1].map(|x| x as i32);
    assert_eq!(points.to_vec(), integers(file, "points_yx"));
    Ok(())
}

fn boxes(list: &[i32]) -> Vec<PixelBox> {
    let corners = |c: &[i32]| PixelBox::new(c[0] as u32, c[1] as u32, c[2] as u32, c[3] as u32);
    list.chunks(4).map(corners).collect()
}

/// The files' segmenter: the object under the positive point; where the negative point is on the same
/// one, a single pixel.
struct Toy {
    ids: Vec<i32>,
    size: (u32, u32),
}

impl Segmenter for Toy {
    fn set_image(&mut self, _: &RgbImage) -> Result<()> {
        Ok(())
    }

    fn size(&self) -> Option<(u32, u32)> {
        Some(self.size)
    }

    fn segment(&mut self, prompt: &Prompt<'_>) -> Result<Vec<Segment>> {
        let place = |point: &Point| point.y as usize * self.size.1 as usize + point.x as usize;
        let at = place(&prompt.points[0]);
        let same = prompt.points.iter().skip(1).any(|p| self.ids[place(p)] == self.ids[at]);
        let inside = |i: usize| if same { i == at } else { self.ids[i] == self.ids[at] };
        let mask = PixelMask::new(self.size, (0..self.ids.len()).map(inside).collect())?;
        let share = mask.area() as f64 / self.ids.len() as f64;
        let bonus = if prompt.mask.is_some() { 0.05 } else { 0.0 };
        Ok(vec![Segment::new(mask, 1.0 - share + bonus)])
    }
}

fn check_loop(file: &GoldenFile) -> Result<()> {
    let map = map_of(file)?;
    let shape = file.shape("object_ids")?;
    let size = (shape[0] as u32, shape[1] as u32);
    let mut toy = Toy { ids: integers(file, "object_ids"), size };
    let bound = file.number("nms")?;
    let config = PromptConfig::default()
        .with_threshold(file.number("threshold")?)
        .with_cover(file.number("cover")?)
        .with_refine(Refine::Suppress, file.number("max_iter")? as usize)
        .with_nms(bound, false);
    let found = refine(&map, &mut toy, &config)?;
    let step = |found: &attn_vlsam::prompt::Found| {
        let (positive, negative) = (found.pair.positive, found.pair.negative.unwrap());
        [positive.0, positive.1, negative.0, negative.1].map(|x| x as i32)
    };
    assert_eq!(found.iter().flat_map(step).collect::<Vec<_>>(), integers(file, "steps"));
    let scores: Vec<f64> = found.iter().map(|found| found.score).collect();
    for (got, want) in scores.iter().zip(file.f64("scores")?.iter()) {
        assert!((got - want).abs() < SCORE, "{got} instead of {want}");
    }
    let bounds: Vec<PixelBox> = found.iter().map(|found| found.bounds).collect();
    assert_eq!(bounds, boxes(&integers(file, "boxes_xyxy")));
    let masks = found.iter().flat_map(|found| found.mask.bits()).map(|&bit| u8::from(bit));
    assert_eq!(masks.collect::<Vec<_>>(), file.u8("masks")?.iter().copied().collect::<Vec<_>>());
    assert_eq!(nms(&bounds, &scores, None, bound)?, indices(file, "keep"));
    Ok(())
}

fn check_merge(file: &GoldenFile) -> Result<()> {
    let size = (file.number("H")? as u32, file.number("W")? as u32);
    let views = views(size, true);
    let local = boxes(&integers(file, "boxes_local"));
    let source = indices(file, "source");
    let full: Vec<PixelBox> =
        local.iter().zip(&source).map(|(b, &view)| views[view].to_full(b)).collect();
    assert_eq!(full, boxes(&integers(file, "boxes_full")));
    let scores: Vec<f64> = file.f64("scores")?.iter().copied().collect();
    let (labels, bound) = (indices(file, "labels"), file.number("nms")?);
    assert_eq!(nms(&full, &scores, None, bound)?, indices(file, "keep_agnostic"));
    assert_eq!(nms(&full, &scores, Some(&labels), bound)?, indices(file, "keep_per_class"));
    Ok(())
}

fn any_map() -> impl Strategy<Value = AttentionMap> {
    (1_usize..8, 1_usize..9).prop_flat_map(|grid| {
        proptest::collection::vec(0.0_f32..1.0, grid.0 * grid.1)
            .prop_map(move |raw| AttentionMap::from_raw(grid, raw).unwrap())
    })
}

fn any_boxes() -> impl Strategy<Value = Vec<(PixelBox, f64, usize)>> {
    let one = (0_u32..40, 0_u32..40, 1_u32..30, 1_u32..30, 0_usize..3);
    proptest::collection::vec(one, 0..20).prop_map(|list| {
        let boxed = |(index, (x, y, w, h, label)): (usize, (u32, u32, u32, u32, usize))| {
            // Scores differ, in no order of the indices.
            let score = ((index * 37 + 11) % 101) as f64;
            (PixelBox::new(x, y, x + w, y + h), score, label)
        };
        list.into_iter().enumerate().map(boxed).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn points_are_on_both_sides_of_the_region(map in any_map(), threshold in 0.01_f64..1.0) {
        let all = vec![true; map.values().len()];
        let Some(pair) = PatchPair::pick(&map, &all, threshold).unwrap() else {
            prop_assert!(map.values().iter().all(|&value| f64::from(value) < threshold));
            return Ok(());
        };
        let at = |(y, x): (usize, usize)| y * map.grid().1 + x;
        prop_assert!(pair.region[at(pair.positive)]);
        prop_assert!(pair.negative.is_none_or(|patch| !pair.region[at(patch)]));
        prop_assert_eq!(pair.negative.is_none(), pair.region.iter().all(|&inside| inside));
        let inside = |patch: usize| pair.region[patch].then(|| map.values()[patch]);
        let highest = (0..all.len()).filter_map(inside).fold(0.0, f32::max);
        prop_assert_eq!(map.at(pair.positive.0, pair.positive.1), Some(highest));
        // Rising values change nothing, where the same patches reach the threshold.
        let risen: Vec<f32> = map.values().iter().map(|value| value.sqrt()).collect();
        prop_assume!(distinct(&risen) == distinct(map.values()));
        let risen = AttentionMap::from_values(map.grid(), risen).unwrap();
        prop_assert_eq!(PatchPair::pick(&risen, &all, threshold.sqrt()).unwrap(), Some(pair));
    }

    #[test]
    fn regions_cover_the_strong_patches(map in any_map(), threshold in 0.0_f64..1.0) {
        let set = strong(&map, threshold);
        let components = Components::new(map.grid(), &set).unwrap();
        let (rows, columns) = map.grid();
        let labels = &components.labels;
        for (patch, &inside) in set.iter().enumerate() {
            prop_assert_eq!(labels[patch] != 0, inside);
            let (y, x) = (patch / columns, patch % columns);
            let beside = [(x + 1 < columns, patch + 1), (y + 1 < rows, patch + columns)];
            for (_, next) in beside.into_iter().filter(|beside| beside.0) {
                prop_assert!(labels[patch] == labels[next] || labels[patch] * labels[next] == 0);
            }
        }
        // Numbers rise in the order of first patches, and sizes are true.
        let mut seen = 0;
        for &label in labels {
            prop_assert!(label <= seen + 1);
            seen = seen.max(label);
        }
        let count = |label: u32| labels.iter().filter(|&&other| other == label).count();
        prop_assert_eq!(&components.sizes, &(1..=seen).map(count).collect::<Vec<_>>());
    }

    #[test]
    fn suppression_shrinks_the_map_until_it_ends(map in any_map(), threshold in 0.01_f64..1.0) {
        let (rows, columns) = map.grid();
        let size = (rows as u32 * 3, columns as u32 * 2);
        for refined in [Refine::Suppress, Refine::Keep] {
            let mut toy = Toy { ids: (0..size.0 * size.1).map(|i| i as i32 / 17).collect(), size };
            let config = PromptConfig::default()
                .with_threshold(threshold)
                .with_refine(refined, usize::MAX);
            let found = refine(&map, &mut toy, &config).unwrap();
            let mut used: Vec<_> = found.iter().map(|found| found.pair.positive).collect();
            prop_assert!(used.len() <= rows * columns);
            used.sort();
            used.dedup();
            prop_assert_eq!(used.len(), found.len(), "a patch was used twice");
            for (before, after) in found.iter().zip(found.iter().skip(1)) {
                let cover = before.mask.coverage(map.grid());
                let (y, x) = after.pair.positive;
                prop_assert_eq!(cover[y * columns + x] >= 0.5, refined == Refine::Keep);
            }
        }
    }

    #[test]
    fn what_stays_does_not_overlap(list in any_boxes(), bound in 0.0_f64..1.0, by_label: bool) {
        let (all, scores, labels) = split(&list);
        let kept = nms(&all, &scores, by_label.then_some(&labels), bound).unwrap();
        for (place, &a) in kept.iter().enumerate() {
            for &b in &kept[..place] {
                prop_assert!(scores[b] >= scores[a]);
                let apart = by_label && labels[a] != labels[b];
                prop_assert!(apart || all[a].iou(&all[b]) <= bound);
            }
        }
        for index in (0..all.len()).filter(|index| !kept.contains(index)) {
            let stronger = |&other: &usize| {
                scores[other] >= scores[index]
                    && (!by_label || labels[other] == labels[index])
                    && all[other].iou(&all[index]) > bound
            };
            prop_assert!(kept.iter().any(stronger), "{index} went for nothing");
        }
        // Once more changes nothing.
        let again: Vec<_> = kept.iter().map(|&index| list[index]).collect();
        let (again, scores_again, labels_again) = split(&again);
        let kept_again = nms(&again, &scores_again, by_label.then_some(&labels_again), bound).unwrap();
        prop_assert_eq!(kept_again, (0..kept.len()).collect::<Vec<_>>());
        // Nor does the order in which boxes come.
        let turned: Vec<_> = list.iter().rev().copied().collect();
        let (turned, scores, labels) = split(&turned);
        let other = nms(&turned, &scores, by_label.then_some(&labels), bound).unwrap();
        let other: Vec<_> = other.iter().map(|&index| turned[index]).collect();
        let kept: Vec<_> = kept.iter().map(|&index| all[index]).collect();
        prop_assert_eq!(kept, other);
    }

    #[test]
    fn views_lie_inside_and_cover_everything(height in 1_u32..50, width in 1_u32..50) {
        let views = views((height, width), true);
        prop_assert_eq!(views.len(), if height > 1 && width > 1 { 5 } else { 1 });
        let mut seen = vec![false; (height * width) as usize];
        for view in views.iter().skip(usize::from(views.len() > 1)) {
            let part = view.part;
            prop_assert!(part.x1 <= width && part.y1 <= height && part.area() > 0);
            let (rows, columns) = view.size();
            let all = PixelBox::new(0, 0, columns, rows);
            prop_assert_eq!(view.to_full(&all), part);
            for y in part.y0..part.y1 {
                (part.x0..part.x1).for_each(|x| seen[(y * width + x) as usize] = true);
            }
        }
        prop_assert!(seen.iter().all(|&seen| seen));
    }
}

/// How many different numbers there are.
fn distinct(values: &[f32]) -> usize {
    let bits: std::collections::BTreeSet<u32> =
        values.iter().map(|value| value.to_bits()).collect();
    bits.len()
}

type Split = (Vec<PixelBox>, Vec<f64>, Vec<usize>);

fn split(list: &[(PixelBox, f64, usize)]) -> Split {
    let boxes = list.iter().map(|entry| entry.0).collect();
    (boxes, list.iter().map(|entry| entry.1).collect(), list.iter().map(|entry| entry.2).collect())
}

#[test]
fn the_centre_of_a_patch_is_in_it() {
    let (y, x) = patch_centre((8, 9), (32, 36), (0, 8));
    assert_eq!((y, x), (2.0, 34.0));
    // More patches than pixels: centres are still in the image.
    let (y, x) = patch_centre((10, 10), (3, 1), (9, 9));
    assert!(y > 0.0 && y < 3.0 && x > 0.0 && x < 1.0);
}

#[test]
fn equal_regions_and_patches_count_in_raster_order() {
    let raw = vec![0.9, 0.0, 1.0, 0.9, 0.0, 1.0];
    let map = AttentionMap::from_values((2, 3), raw).unwrap();
    let pair = PatchPair::pick(&map, &[true; 6], 0.5).unwrap().unwrap();
    assert_eq!((pair.positive, pair.negative), ((0, 0), Some((0, 1))));
    // A patch that was taken out is in no region, and no negative point either.
    let valid = [true, false, true, false, true, true];
    let pair = PatchPair::pick(&map, &valid, 0.5).unwrap().unwrap();
    assert_eq!((pair.positive, pair.negative), ((0, 2), Some((1, 1))));
    assert!(PatchPair::pick(&map, &[false; 6], 0.5).unwrap().is_none());
}

#[test]
fn a_region_of_everything_has_no_negative_point() {
    let map = AttentionMap::from_values((1, 3), vec![1.0; 3]).unwrap();
    let pair = PatchPair::pick(&map, &[true; 3], 0.5).unwrap().unwrap();
    assert_eq!(pair.negative, None);
    assert_eq!(pair.points((1, 3), (4, 6)), [Point { y: 2.0, x: 1.0, positive: true }]);
}

#[test]
fn a_constant_map_prompts_nothing() {
    let map = AttentionMap::from_raw((3, 3), vec![0.7; 9]).unwrap();
    let mut toy = Toy { ids: vec![0; 9], size: (3, 3) };
    assert!(refine(&map, &mut toy, &PromptConfig::default()).unwrap().is_empty());
}

#[test]
fn scores_that_are_no_numbers_come_last() {
    let same = vec![PixelBox::new(0, 0, 2, 2); 3];
    assert_eq!(nms(&same, &[f64::NAN, 0.1, 0.1], None, 0.5).unwrap(), [1]);
    // Equal boxes do not suppress each other at a bound of 1, which no overlap exceeds.
    assert_eq!(nms(&same, &[f64::NAN, 0.1, f64::INFINITY], None, 1.0).unwrap(), [2, 1, 0]);
    let empty = [PixelBox::new(3, 3, 3, 9), PixelBox::new(5, 5, 4, 4)];
    assert_eq!(nms(&empty, &[0.0, 1.0], None, 0.0).unwrap(), [1, 0]);
    assert!(nms(&[], &[], None, 0.5).unwrap().is_empty());
}

#[test]
fn every_true_box_is_matched_once() {
    let truth = [PixelBox::new(0, 0, 10, 10), PixelBox::new(2, 0, 12, 10)];
    let found =
        [PixelBox::new(2, 0, 12, 10), PixelBox::new(2, 0, 12, 10), PixelBox::new(90, 0, 91, 1)];
    let matched = match_boxes(&found, &truth, 0.5);
    assert_eq!(matched[1], Some((0, 1.0)));
    let (index, iou) = matched[0].unwrap();
    assert_eq!(index, 1);
    assert!((iou - 80.0 / 120.0).abs() < 1e-12);
    assert_eq!(match_boxes(&found[2..], &truth, 0.5), [None, None]);
}

#[test]
fn names_are_united() {
    let answers = [vec!["Dog", " cat "], vec![], vec!["CAT", "", "tree"]];
    assert_eq!(union_names(&answers), ["dog", "cat", "tree"]);
}

#[test]
fn views_of_the_smallest_images() {
    assert_eq!(views((0, 0), true), [View::full((0, 0))]);
    assert_eq!(views((1, 9), true).len(), 1);
    assert_eq!(views((u32::MAX, u32::MAX), true).len(), 5);
    assert_eq!(views((640, 480), false).len(), 1);
}

fn fails<T: std::fmt::Debug>(result: Result<T>, part: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(part), "{error:?} lacks {part:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = PromptConfig::default;
    for threshold in [0.0, -1.0, 1.1, f64::NAN] {
        fails(config().with_threshold(threshold).validate(), "threshold");
        fails(config().with_cover(threshold).validate(), "cover");
    }
    for bound in [-0.1, 1.5, f64::NAN] {
        fails(config().with_nms(bound, true).validate(), "nms");
        fails(nms(&[], &[], None, bound), "nms");
    }
    fails(config().with_refine(Refine::Keep, 0).validate(), "max_iter");
    fails(config().with_questions(0).validate(), "questions");
    PromptConfig::paper().validate().unwrap();

    let one = [PixelBox::new(0, 0, 1, 1)];
    fails(nms(&one, &[], None, 0.5), "scores");
    fails(nms(&one, &[1.0], Some(&[]), 0.5), "labels");
    let map = AttentionMap::from_raw((1, 2), vec![0.0, 1.0]).unwrap();
    fails(PatchPair::pick(&map, &[true], 0.5), "valid");
    fails(Components::new((2, 2), &[true]), "patches");
    fails(Components::new((usize::MAX, 2), &[]), "patches");
    assert!(Components::new((0, 7), &[]).unwrap().sizes.is_empty());
}

/// Gives a mask of a size that is not the image's, or no image at all.
struct Wrong(Option<(u32, u32)>);

impl Segmenter for Wrong {
    fn set_image(&mut self, _: &RgbImage) -> Result<()> {
        Ok(())
    }

    fn size(&self) -> Option<(u32, u32)> {
        self.0
    }

    fn segment(&mut self, _: &Prompt<'_>) -> Result<Vec<Segment>> {
        Ok(vec![Segment::new(PixelMask::empty((1, 1)), 1.0)])
    }
}

#[test]
fn wrong_segmenters_are_caught() {
    let map = AttentionMap::from_raw((1, 2), vec![0.0, 1.0]).unwrap();
    let config = PromptConfig::default();
    fails(refine(&map, &mut Wrong(None), &config), "image");
    fails(refine(&map, &mut Wrong(Some((4, 4))), &config), "4 x 4");
    // An empty mask of the right size is no object.
    assert!(refine(&map, &mut Wrong(Some((1, 1))), &config).unwrap().is_empty());
}
