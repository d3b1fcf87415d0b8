// Sums of listed slots: out[r] = sum of x[order[e]] for e in offsets[r] .. offsets[r + 1], in this order,
// so that they are equal from run to run. With MEAN divided by the number of slots plus epsilon (step
// 6), and 0 where there is none.
// An invocation owns four elements of a row. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  // vec4s: of a row, where x starts, and from one block of `width` slots to the next.
  chunks: u32, start: u32, block: u32,
  width: u32,
  epsilon: f32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [blocks, width, chunks]
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [rows + 1]
@group(0) @binding(2) var<storage, read> order: array<u32>; // [slots]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [rows, chunks]

fn one(index: u32) {
  let row = index / params.chunks;
  let chunk = index - row * params.chunks;
  let first = offsets[row];
  let end = offsets[row + 1u];
  var sum = vec4<f32>(0.0);
  for (var e = first; e < end; e++) {
    let slot = order[e];
    let block = slot / params.width;
    let in_block = slot - block * params.width;
    sum += x[params.start + block * params.block + in_block * params.chunks + chunk];
  }
#ifdef MEAN
  // Without slots and epsilon the quotient is not defined.
  sum /= select(1.0, f32(end - first) + params.epsilon, end > first);
#endif
  out[index] = sum;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
