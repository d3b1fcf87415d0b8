// Merges partial results of attention over disjoint sets of keys, exactly, in the order of the
// parts; a part whose lse is -inf (or <= -1e29) is empty and changes nothing.
//
// An invocation owns one vec4 of one output row. No workgroup memory. Needs five storage buffers.

struct Params {
  parts: u32,
  // Rows of one part (batch * heads * queries), and vec4s of a row.
  rows: u32,
  dim_v: u32,
  heads: u32,
  queries: u32,
  // vec4s: start, batch, head, token.
  out_start: u32, out_batch: u32, out_head: u32, out_token: u32,
  // Words.
  lse_start: u32,
  first_head: u32,
}

#import "attention_storage"

#ifdef PARTS_F32
@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>; // [parts, B, H, M, dim_v]
#else
@group(0) @binding(0) var<storage, read> parts: array<Chunk>; // [parts, B, H, M, dim_v]
#endif
@group(0) @binding(1) var<storage, read> parts_lse: array<f32>; // [parts, B, H, M]
@group(0) @binding(2) var<storage, read_write> out: array<Chunk>; // [B, H, M, dim_v]
@group(0) @binding(3) var<storage, read_write> lse: array<u32>; // [B, H, M]
@group(0) @binding(4) var<storage, read> sinks: array<f32>; // [H]

#import "linear"

const EMPTY = -1e29;
const LOG2_E = 1.4426950408889634;
const LN_2 = 0.6931471805599453;

fn part_of(row: u32, i: u32) -> vec4<f32> {
#ifdef PARTS_F32
  return parts[row * params.dim_v + i];
#else
  return unpack(parts[row * params.dim_v + i]);
#endif
}

@compute @workgroup_size(WORKGROUP)
fn attention_merge(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let row = index / params.dim_v;
  let i = index % params.dim_v;
  if row >= params.rows {
    return;
  }
  let plane = row / params.queries;
  let head = plane % params.heads;

  var top = EMPTY;
  for (var p = 0u; p < params.parts; p++) {
    top = max(top, parts_lse[p * params.rows + row]);
  }
#ifdef SINKS
  let sink = sinks[params.first_head + head];
  top = max(top, sink);
#endif
  var sum = 0.0;
  var value = vec4<f32>(0.0);
  for (var p = 0u; p < params.parts; p++) {
    let part_lse = parts_lse[p * params.rows + row];
    if part_lse > EMPTY {
      let weight = exp2((part_lse - top) * LOG2_E);
      sum += weight;
      value = fma(vec4<f32>(weight), part_of(p * params.rows + row, i), value);
    }
  }
#ifdef SINKS
  sum += exp2((sink - top) * LOG2_E);
#endif
  let any = sum > 0.0;
  let at = params.out_start + plane / params.heads * params.out_batch + head * params.out_head
    + row % params.queries * params.out_token;
  out[at + i] = pack(value * select(0.0, 1.0 / sum, any));
  if i == 0u {
    lse[params.lse_start + row] =
      select(0xff800000u, bitcast<u32>(fma(log2(sum), LN_2, top)), any);
  }
}
