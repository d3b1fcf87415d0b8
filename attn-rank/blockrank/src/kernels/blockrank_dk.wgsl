// Gradient by the keys: dk_j = sum of dz q over the rows whose heads read them; 0 outside of documents.
// An invocation owns four tokens by four elements. No workgroup memory; needs five storage buffers.

struct Params {
  count: u32,
  rows: u32, signal: u32,
  // Query heads of a key head, and key heads.
  group: u32, heads_kv: u32,
  // vec4s of a row.
  chunks: u32,
  tokens: u32,
  // First vec4, and vec4s from one to the next: batch entry, head, token.
  q_start: u32, q_batch: u32, q_head: u32, q_row: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [batch, heads, signal, chunks]
@group(0) @binding(1) var<storage, read> heads: array<u32>; // [rows / signal]: the chosen query heads
@group(0) @binding(2) var<storage, read> owners: array<u32>; // [batch, tokens / 4 in whole, 4]: document, or NONE
@group(0) @binding(3) var<storage, read> dz: array<vec4<f32>>; // [batch, rows, tokens / 4 in whole]
@group(0) @binding(4) var<storage, read_write> dk: array<vec4<f32>>; // [batch, heads_kv, tokens, chunks]

const NONE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn blockrank_dk(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let tiles = (params.tokens + 3u) / 4u;
  let chunk = index % params.chunks;
  let tile = (index / params.chunks) % tiles;
  let plane = index / (params.chunks * tiles);
  let prompt = plane / params.heads_kv;
  let kv = plane - prompt * params.heads_kv;
  var sums: array<vec4<f32>, 4>;
  #unroll
  for (var i = 0u; i < 4u; i++) {
    sums[i] = vec4<f32>(0.0);
  }
  for (var row = 0u; row < params.rows; row++) {
    let head = heads[row / params.signal];
    if head / params.group == kv {
      let at = params.q_start + prompt * params.q_batch + head * params.q_head + (row % params.signal) * params.q_row;
      let x = q[at + chunk];
      let d = dz[(prompt * params.rows + row) * tiles + tile];
      #unroll
      for (var i = 0u; i < 4u; i++) {
        sums[i] = fma(vec4<f32>(d[i]), x, sums[i]);
      }
    }
  }
  #unroll
  for (var i = 0u; i < 4u; i++) {
    let token = 4u * tile + i;
    if token < params.tokens {
      let inside = owners[4u * prompt * tiles + token] != NONE;
      // A query that is not a number must not reach keys that it does not read.
      dk[(plane * params.tokens + token) * params.chunks + chunk] = select(vec4<f32>(0.0), sums[i], inside);
    }
  }
}
