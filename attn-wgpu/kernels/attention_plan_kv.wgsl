// Gradients of keys and values under a sparse plan: dk_t = scale * sum_i ds_it q_i and
// dv_t = sum_i p_it d_out_i over the rows of one group, for some of the keys that it visits. See
// attention_backward_q for p and ds. attention_plan_keys adds up what the groups of a key give.
//
// A workgroup owns TILE = WORKGROUP / LANES * ROWS keys, neighbours in the list of one group: the
// chunk of an item. Registers hold ROWS rows of k, v, dk and dv. Workgroup memory only without
// subgroups. Needs seven storage buffers.

struct Params {
#import "attention_fields"
#import "plan_fields"
#import "plan_grad_fields"
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> v: array<Chunk>; // [B, Hkv, N, dim_v]
@group(0) @binding(3) var<storage, read> d_out: array<Chunk>; // [B, H, M, dim_v]
@group(0) @binding(4) var<storage, read_write> parts: array<vec4<f32>>; // [items, tile, dim_qk + dim_v]
@group(0) @binding(5) var<storage, read> plan: array<u32>; // [words], see plan/device.rs
// The modifier's parameters, offsets of items [listed + 1], keys [listed], statistics of rows.
@group(0) @binding(6) var<storage, read> table: array<u32>;

const TILE = GROUPS * ROWS;

#import "linear"
#import "attention_logits"
#import "attention_pairs"
#import "plan_groups"
#import "plan_cursor"
#import "plan_visit"
#import "plan_work"
#import "plan_stats"

// Keys that see a row.
const NONE = 0u;
const SOME = 1u;
const ALL = 2u;

var<private> dk_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
var<private> dv_rows: array<vec4<f32>, ROWS * CHUNKS_V>;
var<private> visits: array<Visit, ROWS>;

// A row of the group.
struct Streamed {
  query: u32,
  batch: u32,
  head: u32,
  position: i32,
  stats: u32,
}

// Absorbs one row. With `tested`, keys that it does not see read neither it nor its cotangent.
fn absorb(streamed: Streamed, tested: bool, q_at: u32, d_out_at: u32) {
  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    other_qk[c] = unpack(q[q_at + chunk_k[c]]);
  }
  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    other_v[c] = unpack(d_out[d_out_at + chunk_v[c]]);
  }
  let lse = lse_at(streamed.stats);
  let delta = delta_at(streamed.stats);
  var seen_in: array<vec2<u32>, PHASES>;
  #unroll
  for (var phase = 0u; phase < PHASES; phase++) {
    seen_in[phase] = seen_at(phase, streamed.position);
  }
  let row = Row(0u, 0u, 0u, streamed.position, 0u);
  let sums = pair_sums();
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let key = visits[r].key;
    var logit = logit_of(sums[r], streamed.batch, streamed.head, row, key);
#ifdef KEY_BIAS
    logit.allowed = logit.allowed && visits[r].bias > MASKED;
    logit.value += max(visits[r].bias, MASKED) * LOG2_E;
#endif
    var p = exp2(logit.value - lse);
    var ds = p * (sums[ROWS + r] - delta);
#ifdef NATURAL
    ds *= logit_slope(sums[r], streamed.batch, streamed.head, row, key);
#endif
    var allowed = true;
    if tested {
      var seen = seen_in[0];
#ifdef NEAR
      seen = select(seen, seen_in[SINKS], visits[r].phase == SINKS);
      seen = select(seen, seen_in[WINDOW], visits[r].phase == WINDOW);
#endif
      allowed = logit.allowed && seen.x <= key && key < seen.y;
      p = select(0.0, p, allowed);
      ds = select(0.0, ds, allowed);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      var seen = other_qk[c];
      if tested {
        seen = select(vec4<f32>(0.0), seen, allowed);
      }
      dk_rows[r * CHUNKS_QK + c] = fma(vec4<f32>(ds), seen, dk_rows[r * CHUNKS_QK + c]);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      var seen = other_v[c];
      if tested {
        seen = select(vec4<f32>(0.0), seen, allowed);
      }
      dv_rows[r * CHUNKS_V + c] = fma(vec4<f32>(p), seen, dv_rows[r * CHUNKS_V + c]);
    }
  }
}

