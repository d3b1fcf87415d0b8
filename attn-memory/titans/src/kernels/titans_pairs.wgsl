// (R X^T) * C within pieces, 0 for later tokens, which are not read.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs four storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"

@group(0) @binding(0) var<storage, read> r: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(2) var<storage, read> shares: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> pairs: array<vec4<f32>>; // [planes, tokens, chunks]

fn tile(at: Place, first_column: u32, lane: u32) {
#import "titans_own"
  var others: array<u32, 4>;
  #unroll
  for (var j = 0u; j < 4; j++) {
    others[j] = min(at.start + 4u * own + j, last) * depth;
  }
  // Above the diagonal there is nothing to sum up.
  let steps = select(0u, depth, 4u * first_column < at.row + ROWS);
  var sums: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < steps; k++) {
    let weights = transpose(mat4x4<f32>(
      x[others[0] + k], x[others[1] + k], x[others[2] + k], x[others[3] + k]));
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = r[rows[j] + k];
    }
#import "titans_products"
  }
  let columns = vec4<u32>(4u * column) + vec4<u32>(0u, 1u, 2u, 3u);
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    let row = at.row + i;
    if row < at.length && 4u * column < at.length {
      let cell = (at.start + row) * chunks + column;
      pairs[cell] = select(vec4<f32>(0.0), sums[i] * shares[cell], columns <= vec4<u32>(row));
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
