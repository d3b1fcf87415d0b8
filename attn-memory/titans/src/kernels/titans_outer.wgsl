// Adds the sum of products of rows of a piece, A^T B, to a layer's weights.
// An invocation owns four rows by four columns. No workgroup memory; needs three storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(2) var<storage, read_write> w: array<vec4<f32>>; // [planes, 4 depth, chunks]

fn one(index: u32) {
  // A tile is of rows of the weights here.
  let at = place(index);
  let depth = params.depth;
  let chunks = params.chunks;
  var sums: array<vec4<f32>, TILE>;
  for (var t = 0u; t < at.length; t++) {
    let token = at.start + t;
    let own = b[token * chunks + at.column];
    let values = a[token * depth + at.row / 4u];
    #unroll
    for (var i = 0u; i < TILE; i++) {
      sums[i] = fma(vec4<f32>(values[i]), own, sums[i]);
    }
  }
  #unroll
  for (var i = 0u; i < TILE; i++) {
    w[(at.plane * 4u * depth + at.row + i) * chunks + at.column] += sums[i];
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
