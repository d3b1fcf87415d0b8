// Product of many rows with packed weights from memory straight into registers, for devices on which
// workgroup memory is no faster than any other.
//
// A workgroup owns ROWS rows and WORKGROUP * CHUNKS chunks of four columns of one batch entry; a lane owns
// CHUNKS of them. The lanes of a subgroup share the loads of a among EXCHANGE of them and broadcast what
// they hold. Weights are unpacked once for ROWS rows. An element is the sum over the depth in order,
// whatever these numbers are. No workgroup memory.

struct Params {
#import "packed_fields"
}

#import "packed_operands"
#import "matmul_store"

@compute @workgroup_size(WORKGROUP)
fn packed_direct(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
#ifdef SUBGROUP
  @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
) {
  // Row tiles are the fastest index: workgroups that run at the same time share weights.
  let item = linear_group(group, counts);
  let first_row = item % params.row_tiles * ROWS;
  let tile = item / params.row_tiles;
  let first_column = tile % params.column_tiles * (WORKGROUP * CHUNKS) + lane;
  let batch = tile / params.column_tiles;
  if batch >= params.batches {
    return;
  }
  let a_start = entry(params.a, batch);
#ifdef SUBGROUP
  let holder = subgroup_lane % EXCHANGE;
#else
  let holder = 0u;
#endif
  var held_at: array<u32, HELD>;
  #unroll
  for (var j = 0u; j < HELD; j++) {
    held_at[j] = a_start + min(first_row + j * EXCHANGE + holder, params.rows - 1u) * params.a.w;
  }
  var codes_at: array<u32, CHUNKS>;
  var scales_at: array<u32, CHUNKS>;
  #unroll
  for (var c = 0u; c < CHUNKS; c++) {
    codes_at[c] = codes_of(first_column + c * WORKGROUP);
    scales_at[c] = scales_of(first_column + c * WORKGROUP);
  }

  var sums: array<vec4<f32>, ROWS * CHUNKS>;
  for (var span = 0u; span < params.blocks * SPANS; span++) {
    var given: array<Scales, CHUNKS>;
    #unroll
    for (var c = 0u; c < CHUNKS; c++) {
      given[c] = read_scales(scales_at[c], span);
    }
    for (var k = 0u; k < SPAN_CHUNKS; k++) {
      let step = span * SPAN_CHUNKS + k;
      var held: array<vec4<f32>, HELD>;
      #unroll
      for (var j = 0u; j < HELD; j++) {
        held[j] = read_a(held_at[j] + step);
      }
      var weights: array<mat4x4<f32>, CHUNKS>;
      #unroll
      for (var c = 0u; c < CHUNKS; c++) {
        weights[c] = weights_in(read_bytes(codes_at[c] + step / 8u * CODES, step % 8u), given[c]);
      }
      #unroll
      for (var q = 0u; q < 4; q++) {
        #unroll
        for (var r = 0u; r < ROWS; r++) {
#ifdef SUBGROUP
          let value = vec4<f32>(subgroupBroadcast(held[r / EXCHANGE][q], r % EXCHANGE));
#else
          let value = vec4<f32>(held[r][q]);
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
