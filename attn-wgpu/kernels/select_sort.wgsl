// One pass of a stable sort of keys by a digit of DIGIT_BITS bits. With COUNT: how many keys of each
// tile have each digit. Without: keys and elements go to their places, for which `bases` has the
// prefix sums of those counts. FIRST: the elements are 0, 1, .. still, and keys are cut at `most`.
//
// A workgroup owns a tile of WORKGROUP * ITEMS neighbours, a lane ITEMS of them in order. Workgroup
// memory: DIGITS words a lane. Needs five storage buffers.

struct Params {
  count: u32, tiles: u32, shift: u32, most: u32,
  // Words.
  keys_start: u32,
}

@group(0) @binding(0) var<storage, read> keys: array<u32>; // [count]
#ifdef COUNT
@group(0) @binding(1) var<storage, read_write> digit_counts: array<u32>; // [DIGITS, tiles]
#else
@group(0) @binding(1) var<storage, read> bases: array<u32>; // [DIGITS * tiles + 1]
@group(0) @binding(2) var<storage, read_write> sorted_keys: array<u32>; // [count]
@group(0) @binding(3) var<storage, read_write> sorted: array<u32>; // [count]
#ifdef FIRST
#else
@group(0) @binding(4) var<storage, read> elements: array<u32>; // [count]
#endif
#endif

#import "linear"

const DIGITS = 16u;
const DIGIT_BITS = 4u;

var<workgroup> places: array<u32, WORKGROUP * DIGITS>;

fn key_at(index: u32) -> u32 {
#ifdef FIRST
  return min(keys[params.keys_start + index], params.most);
#else
  return keys[index];
#endif
}

@compute @workgroup_size(WORKGROUP)
fn select_sort(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let tile = linear_group(workgroup, counts);
  let count = params.count;
  if tile * (WORKGROUP * ITEMS) >= count {
    return;
  }
  let tiles = params.tiles;
  let shift = params.shift;
  let first = (tile * WORKGROUP + lane) * ITEMS;
  let end = min(first + ITEMS, count);

  for (var digit = 0u; digit < DIGITS; digit++) {
    places[lane * DIGITS + digit] = 0u;
  }
  for (var i = first; i < end; i++) {
    let digit = (key_at(i) >> shift) & (DIGITS - 1u);
    places[lane * DIGITS + digit] += 1u;
  }
  workgroupBarrier();
  for (var digit = lane; digit < DIGITS; digit += WORKGROUP) {
#ifdef COUNT
    var sum = 0u;
    for (var other = 0u; other < WORKGROUP; other++) {
      sum += places[other * DIGITS + digit];
    }
    digit_counts[digit * tiles + tile] = sum;
#else
    var place = bases[digit * tiles + tile];
    for (var other = 0u; other < WORKGROUP; other++) {
      let own = places[other * DIGITS + digit];
      places[other * DIGITS + digit] = place;
      place += own;
    }
#endif
  }
#ifdef COUNT
#else
  workgroupBarrier();
  for (var i = first; i < end; i++) {
    let key = key_at(i);
    let slot = lane * DIGITS + ((key >> shift) & (DIGITS - 1u));
    let place = places[slot];
    places[slot] = place + 1u;
    sorted_keys[place] = key;
#ifdef FIRST
    sorted[place] = i;
#else
    sorted[place] = elements[i];
#endif
  }
#endif
}
