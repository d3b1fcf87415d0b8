// Moving numbers of tokens: out = keep * counts + take * (tokens of the centroid in all batch entries).
// An invocation owns one centroid. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32, batch: u32,
  keep: f32, take: f32,
}

@group(0) @binding(0) var<storage, read> counts: array<f32>; // [heads * clusters]
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [batch * heads * clusters + 1]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [heads * clusters]

fn one(index: u32) {
  var tokens = 0u;
  for (var b = 0u; b < params.batch; b++) {
    let at = b * params.count + index;
    tokens += offsets[at + 1u] - offsets[at];
  }
  out[index] = fma(params.keep, counts[index], params.take * f32(tokens));
}

@compute @workgroup_size(WORKGROUP)
#import "each"
