// The errors of a layer from those of the next: (D W^T) * sg'(z).
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs four storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"
#import "activation"
#import "titans_slope"

@group(0) @binding(0) var<storage, read> next: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [planes, 4 chunks, depth]
@group(0) @binding(2) var<storage, read> z: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> error: array<vec4<f32>>; // [planes, tokens, chunks]

fn tile(at: Place, first_column: u32, lane: u32) {
#import "titans_own"
  let w_at = 4u * (at.plane * chunks + own) * depth;
  var sums: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < depth; k++) {
    let weights = transpose(mat4x4<f32>(
      w[w_at + k], w[w_at + depth + k], w[w_at + 2u * depth + k], w[w_at + 3u * depth + k]));
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = next[rows[j] + k];
    }
#import "titans_products"
  }
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let cell = (at.start + at.row + i) * chunks + column;
      error[cell] = sums[i] * slope(z[cell]);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
