// Adds the partial results of attention_plan_kv to the gradients of their keys, in the order of groups.
//
// An invocation owns ITEMS vec4s of gradients. No workgroup memory. Needs five storage buffers.

struct Params {
  // vec4s of all keys of the round, in both gradients; of one key in each of them.
  count: u32, width_qk: u32, width_v: u32,
  // First vec4s.
  dk_start: u32, dv_start: u32,
}

@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>; // [rows, width]
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [keys + 1]
@group(0) @binding(2) var<storage, read> order: array<u32>; // [rows], key by key
@group(0) @binding(3) var<storage, read_write> dk: array<vec4<f32>>; // [keys, width_qk]
@group(0) @binding(4) var<storage, read_write> dv: array<vec4<f32>>; // [keys, width_v]

// What the groups of a key add to vec4 `i` of a row of `parts`.
fn added(start: vec4<f32>, key: u32, i: u32) -> vec4<f32> {
  var sum = start;
  for (var place = offsets[key]; place < offsets[key + 1u]; place++) {
    sum += parts[order[place] * (params.width_qk + params.width_v) + i];
  }
  return sum;
}

fn one(index: u32) {
  let key = index / (params.width_qk + params.width_v);
  let i = index % (params.width_qk + params.width_v);
  if i < params.width_qk {
    let at = params.dk_start + key * params.width_qk + i;
    dk[at] = added(dk[at], key, i);
  } else {
    let at = params.dv_start + key * params.width_v + i - params.width_qk;
    dv[at] = added(dv[at], key, i);
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
