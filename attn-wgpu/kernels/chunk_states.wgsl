// States of linear attention in blocks: of each head, block by block,
//   S <- decay^length S + sum_p F_p A_p^T B_p,
// with F_p = decay^(length - 1 - p); or reversed, from the last block to the first, F_p = decay^(p + 1).
// The state beside each block, before it in the order of the walk, is kept.
//
// A workgroup owns ROWS rows and WORKGROUP * CHUNKS chunks of four columns of a head's state and goes
// through all blocks. Its lanes share the loads of A by subgroup operations, so that WORKGROUP is at
// most the size of a subgroup. No workgroup memory; six storage buffers.

struct Params {
#import "chunk_states_fields"
}

#import "chunk_states_operands"

const ROWS4 = ROWS / 4u;

@compute @workgroup_size(WORKGROUP)
fn chunk_states(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let item = linear_group(workgroup, counts);
  let tile = item / params.column_tiles;
  let first_chunk = item % params.column_tiles * (WORKGROUP * CHUNKS) + lane;
  let first_row4 = tile % params.row_tiles * ROWS4;
  let entry = tile / params.row_tiles;
  if entry >= params.entries {
    return;
  }
  let batch = entry / params.heads;
  let head = entry % params.heads;
  let depth4 = params.depth4;
  let width4 = params.width4;
  let tokens = params.tokens;
  let block_tokens = params.block;
  let a_start = at_place(vec3<u32>(batch, head / params.group, 0u), params.a);
  let b_start = at_place(vec3<u32>(batch, head / params.group, 0u), params.b);
  let a_row = params.a.stride_2;
  let b_row = params.b.stride_2;
  let reversed = params.reversed > 0u;
  let state_at = at_place(vec3<u32>(batch, head, 0u), params.states);
  let state_step = params.states.stride_2;

  var column: array<u32, CHUNKS>;
  #unroll
  for (var c = 0u; c < CHUNKS; c++) {
    column[c] = min(first_chunk + c * WORKGROUP, width4 - 1u);
  }
  var state: array<vec4<f32>, ROWS * CHUNKS>;
  if params.has_first > 0u {
    let at = at_place(vec3<u32>(batch, head, 0u), params.first);
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      #unroll
      for (var c = 0u; c < CHUNKS; c++) {
        state[r * CHUNKS + c] = first[at + min(4u * first_row4 + r, 4u * depth4 - 1u) * width4 + column[c]];
      }
    }
  }
  let blocks = (tokens + block_tokens - 1u) / block_tokens;
  for (var n = 0u; n < blocks; n++) {
    let block = select(n, blocks - 1u - n, reversed);
    let first_token = block * block_tokens;
    let length = min(block_tokens, tokens - first_token);
    let keep_at = state_at + block * state_step;
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      #unroll
      for (var c = 0u; c < CHUNKS; c++) {
        let row = 4u * first_row4 + r;
        if row < 4u * depth4 && first_chunk + c * WORKGROUP < width4 {
          states[keep_at + row * width4 + column[c]] = state[r * CHUNKS + c];
        }
      }
    }
    // Apart from the state: sums over the whole sequence would round more often.
    var sums: array<vec4<f32>, ROWS * CHUNKS>;
    for (var step = 0u; step < length; step += 4u) {
      // Chunk x of four tokens.
      var held: array<vec4<f32>, HELD>;
      #unroll
      for (var j = 0u; j < HELD; j++) {
        let x = j * WORKGROUP + lane;
        let p = step + x / ROWS4;
        let inside = min(p, length - 1u);
        let value = unpack_source(a[a_start + (first_token + inside) * a_row + min(first_row4 + x % ROWS4, depth4 - 1u)]);
        let factor = power(head, select(length - 1u - inside, inside + 1u, reversed));
        held[j] = select(vec4<f32>(0.0), value * factor, p < length);
      }
      var weights: array<mat4x4<f32>, CHUNKS>;
      #unroll
      for (var c = 0u; c < CHUNKS; c++) {
        #unroll
        for (var i = 0u; i < 4; i++) {
          let p = first_token + min(step + i, length - 1u);
          weights[c][i] = unpack_source(b[b_start + p * b_row + column[c]]);
        }
      }
      #unroll
      for (var i = 0u; i < 4; i++) {
        #unroll
        for (var r = 0u; r < ROWS; r++) {
          const x = i * ROWS4 + r / 4u;
          let value = vec4<f32>(subgroupBroadcast(held[x / WORKGROUP][r % 4u], x % WORKGROUP));
          #unroll
          for (var c = 0u; c < CHUNKS; c++) {
            sums[r * CHUNKS + c] = fma(value, weights[c][i], sums[r * CHUNKS + c]);
          }
        }
      }
    }
    let decay = vec4<f32>(power(head, length));
    #unroll
    for (var s = 0u; s < ROWS * CHUNKS; s++) {
      state[s] = fma(decay, state[s], sums[s]);
    }
  }
  let end_at = at_place(vec3<u32>(batch, head, 0u), params.end);
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS; c++) {
      let row = 4u * first_row4 + r;
      if row < 4u * depth4 && first_chunk + c * WORKGROUP < width4 {
        end[end_at + row * width4 + column[c]] = state[r * CHUNKS + c];
      }
    }
  }
}
