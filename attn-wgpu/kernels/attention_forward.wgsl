// Dense attention, forward: online softmax in base 2, keys and values read once per row tile.
//
// A workgroup owns GROUPS * ROWS consecutive queries of one head (GROUPS = WORKGROUP / LANES).
// LANES neighbouring lanes form a group and share ROWS queries; each lane holds every LANES-th vec4
// of the head dimension of q and out in registers, and the partial products of the lanes are added
// by shuffles (SUBGROUP) or through workgroup memory (4 * WORKGROUP * ROWS * KEYS bytes).
// KEYS keys are absorbed per step. Needs five storage buffers and no other limit.

struct Params {
  // Heads of this dispatch, query heads per key head, lengths.
  heads: u32, group: u32, queries: u32, keys: u32,
  // vec4s of the head dimensions.
  dim_qk: u32, dim_v: u32,
  // Offsets and strides in vec4s: start, batch, head, token.
  q_start: u32, q_batch: u32, q_head: u32, q_token: u32,
  k_start: u32, k_batch: u32, k_head: u32, k_token: u32,
  v_start: u32, v_batch: u32, v_head: u32, v_token: u32,
  out_start: u32, out_batch: u32, out_head: u32, out_token: u32,
  // lse[lse_start + batch * lse_batch + head * queries + query], in words.
  lse_start: u32, lse_batch: u32,
  // Row tiles of this dispatch: first, per head, and workgroups with work.
  first_tile: u32, tiles: u32, total: u32,
  // scale * log2(e).
  scale: f32,
  // Window around the query's position, or the reach of the row table if left is negative.
  left: i32, right: i32,
  write_lse: u32,
  // The bits of -inf, which WGSL has no constant for.
  empty_lse: u32,
}

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>; // [B, Hkv, N, dim_v]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [B, H, M, dim_v]
@group(0) @binding(4) var<storage, read_write> lse: array<f32>; // [B, H, M]
@group(0) @binding(5) var<storage, read> table: array<u32>; // [tiles, 6] then [M, 3], see row_table.rs

const GROUPS = WORKGROUP / LANES;
const TILE = GROUPS * ROWS;
// Stands for minus infinity, so that no infinities have to be subtracted.
const MASKED = -1e30;
const LN_2 = 0.6931471805599453;

var<private> q_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
var<private> out_rows: array<vec4<f32>, ROWS * CHUNKS_V>;
// Per row: largest logit so far, and sum of exponentials relative to it.
var<private> row_max: array<f32, ROWS>;
var<private> row_sum: array<f32, ROWS>;
// Per row: allowed keys of the part in hand.
var<private> row_start: array<u32, ROWS>;
var<private> row_end: array<u32, ROWS>;
// Where this lane's vec4s lie inside a key and a value.
var<private> chunk_k: array<u32, CHUNKS_QK>;
var<private> chunk_v: array<u32, CHUNKS_V>;
#ifdef SUBGROUP
#else
var<private> lane_index: u32;
var<workgroup> partial: array<f32, WORKGROUP * ROWS * KEYS>;
#endif

// Keys that a tile has to visit: all of [start, end), and no row of the tile masks any key of
// [inner_start, inner_end).
struct Span {
  start: u32,
  inner_start: u32,
  inner_end: u32,
  end: u32,
}

#import "linear"

fn window_start(row: u32) -> u32 {
  let position = i32(row + params.keys) - i32(params.queries);
  return u32(clamp(position - params.left, 0, i32(params.keys)));
}

fn window_end(row: u32) -> u32 {
  let position = i32(row + params.keys) - i32(params.queries);
  return u32(clamp(position + params.right + 1, 0, i32(params.keys)));
}

// Part 0 is the sink in front (row table only), part 1 the rest.
fn tile_span(part: u32, tile: u32) -> Span {
  var span: Span;
  if params.left < 0 {
    let at = (params.first_tile + tile) * 6u;
    if part == 0u {
      span = Span(0u, 0u, table[at], table[at + 1u]);
    } else {
      span = Span(table[at + 2u], table[at + 3u], table[at + 4u], table[at + 5u]);
    }
  } else {
    let first = (params.first_tile + tile) * TILE;
    let last = min(first + TILE, params.queries) - 1u;
    span = Span(window_start(first), window_start(last), window_end(first), window_end(last));
  }
  // Keys are taken in steps of KEYS; what is left of the inner range is tested like the rest.
  span.end = max(span.start, span.end);
  if span.inner_end >= span.inner_start + KEYS {
    span.inner_end -= (span.inner_end - span.inner_start) % KEYS;
  } else {
    span.inner_start = span.start;
    span.inner_end = span.start;
  }
  return span;
}

