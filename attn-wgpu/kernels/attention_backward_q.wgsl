// Gradient of the queries: dq_i = scale * sum_t ds_it k_t, with p_it = exp(s_it - lse_i) recomputed
// and ds_it = p_it (d_out_i . v_t - delta_i) * (derivative of soft-cap and modifier).
//
// A workgroup owns TILE = WORKGROUP / LANES * ROWS queries of one head, as in attention_forward.
// Registers hold ROWS rows of q, d_out and dq. Workgroup memory only without subgroups. Needs seven
// storage buffers.

struct Params {
#import "attention_fields"
  // The scale without log2(e), and where dq begins, in vec4s.
  grad_scale: f32,
  grad_start: u32,
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> v: array<Chunk>; // [B, Hkv, N, dim_v]
@group(0) @binding(3) var<storage, read> d_out: array<Chunk>; // [B, H, M, dim_v]
@group(0) @binding(4) var<storage, read> stats: array<f32>; // lse, delta: [2, B, H, M]
@group(0) @binding(5) var<storage, read_write> grads: array<Chunk>; // dq [B, H, M, dim_qk]
@group(0) @binding(6) var<storage, read> table: array<u32>; // see mask_table.rs

const GROUPS = WORKGROUP / LANES;
const TILE = GROUPS * ROWS;
// Products with keys and with values are added over the lanes together.
const SUMS = ROWS * 2u;

#import "linear"
#import "attention_logits"
#import "attention_lanes"
#import "attention_segments"

var<private> q_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
var<private> d_out_rows: array<vec4<f32>, ROWS * CHUNKS_V>;
var<private> dq_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
// Base 2; the largest number where the row is empty, so that every weight is 0.
var<private> row_lse: array<f32, ROWS>;
var<private> row_delta: array<f32, ROWS>;
var<private> rows: array<Row, ROWS>;
var<private> chunk_k: array<u32, CHUNKS_QK>;
var<private> chunk_v: array<u32, CHUNKS_V>;

fn absorb(key: u32, tested: bool, k_start: u32, v_start: u32, batch: u32, head: u32) {
  let k_at = k_start + key * params.k_token;
  let v_at = v_start + key * params.v_token;
  var key_chunks: array<vec4<f32>, CHUNKS_QK>;
  var logits: array<vec4<f32>, ROWS>;
  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    key_chunks[c] = unpack(k[k_at + chunk_k[c]]);
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      if c == 0u {
        logits[r] = q_rows[r * CHUNKS_QK] * key_chunks[c];
      } else {
        logits[r] = fma(q_rows[r * CHUNKS_QK + c], key_chunks[c], logits[r]);
      }
    }
  }
  var weights: array<vec4<f32>, ROWS>;
  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    let value = unpack(v[v_at + chunk_v[c]]);
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      if c == 0u {
        weights[r] = d_out_rows[r * CHUNKS_V] * value;
      } else {
        weights[r] = fma(d_out_rows[r * CHUNKS_V + c], value, weights[r]);
      }
    }
  }
  var sums: array<f32, SUMS>;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let logit = logits[r];
    let weight = weights[r];
    sums[r] = (logit.x + logit.y) + (logit.z + logit.w);
    sums[ROWS + r] = (weight.x + weight.y) + (weight.z + weight.w);
  }
  add_lanes(&sums);

  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let logit = logit_of(sums[r], batch, head, rows[r], key);
    let p = exp2(logit.value - row_lse[r]);
    var ds = p * (sums[ROWS + r] - row_delta[r]);
#ifdef NATURAL
    ds *= logit_slope(sums[r], batch, head, rows[r], key);
#endif
    var allowed = true;
    if tested {
      allowed = logit.allowed && sees(rows[r], key);
      ds = select(0.0, ds, allowed);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      var seen = key_chunks[c];
      if tested {
        seen = select(vec4<f32>(0.0), seen, allowed);
      }
      dq_rows[r * CHUNKS_QK + c] = fma(vec4<f32>(ds), seen, dq_rows[r * CHUNKS_QK + c]);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn attention_backward_q(
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
  let lane = subgroup * subgroup_size + subgroup_lane;
#else
  let lane = local_index;
  lane_index = local_index;
#endif
  let lane_in_group = lane % LANES;
  let tile = params.first_tile + params.tiles - 1u - item % params.tiles;
  let plane = item / params.tiles;
  let head = plane % dispatch_heads();
  let batch = plane / dispatch_heads();
  let head_kv = head / group_heads();
  let first_row = tile * TILE + lane / LANES * ROWS;
  let stats_stride = arrayLength(&stats) / 2u;

  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    chunk_k[c] = min(c * LANES + lane_in_group, dim_qk() - 1u);
  }
  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    chunk_v[c] = min(c * LANES + lane_in_group, dim_v() - 1u);
  }
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = min(first_row + r, params.queries - 1u);
    rows[r] = row_of(row);
    let at_stats = params.stats_start + plane * params.queries + row;
    let lse = stats[at_stats];
    row_lse[r] = select(3e38, lse * LOG2_E, lse > -1e29);
    row_delta[r] = stats[at_stats + stats_stride];
    let q_at = params.q_start + batch * params.q_batch + head * params.q_head + row * params.q_token;
    let d_out_at = params.out_start + batch * params.out_batch + head * params.out_head
      + row * params.out_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      let inside = c * LANES + lane_in_group < dim_qk();
      q_rows[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(q[q_at + chunk_k[c]]) * params.scale, inside);
      dq_rows[r * CHUNKS_QK + c] = vec4<f32>(0.0);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      let inside = c * LANES + lane_in_group < dim_v();
      d_out_rows[r * CHUNKS_V + c] = select(vec4<f32>(0.0), unpack(d_out[d_out_at + chunk_v[c]]), inside);
    }
  }

  let k_start = params.k_start + batch * params.k_batch + head_kv * params.k_head;
  let v_start = params.v_start + batch * params.v_batch + head_kv * params.v_head;
  let call_batch = params.first_batch + batch;
  let call_head = params.first_head + head;
  let numbers = segments(tile);
  for (var number = numbers.x; number < numbers.y; number++) {
    let visited = segment(tile, number);
    var key = visited.start;
#ifdef MODIFIER
#else
    for (; key < select(visited.start, visited.end, visited.full); key++) {
      absorb(key, false, k_start, v_start, call_batch, call_head);
    }
#endif
    for (; key < visited.end; key++) {
      absorb(key, true, k_start, v_start, call_batch, call_head);
    }
  }

  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = first_row + r;
    if row < params.queries {
      let at = params.grad_start + (plane * params.queries + row) * dim_qk();
      #unroll
      for (var c = 0u; c < CHUNKS_QK; c++) {
        if c * LANES + lane_in_group < dim_qk() {
          grads[at + chunk_k[c]] = pack(dq_rows[r * CHUNKS_QK + c] * params.grad_scale);
        }
      }
    }
  }
}
