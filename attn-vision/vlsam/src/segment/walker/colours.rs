//! Colours of the object and of what is beside it.

/// Mean colours with their spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Colours {
    object: Mean,
    beside: Mean,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Mean {
    colour: [f64; 3],
    /// Mean square distance of colours from the mean.
    variance: f64,
}

/// The least variance, of colours from 0 to 255: even areas still have noise.
const LEAST: f64 = 100.0;

impl Mean {
    fn of<'a>(colours: impl Iterator<Item = &'a [f32; 3]> + Clone) -> Option<Mean> {
        let mut sum = [0.0; 3];
        let mut count = 0.0;
        for colour in colours.clone() {
            count += 1.0;
            for (sum, &value) in sum.iter_mut().zip(colour) {
                *sum += f64::from(value);
            }
        }
        if count == 0.0 {
            return None;
        }
        let colour = sum.map(|sum| sum / count);
        let variance = colours.map(|other| square(&colour, other)).sum::<f64>() / count;
        Some(Mean { colour, variance: variance.max(LEAST) })
    }
}

impl Colours {
    /// Those in a mask and around it, as far as half of the side of a square of its area. None for a
    /// mask with nothing in it or around it.
    pub(super) fn of_mask(
        colours: &[[f32; 3]],
        places: (usize, usize),
        mask: &[bool],
    ) -> Option<Colours> {
        let area = mask.iter().filter(|&&inside| inside).count();
        let reach = (0.5 * (area as f64).sqrt()).ceil() as usize + 1;
        let wide = grown(mask, places, reach);
        let near = grown(mask, places, 1);
        let object = colours.iter().zip(mask).filter(|&(_, &inside)| inside);
        // The outline itself has mixed colours.
        let beside = colours.iter().zip(wide.iter().zip(&near));
        let beside = beside.filter(|&(_, (wide, near))| *wide && !near);
        Some(Colours {
            object: Mean::of(object.map(|(colour, _)| colour))?,
            beside: Mean::of(beside.map(|(colour, _)| colour))?,
        })
    }

    /// How much more a colour is like the object than like what is beside it, from 0 to 1.
    pub(super) fn likeness(&self, colour: &[f32; 3]) -> f64 {
        let cost = |mean: &Mean| {
            // Normal distributions with the same spread in all three channels.
            0.5 * square(&mean.colour, colour) / mean.variance * 3.0 + 1.5 * mean.variance.ln()
        };
        1.0 / (1.0 + (cost(&self.object) - cost(&self.beside)).clamp(-30.0, 30.0).exp())
    }
}

fn square(a: &[f64; 3], b: &[f32; 3]) -> f64 {
    a.iter().zip(b).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum()
}

/// The mask with all places in whose square of `reach` places to each side it is set somewhere.
fn grown(mask: &[bool], places: (usize, usize), reach: usize) -> Vec<bool> {
    let (rows, columns) = places;
    // First along the rows, then along the columns, with the distance to the last set place.
    let mut across = vec![false; mask.len()];
    let spread = |from: &dyn Fn(usize) -> bool, to: &mut dyn FnMut(usize), length: usize| {
        let mut last: Option<usize> = None;
        for place in 0..length {
            last = if from(place) { Some(place) } else { last };
            if last.is_some_and(|last| place - last <= reach) {
                to(place);
            }
        }
        let mut next: Option<usize> = None;
        for place in (0..length).rev() {
            next = if from(place) { Some(place) } else { next };
            if next.is_some_and(|next| next - place <= reach) {
                to(place);
            }
        }
    };
    for row in 0..rows {
        let first = row * columns;
        spread(&|x| mask[first + x], &mut |x| across[first + x] = true, columns);
    }
    let mut all = vec![false; mask.len()];
    for column in 0..columns {
        spread(&|y| across[y * columns + column], &mut |y| all[y * columns + column] = true, rows);
    }
    all
}
