// Merges the partial results of attention_plan into outputs and log-sum-exps, in the order of groups
// and chunks. With SUMS it adds up those of attention_plan_q.
//
// An invocation owns one vec4 of one output row. No workgroup memory. Needs six storage buffers.

struct Params {
  // vec4s of a row; heads and first query of this dispatch, queries in it, rows (batch * heads *
  // queries).
  dim_v: u32, heads: u32, first_query: u32, row_queries: u32, row_count: u32,
  first_batch: u32, first_head: u32,
  queries: u32, keys: u32,
  // vec4s: start, batch, head, token.
  out_start: u32, out_batch: u32, out_head: u32, out_token: u32,
  // Words: start, batch, head.
  lse_start: u32, lse_batch: u32, lse_head: u32,
  // Bits of the logarithm of the near part's weight.
  near_weight: u32,
#import "plan_fields"
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>; // [items, tile, dim_v + 1], or dim_v of sums
@group(0) @binding(1) var<storage, read> items: array<u32>; // offsets [listed + 1], keys [listed]
@group(0) @binding(2) var<storage, read_write> out: array<Chunk>; // [B, H, M, dim_v]
@group(0) @binding(3) var<storage, read_write> lse: array<u32>; // [B, H, M]
// Where queries are listed: part, group, row, rows of the group, weight, gate.
@group(0) @binding(4) var<storage, read> listing: array<u32>; // offsets [planes * M + 1], [places, 6]
@group(0) @binding(5) var<storage, read> part_base: array<u32>; // items minus groups [parts]

#import "linear"

const MASKED = -1e30;
const LN_2 = 0.6931471805599453;
const LOG2_E = 1.4426950408889634;
const MINUS_INFINITY = 0xff800000u;

// A softmax that grows part by part: sums relative to `top`.
struct Sum {
  top: f32,
  sum: f32,
  value: vec4<f32>,
  // WEIGHTS: whether there is any key behind it.
  any: bool,
}

fn add(sum: ptr<function, Sum>, top: f32, weights: f32, value: vec4<f32>) {
  if weights > 0.0 {
    let highest = max((*sum).top, top);
    let shrink = exp2((*sum).top - highest);
    let weight = exp2(top - highest);
    (*sum).top = highest;
    (*sum).sum = fma((*sum).sum, shrink, weights * weight);
    (*sum).value = fma((*sum).value, vec4<f32>(shrink), value * weight);
  }
}

// Adds the chunks of one row of a group with `count` rows, whose items begin at `items[at]`.
fn add_group(sum: ptr<function, Sum>, at: u32, copy: u32, row: u32, count: u32, i: u32) {
  let tiles = (count + params.tile - 1u) / params.tile;
  let chunks = (items[at + 1u] - items[at]) / max(tiles, 1u);
#ifdef SUMS
  let width = params.dim_v;
#else
  let width = params.dim_v + 1u;
#endif
  for (var chunk = 0u; chunk < chunks; chunk++) {
    let slot = copy * items[params.listed] + items[at] + chunk * tiles + row / params.tile;
    let place = (slot * params.tile + row % params.tile) * width;
#ifdef SUMS
    (*sum).value += parts[place + i];
#else
    let weight = parts[place + params.dim_v];
    add(sum, weight.x, weight.y, parts[place + i]);
#endif
  }
}

#ifdef WEIGHTS
// Adds a whole group with the natural logarithm of its weight, NaN for its own log-sum-exp, and begins
// the next one.
fn end_group(total: ptr<function, Sum>, group: ptr<function, Sum>, weight_bits: u32) {
  let any = (*group).sum > 0.0;
  let is_own = (weight_bits & 0x7fffffffu) > 0x7f800000u;
  var weight = (*group).top + log2((*group).sum);
  var counts = any;
  if !is_own {
    let given = bitcast<f32>(weight_bits);
    weight = max(given, MASKED) * LOG2_E;
    counts = given > MASKED;
  }
  if counts {
    let value = (*group).value * select(0.0, 1.0 / (*group).sum, any);
    add(total, weight, 1.0, value);
    (*total).any = (*total).any || any;
  }
  *group = Sum(MASKED, 0.0, vec4<f32>(0.0), false);
}
#endif

@compute @workgroup_size(WORKGROUP)
fn attention_plan_merge(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let row = index / params.dim_v;
  let i = index % params.dim_v;
  if row >= params.row_count {
    return;
  }
  let plane_row = row / params.row_queries;
  let query = params.first_query + row % params.row_queries;
  let batch = plane_row / params.heads;
  let head = plane_row % params.heads;
  let packed_head = (params.first_head + head) / params.pack;
  let plan_head = min(packed_head, params.plan_heads - 1u);
  let copy = packed_head - plan_head - params.kv_base;
  let plane = (params.first_batch + batch) * params.plan_heads + plan_head;
  let head_row = (params.first_head + head) % params.pack;

  var sum = Sum(MASKED, 0.0, vec4<f32>(0.0), false);
  var total = sum;
#ifdef LISTING
  let first = listing[plane * params.queries + query];
  let behind = listing[plane * params.queries + query + 1u];
  let places = params.planes * params.queries + 1u;
  for (var place = first; place < behind; place++) {
    let entry = places + 6u * place;
    let at = part_base[listing[entry]] + listing[entry + 1u];
    let own_row = listing[entry + 2u] * params.pack + head_row;
    add_group(&sum, at, copy, own_row, listing[entry + 3u] * params.pack, i);
#ifdef WEIGHTS
    end_group(&total, &sum, listing[entry + 4u]);
#endif
  }
#endif
#ifdef TILED
  let group = plane * params.plane_groups + query / params.bq;
  let start = query / params.bq * params.bq;
  let members = min(params.bq, params.queries - start);
  let at = params.base + group - params.first_group;
  add_group(&sum, at, copy, (query - start) * params.pack + head_row, members * params.pack, i);
#ifdef WEIGHTS
  // The near part is a group where it is not empty.
  if sum.sum > 0.0 {
    end_group(&total, &sum, params.near_weight);
  }
#endif
#endif
  let to = params.out_start + batch * params.out_batch + head * params.out_head + query * params.out_token;
#ifdef SUMS
  out[to + i] = pack(sum.value);
#else
#ifdef WEIGHTS
  let any = total.any;
#else
  total = sum;
  let any = total.sum > 0.0;
#endif
  let factor = select(0.0, 1.0 / total.sum, any);
  out[to + i] = pack(total.value * factor);
  if i == 0u {
    let at_lse = params.lse_start + batch * params.lse_batch + head * params.lse_head + query;
    lse[at_lse] = select(MINUS_INFINITY, bitcast<u32>((total.top + log2(total.sum)) * LN_2), any);
  }
#endif
}
