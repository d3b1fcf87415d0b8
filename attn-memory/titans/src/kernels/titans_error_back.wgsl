// The cotangent of a layer's errors, before their steps, from those of results and of the state behind
// the piece:
//   -(P^T D + diag(C_m) X Om + diag(omega) X Sg).
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(2) var<storage, read> s: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(3) var<storage, read> pairs: array<vec4<f32>>; // [planes, tokens, ceil(chunk / 4)]
@group(0) @binding(4) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, chunks]
// C_m, omega and gates.
@group(0) @binding(5) var<storage, read> tail: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(6) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]

fn tile(at: Place, first_column: u32, lane: u32) {
#import "titans_own"
  let pair_chunks = (params.chunk + 3u) / 4u;
  var by_w: array<f32, HELD>;
  var by_s: array<f32, HELD>;
  #unroll
  for (var j = 0u; j < HELD; j++) {
    let left = tail[min(at.start + at.row + j * EXCHANGE + lane, last)];
    by_w[j] = left.x;
    by_s[j] = left.y;
  }
  var sums: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < depth; k++) {
    var kept: array<vec4<f32>, HELD>;
    var moved: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      let values = x[rows[j] + k];
      kept[j] = by_w[j] * values;
      moved[j] = by_s[j] * values;
    }
    #unroll
    for (var q = 0u; q < 4; q++) {
      let cell = (4u * (at.plane * depth + k) + q) * chunks + own;
      let weights = w[cell];
      let moving = s[cell];
      #unroll
      for (var i = 0u; i < ROWS; i++) {
#ifdef SUBGROUP
        let one = subgroupBroadcast(kept[i / EXCHANGE][q], i % EXCHANGE);
        let other = subgroupBroadcast(moved[i / EXCHANGE][q], i % EXCHANGE);
#else
        let one = kept[i][q];
        let other = moved[i][q];
#endif
        sums[i] = fma(vec4<f32>(one), weights, fma(vec4<f32>(other), moving, sums[i]));
      }
    }
  }
#import "titans_later"
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let token = at.start + at.row + i;
      let cell = token * chunks + column;
      out[cell] = -sums[i];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