fn load_row_bounds(part: u32, first_row: u32) {
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = min(first_row + r, params.queries - 1u);
    if params.left < 0 {
      let at = u32(params.right) + row * 3u;
      if part == 0u {
        row_start[r] = 0u;
        row_end[r] = table[at];
      } else {
        row_start[r] = table[at + 1u];
        row_end[r] = table[at + 2u];
      }
    } else {
      row_start[r] = window_start(row);
      row_end[r] = window_end(row);
    }
  }
}

// Adds up the partial products of the lanes of each group.
fn add_lanes(scores: ptr<function, array<f32, ROWS * KEYS>>) {
#ifdef SUBGROUP
  #unroll
  for (var step = 0u; step < LANE_BITS; step++) {
    #unroll
    for (var i = 0u; i < ROWS * KEYS; i++) {
      (*scores)[i] += subgroupShuffleXor((*scores)[i], 1u << step);
    }
  }
#else
  if LANES > 1u {
    workgroupBarrier();
    #unroll
    for (var i = 0u; i < ROWS * KEYS; i++) {
      partial[i * WORKGROUP + lane_index] = (*scores)[i];
    }
    workgroupBarrier();
    let group_start = lane_index / LANES * LANES;
    #unroll
    for (var i = 0u; i < ROWS * KEYS; i++) {
      var sum = 0.0;
      #unroll
      for (var lane = 0u; lane < LANES; lane++) {
        sum += partial[i * WORKGROUP + group_start + lane];
      }
      (*scores)[i] = sum;
    }
  }
#endif
}

