// Cotangents of a layer's weights and momentum, from those behind a piece to those before it, in place:
//   Om <- beta Om + (diag(betas) X)^T D,   Sg <- momentum Sg + kappa Om + (diag(kappas) X)^T D,
// with the shares of the piece's last token.
// An invocation owns ROWS rows by four columns of both, and a subgroup shares its loads of X; see
// titans_rows.wgsl. No workgroup memory; needs six storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, chunks]
// beta, kappa, omega and the step.
@group(0) @binding(2) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(3) var<storage, read> momentum: array<f32>; // [planes, all]
@group(0) @binding(4) var<storage, read_write> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
@group(0) @binding(5) var<storage, read_write> s: array<vec4<f32>>; // [planes, 4 depth, chunks]

const ROWS4 = ROWS / 4u;

fn tile(at: Place, first_column: u32, lane: u32) {
  // Rows are those of the weights here.
  let depth = params.depth;
  let chunks = params.chunks;
  let column = first_column + lane;
  let own = min(column, chunks - 1u);
  let last = at.start + at.length - 1u;
  var weights: array<vec4<f32>, ROWS>;
  var moving: array<vec4<f32>, ROWS>;
  for (var t = 0u; t < at.length; t += 4u) {
#import "titans_held"
    #unroll
    for (var q = 0u; q < 4; q++) {
      let token = min(at.start + t + q, last);
      let inside = t + q < at.length;
      let end = ends[token];
      let step = d[token * chunks + own];
      let by_w = select(vec4<f32>(0.0), step * end.x, inside);
      let by_s = select(vec4<f32>(0.0), step * end.y, inside);
      #unroll
      for (var i = 0u; i < ROWS; i++) {
        const chunk = q * ROWS4 + i / 4u;
#ifdef SUBGROUP
        let value = vec4<f32>(subgroupBroadcast(held[chunk / EXCHANGE][i % 4u], chunk % EXCHANGE));
#else
        let value = vec4<f32>(held[chunk][i % 4u]);
#endif
        weights[i] = fma(value, by_w, weights[i]);
        moving[i] = fma(value, by_s, moving[i]);
      }
    }
  }
  let end = ends[last];
  let left = momentum[at.plane * params.all + at.piece];
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < 4u * depth && column < chunks {
      let cell = (at.plane * 4u * depth + at.row + i) * chunks + column;
      let before = w[cell];
      w[cell] = fma(vec4<f32>(end.x), before, weights[i]);
      s[cell] = fma(vec4<f32>(left), s[cell], fma(vec4<f32>(end.y), before, moving[i]));
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
