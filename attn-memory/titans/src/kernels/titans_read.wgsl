// A layer read by the rows of a piece, as if each were behind its own token:
//   diag(beta) R W + diag(kappa) R S - P G,   G the errors times their steps,
// and but for the last layer the activation of that. Later tokens are not read.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"
#import "activation"

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(2) var<storage, read> s: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(3) var<storage, read> pairs: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
@group(0) @binding(4) var<storage, read> error: array<vec4<f32>>; // [planes, tokens, chunks]
// beta, kappa, omega and the step.
@group(0) @binding(5) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]

fn tile(at: Place, first_column: u32, lane: u32) {
#import "titans_own"
  let pair_chunks = (params.chunk + 3u) / 4u;
  var pair_rows: array<u32, HELD>;
  var beta: array<f32, HELD>;
  var kappa: array<f32, HELD>;
  #unroll
  for (var j = 0u; j < HELD; j++) {
    let token = min(at.start + at.row + j * EXCHANGE + lane, last);
    pair_rows[j] = token * pair_chunks;
    let shares = ends[token];
    beta[j] = shares.x;
    kappa[j] = shares.y;
  }
  var sums: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < depth; k++) {
    var kept: array<vec4<f32>, HELD>;
    var moved: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      let values = r[rows[j] + k];
      kept[j] = beta[j] * values;
      moved[j] = kappa[j] * values;
    }
    #unroll
    for (var q = 0u; q < 4; q++) {
      let cell = (4u * (at.plane * depth + k) + q) * chunks + own;
      let weights = w[cell];
      let moving = s[cell];
      #unroll
      for (var i = 0u; i < ROWS; i++) {
#ifdef SUBGROUP
        let by_w = subgroupBroadcast(kept[i / EXCHANGE][q], i % EXCHANGE);
        let by_s = subgroupBroadcast(moved[i / EXCHANGE][q], i % EXCHANGE);
#else
        let by_w = kept[i][q];
        let by_s = moved[i][q];
#endif
        sums[i] = fma(vec4<f32>(by_w), weights, fma(vec4<f32>(by_s), moving, sums[i]));
      }
    }
  }
  let seen = min(at.row + ROWS, at.length);
  for (var first = 0u; first < seen; first += 4u) {
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = -pairs[pair_rows[j] + first / 4u];
    }
    #unroll
    for (var q = 0u; q < 4; q++) {
      let token = min(at.start + first + q, last);
      let step = error[token * chunks + own] * ends[token].w;
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
      let cell = (at.start + at.row + i) * chunks + column;
      out[cell] = sums[i];
    }
  }
#ifdef LAST
#else
  // In a loop of its own, read back: one copy of the function, and no registers beside the sums.
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let cell = (at.start + at.row + i) * chunks + column;
      out[cell] = activate(out[cell]);
    }
  }
#endif
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
