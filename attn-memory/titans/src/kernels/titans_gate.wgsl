// One tensor opened by another: out = up * sigmoid(gate), where `up` may be shorter and repeats.
// An invocation owns one element. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32,
  // Elements of `up`.
  period: u32,
}

#import "activation"

@group(0) @binding(0) var<storage, read> up: array<f32>; // [period]
@group(0) @binding(1) var<storage, read> gate: array<f32>; // [count]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [count]

fn one(index: u32) {
  out[index] = up[index % params.period] * sigmoid(vec4<f32>(gate[index])).x;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
