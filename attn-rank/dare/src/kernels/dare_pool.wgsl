// Weighted sums of behaviours' embeddings: out = sum_j w_j row(ids_j). What weighs nothing is not read.
// An invocation owns four elements of a request. No workgroup memory; needs six storage buffers.

struct Params {
  count: u32,
  // Behaviours of a request.
  length: u32,
  // vec4s.
  item_start: u32, category_start: u32, time_start: u32,
  item_chunks: u32, category_chunks: u32, time_chunks: u32,
}

@group(0) @binding(0) var<storage, read> weights: array<f32>; // [rows, length]
@group(0) @binding(1) var<storage, read> ids: array<vec4<u32>>; // [rows, length]
@group(0) @binding(2) var<storage, read> item_table: array<vec4<f32>>; // [items, item_chunks]
@group(0) @binding(3) var<storage, read> category_table: array<vec4<f32>>; // [categories, category_chunks]
@group(0) @binding(4) var<storage, read> time_table: array<vec4<f32>>; // [slots, time_chunks]
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>; // [rows, chunks]

#import "linear"
#import "row_chunk"

const NONE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn dare_pool(
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
  let chunk = index - row * chunks;
  let first = row * params.length;
  let end = first + params.length;
  var sum = vec4<f32>(0.0);
  for (var j = first; j < end; j++) {
    let weight = weights[j];
    if weight != 0.0 {
      let found = ids[j];
      if found.x != NONE {
        sum = fma(vec4<f32>(weight), row_chunk(found, chunk), sum);
      }
    }
  }
  out[index] = sum;
}
