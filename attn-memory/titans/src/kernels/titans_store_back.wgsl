// The cotangent of what a layer gets of its keys, from those of pairs and of the state behind the piece:
//   -diag(steps) (T^T R + diag(C_m) E Om^T + diag(omega) E Sg^T).
// An invocation owns four rows by four columns. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(1) var<storage, read> by_w: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(2) var<storage, read> by_s: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read> pairs: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
// beta, kappa, omega and the step.
@group(0) @binding(4) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
// C_m, omega and gates.
@group(0) @binding(5) var<storage, read> tail: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let at = place(index);
  let chunks = params.chunks;
  if at.row >= at.length {
    return;
  }
  let pair_chunks = (params.chunk + 3u) / 4u;
  var sums: array<vec4<f32>, TILE>;
  for (var t = at.row; t < at.length; t++) {
    let values = pairs[(at.start + t) * pair_chunks + at.row / 4u];
    let own = r[(at.start + t) * chunks + at.column];
    #unroll
    for (var i = 0u; i < TILE; i++) {
      sums[i] = select(sums[i], fma(vec4<f32>(values[i]), own, sums[i]), at.row + i <= t);
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
      let token = at.start + at.row + i;
      let cell = token * chunks + at.column;
      let left = tail[token];
      let sum = fma(vec4<f32>(left.x), by_w[cell], fma(vec4<f32>(left.y), by_s[cell], sums[i]));
      out[cell] = -ends[token].w * sum;
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
