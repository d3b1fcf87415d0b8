// From the sums of blocks of chunk_states_tile.wgsl to the states beside the blocks, in place: of each
// element, block by block, or reversed from the last block to the first,
//   sum, state <- state, decay^length state + sum.
// An invocation owns four elements of a head's state. No workgroup memory; six storage buffers.

struct Params {
#import "chunk_states_fields"
}

#import "chunk_states_operands"

@compute @workgroup_size(WORKGROUP)
fn chunk_pass(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let length4 = 4u * params.depth4 * params.width4;
  let entry = index / length4;
  if entry >= params.entries {
    return;
  }
  let place = index % length4;
  let batch = entry / params.heads;
  let head = entry % params.heads;
  // Read once: behind every store drivers would read them again.
  let tokens = params.tokens;
  let block_tokens = params.block;
  let reversed = params.reversed > 0u;
  let step = params.states.stride_2;
  let start = at_place(vec3<u32>(batch, head, 0u), params.states) + place;
  let blocks = (tokens + block_tokens - 1u) / block_tokens;
  let whole = power(head, block_tokens);
  let rest = power(head, tokens - (blocks - 1u) * block_tokens);
  var state = vec4<f32>(0.0);
  if params.has_first > 0u {
    state = first[at_place(vec3<u32>(batch, head, 0u), params.first) + place];
  }
  for (var n = 0u; n < blocks; n++) {
    let block = select(n, blocks - 1u - n, reversed);
    let at = start + block * step;
    let sum = states[at];
    states[at] = state;
    state = fma(vec4<f32>(select(whole, rest, block + 1u == blocks)), state, sum);
  }
  end[at_place(vec3<u32>(batch, head, 0u), params.end) + place] = state;
}
