//! A random walk on the pixels of an image: conductances between neighbours, and the linear system
//! whose solution says where a walk ends.

use attn_core::{Error, Result};

/// Places in rows and columns with a conductance between each and its right and lower neighbour.
///
/// A walk that starts at a place, steps to a neighbour with probability proportional to the
/// conductance, and ends at the first place whose value is fixed, has the expected value x that
/// minimises `sum w_ij (x_i - x_j)^2`. A pull of strength s towards a value p adds `s (x_i - p)^2`: with
/// the probability that s has among a place's conductances, the walk ends there and counts p.
#[derive(Debug, Clone, PartialEq)]
pub struct Lattice {
    size: (usize, usize),
    right: Vec<f64>,
    down: Vec<f64>,
}

/// Where walks end.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Walks {
    /// The expected value of each place, in raster order.
    pub values: Vec<f64>,
    /// Iterations of the conjugate gradients.
    pub iterations: usize,
    /// Norm of what is left of the system, over the norm of its right-hand side.
    pub residual: f64,
}

impl Lattice {
    /// Conductances to the right and lower neighbour of each of `rows x columns` places, in raster
    /// order; those of the last column and row count nothing.
    ///
    /// # Errors
    /// [`Error::Shape`] for other numbers of conductances, [`Error::Data`] for one that is not finite
    /// and above 0.
    pub fn new(size: (usize, usize), right: Vec<f64>, down: Vec<f64>) -> Result<Lattice> {
        let places = size.0.checked_mul(size.1);
        for (arg, conductances) in [("right", &right), ("down", &down)] {
            if places != Some(conductances.len()) {
                let expected = format!("{} x {} places", size.0, size.1);
                return Err(Error::shape(arg, expected, &[conductances.len()]));
            }
            if let Some(bad) = conductances.iter().find(|w| !(w.is_finite() && **w > 0.0)) {
                return Err(Error::data(arg, "finite numbers above 0", bad));
            }
        }
        Ok(Lattice { size, right, down })
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Conductances to the right neighbours, in raster order.
    pub fn right(&self) -> &[f64] {
        &self.right
    }

    /// Conductances to the lower neighbours, in raster order.
    pub fn down(&self) -> &[f64] {
        &self.down
    }

    /// The expected values of all places, where `fixed` places have a value and every place is pulled
    /// with a strength towards a value, `pull` (strength, value). Conjugate gradients with the diagonal
    /// as preconditioner run until the residual is at most `tolerance` or for `max_iter` iterations;
    /// they start from `start`.
    ///
    /// # Errors
    /// [`Error::Shape`] for other numbers of places, [`Error::Data`] for numbers that are not finite,
    /// negative strengths, and a system without any fixed value or pull.
    pub fn walks(
        &self,
        fixed: &[Option<f64>],
        pull: &[(f64, f64)],
        start: Option<&[f64]>,
        tolerance: f64,
        max_iter: usize,
    ) -> Result<Walks> {
        self.check(fixed, pull, start)?;
        let places = fixed.len();
        let free: Vec<bool> = fixed.iter().map(Option::is_none).collect();
        let first = |place: usize| match fixed[place] {
            Some(value) => value,
            None => start.map_or(0.0, |start| start[place]),
        };
        let mut values: Vec<f64> = (0..places).map(first).collect();
        let strength: Vec<f64> = pull.iter().map(|&(strength, _)| strength).collect();
        let diagonal = self.diagonal(&strength);

        // Right-hand side: fixed neighbours, and pulls.
        let mut known: Vec<f64> = fixed.iter().map(|value| value.unwrap_or(0.0)).collect();
        let mut side = vec![0.0; places];
        self.neighbours(&known, &mut side);
        for (side, &(strength, value)) in side.iter_mut().zip(pull) {
            *side += strength * value;
        }
        clear(&mut side, &free);
        let scale = dot(&side, &side).sqrt();
        if scale == 0.0 {
            // All that is known is 0.
            for (value, free) in values.iter_mut().zip(&free) {
                *value = if *free { 0.0 } else { *value };
            }
            return Ok(Walks { values, iterations: 0, residual: 0.0 });
        }

        let apply = |x: &[f64], out: &mut [f64]| {
            self.neighbours(x, out);
            for (place, out) in out.iter_mut().enumerate() {
                *out = if free[place] { diagonal[place] * x[place] - *out } else { 0.0 };
            }
        };
        known.copy_from_slice(&values);
        clear(&mut known, &free);
        let mut product = vec![0.0; places];
        apply(&known, &mut product);
        let mut rest: Vec<f64> = side.iter().zip(&product).map(|(b, ax)| b - ax).collect();
        let precondition = |rest: &[f64], out: &mut [f64]| {
            for ((out, rest), diagonal) in out.iter_mut().zip(rest).zip(&diagonal) {
                *out = if *diagonal > 0.0 { rest / diagonal } else { 0.0 };
            }
        };
        let mut scaled = vec![0.0; places];
        precondition(&rest, &mut scaled);
        let mut direction = scaled.clone();
        let mut slope = dot(&rest, &scaled);
        let mut iterations = 0;
        let mut residual = dot(&rest, &rest).sqrt() / scale;
        while residual > tolerance && iterations < max_iter {
            apply(&direction, &mut product);
            let curvature = dot(&direction, &product);
            if curvature.is_nan() || curvature <= 0.0 {
                break;
            }
            let step = slope / curvature;
            for (value, direction) in values.iter_mut().zip(&direction) {
                *value += step * direction;
            }
            for (rest, product) in rest.iter_mut().zip(&product) {
                *rest -= step * product;
            }
            precondition(&rest, &mut scaled);
            let next = dot(&rest, &scaled);
            let turn = next / slope;
            slope = next;
            for (direction, scaled) in direction.iter_mut().zip(&scaled) {
                *direction = scaled + turn * *direction;
            }
            iterations += 1;
            residual = dot(&rest, &rest).sqrt() / scale;
        }
        Ok(Walks { values, iterations, residual })
    }

    fn check(
        &self,
        fixed: &[Option<f64>],
        pull: &[(f64, f64)],
        start: Option<&[f64]>,
    ) -> Result<()> {
        let places = self.right.len();
        let lengths = [fixed.len(), pull.len(), start.map_or(places, <[f64]>::len)];
        for (arg, length) in ["fixed", "pull", "start"].into_iter().zip(lengths) {
            if length != places {
                return Err(Error::shape(arg, format!("[{places}]"), &[length]));
            }
        }
        if let Some(bad) = fixed.iter().flatten().find(|value| !value.is_finite()) {
            return Err(Error::data("fixed", "finite numbers", bad));
        }
        let good = |pull: &&(f64, f64)| pull.0.is_finite() && pull.0 >= 0.0 && pull.1.is_finite();
        if let Some(bad) = pull.iter().find(|pull| !good(pull)) {
            return Err(Error::data("pull", "finite numbers, strengths of at least 0", bad.0));
        }
        if let Some(bad) = start.unwrap_or_default().iter().find(|value| !value.is_finite()) {
            return Err(Error::data("start", "finite numbers", bad));
        }
        let held = fixed.iter().any(Option::is_some) || pull.iter().any(|pull| pull.0 > 0.0);
        if !held && places > 0 {
            return Err(Error::data("fixed", "a fixed place or a pull", "none"));
        }
        Ok(())
    }

    /// Sum of each place's conductances and pull.
    fn diagonal(&self, strength: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; strength.len()];
        self.neighbours(&vec![1.0; strength.len()], &mut sums);
        sums.iter().zip(strength).map(|(sum, strength)| sum + strength).collect()
    }

