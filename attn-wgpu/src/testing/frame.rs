//! Callers' tensors in memory of which nothing else may be written.

use half::{bf16, f16};

use super::{DType, Gpu, Tensor};

/// Where a tensor lies in the memory around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the beginning.
    Start,
    /// Where a binding may begin.
    Aligned,
    /// At a group of four elements where no binding may begin.
    Chunk,
    /// At no group of four elements.
    Odd,
    /// Contiguous in memory as `[batch, tokens, heads, dim]`.
    TokenMajor,
}

impl Place {
    /// Places that a tensor of this shape and type may have.
    pub fn all(shape: &[usize], dtype: DType) -> Vec<Place> {
        let all = [Place::Start, Place::Aligned, Place::Chunk, Place::Odd, Place::TokenMajor];
        // Rows of halves must not share words.
        let rows = shape.len() == 4 && (dtype.bytes() == 4 || shape[3].is_multiple_of(4));
        all.into_iter().filter(|&place| rows || place != Place::TokenMajor).collect()
    }

    fn offset(self, dtype: DType) -> usize {
        match self {
            Place::Start => 0,
            Place::Aligned => 256,
            Place::Chunk | Place::TokenMajor => 4,
            // Halves begin at whole words.
            Place::Odd => 2 + dtype.bytes() / 4,
        }
    }
}

/// The bits of memory that nobody has written: no number, as f32 and as both halves.
const UNTOUCHED: u32 = 0x7fc1_7fc1;

/// A tensor, and all of its memory.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The tensor to write.
    pub target: Tensor,
    words: Tensor,
    /// Elements of the tensor, in order, by their numbers in memory.
    elements: Vec<usize>,
}

impl Frame {
    /// A tensor whose memory holds no number yet.
    ///
    /// # Panics
    /// Where the device fails.
    pub fn new(gpu: &Gpu, shape: &[usize], dtype: DType, place: Place) -> Frame {
        let mut order: Vec<usize> = (0..shape.len()).collect();
        if place == Place::TokenMajor {
            order.swap(1, 2);
        }
        let mut strides = vec![0; shape.len()];
        let mut count = 1;
        for &d in order.iter().rev() {
            strides[d] = count;
            count *= shape[d].max(1);
        }
        let offset = place.offset(dtype);
        let length = ((offset + count) * dtype.bytes()).div_ceil(4) + 70;
        let words = Tensor::from_slice(gpu, &vec![UNTOUCHED; length], &[length]).unwrap();
        let buffer = words.buffer().0.clone();
        let target = Tensor::from_buffer(gpu, buffer, offset, shape, &strides, dtype).unwrap();
        let elements = shape.iter().product();
        let place = |mut index: usize| {
            let mut at = offset;
            for d in (0..shape.len()).rev() {
                at += index % shape[d] * strides[d];
                index /= shape[d];
            }
            at
        };
        Frame { target, words, elements: (0..elements).map(place).collect() }
    }

    /// Checks that the tensor has the bits of `want`, and that nothing was written around it.
    ///
    /// # Panics
    /// Where it is not so.
    pub fn check(&self, what: &str, want: &Tensor) {
        assert_eq!((self.target.shape(), self.target.dtype()), (want.shape(), want.dtype()));
        let words = self.words.to_vec::<u32>().unwrap();
        let each = 4 / want.dtype().bytes();
        let got: Vec<u32> = self.elements.iter().map(|at| bits(&words, *at, each)).collect();
        let want = match want.dtype() {
            DType::F16 => {
                want.to_vec::<f16>().unwrap().iter().map(|x| x.to_bits().into()).collect()
            }
            DType::BF16 => {
                want.to_vec::<bf16>().unwrap().iter().map(|x| x.to_bits().into()).collect()
            }
            _ => want.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<u32>>(),
        };
        assert!(got == want, "{what}: other bits");
        let mut outside = vec![true; words.len()];
        self.elements.iter().for_each(|at| outside[at / each] = false);
        let touched = (0..words.len()).find(|&at| outside[at] && words[at] != UNTOUCHED);
        assert_eq!(touched, None, "{what}: word outside the tensor");
    }
}

/// The bits of element `at`, of which a word holds `each`.
fn bits(words: &[u32], at: usize, each: usize) -> u32 {
    let word = words[at / each];
    if each == 1 { word } else { word >> (16 * (at % 2)) & 0xffff }
}
