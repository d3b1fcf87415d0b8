// The cotangent of rows that went through weights: B + A W^T, in place of B. But for the first layer it
// goes on through the activation and is added to what there is.
// An invocation owns ROWS rows by four columns, and a subgroup shares its loads of rows; see
// titans_rows.wgsl. No workgroup memory; needs five storage buffers.

struct Params {
#import "titans_fields"
  // Planes where each piece has weights of its own, else 0.
  planes: u32,
}

#import "titans_rows"
#ifdef LAST
#else
#import "activation"
#import "titans_slope"
#endif

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [pieces or 1, planes, 4 chunks, depth]
@group(0) @binding(2) var<storage, read_write> b: array<vec4<f32>>; // [planes, tokens, chunks]
#ifdef LAST
#else
@group(0) @binding(3) var<storage, read> z: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(4) var<storage, read_write> dz: array<vec4<f32>>; // [planes, tokens, chunks]
#endif

fn tile(at: Place, first_column: u32, lane: u32) {
#import "titans_own"
  let first = 4u * ((at.piece * params.planes + at.plane) * chunks + own) * depth;
  var sums: array<vec4<f32>, ROWS>;
  for (var k = 0u; k < depth; k++) {
    let cell = first + k;
    let weights = transpose(mat4x4<f32>(
      w[cell], w[cell + depth], w[cell + 2u * depth], w[cell + 3u * depth]));
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      held[j] = a[rows[j] + k];
    }
#import "titans_products"
  }
  #unroll
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let token = at.start + at.row + i;
      let cell = token * chunks + column;
      b[cell] += sums[i];
    }
  }
#ifdef LAST
#else
  // In a loop of its own, read back: one copy of the function, and no registers beside the sums.
  for (var i = 0u; i < ROWS; i++) {
    if at.row + i < at.length && column < chunks {
      let cell = (at.start + at.row + i) * chunks + column;
      dz[cell] = fma(b[cell], slope(z[cell]), dz[cell]);
    }
  }
#endif
}

@compute @workgroup_size(WORKGROUP)
#import "titans_tiles"
