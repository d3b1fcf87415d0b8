// Derivative of silu: dx = dy s (1 + x (1 - s)) with s = 1 / (1 + exp(-x)).
//
// An invocation owns an element. No workgroup memory; three storage buffers.

struct Params {
  count: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>; // [count]
@group(0) @binding(1) var<storage, read> dy: array<f32>; // [count]
@group(0) @binding(2) var<storage, read_write> dx: array<f32>; // [count]

fn one(index: u32) {
  let value = x[index];
  // Beyond this the slope is 0 or 1 in f32, and the exponential would overflow.
  let s = 1.0 / (1.0 + exp(clamp(-value, -87.0, 87.0)));
  dx[index] = dy[index] * s * fma(value, 1.0 - s, 1.0);
}

@compute @workgroup_size(WORKGROUP)
#import "each"
