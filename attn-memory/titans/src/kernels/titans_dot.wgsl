// Products of rows with rows: one of each token, or added to that of the layer before.
// An invocation owns one token. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32,
  // vec4s of a row.
  depth: u32,
  // Whether there are products to add to.
  add: u32,
  scale: f32,
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [planes, tokens]

fn one(index: u32) {
  var sums = vec4<f32>(0.0);
  for (var k = 0u; k < params.depth; k++) {
    sums = fma(a[index * params.depth + k], b[index * params.depth + k], sums);
  }
  let sum = params.scale * ((sums.x + sums.y) + (sums.z + sums.w));
  if params.add == 1u {
    out[index] += sum;
  } else {
    out[index] = sum;
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