// Which keys from `low` to `high`, neighbours in a list, a position sees. With MULTISET keys
// of one list may fall, so that others than those between the two are meant.
fn seen_by(low: Visit, high: Visit, position: i32) -> u32 {
#ifdef MULTISET
  return SOME;
#else
  if low.phase != high.phase {
    return SOME;
  }
  let seen = seen_at(low.phase, position);
  if seen.y <= low.key || high.key < seen.x {
    return NONE;
  }
#ifdef KEY_BIAS
  return SOME;
#else
#ifdef MODIFIER
  return SOME;
#else
  return select(SOME, ALL, seen.x <= low.key && high.key < seen.y);
#endif
#endif
#endif
}

@compute @workgroup_size(WORKGROUP)
fn attention_plan_kv(
#import "attention_arguments"
) {
#import "attention_item"
  if item >= items_here() * params.kv_count {
    return;
  }
  let work = work_of(item);
  let members = members_of(work.group);
  let count = members.count * params.pack;
  let listed = listed_of(work.at);
  let first = work.index * TILE;
  let last = min(first + TILE, visited_keys(members, listed)) - 1u;
  let low = visit_at(work.group, members, listed, first);
  let high = visit_at(work.group, members, listed, last);

  let batch = members.plane / params.plan_heads - params.first_batch;
  let packed_head = members.plane % params.plan_heads + work.copy + params.kv_base;
  let head_kv = packed_head * params.pack / params.head_group - params.first_head / params.head_group;
  let k_start = params.k_start + batch * params.k_batch + head_kv * params.k_head;
  let v_start = params.v_start + batch * params.v_batch + head_kv * params.v_head;
  // Keys beyond the last repeat it and are not stored. Lanes beyond a dimension multiply by zero.
  let own_first = first + lane / LANES * ROWS;
  var cursor = cursor_at(work.group, min(own_first, last));
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    visits[r] = entry_visit(&cursor);
#ifdef NEAR
    if min(own_first + r, last) >= listed {
      visits[r] = near_visit(members, min(own_first + r, last) - listed);
    }
#endif
    if own_first + r < last {
      advance(&cursor, 1u);
    }
    let key = min(visits[r].key, params.keys - 1u);
    let k_at = k_start + key * params.k_token;
    let v_at = v_start + key * params.v_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      own_qk[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(k[k_at + chunk_k[c]]) * params.scale, inside_k[c]);
      dk_rows[r * CHUNKS_QK + c] = vec4<f32>(0.0);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      own_v[r * CHUNKS_V + c] = select(vec4<f32>(0.0), unpack(v[v_at + chunk_v[c]]), inside_v[c]);
      dv_rows[r * CHUNKS_V + c] = vec4<f32>(0.0);
    }
  }

  let call_batch = params.first_batch + batch;
  let q_start = params.q_start + batch * params.q_batch;
  let d_out_start = params.out_start + batch * params.out_batch;
  for (var row = 0u; row < count; row++) {
    let query = query_of(members, row / params.pack);
    let head = packed_head * params.pack + row % params.pack;
    let position = position_of(query);
    let stats = stats_at(work, row, call_batch, head, query);
    let streamed = Streamed(query, call_batch, head, position, stats);
    let own_head = head - params.first_head;
    let q_at = q_start + own_head * params.q_head + query * params.q_token;
    let d_out_at = d_out_start + own_head * params.out_head + query * params.out_token;
    let seen = seen_by(low, high, position);
    if seen == ALL {
      absorb(streamed, false, q_at, d_out_at);
    } else if seen == SOME {
      absorb(streamed, true, q_at, d_out_at);
    }
  }

  let width = dim_qk() + dim_v();
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    if own_first + r <= last {
      let at_part = (work.slot * TILE + own_first % TILE + r) * width;
      #unroll
      for (var c = 0u; c < CHUNKS_QK; c++) {
        if inside_k[c] {
          parts[at_part + chunk_k[c]] = dk_rows[r * CHUNKS_QK + c] * params.grad_scale;
        }
      }
      #unroll
      for (var c = 0u; c < CHUNKS_V; c++) {
        if inside_v[c] {
          parts[at_part + dim_qk() + chunk_v[c]] = dv_rows[r * CHUNKS_V + c];
        }
      }
    }
  }
}
