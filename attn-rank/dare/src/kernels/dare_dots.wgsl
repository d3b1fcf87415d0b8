// Derivatives by weights: out_j = x . row(ids_j), 0 where the weight is 0: those are not read.
// An invocation owns one behaviour. No workgroup memory; needs seven storage buffers.

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
@group(0) @binding(5) var<storage, read> x: array<vec4<f32>>; // [rows, chunks]
@group(0) @binding(6) var<storage, read_write> out: array<f32>; // [rows, length]

#import "linear"
#import "row_chunk"

const NONE = 0xffffffffu;

@compute @workgroup_size(WORKGROUP)
fn dare_dots(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let chunks = params.item_chunks + params.category_chunks + params.time_chunks;
  let row = index / params.length;
  let found = ids[index];
  var sum = vec4<f32>(0.0);
  if weights[index] != 0.0 && found.x != NONE {
    for (var c = 0u; c < chunks; c++) {
      sum = fma(x[row * chunks + c], row_chunk(found, c), sum);
    }
  }
  out[index] = (sum.x + sum.y) + (sum.z + sum.w);
}
