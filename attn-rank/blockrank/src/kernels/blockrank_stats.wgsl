// Scores of documents, first step: of the logits z = scale q . k (base 2) of a signal row on the keys of an
// item, a piece of a document, the largest and the sum of 2^(z - largest). No logit is stored.
// An invocation owns an item and a row, four keys at a time. No workgroup memory; needs five storage buffers.

struct Params {
  count: u32,
  rows: u32, signal: u32,
  // Query heads of a key head.
  group: u32,
  // vec4s of a row.
  chunks: u32,
  scale: f32,
  // First vec4, and vec4s from one to the next: batch entry, head, token.
  q_start: u32, q_batch: u32, q_head: u32, q_row: u32,
  k_start: u32, k_batch: u32, k_head: u32, k_row: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [batch, heads, signal, chunks]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [batch, heads_kv, tokens, chunks]
@group(0) @binding(2) var<storage, read> items: array<vec4<u32>>; // [items]: first token, tokens, prompt, document
@group(0) @binding(3) var<storage, read> heads: array<u32>; // [rows / signal]: the chosen query heads
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>; // [items, rows]: largest, sum

const LOWEST = -1e30;

@compute @workgroup_size(WORKGROUP)
fn blockrank_stats(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let number = index / params.rows;
  let row = index - number * params.rows;
  let item = items[number];
  let head = heads[row / params.signal];
  let q_at = params.q_start + item.z * params.q_batch + head * params.q_head + (row % params.signal) * params.q_row;
  let k_at = params.k_start + item.z * params.k_batch + (head / params.group) * params.k_head;
  let last = item.x + item.y - 1u;

  var top = LOWEST;
  var sum = 0.0;
  for (var first = item.x; first <= last; first += 4u) {
    let keys = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    let at = vec4<u32>(k_at) + keys * params.k_row;
    var z = vec4<f32>(0.0);
    for (var c = 0u; c < params.chunks; c++) {
      let x = q[q_at + c];
      z += vec4<f32>(dot(x, k[at.x + c]), dot(x, k[at.y + c]), dot(x, k[at.z + c]), dot(x, k[at.w + c]));
    }
    z *= params.scale;
    // Behind the last key the last one was read again: it must not count twice.
    let own = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(last);
    let new_top = max(top, max(max(z.x, z.y), max(z.z, z.w)));
    let e = select(vec4<f32>(0.0), exp2(max(z - new_top, vec4<f32>(-200.0))), own);
    sum = sum * exp2(max(top - new_top, -200.0)) + ((e.x + e.y) + (e.z + e.w));
    top = new_top;
  }
  stats[index] = vec2<f32>(top, sum);
}
