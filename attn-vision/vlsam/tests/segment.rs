//! The random walker against a dense solution, and the whole method on drawn images.

// Matrices are written with their indices.
#![allow(clippy::needless_range_loop)]

use attn_core::Result;
use attn_vlsam::detect::Detector;
use attn_vlsam::image::image_crate::{Rgb, RgbImage};
use attn_vlsam::prompt::{PixelBox, Point, PromptConfig, match_boxes};
use attn_vlsam::segment::{
    Lattice, PixelMask, Prompt, RandomWalker, Recogniser, Scene, Scripted, Segment, Segmenter,
    WalkerConfig, gaussian_map,
};
use proptest::prelude::*;

/// The same as [`Lattice::walks`] by elimination on the whole matrix.
fn dense(lattice: &Lattice, fixed: &[Option<f64>], pull: &[(f64, f64)]) -> Vec<f64> {
    let (rows, columns) = lattice.size();
    let count = rows * columns;
    let mut matrix = vec![vec![0.0; count + 1]; count];
    let mut join = |a: usize, b: usize, w: f64| {
        for (a, b) in [(a, b), (b, a)] {
            matrix[a][a] += w;
            matrix[a][b] -= w;
        }
    };
    for place in 0..count {
        if place % columns + 1 < columns {
            join(place, place + 1, lattice.right()[place]);
        }
        if place / columns + 1 < rows {
            join(place, place + columns, lattice.down()[place]);
        }
    }
    for place in 0..count {
        let (strength, value) = pull[place];
        matrix[place][place] += strength;
        matrix[place][count] = strength * value;
        if let Some(value) = fixed[place] {
            matrix[place].fill(0.0);
            matrix[place][place] = 1.0;
            matrix[place][count] = value;
        }
    }
    for pivot in 0..count {
        let best = (pivot..count)
            .max_by(|&a, &b| matrix[a][pivot].abs().total_cmp(&matrix[b][pivot].abs()));
        matrix.swap(pivot, best.unwrap());
        let line = matrix[pivot].clone();
        for (row, other) in matrix.iter_mut().enumerate() {
            let factor = other[pivot] / line[pivot];
            if row != pivot && factor != 0.0 {
                other.iter_mut().zip(&line).for_each(|(x, y)| *x -= factor * y);
            }
        }
    }
    (0..count).map(|place| matrix[place][count] / matrix[place][place]).collect()
}

#[derive(Debug, Clone)]
struct Case {
    lattice: Lattice,
    fixed: Vec<Option<f64>>,
    pull: Vec<(f64, f64)>,
}

