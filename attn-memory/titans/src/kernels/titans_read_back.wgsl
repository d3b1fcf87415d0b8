// The cotangent of what a layer reads with, from those of its results:
//   diag(beta) D W^T + diag(kappa) D S^T - T diag(steps) X,
// and but for the first layer, times the activation's slope at its hidden rows.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"
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

fn tile(at: Place, first_column: u32, lane: u32) {
  let chunks = params.chunks;
  let column = first_column + lane;
  let own = min(column, chunks - 1u);
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  let pair_chunks = (params.chunk + 3u) / 4u;
  var rows: array<u32, HELD>;
  #unroll
  for (var j = 0u; j < HELD; j++) {
    rows[j] = min(at.start + at.row + j * EXCHANGE + lane, last) * pair_chunks;
  }
  var sums: array<vec4<f32>, ROWS>;
  let seen = min(at.row + ROWS, at.length);
  for (var first = 0u; first < seen; first += 4u) {
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = pairs[rows[j] + first / 4u];
    }
    #unroll
    for (var q = 0u; q < 4; q++) {
      let token = min(at.start + first + q, last);
      let step = x[token * chunks + own] * ends[token].w;
      #unroll
      for (var i = 0u; i < ROWS; i++) {
#ifdef SUBGROUP
        let value = subgroupBroadcast(held[i / EXCHANGE][q], i % EXCHANGE);
#else
        let value = held[i][q];
#endif
        // Not a factor of 0: later tokens may be no numbers.
        sums[i] = select(sums[i], fma(vec4<f32>(value), step, sums[i]), first + q <= at.row + i);
      }
    }
  }
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let token = at.start + at.row + i;
      let cell = token * chunks + column;
      let end = ends[token];
      out[cell] = fma(vec4<f32>(end.x), by_w[cell], fma(vec4<f32>(end.y), by_s[cell], -sums[i]));
    }
  }
#ifdef LAST
#else
  // In a loop of its own, read back: one copy of the function, and no registers beside the sums.
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let cell = (at.start + at.row + i) * chunks + column;
      out[cell] *= slope(z[cell]);
    }
  }
#endif
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
