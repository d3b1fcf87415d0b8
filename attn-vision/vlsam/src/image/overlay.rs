//! Pictures of results.

use ::image::{Rgb, RgbImage, imageops};

use super::font;
use crate::detect::{Detection, Detections, SeenMap};
use crate::prompt::{PixelBox, patch_of};

const POSITIVE: Rgb<u8> = Rgb([40, 230, 70]);
const NEGATIVE: Rgb<u8> = Rgb([240, 40, 40]);
const BLACK: Rgb<u8> = Rgb([0, 0, 0]);
const WHITE: Rgb<u8> = Rgb([255, 255, 255]);

/// The image with every object's mask tinted, its box, its name with the score, and its points: green
/// on the object, red beside it. Each pixel of the image becomes `scale` x `scale` pixels.
pub fn overlay(image: &RgbImage, objects: &[Detection], scale: u32) -> RgbImage {
    let mut picture = enlarged(image, scale);
    let scale = scale.max(1);
    for (index, object) in objects.iter().enumerate() {
        tint(&mut picture, object, colour(index), scale);
    }
    for (index, object) in objects.iter().enumerate() {
        frame(&mut picture, &object.bounds, colour(index), scale);
    }
    for (index, object) in objects.iter().enumerate() {
        let text = format!("{} {:.2}", object.name, object.score);
        let (x, y) = (scaled(object.bounds.x0, scale), scaled(object.bounds.y0, scale));
        write(&mut picture, &text, x, y, colour(index));
    }
    for object in objects {
        for point in &object.points {
            let place = |value: f64| (value * f64::from(scale)) as i64;
            let colour = if point.positive { POSITIVE } else { NEGATIVE };
            dot(&mut picture, place(point.x), place(point.y), colour);
        }
    }
    picture
}

/// The image in grey under the maps of all objects: at each pixel the highest value that a map has
/// there, from blue over yellow to red.
pub fn heat_map(image: &RgbImage, maps: &[SeenMap], scale: u32) -> RgbImage {
    let mut heat = RgbImage::new(image.width(), image.height());
    for (x, y, pixel) in heat.enumerate_pixels_mut() {
        let here = |seen: &SeenMap| {
            let part = seen.view.part;
            let inside = x >= part.x0 && x < part.x1 && y >= part.y0 && y < part.y1;
            let (rows, columns) = seen.map.grid();
            let row = patch_of(y.saturating_sub(part.y0), part.height(), rows);
            let column = patch_of(x.saturating_sub(part.x0), part.width(), columns);
            inside.then(|| seen.map.at(row, column)).flatten()
        };
        let value = maps.iter().filter_map(here).fold(0.0, f32::max);
        let grey = image.get_pixel_checked(x, y).map_or(0, |pixel| luminance(*pixel));
        *pixel = mix(Rgb([grey; 3]), warm(value), 0.25 + 0.5 * value);
    }
    enlarged(&heat, scale)
}

/// [`overlay`] and, to its right, [`heat_map`]; small images are enlarged.
pub fn picture(image: &RgbImage, found: &Detections) -> RgbImage {
    let longest = image.width().max(image.height()).max(1);
    let scale = (900 / longest).clamp(1, 4);
    let left = overlay(image, &found.objects, scale);
    let right = heat_map(image, &found.maps, scale);
    let gap = 8;
    let width = left.width().saturating_add(gap).saturating_add(right.width());
    let mut both = RgbImage::from_pixel(width, left.height(), WHITE);
    imageops::replace(&mut both, &left, 0, 0);
    imageops::replace(&mut both, &right, i64::from(left.width() + gap), 0);
    both
}

fn enlarged(image: &RgbImage, scale: u32) -> RgbImage {
    let scale = scale.max(1);
    let (width, height) = (scaled(image.width(), scale), scaled(image.height(), scale));
    RgbImage::from_fn(width, height, |x, y| {
        image.get_pixel_checked(x / scale, y / scale).copied().unwrap_or(BLACK)
    })
}

fn scaled(pixels: u32, scale: u32) -> u32 {
    pixels.saturating_mul(scale)
}

