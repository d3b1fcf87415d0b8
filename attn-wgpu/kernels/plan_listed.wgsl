// Brings the places of plan_listing into the order of their queries, behind the offsets of these.
//
// An invocation owns ITEMS words. No workgroup memory. Needs three storage buffers.

struct Params {
  // Words of all places, and the first one's place in `listing`.
  count: u32, start: u32,
}

@group(0) @binding(0) var<storage, read> places: array<u32>; // [rows, 6]
@group(0) @binding(1) var<storage, read> order: array<u32>; // [rows], by query
@group(0) @binding(2) var<storage, read_write> listing: array<u32>; // [start + count]

fn one(index: u32) {
  listing[params.start + index] = places[6u * order[index / 6u] + index % 6u];
}

@compute @workgroup_size(WORKGROUP)
#import "each"
