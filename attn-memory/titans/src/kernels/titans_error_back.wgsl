// The cotangent of a layer's errors, before their steps, from those of results and of the state behind
// the piece:
//   -(P^T D + diag(C_m) X Om + diag(omega) X Sg).
// An invocation owns four rows by four columns. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(2) var<storage, read> s: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(3) var<storage, read> pairs: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
@group(0) @binding(4) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, chunks]
// C_m, omega and gates.
@group(0) @binding(5) var<storage, read> tail: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  var by_w: array<f32, TILE>;
  var by_s: array<f32, TILE>;
  #unroll
  for (var i = 0u; i < TILE; i++) {
    let left = tail[min(at.start + at.row + i, last)];
    by_w[i] = left.x;
    by_s[i] = left.y;
  }
  var sums: array<vec4<f32>, TILE>;
  for (var k = 0u; k < depth; k++) {
    var weights: array<vec4<f32>, 4>;
    var moving: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      let cell = (4u * (at.plane * depth + k) + j) * chunks + at.column;
      weights[j] = w[cell];
      moving[j] = s[cell];
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let values = x[min(at.start + at.row + i, last) * depth + k];
      #unroll
      for (var j = 0u; j < 4u; j++) {
        sums[i] = fma(vec4<f32>(by_w[i] * values[j]), weights[j], sums[i]);
        sums[i] = fma(vec4<f32>(by_s[i] * values[j]), moving[j], sums[i]);
      }
    }
  }
  let pair_chunks = (params.chunk + 3u) / 4u;
  for (var t = at.row; t < at.length; t++) {
    let values = pairs[(at.start + t) * pair_chunks + at.row / 4u];
    let own = d[(at.start + t) * chunks + at.column];
    #unroll
    for (var i = 0u; i < TILE; i++) {
      sums[i] = select(sums[i], fma(vec4<f32>(values[i]), own, sums[i]), at.row + i <= t);
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
      out[(at.start + at.row + i) * chunks + at.column] = -sums[i];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
