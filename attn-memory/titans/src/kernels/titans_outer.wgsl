// Adds the sum of products of rows of a piece, X^T B, to a layer's weights.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of X; see
// titans_rows.wgsl. No workgroup memory; needs three storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(2) var<storage, read_write> w: array<vec4<f32>>; // [planes, 4 depth, chunks]

const ROWS4 = ROWS / 4u;

fn tile(at: Place, first_column: u32, lane: u32) {
  // Rows are those of the weights here.
  let depth = params.depth;
  let chunks = params.chunks;
  let column = first_column + lane;
  let own = min(column, chunks - 1u);
  let last = at.start + at.length - 1u;
  var sums: array<vec4<f32>, ROWS>;
  for (var t = 0u; t < at.length; t += 4u) {
#import "titans_held"
    #unroll
    for (var q = 0u; q < 4; q++) {
      let step = b[min(at.start + t + q, last) * chunks + own];
      let weights = select(vec4<f32>(0.0), step, t + q < at.length);
      #unroll
      for (var i = 0u; i < ROWS; i++) {
        const chunk = q * ROWS4 + i / 4u;
#ifdef SUBGROUP
        let value = vec4<f32>(subgroupBroadcast(held[chunk / EXCHANGE][i % 4u], chunk % EXCHANGE));
#else
        let value = vec4<f32>(held[chunk][i % 4u]);
#endif
        sums[i] = fma(value, weights, sums[i]);
      }
    }
  }
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < 4u * depth && column < chunks {
      w[(at.plane * 4u * depth + at.row + i) * chunks + column] += sums[i];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
