// Matrix product from memory straight into registers, for devices on which workgroup memory is no
// faster than any other.
//
// A workgroup owns ROWS rows and WORKGROUP * CHUNKS chunks of four columns of one batch entry; a
// lane owns CHUNKS of them. Each STEP * 4 steps of the depth, the lanes of a subgroup share the
// loads of a among EXCHANGE of them and broadcast what they hold; with EXCHANGE = 1 every lane loads
// all of it. An element is the sum over the depth in order, whatever these numbers are. No workgroup
// memory; six storage buffers at most.

struct Params {
#import "matmul_fields"
}

#import "matmul_operands"
#import "matmul_store"

@compute @workgroup_size(WORKGROUP)
fn matmul_direct(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
#ifdef SUBGROUP
  @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
) {
  // Row tiles are the fastest index: workgroups that run at the same time share columns of b.
  let item = linear_group(group, counts);
  let first_row = item % params.row_tiles * ROWS;
  let tile = item / params.row_tiles;
  let first_column = tile % params.column_tiles * (WORKGROUP * CHUNKS) + lane;
  let batch = tile / params.column_tiles;
  if batch >= params.batches {
    return;
  }
  let a_start = entry(params.a, batch);
  let b_start = entry(params.b, batch);
#ifdef SUBGROUP
  let holder = subgroup_lane % EXCHANGE;
#else
  let holder = 0u;
#endif

  // Chunk x of a step of a: of STEP chunks of a row, or of ROWS / 4 chunks of a step of the depth.
  var held_at: array<u32, HELD>;
  var held_step: array<u32, HELD>;
  #unroll
  for (var j = 0u; j < HELD; j++) {
    let x = j * EXCHANGE + holder;
#ifdef A_COLUMNS
    held_step[j] = x / (ROWS / 4u);
    held_at[j] = a_start + min(first_row / 4u + x % (ROWS / 4u), (params.rows - 1u) / 4u);
#else
    held_step[j] = x % STEP;
    held_at[j] = a_start + min(first_row + x / STEP, params.rows - 1u) * params.a.w;
#endif
  }

  var sums: array<vec4<f32>, ROWS * CHUNKS>;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS; c++) {
      sums[r * CHUNKS + c] = first_sum(batch, first_row + r, first_column + c * WORKGROUP);
    }
  }

  let depth4 = (params.depth + 3u) / 4u;
  for (var step = 0u; step < depth4; step += STEP) {
    var held: array<vec4<f32>, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
#ifdef A_COLUMNS
      let place = step * 4u + held_step[j];
      let value = read_a(held_at[j] + min(place, params.depth - 1u) * params.a.w);
      held[j] = select(vec4<f32>(0.0), value, place < params.depth);
#else
      let place = step + held_step[j];
      let value = read_a(held_at[j] + min(place, depth4 - 1u));
      held[j] = select(vec4<f32>(0.0), value, place < depth4);
#endif
    }
    #unroll
    for (var h = 0u; h < STEP; h++) {
      var weights: array<mat4x4<f32>, CHUNKS>;
      #unroll
      for (var c = 0u; c < CHUNKS; c++) {
        weights[c] = block_of_b(b_start, step + h, first_column + c * WORKGROUP);
      }
      #unroll
      for (var q = 0u; q < 4; q++) {
        #unroll
        for (var r = 0u; r < ROWS; r++) {
#ifdef A_COLUMNS
          const x = (h * 4u + q) * (ROWS / 4u) + r / 4u;
          const element = r % 4u;
#else
          const x = r * STEP + h;
          const element = q;
#endif
#ifdef SUBGROUP
          let value = vec4<f32>(subgroupBroadcast(held[x / EXCHANGE][element], x % EXCHANGE));
#else
          let value = vec4<f32>(held[x][element]);
#endif
          #unroll
          for (var c = 0u; c < CHUNKS; c++) {
            sums[r * CHUNKS + c] = fma(value, weights[c][q], sums[r * CHUNKS + c]);
          }
        }
      }
    }
  }
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS; c++) {
      store(sums[r * CHUNKS + c], batch, first_row + r, first_column + c * WORKGROUP);
    }
  }
}
