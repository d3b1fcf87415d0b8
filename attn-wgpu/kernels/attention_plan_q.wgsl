// Gradient of the queries under a sparse plan: dq_i = scale * sum_t ds_it k_t over one chunk of the
// keys that a group lists, for one tile of the group's rows. See attention_backward_q for ds, and
// attention_plan for rows, tiles and chunks. Partial results go to attention_plan_merge.
//
// Registers hold ROWS rows of q, d_out and dq. Workgroup memory only without subgroups. Needs seven
// storage buffers.

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
@group(0) @binding(4) var<storage, read_write> parts: array<vec4<f32>>; // [items, tile, dim_qk]
@group(0) @binding(5) var<storage, read> plan: array<u32>; // [words], see plan/device.rs
// The modifier's parameters, offsets of items [listed + 1], keys [listed], statistics of rows.
@group(0) @binding(6) var<storage, read> table: array<u32>;

const TILE = GROUPS * ROWS;
const STEP = KEYS;
const STRIDE = 1u;

#import "linear"
#import "attention_logits"
#import "attention_pairs"
#import "plan_groups"
#import "plan_cursor"
#import "plan_work"
#import "plan_stats"
#ifdef KEY_BIAS
// Of the keys of one step.
var<private> key_bias: array<f32, KEYS>;
#endif
#import "plan_step"

var<private> dq_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
var<private> row_lse: array<f32, ROWS>;
var<private> row_delta: array<f32, ROWS>;
var<private> rows: array<Row, ROWS>;
// Per row: batch entry and head in the call, for modifiers.
var<private> row_batch: array<u32, ROWS>;
var<private> row_head: array<u32, ROWS>;

// With `tested`, rows that do not see a key read neither it nor its value.
fn absorb(keys: array<u32, KEYS>, tested: bool, k_start: u32, v_start: u32) {
  #unroll
  for (var b = 0u; b < KEYS; b++) {
    let key = min(keys[b], params.keys - 1u);
    let k_at = k_start + key * params.k_token;
    let v_at = v_start + key * params.v_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      other_qk[c] = unpack(k[k_at + chunk_k[c]]);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      other_v[c] = unpack(v[v_at + chunk_v[c]]);
    }
    let sums = pair_sums();
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      var logit = logit_of(sums[r], row_batch[r], row_head[r], rows[r], keys[b]);
#ifdef KEY_BIAS
      logit.allowed = logit.allowed && key_bias[b] > MASKED;
      logit.value += max(key_bias[b], MASKED) * LOG2_E;
#endif
      let p = exp2(logit.value - row_lse[r]);
      var ds = p * (sums[ROWS + r] - row_delta[r]);
#ifdef NATURAL
      ds *= logit_slope(sums[r], row_batch[r], row_head[r], rows[r], keys[b]);
#endif
      var allowed = true;
      if tested {
        allowed = logit.allowed && sees(rows[r], keys[b]);
        ds = select(0.0, ds, allowed);
      }
      #unroll
      for (var c = 0u; c < CHUNKS_QK; c++) {
        var seen = other_qk[c];
        if tested {
          seen = select(vec4<f32>(0.0), seen, allowed);
        }
        dq_rows[r * CHUNKS_QK + c] = fma(vec4<f32>(ds), seen, dq_rows[r * CHUNKS_QK + c]);
      }
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn attention_plan_q(
#import "attention_arguments"
) {
#import "attention_item"
  if item >= items_here() * params.kv_count {
    return;
  }
  let work = work_of(item);
  let group = work.group;
  let members = members_of(group);
  let count = members.count * params.pack;
  let tiles = (count + TILE - 1u) / TILE;
  let tile = work.index % tiles;
  let chunk = work.index / tiles;

  let batch = members.plane / params.plan_heads - params.first_batch;
  let packed_head = members.plane % params.plan_heads + work.copy + params.kv_base;
  let first_row = tile * TILE + lane / LANES * ROWS;
  // Rows beyond the last repeat it. Lanes beyond a dimension multiply by zero.
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = min(first_row + r, count - 1u);
    let query = query_of(members, row / params.pack);
    let head = packed_head * params.pack + row % params.pack;
    rows[r] = Row(0u, 0u, 0u, position_of(query), 0u);
    row_batch[r] = params.first_batch + batch;
    row_head[r] = head;
    let at_stats = stats_at(work, row, row_batch[r], head, query);
    row_lse[r] = lse_at(at_stats);
    row_delta[r] = delta_at(at_stats);
    let q_at = params.q_start + batch * params.q_batch + (head - params.first_head) * params.q_head
      + query * params.q_token;
    let d_out_at = params.out_start + batch * params.out_batch
      + (head - params.first_head) * params.out_head + query * params.out_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      own_qk[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(q[q_at + chunk_k[c]]) * params.scale, inside_k[c]);
      dq_rows[r * CHUNKS_QK + c] = vec4<f32>(0.0);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      own_v[r * CHUNKS_V + c] = select(vec4<f32>(0.0), unpack(d_out[d_out_at + chunk_v[c]]), inside_v[c]);
    }
  }
  let head_kv = packed_head * params.pack / params.head_group - params.first_head / params.head_group;
  let k_start = params.k_start + batch * params.k_batch + head_kv * params.k_head;
  let v_start = params.v_start + batch * params.v_batch + head_kv * params.v_head;

#import "plan_walk"

  #unroll
  for (var r = 0u; r < ROWS; r++) {
    if first_row + r < count {
      let at_part = (work.slot * TILE + first_row % TILE + r) * dim_qk();
      #unroll
      for (var c = 0u; c < CHUNKS_QK; c++) {
        if inside_k[c] {
          parts[at_part + chunk_k[c]] = dq_rows[r * CHUNKS_QK + c] * params.grad_scale;
        }
      }
    }
  }
}
