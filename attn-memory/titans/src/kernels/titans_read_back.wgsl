// The cotangent of what a layer reads with, from those of its results:
//   diag(beta) D W^T + diag(kappa) D S^T - T diag(steps) X,
// and but for the first layer, times the activation's slope at its hidden rows.
// An invocation owns four rows by four columns. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"
#ifdef LAST
#else
#import "activation"
#import "titans_slope"
#endif

@group(0) @binding(0) var<storage, read> by_w: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(1) var<storage, read> by_s: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(2) var<storage, read> pairs: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, chunks]
// beta, kappa, omega and the step.
@group(0) @binding(4) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]
#ifdef LAST
#else
@group(0) @binding(6) var<storage, read> z: array<vec4<f32>>; // [planes, tokens, chunks]
#endif

fn one(index: u32) {
  let at = place(index);
  let chunks = params.chunks;
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  let pair_chunks = (params.chunk + 3u) / 4u;
  var sums: array<vec4<f32>, TILE>;
  for (var first = 0u; first <= at.row; first += 4u) {
    var steps: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      let token = min(at.start + first + j, last);
      steps[j] = x[token * chunks + at.column] * ends[token].w;
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let values = pairs[min(at.start + at.row + i, last) * pair_chunks + first / 4u];
      #unroll
      for (var j = 0u; j < 4u; j++) {
        let term = fma(vec4<f32>(values[j]), steps[j], sums[i]);
        sums[i] = select(sums[i], term, first + j <= at.row + i);
      }
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
      let token = at.start + at.row + i;
      let cell = token * chunks + at.column;
      let end = ends[token];
      let d = fma(vec4<f32>(end.x), by_w[cell], fma(vec4<f32>(end.y), by_s[cell], -sums[i]));
#ifdef LAST
      out[cell] = d;
#else
      out[cell] = d * slope(z[cell]);
#endif
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
