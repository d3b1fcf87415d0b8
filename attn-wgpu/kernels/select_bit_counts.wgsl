// How many bits are set, in groups of `width` words.
// An invocation owns ITEMS groups. No workgroup memory; needs two storage buffers.

struct Params {
  // Groups.
  count: u32,
  width: u32,
  // Words.
  bits_start: u32, out_start: u32,
}

@group(0) @binding(0) var<storage, read> bits: array<u32>; // [count, width]
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // [count]

fn one(index: u32) {
  let start = params.bits_start + index * params.width;
  let end = start + params.width;
  var sum = 0u;
  for (var i = start; i < end; i++) {
    sum += countOneBits(bits[i]);
  }
  out[params.out_start + index] = sum;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
