// The key of each row of partial results that attention_plan_kv writes: key head of the round times
// `keys`, plus key. Rows without a key keep what they have.
//
// An invocation owns ITEMS rows. No workgroup memory. Needs three storage buffers.

struct Params {
  // Rows: items of this dispatch, times `chunk`.
  count: u32,
  queries: u32, keys: u32,
  first_batch: u32, first_kv: u32, heads_kv: u32,
#import "plan_fields"
}

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [words], see plan/device.rs
@group(0) @binding(1) var<storage, read> items: array<u32>; // offsets [listed + 1], keys [listed]
@group(0) @binding(2) var<storage, read_write> places: array<u32>; // [items, chunk]

#import "plan_groups"
#import "plan_cursor"
#import "plan_visit"
#import "plan_work"

fn item_word(index: u32) -> u32 {
  return items[index];
}

fn one(index: u32) {
  let item = index / params.chunk;
  if item >= items_here() * params.kv_count {
    return;
  }
  let work = work_of(item);
  let members = members_of(work.group);
  let listed = listed_of(work.at);
  let number = work.index * params.chunk + index % params.chunk;
  if number >= visited_keys(members, listed) {
    return;
  }
  let key = visit_at(work.group, members, listed, number).key;
  if key < params.keys {
    let batch = members.plane / params.plan_heads - params.first_batch;
    let packed_head = members.plane % params.plan_heads + work.copy + params.kv_base;
    let head_kv = packed_head * params.pack / params.head_group - params.first_kv;
    places[work.slot * params.chunk + index % params.chunk] =
      (batch * params.heads_kv + head_kv) * params.keys + key;
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
