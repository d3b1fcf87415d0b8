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

const TILE = GROUPS * ROWS;

#import "linear"
#import "attention_logits"
#import "attention_pairs"
#import "attention_segments"

var<private> dq_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
// Base 2; the largest number where the row is empty, so that every weight is 0.
var<private> row_lse: array<f32, ROWS>;
var<private> row_delta: array<f32, ROWS>;
var<private> rows: array<Row, ROWS>;

fn absorb(key: u32, tested: bool, k_start: u32, v_start: u32, batch: u32, head: u32) {
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
      var seen = other_qk[c];
      if tested {
        seen = select(vec4<f32>(0.0), seen, allowed);
      }
      dq_rows[r * CHUNKS_QK + c] = fma(vec4<f32>(ds), seen, dq_rows[r * CHUNKS_QK + c]);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn attention_backward_q(
#import "attention_arguments"
) {
#import "attention_item"
  let tile = params.first_tile + params.tiles - 1u - item % params.tiles;
  let plane = item / params.tiles;
  let head = plane % dispatch_heads();
  let batch = plane / dispatch_heads();
  let head_kv = head / group_heads();
  let first_row = tile * TILE + lane / LANES * ROWS;
  let stats_stride = arrayLength(&stats) / 2u;

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
      own_qk[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(q[q_at + chunk_k[c]]) * params.scale, inside_k[c]);
      dq_rows[r * CHUNKS_QK + c] = vec4<f32>(0.0);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      own_v[r * CHUNKS_V + c] = select(vec4<f32>(0.0), unpack(d_out[d_out_at + chunk_v[c]]), inside_v[c]);
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
        if inside_k[c] {
          grads[at + chunk_k[c]] = pack(dq_rows[r * CHUNKS_QK + c] * params.grad_scale);
        }
      }
    }
  }
}
