// Ids of behaviours side by side, as the other kernels read them: item, category, slot, and 1 where the
// category is the candidate's. All NONE where the behaviour does not count: padding, masked, or an id that a
// table does not have. With CANDIDATES only the last of these; the slot is then 0 without TIME.
//
// An invocation owns one behaviour. No workgroup memory; needs up to six storage buffers.

struct Params {
  count: u32,
  // Behaviours of a request.
  length: u32,
  items: u32, categories: u32, slots: u32,
  // Words.
  item_start: u32, category_start: u32, time_start: u32, mask_start: u32, wanted_start: u32,
}

@group(0) @binding(0) var<storage, read> items: array<u32>; // [rows, length]
@group(0) @binding(1) var<storage, read> categories: array<u32>; // [rows, length]
@group(0) @binding(2) var<storage, read> times: array<u32>; // [rows, length], unused without TIME
@group(0) @binding(3) var<storage, read> mask: array<u32>; // [rows, length], unused without MASK
@group(0) @binding(4) var<storage, read> wanted: array<u32>; // [rows], unused for CANDIDATES
@group(0) @binding(5) var<storage, read_write> out: array<vec4<u32>>; // [rows, length]

#import "linear"

const NONE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn dare_pack(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= given.count {
    return;
  }
  let item = items[given.item_start + index];
  let category = categories[given.category_start + index];
  let row = index / given.length;
#ifdef TIME
  let slot = times[given.time_start + index];
#else
#ifdef CANDIDATES
  let slot = 0u;
#else
  let slot = given.length - (index - row * given.length);
#endif
#endif
  var counts_here = item < given.items && category < given.categories && slot < given.slots;
#ifdef CANDIDATES
  let mark = 1u;
#else
#ifdef MASK
  counts_here = counts_here && mask[given.mask_start + index] != 0u;
#else
  counts_here = counts_here && item != 0u;
#endif
  let mark = select(0u, 1u, wanted[given.wanted_start + row] == category);
#endif
  out[index] = select(vec4<u32>(NONE), vec4<u32>(item, category, slot, mark), counts_here);
}
