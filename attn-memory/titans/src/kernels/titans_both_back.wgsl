// Rows times weights and times their momentum, transposed: A W^T and A S^T.
// An invocation owns four rows by four columns. No workgroup memory; needs five storage buffers.

struct Params {
#import "titans_fields"
  // Planes where each piece has weights of its own, else 0.
  planes: u32,
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [pieces or 1, planes, 4 chunks, depth]
@group(0) @binding(2) var<storage, read> s: array<vec4<f32>>; // [pieces or 1, planes, 4 chunks, depth]
@group(0) @binding(3) var<storage, read_write> by_w: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(4) var<storage, read_write> by_s: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  let first = 4u * ((at.piece * params.planes + at.plane) * chunks + at.column);
  var sums: array<vec4<f32>, TILE>;
  var moved: array<vec4<f32>, TILE>;
  for (var k = 0u; k < depth; k++) {
    var weights: array<vec4<f32>, 4>;
    var moving: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      weights[j] = w[(first + j) * depth + k];
      moving[j] = s[(first + j) * depth + k];
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let own = a[min(at.start + at.row + i, last) * depth + k];
      sums[i] += vec4<f32>(dot(own, weights[0]), dot(own, weights[1]), dot(own, weights[2]), dot(own, weights[3]));
      moved[i] += vec4<f32>(dot(own, moving[0]), dot(own, moving[1]), dot(own, moving[2]), dot(own, moving[3]));
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
      let cell = (at.start + at.row + i) * chunks + at.column;
      by_w[cell] = sums[i];
      by_s[cell] = moved[i];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
