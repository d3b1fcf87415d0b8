// Gradient by the queries of signal rows, dq_i = sum_j dz_ij k_j over document tokens, first the sums of parts
// of some items. With JOIN the sums of a row's parts in their order, 0 for heads that were not chosen.
// An invocation owns four elements of a row. No workgroup memory; needs five storage buffers.

struct Params {
  count: u32,
  rows: u32, signal: u32,
  // Query heads of a key head, and query heads.
  group: u32, heads: u32,
  // vec4s of a row.
  chunks: u32,
  tokens: u32,
  // First vec4, and vec4s from one to the next: batch entry, head, token.
  k_start: u32, k_batch: u32, k_head: u32, k_row: u32,
}

#import "linear"

#ifdef JOIN
@group(0) @binding(0) var<storage, read> sums: array<vec4<f32>>; // [parts, rows, chunks]
@group(0) @binding(1) var<storage, read> prompts: array<vec4<u32>>; // [batch]: items from, to, parts from, to
@group(0) @binding(2) var<storage, read> places: array<u32>; // [heads]: number among the chosen, or NONE
@group(0) @binding(3) var<storage, read_write> dq: array<vec4<f32>>; // [batch, heads, signal, chunks]
#else
@group(0) @binding(0) var<storage, read> k: array<vec4<f32>>; // [batch, heads_kv, tokens, chunks]
@group(0) @binding(1) var<storage, read> dz: array<vec4<f32>>; // [batch, rows, tokens / 4 in whole]
@group(0) @binding(2) var<storage, read> items: array<vec4<u32>>; // [items]: first token, tokens, prompt, document
@group(0) @binding(3) var<storage, read> parts: array<vec2<u32>>; // [parts]: items from, to
@group(0) @binding(4) var<storage, read> heads: array<u32>; // [rows / signal]: the chosen query heads
@group(0) @binding(5) var<storage, read_write> sums: array<vec4<f32>>; // [parts, rows, chunks]
#endif

const NONE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn blockrank_dq(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let chunk = index % params.chunks;
  let line = index / params.chunks;
#ifdef JOIN
  let plane = line / params.signal;
  let prompt = plane / params.heads;
  let place = places[plane - prompt * params.heads];
  var sum = vec4<f32>(0.0);
  if place != NONE {
    let row = place * params.signal + line % params.signal;
    let own = prompts[prompt];
    for (var part = own.z; part < own.w; part++) {
      sum += sums[(part * params.rows + row) * params.chunks + chunk];
    }
  }
  dq[index] = sum;
#else
  let part = line / params.rows;
  let row = line - part * params.rows;
  let tiles = (params.tokens + 3u) / 4u;
  let head = heads[row / params.signal] / params.group;
  let own = parts[part];
  var sum = vec4<f32>(0.0);
  for (var number = own.x; number < own.y; number++) {
    let item = items[number];
    let k_at = params.k_start + item.z * params.k_batch + head * params.k_head + chunk;
    let z_at = (item.z * params.rows + row) * tiles;
    for (var token = item.x; token < item.x + item.y; token++) {
      sum = fma(vec4<f32>(dz[z_at + token / 4u][token % 4u]), k[k_at + token * params.k_row], sum);
    }
  }
  sums[index] = sum;
#endif
}
