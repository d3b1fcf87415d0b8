// The errors of a layer from those of the next: (D W^T) * sg'(z).
// An invocation owns four rows by four columns. No workgroup memory; needs four storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"
#import "activation"
#import "titans_slope"

@group(0) @binding(0) var<storage, read> next: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [planes, 4 chunks, depth]
@group(0) @binding(2) var<storage, read> z: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> error: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  var sums: array<vec4<f32>, TILE>;
  for (var k = 0u; k < depth; k++) {
    var weights: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      weights[j] = w[(4u * (at.plane * chunks + at.column) + j) * depth + k];
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let own = next[min(at.start + at.row + i, last) * depth + k];
      sums[i] += vec4<f32>(dot(own, weights[0]), dot(own, weights[1]), dot(own, weights[2]), dot(own, weights[3]));
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
      let cell = (at.start + at.row + i) * chunks + at.column;
      error[cell] = sums[i] * slope(z[cell]);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