fn case() -> impl Strategy<Value = Case> {
    (1_usize..8, 1_usize..8).prop_flat_map(|size| {
        let count = size.0 * size.1;
        let conductances = || proptest::collection::vec((-6.0_f64..0.0).prop_map(f64::exp), count);
        let fixed = proptest::collection::vec(proptest::option::weighted(0.2, 0.0_f64..1.0), count);
        let pull = proptest::collection::vec((0.0_f64..0.1, 0.0_f64..1.0), count);
        (conductances(), conductances(), fixed, pull).prop_map(move |(right, down, fixed, pull)| {
            Case { lattice: Lattice::new(size, right, down).unwrap(), fixed, pull }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn walks_are_the_dense_solution(case in case()) {
        let Case { lattice, fixed, pull } = case;
        let walks = lattice.walks(&fixed, &pull, None, 1e-12, 1000).unwrap();
        prop_assert!(walks.residual <= 1e-12);
        let want = dense(&lattice, &fixed, &pull);
        for (place, (got, want)) in walks.values.iter().zip(&want).enumerate() {
            prop_assert!((got - want).abs() < 1e-8, "{place}: {got} instead of {want}");
            // Fixed places keep their value, and all others lie between what walks can end on.
            prop_assert!(fixed[place].is_none_or(|value| value == *got));
            prop_assert!((-1e-9..=1.0 + 1e-9).contains(got));
        }
        // The solution is where it ends from anywhere.
        let start = vec![0.3; fixed.len()];
        let other = lattice.walks(&fixed, &pull, Some(&start), 1e-12, 1000).unwrap();
        for (a, b) in walks.values.iter().zip(&other.values) {
            prop_assert!((a - b).abs() < 1e-8);
        }
        let done = lattice.walks(&fixed, &pull, Some(&want), 1e-8, 1000).unwrap();
        prop_assert_eq!(done.iterations, 0);
    }

    #[test]
    fn points_stay_on_their_side(
        width in 1_u32..40, height in 1_u32..40, seed: u64,
        at in (0.0_f64..1.0, 0.0_f64..1.0), beside in (0.0_f64..1.0, 0.0_f64..1.0),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let image = RgbImage::from_fn(width, height, |_, _| Rgb([0; 3].map(|_: u8| random.u8(..))));
        let mut walker = RandomWalker::default();
        walker.set_image(&image).unwrap();
        let place = |(y, x): (f64, f64), positive| {
            let (y, x) = ((y * f64::from(height)).floor(), (x * f64::from(width)).floor());
            Point { y: y + 0.5, x: x + 0.5, positive }
        };
        let points = [place(at, true), place(beside, false)];
        let segments = walker.segment(&Prompt { points: &points, mask: None }).unwrap();
        prop_assert!(!segments.is_empty());
        for Segment { mask, score, .. } in &segments {
            prop_assert_eq!(mask.size(), (height, width));
            prop_assert!((0.0..=1.0).contains(score));
            prop_assert!(mask.at(points[0].y as u32, points[0].x as u32));
        }
    }
}

/// Rectangles of `size` pixels, all over an even ground, with noise.
fn drawing(
    size: (u32, u32),
    ground: [u8; 3],
    objects: &[(PixelBox, [u8; 3])],
    seed: u64,
) -> RgbImage {
    let mut random = fastrand::Rng::with_seed(seed);
    RgbImage::from_fn(size.1, size.0, |x, y| {
        let over = |b: &PixelBox| x >= b.x0 && x < b.x1 && y >= b.y0 && y < b.y1;
        let object = objects.iter().rev().find(|(bounds, _)| over(bounds));
        let colour = object.map_or(ground, |(_, colour)| *colour);
        Rgb(colour.map(|value| value.saturating_add(random.u8(0..9)).saturating_sub(4)))
    })
}

const RECTANGLES: [(&str, PixelBox, [u8; 3]); 6] = [
    ("red", PixelBox { x0: 12, y0: 10, x1: 62, y1: 50 }, [200, 40, 40]),
    ("green", PixelBox { x0: 90, y0: 18, x1: 120, y1: 78 }, [50, 160, 60]),
    ("blue", PixelBox { x0: 150, y0: 12, x1: 212, y1: 60 }, [50, 70, 190]),
    ("yellow", PixelBox { x0: 20, y0: 90, x1: 70, y1: 130 }, [220, 200, 60]),
    ("white", PixelBox { x0: 110, y0: 100, x1: 150, y1: 140 }, [235, 235, 235]),
    ("black", PixelBox { x0: 165, y0: 95, x1: 225, y1: 145 }, [15, 15, 15]),
];

/// Section 9.4 of the specification: all objects of a drawn image are found with a mean intersection
/// over union of at least 0.9, and once.
#[test]
fn rectangles_are_found_once() {
    let objects: Vec<_> = RECTANGLES.iter().map(|(_, bounds, colour)| (*bounds, *colour)).collect();
    for (seed, ground) in [(1, [120, 120, 120]), (2, [90, 110, 140]), (3, [150, 130, 100])] {
        let image = drawing((160, 240), ground, &objects, seed);
        let truth: Vec<PixelBox> = objects.iter().map(|(bounds, _)| *bounds).collect();
        let names = RECTANGLES.iter().map(|(name, bounds, _)| (*name, *bounds));
        // Every object is named twice, so that there are duplicates to remove.
        let scripted = Scripted::new(names.clone().chain(names)).with_noise(0.05, seed);
        for multi_scale in [false, true] {
            let config = PromptConfig::default().with_multi_scale(multi_scale);
            let mut detector =
                Detector::new(scripted.clone(), RandomWalker::default(), config).unwrap();
            let found = detector.detect(&image).unwrap();
            let boxes: Vec<_> = found.objects.iter().map(|object| object.bounds).collect();
            let matched = match_boxes(&boxes, &truth, 0.5);
            let mut sum = 0.0;
            for ((name, bounds, _), matched) in RECTANGLES.iter().zip(&matched) {
                let (index, _) = matched.unwrap_or_else(|| panic!("{name} was not found"));
                assert_eq!(&found.objects[index].name, name);
                let inside = |y, x| PixelBox::new(x, y, x + 1, y + 1).iou(bounds) > 0.0;
                let drawn = PixelMask::from_fn((160, 240), inside);
                sum += found.objects[index].mask.iou(&drawn);
            }
            let mean = sum / truth.len() as f64;
            let (kept, all) = (found.objects.len(), found.candidates);
            println!("mean IoU {mean:.3}, {kept} of {all} masks, several scales: {multi_scale}");
            assert!(mean >= 0.9, "{mean}");
            assert_eq!(kept, truth.len(), "duplicates stayed of {all} masks");
            assert!(all >= 2 * truth.len());
        }
    }
}

#[test]
fn large_lattices_converge() {
    let objects: Vec<_> = RECTANGLES.iter().map(|(_, bounds, colour)| (*bounds, *colour)).collect();
    let image = drawing((160, 240), [120; 3], &objects, 4);
    let mut walker = RandomWalker::default();
    walker.set_image(&image).unwrap();
    let lattice = walker.lattice().unwrap();
    assert_eq!(lattice.size(), (128, 192));
    let mut fixed = vec![None; 128 * 192];
    (fixed[20 * 192 + 30], fixed[5]) = (Some(1.0), Some(0.0));
    let walks = lattice.walks(&fixed, &vec![(1e-2, 0.5); fixed.len()], None, 1e-6, 1000).unwrap();
    println!("{} iterations", walks.iterations);
    assert!(walks.residual <= 1e-6 && walks.iterations < 1000);
}

#[test]
fn any_image_and_any_points_do() {
    let config = PromptConfig::default().with_multi_scale(true);
    for (height, width) in [(1, 1), (1, 300), (300, 1), (2, 2), (3, 5), (7, 513)] {
        let image = RgbImage::from_pixel(width, height, Rgb([9, 9, 9]));
        let bounds = PixelBox::new(0, 0, width, height);
        let mut detector = Detector::new(
            Scripted::new([("all", bounds)]),
            RandomWalker::default(),
            config.clone(),
        )
        .unwrap();
        for object in detector.detect(&image).unwrap().objects {
            assert_eq!(object.mask.size(), (height, width));
        }
        let walker = detector.segmenter();
        walker.set_image(&image).unwrap();
        for (y, x) in [(-5.0, -1e300), (1e9, 1e300), (0.0, f64::MAX), (f64::MIN, 0.5)] {
            let points =
                [Point { y, x, positive: true }, Point { y: 0.0, x: 0.0, positive: false }];
            for count in 1..=2 {
                let segments =
                    walker.segment(&Prompt { points: &points[..count], mask: None }).unwrap();
                assert!(segments.iter().all(|segment| segment.mask.size() == (height, width)));
            }
        }
    }
}

/// Names what it is asked for.
struct Echo;

impl Recogniser for Echo {
    fn questions(&mut self, _: &RgbImage, count: usize) -> Result<Vec<String>> {
        Ok(["Red", "red ", "BLUE"].map(str::to_owned).into_iter().take(count).collect())
    }

    fn recognise(
        &mut self,
        scene: &Scene<'_>,
        question: &str,
    ) -> Result<Vec<attn_vlsam::segment::Recognised>> {
        let place = if question.trim().eq_ignore_ascii_case("red") { 0 } else { 2 };
        let map = gaussian_map((20, 30), scene.view.size(), &RECTANGLES[place].1, 0.0, 1)?;
        Ok(vec![attn_vlsam::segment::Recognised { name: question.to_owned(), map }])
    }
}

#[test]
fn several_questions_name_an_object_once() {
    let objects: Vec<_> = RECTANGLES.iter().map(|(_, bounds, colour)| (*bounds, *colour)).collect();
    let image = drawing((160, 240), [120; 3], &objects, 5);
    let config = PromptConfig::default().with_questions(3);
    let mut detector = Detector::new(Echo, RandomWalker::default(), config).unwrap();
    let found = detector.detect(&image).unwrap();
    let names: Vec<_> = found.maps.iter().map(|seen| seen.name.as_str()).collect();
    assert_eq!(names, ["Red", "BLUE"]);
    assert_eq!(found.objects.len(), 2);
}

#[test]
fn a_mask_is_made_better_from_its_own_colours() {
    let objects = [(PixelBox::new(20, 20, 70, 60), [180, 60, 60])];
    let image = drawing((80, 100), [100, 100, 110], &objects, 6);
    let mut walker = RandomWalker::default();
    walker.set_image(&image).unwrap();
    let truth =
        PixelMask::from_fn((80, 100), |y, x| (20..60).contains(&y) && (20..70).contains(&x));
    let points =
        [Point { y: 40.0, x: 40.0, positive: true }, Point { y: 5.0, x: 5.0, positive: false }];
    // A mask from elsewhere, without this segmenter's memory.
    let rough =
        PixelMask::from_fn((80, 100), |y, x| (25..55).contains(&y) && (25..60).contains(&x));
    let before = Segment::new(rough.clone(), 0.0);
    let after = walker.segment(&Prompt { points: &points, mask: Some(&before) }).unwrap();
    assert!(after[0].mask.iou(&truth) > rough.iou(&truth).max(0.9), "{:?}", after[0].mask);
    let again = walker.segment(&Prompt { points: &points, mask: Some(&after[0]) }).unwrap();
    assert!(again[0].mask.iou(&truth) > 0.9);
    // Twice the same question, twice the same answer.
    let same = walker.segment(&Prompt { points: &points, mask: Some(&before) }).unwrap();
    assert_eq!(same, after);
}

fn fails<T: std::fmt::Debug>(result: Result<T>, part: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(part), "{error:?} lacks {part:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut walker = RandomWalker::default();
    let on = Point { y: 0.5, x: 0.5, positive: true };
    let off = Point { positive: false, ..on };
    let ask = |walker: &mut RandomWalker, points: &[Point]| {
        walker.segment(&Prompt { points, mask: None })
    };
    fails(ask(&mut walker, &[on]), "an image");
    fails(walker.set_image(&RgbImage::new(0, 0)), "pixels");
    fails(walker.set_image(&RgbImage::new(0, 7)), "pixels");
    assert_eq!(walker.size(), None);
    walker.set_image(&RgbImage::new(4, 3)).unwrap();
    assert_eq!(walker.size(), Some((3, 4)));
    fails(ask(&mut walker, &[]), "at least one point");
    fails(ask(&mut walker, &[off]), "positive");
    fails(ask(&mut walker, &[on, Point { y: f64::NAN, ..off }]), "finite");

    let scripted = || Scripted::new([("a", PixelBox::new(0, 0, 1, 1))]);
    let bad = PromptConfig::default().with_threshold(2.0);
    fails(Detector::new(scripted(), walker.clone(), bad).map(|_| ()), "threshold");
    let mut detector = Detector::new(scripted(), walker, PromptConfig::default()).unwrap();
    fails(detector.detect(&RgbImage::new(0, 5)), "pixels");

    let config = WalkerConfig::default;
    for bad in [
        config().with_max_side(0),
        config().with_max_side(5000),
        config().with_blur(-1.0),
        config().with_blur(f64::NAN),
        config().with_beta(f64::INFINITY),
        config().with_pull(0.0, 0.1),
        config().with_pull(0.1, 1.5),
    ] {
        fails(RandomWalker::new(bad), "expected");
    }
    fails(gaussian_map((0, 1), (1, 1), &PixelBox::new(0, 0, 1, 1), 0.0, 1), "grid");
    fails(gaussian_map((1, 1), (0, 1), &PixelBox::new(0, 0, 1, 1), 0.0, 1), "pixels");
    fails(gaussian_map((1, 1), (1, 1), &PixelBox::new(1, 0, 1, 1), 0.0, 1), "pixels");
    fails(gaussian_map((1, 1), (1, 1), &PixelBox::new(0, 0, 1, 1), f64::NAN, 1), "noise");
    fails(PixelMask::new((2, 2), vec![true; 3]), "2 x 2");

    fails(Lattice::new((2, 2), vec![1.0; 3], vec![1.0; 4]), "right");
    fails(Lattice::new((2, 2), vec![1.0; 4], vec![0.0; 4]), "above 0");
    let lattice = Lattice::new((1, 2), vec![1.0; 2], vec![1.0; 2]).unwrap();
    let (fixed, pull) = (vec![Some(1.0), None], vec![(0.0, 0.0); 2]);
    fails(lattice.walks(&fixed[..1], &pull, None, 1e-6, 9), "fixed");
    fails(lattice.walks(&fixed, &pull[..1], None, 1e-6, 9), "pull");
    fails(lattice.walks(&fixed, &pull, Some(&[0.0]), 1e-6, 9), "start");
    fails(lattice.walks(&fixed, &pull, Some(&[0.0, f64::NAN]), 1e-6, 9), "start");
    fails(lattice.walks(&[Some(f64::NAN), None], &pull, None, 1e-6, 9), "fixed");
    fails(lattice.walks(&fixed, &[(-1.0, 0.0); 2], None, 1e-6, 9), "pull");
    fails(lattice.walks(&[None, None], &pull, None, 1e-6, 9), "a pull");
    assert_eq!(lattice.walks(&fixed, &pull, None, 1e-6, 9).unwrap().values, [1.0, 1.0]);
    let empty = Lattice::new((0, 5), vec![], vec![]).unwrap();
    assert!(empty.walks(&[], &[], None, 1e-6, 9).unwrap().values.is_empty());
}

#[test]
fn masks_count_their_pixels() {
    let mask = PixelMask::from_fn((4, 6), |y, x| y >= 2 && x >= 3);
    assert_eq!((mask.area(), mask.bounds()), (6, Some(PixelBox::new(3, 2, 6, 4))));
    assert_eq!(mask.coverage((2, 2)), [0.0, 0.0, 0.0, 1.0]);
    assert_eq!(mask.coverage((4, 1)), [0.0, 0.0, 0.5, 0.5]);
    // More patches than pixels: those without any pixel are covered by nothing.
    let fine = mask.coverage((8, 12));
    assert_eq!(fine.iter().filter(|&&share| share == 1.0).count(), 6);
    assert!(mask.coverage((0, 3)).is_empty());
    assert_eq!(mask.pasted((5, 5), 1, 2).bounds(), None);
    assert_eq!(mask.pasted((9, 9), 1, 2).bounds(), Some(PixelBox::new(5, 3, 8, 5)));
    assert_eq!(mask.pasted((4, 6), 1, 2).area(), 1);
    assert_eq!(PixelMask::empty((0, 4)).bounds(), None);
    assert_eq!(mask.iou(&PixelMask::empty((4, 5))), 0.0);
    assert!((mask.iou(&PixelMask::from_fn((4, 6), |y, _| y >= 2)) - 0.5).abs() < 1e-12);
}
