// Gradients of keys and values: dv_t = sum_i p_it d_out_i and dk_t = scale * sum_i ds_it q_i, summed
// over the query heads that share the key head, one after another. See attention_backward_q for
// p and ds.
//
// A workgroup owns TILE = WORKGROUP / LANES * ROWS keys of one key head. Registers hold ROWS rows of
// k, v, dk and dv. Workgroup memory only without subgroups. Needs seven storage buffers.

struct Params {
#import "attention_fields"
  // The scale without log2(e).
  grad_scale: f32,
  // Words from lse to delta of a row, in `table`.
  stats_stride: u32,
  // Where the gradients begin, in vec4s.
  dk_start: u32, dv_start: u32,
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> v: array<Chunk>; // [B, Hkv, N, dim_v]
@group(0) @binding(3) var<storage, read> d_out: array<Chunk>; // [B, H, M, dim_v]
@group(0) @binding(4) var<storage, read_write> dk: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(5) var<storage, read_write> dv: array<Chunk>; // [B, Hkv, N, dim_v]
@group(0) @binding(6) var<storage, read> table: array<u32>; // see mask_table.rs; then lse, delta: [2, B, H, M] of f32

const TILE = GROUPS * ROWS;

#import "linear"
#import "attention_logits"
#import "attention_pairs"
#import "attention_segments"

var<private> dk_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
var<private> dv_rows: array<vec4<f32>, ROWS * CHUNKS_V>;

// Absorbs one query. With `tested`, keys that it does not see read neither it nor its cotangent.
fn absorb(
  query: u32, tested: bool, first_key: u32, q_start: u32, d_out_start: u32, stats_start: u32,
  batch: u32, head: u32,
) {
  let q_at = q_start + query * params.q_token;
  let d_out_at = d_out_start + query * params.out_token;
  let stored_lse = bitcast<f32>(table[stats_start + query]);
  // The largest number where the row is empty, so that every weight is 0.
  let lse = select(3e38, stored_lse * LOG2_E, stored_lse > -1e29);
  let delta = bitcast<f32>(table[stats_start + params.stats_stride + query]);
  let row = row_of(query);

  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    other_qk[c] = unpack(q[q_at + chunk_k[c]]);
  }
  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    other_v[c] = unpack(d_out[d_out_at + chunk_v[c]]);
  }
  let sums = pair_sums();
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let logit = logit_of(sums[r], batch, head, row, first_key + r);
    var p = exp2(logit.value - lse);
    var ds = p * (sums[ROWS + r] - delta);
#ifdef NATURAL
    ds *= logit_slope(sums[r], batch, head, row, first_key + r);
#endif
    var allowed = true;
    if tested {
      allowed = logit.allowed && sees(row, first_key + r);
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

@compute @workgroup_size(WORKGROUP)
fn attention_backward_kv(
#import "attention_arguments"
) {
#import "attention_item"
  // First tiles first: under a causal mask they are visited by the most queries.
  let tile = params.first_tile + item % params.tiles;
  let plane = item / params.tiles;
  let group = group_heads();
  let heads_kv = dispatch_heads() / group;
  let head_kv = plane % heads_kv;
  let batch = plane / heads_kv;
  let first_key = tile * TILE + lane / LANES * ROWS;

  // Keys beyond the last repeat it and are not stored. Lanes beyond a dimension multiply by zero.
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let key = min(first_key + r, params.keys - 1u);
    let k_at = params.k_start + batch * params.k_batch + head_kv * params.k_head + key * params.k_token;
    let v_at = params.v_start + batch * params.v_batch + head_kv * params.v_head + key * params.v_token;
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

  let numbers = segments(tile);
  for (var h = 0u; h < group; h++) {
    let head = head_kv * group + h;
    let q_start = params.q_start + batch * params.q_batch + head * params.q_head;
    let d_out_start = params.out_start + batch * params.out_batch + head * params.out_head;
    let stats_start = params.stats_start + (batch * dispatch_heads() + head) * params.queries;
    let call_batch = params.first_batch + batch;
    let call_head = params.first_head + head;
    for (var number = numbers.x; number < numbers.y; number++) {
      let visited = segment(tile, number);
      var query = visited.start;
#ifdef MODIFIER
#else
      for (; query < select(visited.start, visited.end, visited.full); query++) {
        absorb(query, false, first_key, q_start, d_out_start, stats_start, call_batch, call_head);
      }
#endif
      for (; query < visited.end; query++) {
        absorb(query, true, first_key, q_start, d_out_start, stats_start, call_batch, call_head);
      }
    }
  }

  let dk_start = params.dk_start + plane * params.keys * dim_qk();
  let dv_start = params.dv_start + plane * params.keys * dim_v();
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let key = first_key + r;
    if key < params.keys {
      #unroll
      for (var c = 0u; c < CHUNKS_QK; c++) {
        if inside_k[c] {
          dk[dk_start + key * dim_qk() + chunk_k[c]] = pack(dk_rows[r * CHUNKS_QK + c] * params.grad_scale);
        }
      }
      #unroll
      for (var c = 0u; c < CHUNKS_V; c++) {
        if inside_v[c] {
          dv[dv_start + key * dim_v() + chunk_v[c]] = pack(dv_rows[r * CHUNKS_V + c]);
        }
      }
    }
  }
}
