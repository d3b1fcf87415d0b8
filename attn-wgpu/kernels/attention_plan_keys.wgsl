// Adds the partial results of attention_plan_kv to the gradients of their keys, in the order of groups.
//
// An invocation owns ITEMS vec4s of gradients. No workgroup memory. Needs four storage buffers.

struct Params {
  // vec4s of all keys of the round, and of one key.
  count: u32, width: u32,
  // First vec4 in `grads`.
  start: u32,
}

@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>; // [rows, width]
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [keys + 1]
@group(0) @binding(2) var<storage, read> order: array<u32>; // [rows], key by key
@group(0) @binding(3) var<storage, read_write> grads: array<vec4<f32>>; // [keys, width]

fn one(index: u32) {
  let key = index / params.width;
  let i = index % params.width;
  var sum = grads[params.start + index];
  for (var place = offsets[key]; place < offsets[key + 1u]; place++) {
    sum += parts[order[place] * params.width + i];
  }
  grads[params.start + index] = sum;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
