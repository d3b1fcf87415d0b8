// The activation of hidden rows.
// An invocation owns four elements. No workgroup memory; needs two storage buffers.

struct Params {
#import "titans_fields"
}

#import "titans_piece"
#import "activation"

@group(0) @binding(0) var<storage, read> z: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(1) var<storage, read_write> h: array<vec4<f32>>; // [planes, tokens, chunks]

fn one(index: u32) {
  let at = place(index);
  for (var row = at.row; row < min(at.row + TILE, at.length); row++) {
    let cell = (at.start + row) * params.chunks + at.column;
    h[cell] = activate(z[cell]);
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
