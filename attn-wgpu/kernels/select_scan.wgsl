// Prefix sums of integers, modulo 2^32: out[i] = values[0] + .. + values[i - 1], for i = 0 .. count.
// With TILE_SUMS only the sum of each tile; with BASES that of the tiles before one is read.
//
// A workgroup owns a tile of WORKGROUP * ITEMS neighbours, a lane ITEMS of them. Workgroup memory:
// one word a lane. Needs three storage buffers.

struct Params {
  count: u32,
  // Words.
  values_start: u32, out_start: u32, bases_start: u32,
}

@group(0) @binding(0) var<storage, read> values: array<u32>; // [count]
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // [count + 1], or [tiles]
#ifdef BASES
@group(0) @binding(2) var<storage, read> bases: array<u32>; // [tiles + 1]
#endif

#import "linear"
#import "before"

@compute @workgroup_size(WORKGROUP)
fn select_scan(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let tile = linear_group(workgroup, counts);
  let count = params.count;
  if tile * (WORKGROUP * ITEMS) >= count {
    return;
  }
  let first = (tile * WORKGROUP + lane) * ITEMS;
  let end = min(first + ITEMS, count);
  let values_start = params.values_start;
  var own = 0u;
  for (var i = first; i < end; i++) {
    own += values[values_start + i];
  }
  let sums = sum_before(own, lane);
  let out_start = params.out_start;
#ifdef TILE_SUMS
  if lane == 0u {
    out[out_start + tile] = sums.all;
  }
#else
  var sum = sums.before;
#ifdef BASES
  sum += bases[params.bases_start + tile];
#endif
  for (var i = first; i < end; i++) {
    out[out_start + i] = sum;
    sum += values[values_start + i];
  }
  if first < count && end == count {
    out[out_start + count] = sum;
  }
#endif
}
