// The cotangent of what a layer gets of its keys, from those of pairs and of the state behind the piece:
//   -diag(steps) (T^T R + diag(C_m) E Om^T + diag(omega) E Sg^T).
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"

// What is read with.
@group(0) @binding(0) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(1) var<storage, read> by_w: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(2) var<storage, read> by_s: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read> pairs: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
// beta, kappa, omega and the step.
@group(0) @binding(4) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
// C_m, omega and gates.
@group(0) @binding(5) var<storage, read> tail: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]

fn tile(at: Place, first_column: u32, lane: u32) {
  let chunks = params.chunks;
  let column = first_column + lane;
  let own = min(column, chunks - 1u);
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  let pair_chunks = (params.chunk + 3u) / 4u;
  var sums: array<vec4<f32>, ROWS>;
#import "titans_later"
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let token = at.start + at.row + i;
      let cell = token * chunks + column;
      let left = tail[token];
      let sum = fma(vec4<f32>(left.x), by_w[cell], fma(vec4<f32>(left.y), by_s[cell], sums[i]));
      out[cell] = -ends[token].w * sum;
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
