// Dense attention for few queries over many keys: keys are split over workgroups, and the partial
// results are merged by attention_merge.
//
// A workgroup owns one chunk of the keys of one key head, and up to ROWS rows: the queries of
// `heads_per_item` query heads that share the key head, so that keys and values are read once for
// all of them. Groups of LANES lanes take turns at the keys; their results are merged through
// workgroup memory: 4 * GROUPS * (2 * ROWS + 4 * LANES * CHUNKS_V) bytes. Needs six storage buffers.

struct Params {
#import "attention_fields"
  heads_per_item: u32,
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> v: array<Chunk>; // [B, Hkv, N, dim_v]
@group(0) @binding(3) var<storage, read_write> parts: array<vec4<f32>>; // [splits, B, H, M, dim_v]
@group(0) @binding(4) var<storage, read_write> parts_lse: array<u32>; // [splits, B, H, M]
@group(0) @binding(5) var<storage, read> table: array<u32>; // see mask_table.rs

const SUMS = ROWS * KEYS;
const STEP = GROUPS * KEYS;
const WIDTH = LANES * CHUNKS_V;

var<workgroup> group_max: array<f32, GROUPS * ROWS>;
var<workgroup> group_sum: array<f32, GROUPS * ROWS>;
var<workgroup> group_out: array<vec4<f32>, GROUPS * WIDTH>;

#import "linear"
#import "attention_logits"
#import "attention_lanes"
#import "attention_absorb"

@compute @workgroup_size(WORKGROUP)
fn attention_decode(
#import "attention_arguments"
) {
#import "attention_item"
  let group_number = lane / LANES;

  // `tiles` counts chunks of keys, `first_tile` is the length of one.
  let heads = dispatch_heads();
  let group = group_heads();
  let split = item % params.tiles;
  let parts_of_group = (group + params.heads_per_item - 1u) / params.heads_per_item;
  let part = item / params.tiles % parts_of_group;
  let head_kv = item / (params.tiles * parts_of_group) % (heads / group);
  let batch = item / (params.tiles * parts_of_group * (heads / group));
  let batches = params.total / (params.tiles * parts_of_group * (heads / group));
  let first_head = head_kv * group + part * params.heads_per_item;
  let count = min(params.heads_per_item, group - part * params.heads_per_item) * params.queries;

  let chunk_start = split * params.first_tile;
  let chunk_end = min(chunk_start + params.first_tile, params.keys);
  var start = chunk_end;
  var end = chunk_start;
  var full = true;
  start_rows();
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    // Rows beyond the last repeat it.
    let number = min(r, count - 1u);
    let head = first_head + number / params.queries;
    let query = number % params.queries;
    let row = row_of(query);
    rows[r] = row;
    row_batch[r] = params.first_batch + batch;
    row_head[r] = params.first_head + head;
#ifdef BITS
    start = chunk_start;
    end = chunk_end;
    full = false;
#else
    if row.start < row.end {
      start = min(start, max(row.start, chunk_start));
      end = max(end, min(row.end, chunk_end));
    }
    if row.sink > chunk_start {
      start = chunk_start;
      end = max(end, min(row.sink, chunk_end));
    }
    full = full && ((row.start <= chunk_start && chunk_end <= row.end) || chunk_end <= row.sink);
#endif
    let at = params.q_start + batch * params.q_batch + head * params.q_head + query * params.q_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      q_rows[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(q[at + chunk_k[c]]) * params.scale, inside_k[c]);
    }
  }

  let k_start = params.k_start + batch * params.k_batch + head_kv * params.k_head;
  let v_start = params.v_start + batch * params.v_batch + head_kv * params.v_head;
  var key = start;
#ifdef MODIFIER
#else
  let untested = select(0u, (max(end, start) - start) / STEP * STEP, full);
  for (; key < start + untested; key += STEP) {
    var keys: array<u32, KEYS>;
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      keys[b] = key + b * GROUPS + group_number;
    }
    absorb(keys, false, k_start, v_start);
  }
#endif
  for (; key < end; key += STEP) {
    var keys: array<u32, KEYS>;
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      let mine = key + b * GROUPS + group_number;
      keys[b] = select(NO_KEY, mine, mine < end);
    }
    absorb(keys, true, k_start, v_start);
  }

  if lane_in_group == 0u {
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      group_max[r * GROUPS + group_number] = row_max[r];
      group_sum[r * GROUPS + group_number] = row_sum[r];
    }
  }
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      group_out[group_number * WIDTH + c * LANES + lane_in_group] = out_rows[r * CHUNKS_V + c];
    }
    workgroupBarrier();
    var top = MASKED;
    for (var g = 0u; g < GROUPS; g++) {
      top = max(top, group_max[r * GROUPS + g]);
    }
    var sum = 0.0;
    for (var g = 0u; g < GROUPS; g++) {
      sum = fma(group_sum[r * GROUPS + g], exp2(group_max[r * GROUPS + g] - top), sum);
    }
    let any = sum > 0.0;
    if r < count {
      let head = first_head + r / params.queries;
      let row = ((split * batches + batch) * heads + head) * params.queries + r % params.queries;
      let factor = select(0.0, 1.0 / sum, any);
      for (var i = lane; i < dim_v(); i += WORKGROUP) {
        var out = vec4<f32>(0.0);
        for (var g = 0u; g < GROUPS; g++) {
          let weight = exp2(group_max[r * GROUPS + g] - top);
          out = fma(vec4<f32>(weight), group_out[g * WIDTH + i], out);
        }
        parts[row * dim_v() + i] = out * factor;
      }
      if lane == 0u {
        parts_lse[row] = select(MINUS_INFINITY, bitcast<u32>((top + log2(sum)) * LN_2), any);
      }
    }
    workgroupBarrier();
  }
}
