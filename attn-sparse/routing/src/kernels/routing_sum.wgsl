// Sums of listed slots: out[r] = sum of x[order[e]] for e in offsets[r] .. offsets[r + 1], in this order,
// so that they are equal from run to run. With MEAN divided by the number of slots plus epsilon (step
// 6), and 0 where there is none.
// An invocation owns EACH vec4s of a row. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  // vec4s: of a row, where x starts, and from one block of `width` slots to the next.
  chunks: u32, start: u32, block: u32,
  width: u32,
  epsilon: f32,
}

const EACH = 4u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [blocks, width, chunks]
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [rows + 1]
@group(0) @binding(2) var<storage, read> order: array<u32>; // [slots]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [rows, chunks]

fn one(index: u32) {
  let given = params;
  let parts = (given.chunks + EACH - 1u) / EACH;
  let row = index / parts;
  let chunk = EACH * (index - row * parts);
  let first = offsets[row];
  let end = offsets[row + 1u];
  var sums: array<vec4<f32>, EACH>;
  #unroll
  for (var i = 0u; i < EACH; i++) {
    sums[i] = vec4<f32>(0.0);
  }
  for (var e = first; e < end; e++) {
    let slot = order[e];
    let block = slot / given.width;
    let at = given.start + block * given.block + (slot - block * given.width) * given.chunks;
    #unroll
    for (var i = 0u; i < EACH; i++) {
      // Behind the last vec4 it is read again, and not written.
      sums[i] += x[at + min(chunk + i, given.chunks - 1u)];
    }
  }
#ifdef MEAN
  // Without slots and epsilon the quotient is not defined.
  let share = select(1.0, f32(end - first) + given.epsilon, end > first);
#else
  let share = 1.0;
#endif
  #unroll
  for (var i = 0u; i < EACH; i++) {
    if chunk + i < given.chunks {
      out[row * given.chunks + chunk + i] = sums[i] / share;
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
