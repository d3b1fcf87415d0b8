// Numbers of the bits that are set, row by row in rising order, and where each row begins; both end at
// `capacity`.
// An invocation owns ITEMS words of the bits. No workgroup memory; needs four storage buffers.

struct Params {
  // Words of the bits, and of one of their rows.
  count: u32,
  width: u32,
  capacity: u32,
  // Words.
  bits_start: u32,
}

@group(0) @binding(0) var<storage, read> bits: array<u32>; // [rows, width]
@group(0) @binding(1) var<storage, read> places: array<u32>; // [rows * width + 1]: set bits before
@group(0) @binding(2) var<storage, read_write> row_ptr: array<u32>; // [rows + 1]
@group(0) @binding(3) var<storage, read_write> col: array<u32>; // [capacity]

fn one(index: u32) {
  let row = index / params.width;
  let word = index - row * params.width;
  var place = places[index];
  if word == 0u {
    row_ptr[row] = min(place, params.capacity);
  }
  if index + 1u == params.count {
    row_ptr[row + 1u] = min(places[params.count], params.capacity);
  }
  var rest = bits[params.bits_start + index];
  for (; rest != 0u && place < params.capacity; place++) {
    col[place] = 32u * word + countTrailingZeros(rest);
    rest &= rest - 1u;
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