// Absorbs KEYS keys. With `tested`, rows that mask a key read neither its logit nor its value; a
// number of `params.keys` or more stands for no key.
fn absorb(keys: array<u32, KEYS>, tested: bool, k_start: u32, v_start: u32) {
  var k_at: array<u32, KEYS>;
  var v_at: array<u32, KEYS>;
  #unroll
  for (var b = 0u; b < KEYS; b++) {
    let key = min(keys[b], params.keys - 1u);
    k_at[b] = k_start + key * params.k_token;
    v_at[b] = v_start + key * params.v_token;
  }

  var products: array<vec4<f32>, ROWS * KEYS>;
  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      let key = k[k_at[b] + chunk_k[c]];
      #unroll
      for (var r = 0u; r < ROWS; r++) {
        if c == 0u {
          products[b * ROWS + r] = q_rows[r * CHUNKS_QK] * key;
        } else {
          products[b * ROWS + r] = fma(q_rows[r * CHUNKS_QK + c], key, products[b * ROWS + r]);
        }
      }
    }
  }
  var scores: array<f32, ROWS * KEYS>;
  #unroll
  for (var i = 0u; i < ROWS * KEYS; i++) {
    let product = products[i];
    scores[i] = (product.x + product.y) + (product.z + product.w);
  }
  add_lanes(&scores);

  var allowed: array<bool, ROWS * KEYS>;
  if tested {
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      #unroll
      for (var r = 0u; r < ROWS; r++) {
        allowed[b * ROWS + r] = row_start[r] <= keys[b] && keys[b] < row_end[r];
        scores[b * ROWS + r] = select(MASKED, scores[b * ROWS + r], allowed[b * ROWS + r]);
      }
    }
  }

  var shrink: array<f32, ROWS>;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    var top = row_max[r];
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      top = max(top, scores[b * ROWS + r]);
    }
    shrink[r] = exp2(row_max[r] - top);
    row_max[r] = top;
    var sum = row_sum[r] * shrink[r];
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      var weight = exp2(scores[b * ROWS + r] - top);
      if tested {
        weight = select(0.0, weight, allowed[b * ROWS + r]);
      }
      scores[b * ROWS + r] = weight;
      sum += weight;
    }
    row_sum[r] = sum;
  }

  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      let value = v[v_at[b] + chunk_v[c]];
      #unroll
      for (var r = 0u; r < ROWS; r++) {
        var seen = value;
        if tested {
          seen = select(vec4<f32>(0.0), value, allowed[b * ROWS + r]);
        }
        var sum = out_rows[r * CHUNKS_V + c];
        if b == 0u {
          sum *= shrink[r];
        }
        out_rows[r * CHUNKS_V + c] = fma(vec4<f32>(scores[b * ROWS + r]), seen, sum);
      }
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn attention_forward(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
#ifdef SUBGROUP
  @builtin(subgroup_id) subgroup: u32,
  @builtin(subgroup_size) subgroup_size: u32,
  @builtin(subgroup_invocation_id) subgroup_lane: u32,
#else
  @builtin(local_invocation_index) local_index: u32,
#endif
) {
  let item = linear_group(workgroup, counts);
  if item >= params.total {
    return;
  }
#ifdef SUBGROUP
  // The order that shuffles see.
  let lane = subgroup * subgroup_size + subgroup_lane;
#else
  let lane = local_index;
  lane_index = local_index;
#endif
  let lane_in_group = lane % LANES;

  // Last tiles first: under a causal mask they have the most keys.
  let tile = params.tiles - 1u - item % params.tiles;
  let plane = item / params.tiles;
  let head = plane % params.heads;
  let batch = plane / params.heads;
  let head_kv = head / params.group;
  let first_row = (params.first_tile + tile) * TILE + lane / LANES * ROWS;

  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    chunk_k[c] = min(c * LANES + lane_in_group, params.dim_qk - 1u);
  }
  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    chunk_v[c] = min(c * LANES + lane_in_group, params.dim_v - 1u);
  }
  // Rows beyond the last repeat it. Lanes beyond the head dimension multiply by zero.
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = min(first_row + r, params.queries - 1u);
    let at = params.q_start + batch * params.q_batch + head * params.q_head + row * params.q_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      let inside = c * LANES + lane_in_group < params.dim_qk;
      q_rows[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), q[at + chunk_k[c]] * params.scale, inside);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      out_rows[r * CHUNKS_V + c] = vec4<f32>(0.0);
    }
    row_max[r] = MASKED;
    row_sum[r] = 0.0;
  }

  let k_start = params.k_start + batch * params.k_batch + head_kv * params.k_head;
  let v_start = params.v_start + batch * params.v_batch + head_kv * params.v_head;
  for (var part = select(1u, 0u, params.left < 0); part < 2u; part++) {
    let span = tile_span(part, tile);
    load_row_bounds(part, first_row);
    for (var key = span.inner_start; key < span.inner_end; key += KEYS) {
      var keys: array<u32, KEYS>;
      #unroll
      for (var b = 0u; b < KEYS; b++) {
        keys[b] = key + b;
      }
      absorb(keys, false, k_start, v_start);
    }
    // The keys on both sides of the inner range.
    let before = span.inner_start - span.start;
    let inner = span.inner_end - span.inner_start;
    let count = span.end - span.start - inner;
    for (var first = 0u; first < count; first += KEYS) {
      var keys: array<u32, KEYS>;
      #unroll
      for (var b = 0u; b < KEYS; b++) {
        let i = first + b;
        let key = span.start + i + select(0u, inner, i >= before);
        keys[b] = select(0xffffffffu, key, i < count);
      }
      absorb(keys, true, k_start, v_start);
    }
  }

  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = first_row + r;
    if row < params.queries {
      let any = row_sum[r] > 0.0;
      let inverse = select(0.0, 1.0 / row_sum[r], any);
      let at = params.out_start + batch * params.out_batch + head * params.out_head
        + row * params.out_token;
      #unroll
      for (var c = 0u; c < CHUNKS_V; c++) {
        if c * LANES + lane_in_group < params.dim_v {
          out[at + chunk_v[c]] = out_rows[r * CHUNKS_V + c] * inverse;
        }
      }
      if lane_in_group == 0u && params.write_lse != 0u {
        let value = (row_max[r] + log2(row_sum[r])) * LN_2;
        lse[params.lse_start + batch * params.lse_batch + head * params.queries + row] =
          select(bitcast<f32>(params.empty_lse), value, any);
      }
    }
  }
}
