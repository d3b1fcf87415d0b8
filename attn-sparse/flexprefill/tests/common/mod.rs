//! Heads of known patterns, for tests and the benchmark.

use attn_core::testing::{normal, uniform};
use ndarray::{Array4, ArrayViewMut1, s};

/// Queries, keys and values of one head, `[1, 1, tokens, dim]`.
pub type Head = [Array4<f32>; 3];

/// Random numbers by stream.
struct Random {
    seed: u64,
    index: u64,
}

impl Random {
    fn normal(&mut self) -> f32 {
        self.index += 1;
        normal(self.seed, 0, self.index) as f32
    }

    fn below(&mut self, end: usize) -> usize {
        self.index += 1;
        (uniform(self.seed, 1, self.index) * end as f64) as usize
    }

    fn normals(&mut self, tokens: usize, dim: usize, factor: f32) -> Array4<f32> {
        Array4::from_shape_simple_fn((1, 1, tokens, dim), || factor * self.normal())
    }
}

fn row(x: &mut Array4<f32>, token: usize) -> ArrayViewMut1<'_, f32> {
    x.slice_mut(s![0, 0, token, ..])
}

/// Keys of a block of `block` tokens lie around one centre, and queries of a block look for the centres of
/// three blocks up to their own.
pub fn block_head(seed: u64, tokens: usize, dim: usize, block: usize) -> Head {
    let mut random = Random { seed, index: 0 };
    let blocks = tokens.div_ceil(block);
    let centres = random.normals(blocks, dim, 1.0);
    let centre = |number: usize| centres.slice(s![0, 0, number, ..]);
    let mut k = random.normals(tokens, dim, 0.15);
    let mut q = random.normals(tokens, dim, 0.15);
    for own in 0..blocks {
        let wanted = [(); 3].map(|()| random.below(own + 1));
        for token in own * block..((own + 1) * block).min(tokens) {
            let mut key = row(&mut k, token);
            key += &centre(own);
            for number in wanted {
                row(&mut q, token).scaled_add(0.9, &centre(number));
            }
        }
    }
    [q, k, random.normals(tokens, dim, 1.0)]
}

/// Eight heavy keys, and the key at distance 700: all queries give them logits of about 10 over noise.
pub fn line_head(seed: u64, tokens: usize, dim: usize) -> Head {
    let mut random = Random { seed, index: 0 };
    let mut k = random.normals(tokens, dim, 1.0);
    let mut q = random.normals(tokens, dim, 0.15);
    let heavy = random.normals(1, dim, 1.0);
    let heavy = heavy.slice(s![0, 0, 0, ..]);
    for _ in 0..8 {
        // All queries of the probe see them.
        let token = random.below(tokens / 2);
        row(&mut k, token).assign(&heavy);
    }
    // q.k / sqrt(dim) = 10 for q = factor k and |k|^2 = dim.
    let factor = 10.0 / (dim as f32).sqrt();
    for token in 0..tokens {
        let mut query = row(&mut q, token);
        query.scaled_add(factor, &heavy);
        if let Some(other) = token.checked_sub(700) {
            query.scaled_add(factor, &k.slice(s![0, 0, other, ..]));
        }
    }
    [q, k, random.normals(tokens, dim, 1.0)]
}