    /// `out_i = sum over neighbours j of w_ij x_j`.
    fn neighbours(&self, x: &[f64], out: &mut [f64]) {
        let (rows, columns) = self.size;
        for row in 0..rows {
            let first = row * columns;
            let here = first..first + columns;
            let line = &x[here.clone()];
            let right = &self.right[here.clone()];
            let out = &mut out[here.clone()];
            out.fill(0.0);
            if row > 0 {
                let (above, down) =
                    (&x[first - columns..first], &self.down[first - columns..first]);
                for ((out, x), w) in out.iter_mut().zip(above).zip(down) {
                    *out += w * x;
                }
            }
            if row + 1 < rows {
                let below = &x[first + columns..first + 2 * columns];
                for ((out, x), w) in out.iter_mut().zip(below).zip(&self.down[here]) {
                    *out += w * x;
                }
            }
            let pairs = columns.saturating_sub(1);
            for ((out, x), w) in out.iter_mut().zip(&line[columns.min(1)..]).zip(&right[..pairs]) {
                *out += w * x;
            }
            for ((out, x), w) in out[columns.min(1)..].iter_mut().zip(line).zip(right) {
                *out += w * x;
            }
        }
    }
}

fn clear(values: &mut [f64], keep: &[bool]) {
    for (value, keep) in values.iter_mut().zip(keep) {
        *value = if *keep { *value } else { 0.0 };
    }
}

/// In eight sums, which the compiler can keep in vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}
