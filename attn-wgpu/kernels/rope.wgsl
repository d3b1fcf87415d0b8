// Rotary position embedding: element i and its partner are rotated by the angle of their pair at the
// row's position. Elements from 2 * pairs on pass through.
// Pairs are (i, i + pairs), or neighbours with INTERLEAVED. A position that the table does not have
// gives NaN. An invocation owns ITEMS vec4s of the target, WORKGROUP apart. No workgroup memory.

struct Params {
  rows: u32, chunks: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place, out: Place,
  // Words.
  positions: Place,
  pairs: u32, table_rows: u32,
  // The bits of NaN, which WGSL has no constant for.
  nan: u32,
}

#import "halves"
#import "source"
#import "target"
#import "row_place"
#import "linear"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [B, H, N, D]
@group(0) @binding(1) var<storage, read> positions: array<u32>; // strided [B, H, N]
@group(0) @binding(2) var<storage, read> table: array<f32>; // [table_rows, cosines then sines: 2, pairs]
@group(0) @binding(3) var<storage, read_write> out: array<Target>; // strided [B, H, N, D]

// The partners of a chunk's elements.
fn partners(at: u32, chunk: u32, own: vec4<f32>) -> vec4<f32> {
#ifdef INTERLEAVED
  return own.yxwz;
#else
#ifdef ALIGNED
  let half = params.pairs / 4u;
  let other = select(chunk - half, chunk + half, chunk < half);
  return unpack_source(x[at + select(chunk, other, chunk < 2u * half)]);
#else
  var found = own;
  #unroll
  for (var j = 0u; j < 4u; j++) {
    let i = 4u * chunk + j;
    let other = select(i - params.pairs, i + params.pairs, i < params.pairs);
    if i < 2u * params.pairs {
      found[j] = unpack_source(x[at + other / 4u])[other % 4u];
    }
  }
  return found;
#endif
#endif
}

fn rotated(row: u32, chunk: u32) -> vec4<f32> {
  let position = positions[row_at(row, params.positions)];
  if position >= params.table_rows {
    return vec4<f32>(bitcast<f32>(params.nan));
  }
  let at = row_at(row, params.x);
  let own = unpack_source(x[at + chunk]);
  if 4u * chunk >= 2u * params.pairs {
    return own;
  }
  let other = partners(at, chunk, own);
  let cosines = position * 2u * params.pairs;
  let sines = cosines + params.pairs;
  var value = own;
  #unroll
  for (var j = 0u; j < 4u; j++) {
    let i = 4u * chunk + j;
#ifdef INTERLEAVED
    let pair = i / 2u;
    let is_first = i % 2u == 0u;
#else
    let pair = i % params.pairs;
    let is_first = i < params.pairs;
#endif
    if i < 2u * params.pairs {
      let sine = table[sines + pair];
      value[j] = fma(own[j], table[cosines + pair], other[j] * select(sine, -sine, is_first));
    }
  }
  return value;
}

@compute @workgroup_size(WORKGROUP)
fn rope(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = linear_group(workgroup, counts) * (WORKGROUP * ITEMS) + lane;
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    let row = index / params.chunks;
    let chunk = index % params.chunks;
    if row < params.rows {
      out[row_at(row, params.out) + chunk] = pack_target(rotated(row, chunk));
    }
  }
}
