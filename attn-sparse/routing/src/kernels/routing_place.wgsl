// The row of a new token goes to its slot in each list that it entered.
// An invocation owns four elements of a list's row. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32, window: u32, clusters: u32,
  // vec4s of a row.
  chunks: u32,
  // New tokens of a plane, and which of them it is.
  tokens: u32, at: u32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [planes, tokens, chunks]
@group(0) @binding(1) var<storage, read> slots: array<u32>; // [planes * clusters]
@group(0) @binding(2) var<storage, read_write> held: array<vec4<f32>>; // [planes * clusters, window, chunks]

fn one(index: u32) {
  let list = index / params.chunks;
  let chunk = index - list * params.chunks;
  let slot = slots[list];
  if slot != NONE {
    let row = list / params.clusters * params.tokens + params.at;
    held[(list * params.window + slot) * params.chunks + chunk] = x[row * params.chunks + chunk];
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
