// One side of linear attention in blocks (chunk_rows_operands.wgsl), from memory straight into
// registers, for devices on which workgroup memory is no faster than any other.
//
// A workgroup owns ROWS rows and WORKGROUP * CHUNKS chunks of four columns of a block of one head.
// Its lanes share the loads of A and the weights of pairs by subgroup operations, so that WORKGROUP is
// at most the size of a subgroup. What M hides is never read into a sum. No workgroup memory; six
// storage buffers.

struct Params {
#import "chunk_rows_fields"
}

#import "chunk_rows_operands"

const COLUMNS = 4u * WORKGROUP;

@compute @workgroup_size(WORKGROUP)
fn chunk_rows(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let item = linear_group(workgroup, counts);
  let tile = item / params.column_tiles;
  let first_chunk = item % params.column_tiles * (WORKGROUP * CHUNKS) + lane;
  let block_item = tile / params.row_tiles;
  let first_row = tile % params.row_tiles * ROWS;
  let blocks = (params.tokens + params.block - 1u) / params.block;
  let block = block_item % blocks;
  let entry = block_item / blocks;
  let first_token = block * params.block;
  let length = min(params.block, params.tokens - min(first_token, params.tokens));
  if entry >= params.entries || first_row >= length {
    return;
  }
  let batch = entry / params.heads;
  let own_head = entry % params.heads;
  let depth4 = params.depth4;
  let width4 = params.width4;
  let last = length - 1u;
  let upper = params.upper > 0u;
  let members = select(1u, params.group, upper);
  let first_pair = select(0u, first_row / COLUMNS * COLUMNS, upper);
  let pair_end = select(min(first_row + ROWS, length), length, upper);
  // The first row in order that a number of X enters which is no number.
  var spoilt: array<vec4<u32>, CHUNKS>;
  #unroll
  for (var c = 0u; c < CHUNKS; c++) {
    spoilt[c] = vec4<u32>(0xffffffffu);
  }
  var column: array<u32, CHUNKS>;
  #unroll
  for (var c = 0u; c < CHUNKS; c++) {
    column[c] = min(first_chunk + c * WORKGROUP, width4 - 1u);
  }
  var sums: array<vec4<f32>, ROWS * CHUNKS>;
  for (var member = 0u; member < members; member++) {
    let head = select(own_head, own_head * params.group + member, upper);
    let other_head = select(own_head / params.group, head, upper);
    let a_start = at_place(vec3<u32>(batch, own_head, first_token), params.a);
    let b_start = at_place(vec3<u32>(batch, other_head, first_token), params.b);
    let x_start = at_place(vec3<u32>(batch, other_head, first_token), params.x);
    let state = at_place(vec3<u32>(batch, head, block), params.states);
    var held_at: array<u32, HELD>;
    var held_power: array<f32, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      let row = min(first_row + j * WORKGROUP + lane, last);
      held_at[j] = a_start + row * params.a.stride_2;
      held_power[j] = power(head, select(row + 1u, last - row, upper));
    }

    for (var step = 0u; step < depth4; step++) {
      var held: array<vec4<f32>, HELD>;
      #unroll
      for (var j = 0u; j < HELD; j++) {
        held[j] = unpack_source(a[held_at[j] + step]) * held_power[j];
      }
      var weights: array<mat4x4<f32>, CHUNKS>;
      #unroll
      for (var c = 0u; c < CHUNKS; c++) {
        weights[c] = block_of_state(state, step, column[c]);
      }
      #unroll
      for (var q = 0u; q < 4; q++) {
        #unroll
        for (var r = 0u; r < ROWS; r++) {
          let value = vec4<f32>(subgroupBroadcast(held[r / WORKGROUP][q], r % WORKGROUP));
          #unroll
          for (var c = 0u; c < CHUNKS; c++) {
            sums[r * CHUNKS + c] = fma(value, weights[c][q], sums[r * CHUNKS + c]);
          }
        }
      }
    }

    for (var first = first_pair; first < pair_end; first += COLUMNS) {
      // Four columns of A B^T a lane.
      var pairs: array<vec4<f32>, ROWS>;
      var pair_at: array<u32, 4>;
      #unroll
      for (var i = 0u; i < 4; i++) {
        pair_at[i] = b_start + min(first + 4u * lane + i, last) * params.b.stride_2;
      }
      for (var step = 0u; step < depth4; step++) {
        var held: array<vec4<f32>, HELD>;
        #unroll
        for (var j = 0u; j < HELD; j++) {
          held[j] = unpack_source(a[held_at[j] + step]);
        }
        let weights = transpose(mat4x4<f32>(
          unpack_source(b[pair_at[0] + step]), unpack_source(b[pair_at[1] + step]),
          unpack_source(b[pair_at[2] + step]), unpack_source(b[pair_at[3] + step])));
        #unroll
        for (var q = 0u; q < 4; q++) {
          #unroll
          for (var r = 0u; r < ROWS; r++) {
            let value = vec4<f32>(subgroupBroadcast(held[r / WORKGROUP][q], r % WORKGROUP));
            pairs[r] = fma(value, weights[q], pairs[r]);
          }
        }
      }
      // Row and column of a pair differ by `least` to `least + DECAYS - 1` here.
      let least = i32(first_row) - i32(first + 4u * lane) - 3;
      var decays: array<f32, DECAYS>;
      #unroll
      for (var i = 0u; i < DECAYS; i++) {
        decays[i] = power(head, min(u32(abs(least + i32(i))), params.block));
      }
      let columns = vec4<u32>(first + 4u * lane) + vec4<u32>(0u, 1u, 2u, 3u);
      #unroll
      for (var r = 0u; r < ROWS; r++) {
        let decay = vec4<f32>(decays[r + 3], decays[r + 2], decays[r + 1], decays[r]);
        let seen = (in_order(columns) <= in_order(vec4<u32>(first_row + r))) & (columns < vec4<u32>(length));
        pairs[r] = select(vec4<f32>(0.0), pairs[r] * decay, seen);
      }

      let holders = (min(pair_end - first, COLUMNS) + 3u) / 4u;
      for (var holder = 0u; holder < holders; holder++) {
        let token = first + 4u * holder;
        var values: array<mat4x4<f32>, CHUNKS>;
        #unroll
        for (var c = 0u; c < CHUNKS; c++) {
          #unroll
          for (var i = 0u; i < 4; i++) {
            let value = unpack_source(x[x_start + min(token + i, last) * params.x.stride_2 + column[c]]);
            // A weight of 0 times what is no number would reach rows that may not see it.
            let bits = bitcast<vec4<u32>>(value) & vec4<u32>(0x7f800000u);
            let is_number = bits != vec4<u32>(0x7f800000u);
            values[c][i] = select(vec4<f32>(0.0), value, is_number);
            let place = in_order(vec4<u32>(min(token + i, last)));
            spoilt[c] = min(spoilt[c], select(place, vec4<u32>(0xffffffffu), is_number));
          }
        }
        #unroll
        for (var i = 0u; i < 4; i++) {
          #unroll
          for (var r = 0u; r < ROWS; r++) {
            let value = vec4<f32>(subgroupShuffle(pairs[r][i], holder));
            #unroll
            for (var c = 0u; c < CHUNKS; c++) {
              sums[r * CHUNKS + c] = fma(value, values[c][i], sums[r * CHUNKS + c]);
            }
          }
        }
      }
    }
  }

  let out_at = at_place(vec3<u32>(batch, own_head, first_token), params.out);
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS; c++) {
      let row = first_row + r;
      if row < length && first_chunk + c * WORKGROUP < width4 {
        let is_spoilt = in_order(vec4<u32>(row)) >= spoilt[c];
        let value = select(sums[r * CHUNKS + c], vec4<f32>(bitcast<f32>(params.nan)), is_spoilt);
        out[out_at + row * params.out.stride_2 + column[c]] = pack_source(value);
      }
    }
  }
}