fn tint(picture: &mut RgbImage, object: &Detection, colour: Rgb<u8>, scale: u32) {
    let mask = &object.mask;
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let (column, row) = (x / scale, y / scale);
        if !mask.at(row, column) {
            continue;
        }
        let edge = !mask.at(row, column + 1)
            || !mask.at(row + 1, column)
            || column.checked_sub(1).is_none_or(|column| !mask.at(row, column))
            || row.checked_sub(1).is_none_or(|row| !mask.at(row, column));
        *pixel = mix(*pixel, colour, if edge { 0.9 } else { 0.4 });
    }
}

fn frame(picture: &mut RgbImage, bounds: &PixelBox, colour: Rgb<u8>, scale: u32) {
    let (x0, x1) = (scaled(bounds.x0, scale), scaled(bounds.x1, scale).saturating_sub(1));
    let (y0, y1) = (scaled(bounds.y0, scale), scaled(bounds.y1, scale).saturating_sub(1));
    for x in x0..=x1 {
        put(picture, x.into(), y0.into(), colour);
        put(picture, x.into(), y1.into(), colour);
    }
    for y in y0..=y1 {
        put(picture, x0.into(), y.into(), colour);
        put(picture, x1.into(), y.into(), colour);
    }
}

/// A name on a strip of `colour`, with its upper left corner at (x, y) or as near as it fits.
fn write(picture: &mut RgbImage, text: &str, x: u32, y: u32, colour: Rgb<u8>) {
    let (wide, high) = font::SIZE;
    let length = text.chars().take(40).count() as u32;
    let (width, height) = (length * (wide + 1) + 1, high + 2);
    let x = x.min(picture.width().saturating_sub(width));
    let y = y.min(picture.height().saturating_sub(height));
    for row in 0..height {
        for column in 0..width {
            put(picture, (x + column).into(), (y + row).into(), colour);
        }
    }
    let ink = if luminance(colour) > 128 { BLACK } else { WHITE };
    for (index, character) in (0..).zip(text.chars().take(40)) {
        for (row, bits) in (0..).zip(font::glyph(character)) {
            for column in 0..wide {
                if bits >> (wide - 1 - column) & 1 == 1 {
                    let x = x + 1 + index * (wide + 1) + column;
                    put(picture, x.into(), (y + 1 + row).into(), ink);
                }
            }
        }
    }
}

/// A disc with a black rim.
fn dot(picture: &mut RgbImage, x: i64, y: i64, colour: Rgb<u8>) {
    for down in -4..=4_i64 {
        for along in -4..=4_i64 {
            match down * down + along * along {
                0..=8 => put(picture, x + along, y + down, colour),
                9..=17 => put(picture, x + along, y + down, BLACK),
                _ => {}
            }
        }
    }
}

fn put(picture: &mut RgbImage, x: i64, y: i64, colour: Rgb<u8>) {
    if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
        && let Some(pixel) = picture.get_pixel_mut_checked(x, y)
    {
        *pixel = colour;
    }
}

/// Colours that differ from those shortly before.
fn colour(index: usize) -> Rgb<u8> {
    // Steps of the golden angle around the circle of hues.
    let hue = (index as f32 * 0.618_034 + 0.08).fract() * 6.0;
    let channel = |shift: f32| {
        let distance = ((hue + shift).rem_euclid(6.0) - 3.0).abs() - 1.0;
        (55.0 + 200.0 * distance.clamp(0.0, 1.0)) as u8
    };
    Rgb([channel(0.0), channel(4.0), channel(2.0)])
}

fn warm(value: f32) -> Rgb<u8> {
    let value = value.clamp(0.0, 1.0);
    let channel = |peak: f32, width: f32| {
        (255.0 * (1.0 - ((value - peak) / width).abs()).clamp(0.0, 1.0)).round() as u8
    };
    Rgb([channel(1.0, 0.8).max(channel(0.6, 0.4)), channel(0.55, 0.45), channel(0.0, 0.6)])
}

fn mix(under: Rgb<u8>, over: Rgb<u8>, share: f32) -> Rgb<u8> {
    let channel = |index: usize| {
        let (under, over) = (f32::from(under.0[index]), f32::from(over.0[index]));
        (under + share * (over - under)).round() as u8
    };
    Rgb([channel(0), channel(1), channel(2)])
}

fn luminance(colour: Rgb<u8>) -> u8 {
    let [red, green, blue] = colour.0.map(u32::from);
    ((299 * red + 587 * green + 114 * blue) / 1000) as u8
}
