// Sets of blocks as bits, block j as bit j % 32 of word j / 32. out = a, or with OR also b, or with
// SHIFT also the set {i - d: d in b}, where i is the number of the row and `first`; with CAUSAL
// without all blocks above i.
//
// An invocation owns ITEMS words of the result. No workgroup memory; needs three storage buffers.

struct Params {
  // Words of the result, of a row, and rows.
  count: u32,
  width: u32, extent_1: u32, extent_2: u32,
  // Words.
  a: Place, b: Place,
  out_start: u32,
  first: i32,
}

#import "row_place"

@group(0) @binding(0) var<storage, read_write> out: array<u32>; // [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read> a: array<u32>; // strided [e0, e1, e2, width]
#ifdef OR
@group(0) @binding(2) var<storage, read> b: array<u32>; // strided [e0, e1, e2, width]
#endif
#ifdef SHIFT
@group(0) @binding(2) var<storage, read> b: array<u32>; // strided [e0, e1, e2, width]

// 32 bits of a row of b from bit `start` on, the first one lowest.
fn window(at: u32, start: i32) -> u32 {
  let low = start >> 5u;
  let shift = u32(start & 31);
  var bits = 0u;
  if low >= 0 && low < i32(params.width) {
    bits = b[at + u32(low)] >> shift;
  }
  if shift > 0u && low + 1 >= 0 && low + 1 < i32(params.width) {
    bits |= b[at + u32(low + 1)] << (32u - shift);
  }
  return bits;
}
#endif

fn one(index: u32) {
  let row = index / params.width;
  let word = index - row * params.width;
  let numbers = numbers_of(row, params.extent_1, params.extent_2);
  var bits = a[at_place(numbers, params.a) + word];
#ifdef OR
  bits |= b[at_place(numbers, params.b) + word];
#endif
  // How far the row's own block is above the first of this word.
  let ahead = i32(numbers.z) + params.first - 32 * i32(word);
#ifdef SHIFT
  bits |= reverseBits(window(at_place(numbers, params.b), ahead - 31));
#endif
#ifdef CAUSAL
  bits &= select(0xffffffffu >> u32(31 - clamp(ahead, 0, 31)), 0u, ahead < 0);
#endif
  out[params.out_start + index] = bits;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
