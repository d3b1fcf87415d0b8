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
fn partners(at: u32, chunk: u32, own: vec4<f32>, pairs: u32) -> vec4<f32> {
#ifdef INTERLEAVED
  return own.yxwz;
#else
#ifdef ALIGNED
  let half = pairs / 4u;
  let other = select(chunk - half, chunk + half, chunk < half);
  return unpack_source(x[at + select(chunk, other, chunk < 2u * half)]);
#else
  var found = own;
  #unroll
  for (var j = 0u; j < 4u; j++) {
    let i = 4u * chunk + j;
    let other = select(i - pairs, i + pairs, i < pairs);
    if i < 2u * pairs {
      found[j] = unpack_source(x[at + other / 4u])[other % 4u];
    }
  }
  return found;
#endif
#endif
}

fn rotated(numbers: vec3<u32>, chunk: u32, given: Params) -> vec4<f32> {
  let position = positions[at_place(numbers, given.positions)];
  let at = at_place(numbers, given.x);
  let own = unpack_source(x[at + chunk]);
  let other = partners(at, chunk, own, given.pairs);
  let cosines = min(position, max(given.table_rows, 1u) - 1u) * 2u * given.pairs;
  let sines = cosines + given.pairs;
  var value = own;
  #unroll
  for (var j = 0u; j < 4u; j++) {
    let i = 4u * chunk + j;
#ifdef INTERLEAVED
    let pair = i / 2u;
    let is_first = i % 2u == 0u;
#else
    let is_first = i < given.pairs;
    let pair = select(i - given.pairs, i, is_first);
#endif
    if i < 2u * given.pairs {
      let sine = table[sines + pair];
      value[j] = fma(own[j], table[cosines + pair], other[j] * select(sine, -sine, is_first));
    }
  }
  return select(vec4<f32>(bitcast<f32>(given.nan)), value, position < given.table_rows);
}

@compute @workgroup_size(WORKGROUP)
fn rope(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  // Read once: behind every store drivers would read them again.
  let given = params;
  let first = linear_group(workgroup, counts) * (WORKGROUP * ITEMS) + lane;
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    let row = index / given.chunks;
    let chunk = index - row * given.chunks;
    let numbers = numbers_of(row, given.extent_1, given.extent_2);
    if row < given.rows {
      out[at_place(numbers, given.out) + chunk] = pack_target(rotated(numbers, chunk, given));
    }
  }
}
