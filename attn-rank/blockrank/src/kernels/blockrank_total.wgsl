// Scores of documents, second step: largest logit and sum of exponentials of every row over all documents of
// its prompt. With PULL the mean of the cotangents of the documents under the row's masses, which the backward
// pass takes from each. An invocation owns a row of a prompt. No workgroup memory; needs six storage buffers.

struct Params {
  count: u32,
  rows: u32,
  // First element of the cotangents, and of one prompt's to the next's.
  d_start: u32, d_prompt: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> stats: array<vec2<f32>>; // [items, rows]: largest, sum
@group(0) @binding(1) var<storage, read> prompts: array<vec4<u32>>; // [batch]: items from, to, parts from, to
#ifdef PULL
@group(0) @binding(2) var<storage, read> total: array<vec2<f32>>; // [batch, rows]
@group(0) @binding(3) var<storage, read> items: array<vec4<u32>>; // [items]: first token, tokens, prompt, document
@group(0) @binding(4) var<storage, read> d_scores: array<f32>; // [batch, documents]
@group(0) @binding(5) var<storage, read_write> out: array<f32>; // [batch, rows]
#else
@group(0) @binding(2) var<storage, read_write> out: array<vec2<f32>>; // [batch, rows]: largest, sum
#endif

const LOWEST = -1e30;

@compute @workgroup_size(WORKGROUP)
fn blockrank_total(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let prompt = index / params.rows;
  let row = index - prompt * params.rows;
  let own = prompts[prompt];
#ifdef PULL
  let all = total[index];
  var mean = 0.0;
  for (var item = own.x; item < own.y; item++) {
    let one = stats[item * params.rows + row];
    let d = d_scores[params.d_start + prompt * params.d_prompt + items[item].w];
    mean += d * one.y * exp2(max(one.x - all.x, -200.0));
  }
  out[index] = mean / max(all.y, 1e-30);
#else
  var top = LOWEST;
  for (var item = own.x; item < own.y; item++) {
    top = max(top, stats[item * params.rows + row].x);
  }
  var sum = 0.0;
  for (var item = own.x; item < own.y; item++) {
    let one = stats[item * params.rows + row];
    sum += one.y * exp2(max(one.x - top, -200.0));
  }
  out[index] = vec2<f32>(top, sum);
#endif
}
