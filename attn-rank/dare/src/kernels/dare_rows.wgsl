// Embeddings of candidates, NaN where a table does not have an id. An invocation owns four elements of a
// candidate. No workgroup memory; needs five storage buffers.

struct Params {
  count: u32,
  // vec4s.
  item_start: u32, category_start: u32, time_start: u32,
  item_chunks: u32, category_chunks: u32, time_chunks: u32,
  // The bits of NaN, which WGSL has no constant for.
  nan: u32,
}

@group(0) @binding(0) var<storage, read> ids: array<vec4<u32>>; // [rows]
@group(0) @binding(1) var<storage, read> item_table: array<vec4<f32>>; // [items, item_chunks]
@group(0) @binding(2) var<storage, read> category_table: array<vec4<f32>>; // [categories, category_chunks]
@group(0) @binding(3) var<storage, read> time_table: array<vec4<f32>>; // [slots, time_chunks]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [rows, chunks]

#import "linear"
#import "row_chunk"

const NONE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn dare_rows(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let chunks = params.item_chunks + params.category_chunks + params.time_chunks;
  let row = index / chunks;
  let found = ids[row];
  var value = vec4<f32>(bitcast<f32>(params.nan));
  if found.x != NONE {
    value = row_chunk(found, index - row * chunks);
  }
  out[index] = value;
}
