// The cotangent of rows that went through weights: B + A W^T. But for the first layer it goes on through
// the activation and is added to what there is.
// An invocation owns four rows by four columns. No workgroup memory; needs five storage buffers.

struct Params {
#import "titans_fields"
  // Planes where each piece has weights of its own, else 0.
  planes: u32,
}

#import "titans_piece"
#ifdef LAST
#else
#import "activation"
#import "titans_slope"
#endif

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>; // [planes, tokens, depth]
@group(0) @binding(1) var<storage, read> w: array<vec4<f32>>; // [pieces or 1, planes, 4 chunks, depth]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [planes, tokens, chunks]
#ifdef LAST
#else
@group(0) @binding(4) var<storage, read> z: array<vec4<f32>>; // [planes, tokens, chunks]
#endif

#import "titans_by_rows"

fn one(index: u32) {
  let at = place(index);
  if at.row >= at.length {
    return;
  }
  let sums = by_rows(at, 4u * ((at.piece * params.planes + at.plane) * params.chunks + at.column));
  #unroll
  for (var i = 0u; i < TILE; i++) {
    if at.row + i < at.length {
      let cell = (at.start + at.row + i) * params.chunks + at.column;
#ifdef LAST
      out[cell] = b[cell] + sums[i];
#else
      out[cell] = fma(b[cell] + sums[i], slope(z[cell]), out[cell]);
#endif
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "titans_each"
