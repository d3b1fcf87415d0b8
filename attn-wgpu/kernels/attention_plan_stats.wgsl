// Statistics of the rows of groups for the backward kernels, where each group of a query is a softmax
// of its own: the log-sum-exp that makes weights of logits, share included, and delta. Also the
// gradients of gates.
//
// With o_g and lse_g of a group, its weight lambda_g, and delta = d_out . o - d_lse of the query:
//   lse = lse_g - lambda_g + lse of the query; delta, or d_out . o_g where lambda_g is given
//   d_gate = exp(lambda_g - lse of the query) (d_out . o_g - delta)
//
// An invocation owns one row: a query of one head. No workgroup memory. Needs seven storage buffers.

struct Params {
  // vec4s of a row; heads and first query of this dispatch, queries in it, rows (batch * heads *
  // queries).
  dim_v: u32, heads: u32, first_query: u32, row_queries: u32, row_count: u32,
  first_batch: u32, first_head: u32,
  queries: u32, keys: u32,
  // vec4s of d_out: start, batch, head, token.
  out_start: u32, out_batch: u32, out_head: u32, out_token: u32,
  // Statistics of rows: heads of the call, and how far the deltas are behind the log-sum-exps.
  all_heads: u32, rows_stride: u32,
  // Of groups: how far the deltas are behind the log-sum-exps.
  stats_stride: u32,
  // Gates of all groups, and heads that share them.
  gates: u32, gate_heads: u32,
  // Bits of the logarithm of the near part's weight, and whether it stands alone.
  near_weight: u32, near: u32,
  // Word of `items` at which the parts' numbers begin: items minus groups.
  at_bases: u32,
#import "plan_fields"
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>; // [items, tile, dim_v + 1]
@group(0) @binding(1) var<storage, read> items: array<u32>; // offsets [listed + 1], keys [listed], bases
@group(0) @binding(2) var<storage, read> d_out: array<Chunk>; // [B, H, M, dim_v]
// Where queries are listed: part, group, row, rows of the group, weight, gate.
@group(0) @binding(3) var<storage, read> listing: array<u32>; // offsets [planes * M + 1], [places, 6]
@group(0) @binding(4) var<storage, read> rows: array<f32>; // lse, delta: [2, B, H, M]
@group(0) @binding(5) var<storage, read_write> stats: array<f32>; // lse, delta: [2, items, tile]
@group(0) @binding(6) var<storage, read_write> d_gates: array<f32>; // [gate_heads, gates]

#import "linear"

const MASKED = -1e30;
const LN_2 = 0.6931471805599453;
const LOG2_E = 1.4426950408889634;

// A row of this dispatch.
struct Query {
  d_out: u32,
  lse: f32,
  delta: f32,
  copy: u32,
}

// A row of a group: its place in the listing of items, the row there, and the rows of the group.
struct Place {
  at: u32,
  row: u32,
  count: u32,
}

fn tiles_of(place: Place) -> u32 {
  return (place.count + params.tile - 1u) / params.tile;
}

// The first item of the row.
fn slot_of(place: Place, copy: u32) -> u32 {
  return copy * items[params.listed] + items[place.at] + place.row / params.tile;
}

// Writes the statistics of a row, and gives the derivative by its weight.
fn one_group(query: Query, place: Place, weight_bits: u32) -> f32 {
  let tiles = tiles_of(place);
  let chunks = (items[place.at + 1u] - items[place.at]) / max(tiles, 1u);
  let slot = slot_of(place, query.copy);
  let width = params.dim_v + 1u;
  var top = MASKED;
  var sum = 0.0;
  var along = 0.0;
  for (var chunk = 0u; chunk < chunks; chunk++) {
    let part = ((slot + chunk * tiles) * params.tile + place.row % params.tile) * width;
    let found = parts[part + params.dim_v];
    if found.y > 0.0 {
      var products = vec4<f32>(0.0);
      for (var i = 0u; i < params.dim_v; i++) {
        products = fma(unpack(d_out[query.d_out + i]), parts[part + i], products);
      }
      let highest = max(top, found.x);
      let shrink = exp2(top - highest);
      let grow = exp2(found.x - highest);
      top = highest;
      sum = fma(sum, shrink, found.y * grow);
      along = fma(along, shrink, ((products.x + products.y) + (products.z + products.w)) * grow);
    }
  }
  let any = sum > 0.0;
  let own = select(0.0, along / sum, any);
  let own_lse = (top + log2(sum)) * LN_2;
  let is_own = (weight_bits & 0x7fffffffu) > 0x7f800000u;
  var weight = own_lse;
  var delta = query.delta;
  var is_there = any;
  if !is_own {
    weight = max(bitcast<f32>(weight_bits), MASKED);
    delta = own;
    is_there = weight > MASKED;
  }
  is_there = is_there && query.lse > -1e29;
  if chunks > 0u {
    let at = slot * params.tile + place.row % params.tile;
    // A group's own weight cancels, also where its digits would not.
    let lse = select(own_lse - weight + query.lse, query.lse, is_own);
    stats[at] = select(MASKED, lse, is_there && any);
    stats[at + params.stats_stride] = delta;
  }
  return select(0.0, exp2((weight - query.lse) * LOG2_E) * (own - query.delta), is_there);
}

@compute @workgroup_size(WORKGROUP)
fn attention_plan_stats(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.row_count {
    return;
  }
  let plane_row = index / params.row_queries;
  let query = params.first_query + index % params.row_queries;
  let batch = plane_row / params.heads;
  let head = plane_row % params.heads;
  let call_head = params.first_head + head;
  let packed_head = call_head / params.pack;
  let plan_head = min(packed_head, params.plan_heads - 1u);
  let plane = (params.first_batch + batch) * params.plan_heads + plan_head;
  let head_row = call_head % params.pack;
  let at_row = ((params.first_batch + batch) * params.all_heads + call_head) * params.queries + query;
  let own = Query(
    params.out_start + batch * params.out_batch + head * params.out_head + query * params.out_token,
    rows[at_row],
    rows[at_row + params.rows_stride],
    packed_head - plan_head - params.kv_base,
  );

  let first = listing[plane * params.queries + query];
  let behind = listing[plane * params.queries + query + 1u];
  let places = params.planes * params.queries + 1u;
  for (var number = first; number < behind; number++) {
    let entry = places + 6u * number;
    let at = items[params.at_bases + listing[entry]] + listing[entry + 1u];
    let row = listing[entry + 2u] * params.pack + head_row;
    let place = Place(at, row, listing[entry + 3u] * params.pack);
    let d_weight = one_group(own, place, listing[entry + 4u]);
    let gate = listing[entry + 5u];
    if gate < params.gates {
      d_gates[(call_head % params.gate_heads) * params.gates + gate] = d_weight;
    }
  }
  if params.near != 0u {
    let group = plane * params.plane_groups + query / params.bq;
    let start = query / params.bq * params.bq;
    let members = min(params.bq, params.queries - start);
    let at = params.base + group - params.first_group;
    let place = Place(at, (query - start) * params.pack + head_row, members * params.pack);
    let unused = one_group(own, place, params.near_weight);
  }
}
