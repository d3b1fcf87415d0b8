// Rows by number: out[slot] = x[rows[slot]], 0 for NONE. With SHARE, a row is divided by the number of
// its slots plus epsilon: the derivative of the mean in step 6.
// An invocation owns four elements of a slot. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  // vec4s of a row.
  chunks: u32,
  epsilon: f32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [rows, chunks]
@group(0) @binding(1) var<storage, read> rows: array<u32>; // [slots]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>; // [slots, chunks]
#ifdef SHARE
@group(0) @binding(3) var<storage, read> offsets: array<u32>; // [rows + 1]
#endif

fn one(index: u32) {
  let slot = index / params.chunks;
  let row = rows[slot];
  var value = vec4<f32>(0.0);
  if row != NONE {
    value = x[row * params.chunks + index - slot * params.chunks];
#ifdef SHARE
    value /= f32(offsets[row + 1u] - offsets[row]) + params.epsilon;
#endif
  }
  out[index] = value;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
