// Dense attention, forward: online softmax over the keys of one row tile; keys and values are read
// once per tile.
//
// A workgroup owns TILE = WORKGROUP / LANES * ROWS consecutive queries of one head: see
// attention_lanes for the split. Registers hold ROWS rows of q and out. Workgroup memory only
// without subgroups. Needs seven storage buffers and no other limit.

struct Params {
#import "attention_fields"
  // Distance of the row statistics max and argmax from lse, and of each other; 0 for none.
  stats_stride: u32,
  // SLICED: number of the slice of SLICE keys.
  slice: u32,
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> v: array<Chunk>; // [B, Hkv, N, dim_v]
#ifdef SLICED
// A partial result, for attention_merge.
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [B, H, M, dim_v]
#else
@group(0) @binding(3) var<storage, read_write> out: array<Chunk>; // [B, H, M, dim_v]
#endif
@group(0) @binding(4) var<storage, read_write> stats: array<u32>; // lse, max, argmax: [B, H, M]
@group(0) @binding(5) var<storage, read> table: array<u32>; // see mask_table.rs
@group(0) @binding(6) var<storage, read> sinks: array<f32>; // [H]

const TILE = GROUPS * ROWS;
const SUMS = ROWS * KEYS;

#import "linear"
#import "attention_logits"
#import "attention_lanes"
#import "attention_segments"
#import "attention_absorb"

@compute @workgroup_size(WORKGROUP)
fn attention_forward(
#import "attention_arguments"
) {
#import "attention_item"

  // Last tiles first: under a causal mask they have the most keys.
  let tile = params.first_tile + params.tiles - 1u - item % params.tiles;
  let plane = item / params.tiles;
  let head = plane % dispatch_heads();
  let batch = plane / dispatch_heads();
  let head_kv = head / group_heads();
  let first_row = tile * TILE + lane / LANES * ROWS;

  start_rows();
  // Rows beyond the last repeat it. Lanes beyond the head dimension multiply by zero.
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = min(first_row + r, params.queries - 1u);
    rows[r] = row_of(row);
    row_batch[r] = params.first_batch + batch;
    row_head[r] = params.first_head + head;
    let at = params.q_start + batch * params.q_batch + head * params.q_head + row * params.q_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      q_rows[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(q[at + chunk_k[c]]) * params.scale, inside_k[c]);
    }
  }

  let k_start = params.k_start + batch * params.k_batch + head_kv * params.k_head;
  let v_start = params.v_start + batch * params.v_batch + head_kv * params.v_head;
  let numbers = segments(tile);
  for (var number = numbers.x; number < numbers.y; number++) {
    var visited = segment(tile, number);
#ifdef SLICED
    visited.start = max(visited.start, params.slice * SLICE);
    visited.end = max(min(visited.end, (params.slice + 1u) * SLICE), visited.start);
#endif
    var key = visited.start;
#ifdef MODIFIER
#else
    let untested = select(0u, (visited.end - visited.start) / KEYS * KEYS, visited.full);
    for (; key < visited.start + untested; key += KEYS) {
      var keys: array<u32, KEYS>;
      #unroll
      for (var b = 0u; b < KEYS; b++) {
        keys[b] = key + b;
      }
      absorb(keys, false, k_start, v_start);
    }
#endif
    for (; key < visited.end; key += KEYS) {
      var keys: array<u32, KEYS>;
      #unroll
      for (var b = 0u; b < KEYS; b++) {
        keys[b] = select(NO_KEY, key + b, key + b < visited.end);
      }
      absorb(keys, true, k_start, v_start);
    }
  }

  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = first_row + r;
    if row < params.queries {
      var top = row_max[r];
      var sum = row_sum[r];
      var shrink = 1.0;
#ifdef SINKS
      let sink = sinks[row_head[r]] * LOG2_E;
      top = max(row_max[r], sink);
      shrink = exp2(row_max[r] - top);
      sum = fma(sum, shrink, exp2(sink - top));
#endif
      let any = sum > 0.0;
      let factor = select(0.0, shrink / sum, any);
      let at = params.out_start + batch * params.out_batch + head * params.out_head
        + row * params.out_token;
      #unroll
      for (var c = 0u; c < CHUNKS_V; c++) {
        if inside_v[c] {
#ifdef SLICED
          out[at + chunk_v[c]] = out_rows[r * CHUNKS_V + c] * factor;
#else
          out[at + chunk_v[c]] = pack(out_rows[r * CHUNKS_V + c] * factor);
#endif
        }
      }
      let at_stats = params.stats_start + plane * params.queries + row;
      if lane_in_group == 0u {
        stats[at_stats] = select(MINUS_INFINITY, bitcast<u32>((top + log2(sum)) * LN_2), any);
      }
#ifdef STATS
      if lane_in_group == 0u {
        let seen = row_argmax[r] != NO_KEY;
        let largest = bitcast<u32>(row_max[r] * LN_2);
        stats[at_stats + params.stats_stride] = select(MINUS_INFINITY, largest, seen);
        stats[at_stats + 2u * params.stats_stride] = row_argmax[r];
      }
#endif
    }
  }
}
