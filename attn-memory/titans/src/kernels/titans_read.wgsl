// A layer read by the rows of a piece, as if each were behind its own token:
//   diag(beta) R W + diag(kappa) R S - P G,   G the errors times their steps,
// and but for the last layer the activation of that. Later tokens are not read.
// An invocation owns four rows by four columns. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"
#import "activation"

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(2) var<storage, read> s: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(3) var<storage, read> pairs: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
@group(0) @binding(4) var<storage, read> error: array<vec4<f32>>; // [planes, tokens, chunks]
// beta, kappa, omega and the step.
@group(0) @binding(5) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  var beta: array<f32, TILE>;
  var kappa: array<f32, TILE>;
  #unroll
  for (var i = 0u; i < TILE; i++) {
    let shares = ends[min(at.start + at.row + i, last)];
    beta[i] = shares.x;
    kappa[i] = shares.y;
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
      let values = r[min(at.start + at.row + i, last) * depth + k];
      #unroll
      for (var j = 0u; j < 4u; j++) {
        sums[i] = fma(vec4<f32>(beta[i] * values[j]), weights[j], sums[i]);
        sums[i] = fma(vec4<f32>(kappa[i] * values[j]), moving[j], sums[i]);
      }
    }
  }
  let pair_chunks = (params.chunk + 3u) / 4u;
  let seen = min(at.row + TILE, at.length);
  for (var first = 0u; first < seen; first += 4u) {
    var steps: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      let token = min(at.start + first + j, last);
      steps[j] = error[token * chunks + at.column] * ends[token].w;
    }
    #unroll
    for (var i = 0u; i < TILE; i++) {
      let values = pairs[min(at.start + at.row + i, last) * pair_chunks + first / 4u];
      #unroll
      for (var j = 0u; j < 4u; j++) {
        let term = fma(vec4<f32>(-values[j]), steps[j], sums[i]);
        sums[i] = select(sums[i], term, first + j <= at.row + i);
      }
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
#ifdef LAST
      out[(at.start + at.row + i) * chunks + at.column] = sums[i];
#else
      out[(at.start + at.row + i) * chunks + at.column] = activate(sums[i]);
#endif
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
