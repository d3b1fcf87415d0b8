// Rows by number: out[slot] = x[rows[slot]], 0 for NONE. With SHARE, a row is divided by the number of
// its slots plus epsilon: the derivative of the mean in step 6.
// An invocation owns EACH vec4s of a slot. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  // vec4s of a row.
  chunks: u32,
  epsilon: f32,
}

const NONE = 0xffffffffu;
const EACH = 4u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [rows, chunks]
@group(0) @binding(1) var<storage, read> rows: array<u32>; // [slots]
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>; // [slots, chunks]
#ifdef SHARE
@group(0) @binding(3) var<storage, read> offsets: array<u32>; // [rows + 1]
#endif

fn one(index: u32) {
  let chunks = params.chunks;
  let parts = (chunks + EACH - 1u) / EACH;
  let slot = index / parts;
  let first = EACH * (index - slot * parts);
  let end = min(first + EACH, chunks);
  let row = rows[slot];
  let at = row * chunks;
  let out_at = slot * chunks;
  if row == NONE {
    for (var c = first; c < end; c++) {
      out[out_at + c] = vec4<f32>(0.0);
    }
    return;
  }
#ifdef SHARE
  let share = f32(offsets[row + 1u] - offsets[row]) + params.epsilon;
#else
  let share = 1.0;
#endif
  for (var c = first; c < end; c++) {
    out[out_at + c] = x[at + c] / share;
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
