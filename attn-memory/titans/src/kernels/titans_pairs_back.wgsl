// What the cotangent d of a layer's results gives the pairs of a piece: T = (D E^T) * C, and the
// cotangent of C, (R X^T) * (D E^T). Both are still to be multiplied by the steps of their columns.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs seven storage buffers.

struct Params {
#import "titans_fields"
  // vec4s of a row of errors.
  width: u32,
  // Whether the cotangent of C is added to.
  add: u32,
}

#import "titans_rows"

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(2) var<storage, read> d: array<vec4<f32>>; // [planes, tokens, width]
@group(0) @binding(3) var<storage, read> error: array<vec4<f32>>; // [planes, tokens, width]
@group(0) @binding(4) var<storage, read> shares: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(5) var<storage, read_write> pairs: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(6) var<storage, read_write> d_shares: array<vec4<f32>>; // [planes, tokens, chunks]

fn tile(at: Place, first_column: u32, lane: u32) {
  let chunks = params.chunks;
  let column = first_column + lane;
  let own = min(column, chunks - 1u);
  // Tiles above the diagonal are read by nobody.
  if at.row >= at.length || 4u * first_column >= at.row + ROWS {
    return;
  }
  let last = at.start + at.length - 1u;
  var rows: array<u32, HELD>;
  #unroll
  for (var j = 0u; j < HELD; j++) {
    rows[j] = min(at.start + at.row + j * EXCHANGE + lane, last);
  }
  var others: array<u32, 4>;
  #unroll
  for (var j = 0u; j < 4; j++) {
    others[j] = min(at.start + 4u * own + j, last);
  }
  var sums: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < params.depth; k++) {
    let weights = transpose(mat4x4<f32>(
      x[others[0] * params.depth + k], x[others[1] * params.depth + k],
      x[others[2] * params.depth + k], x[others[3] * params.depth + k]));
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = r[rows[j] * params.depth + k];
    }
#import "titans_products"
  }
  let reads = sums;
  sums = array<vec4<f32>, ROWS>();
  for (var k = 0u; k < params.width; k++) {
    let weights = transpose(mat4x4<f32>(
      error[others[0] * params.width + k], error[others[1] * params.width + k],
      error[others[2] * params.width + k], error[others[3] * params.width + k]));
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = d[rows[j] * params.width + k];
    }
#import "titans_products"
  }
  let columns = vec4<u32>(4u * column) + vec4<u32>(0u, 1u, 2u, 3u);
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let token = at.start + at.row + i;
      let cell = token * chunks + column;
      let seen = columns <= vec4<u32>(at.row + i);
      pairs[cell] = select(vec4<f32>(0.0), sums[i] * shares[cell], seen);
      let before = select(vec4<f32>(0.0), d_shares[cell], seen & vec4<bool>(params.add == 1u));
      d_shares[cell] = select(vec4<f32>(0.0), fma(reads[i], sums[i], before), seen);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
