// Sums over the first of two dimensions, in order.
//
// An invocation owns a column. No workgroup memory; two storage buffers.

struct Params {
  count: u32,
  rows: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>; // [rows, count]
@group(0) @binding(1) var<storage, read_write> out: array<f32>; // [count]

fn one(index: u32) {
  var sum = 0.0;
  for (var row = 0u; row < params.rows; row++) {
    sum += x[row * params.count + index];
  }
  out[index] = sum;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
