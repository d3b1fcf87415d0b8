// A layer of the memory on the rows of a piece: z = X W. The last layer leaves the error z - v; others
// leave z and its activation.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs four storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_rows"
#import "activation"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [planes, 4 depth, chunks]
#ifdef LAST
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> error: array<vec4<f32>>; // [planes, tokens, chunks]
#else
@group(0) @binding(2) var<storage, read_write> z: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> h: array<vec4<f32>>; // [planes, tokens, chunks]
#endif

fn tile(at: Place, first_column: u32, lane: u32) {
#import "titans_own"
  var sums: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < depth; k++) {
    var weights: array<vec4<f32>, 4>;
    #unroll
    for (var j = 0u; j < 4u; j++) {
      weights[j] = w[(4u * (at.plane * depth + k) + j) * chunks + own];
    }
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = x[rows[j] + k];
    }
#import "titans_products"
  }
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let cell = (at.start + at.row + i) * chunks + column;
#ifdef LAST
      error[cell] = sums[i] - v[cell];
#else
      z[cell] = sums[i];
#endif
    }
  }
#ifdef LAST
#else
  // In a loop of its own, read back: one copy of the function, and no registers beside the sums.
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let cell = (at.start + at.row + i) * chunks + column;
      h[cell] = activate(z[cell]);
    }
  }
#endif
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
