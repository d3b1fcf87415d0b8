// Products of what a layer reads with, and of what it stores, with what came back through weights and
// momentum: four of each token, or added to those of the layer before.
// An invocation owns one token. No workgroup memory; needs seven storage buffers.

struct Params {
  count: u32,
  // vec4s of a row.
  depth: u32,
  // Whether there are products to add to.
  add: u32,
}

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> read_w: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(2) var<storage, read> read_s: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(4) var<storage, read> store_w: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(5) var<storage, read> store_s: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens]

fn one(index: u32) {
  var sums = vec4<f32>(0.0);
  for (var k = 0u; k < params.depth; k++) {
    let cell = index * params.depth + k;
    let own = r[cell];
    let kept = x[cell];
    sums += vec4<f32>(dot(own, read_w[cell]), dot(own, read_s[cell]), dot(kept, store_w[cell]), dot(kept, store_s[cell]));
  }
  if params.add == 1u {
    sums += out[index];
  }
  out[index] = sums;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
