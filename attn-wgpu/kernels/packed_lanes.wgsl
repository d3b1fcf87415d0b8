// Product of few rows with packed weights, for GPUs: every weight is read once for ROWS rows, and is what the
// time goes into.
//
// A group of LANES lanes owns four columns of ROWS rows; its lanes take turns at eight values of the depth,
// so that neighbours read neighbouring words, and their sums are added by shuffles (SUBGROUP) or through
// 16 * WORKGROUP bytes of workgroup memory. Which terms a lane adds, and in which order, depends on LANES
// alone.

struct Params {
#import "packed_fields"
}

#import "packed_operands"
#import "matmul_store"
#import "matmul_lanes"

@compute @workgroup_size(WORKGROUP)
fn packed_lanes(
#import "arguments"
) {
#ifdef SUBGROUP
  // The order of lanes that shuffles see.
  let lane = subgroup * subgroup_size + subgroup_lane;
#else
  let lane = local_index;
#endif
  let item = linear_group(workgroup, counts);
  let first_row = item % params.row_tiles * ROWS;
  let tile = item / params.row_tiles;
  let column4 = tile % params.column_tiles * GROUPS + lane / LANES;
  let batch = tile / params.column_tiles;
  if batch >= params.batches {
    return;
  }
  let a_start = entry(params.a, batch);
  let codes_at = codes_of(column4);
  let scales_at = scales_of(column4);
  var row_at: array<u32, ROWS>;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    row_at[r] = a_start + min(first_row + r, params.rows - 1u) * params.a.w;
  }

  var sums: array<vec4<f32>, ROWS>;
  let pairs = params.blocks * 4u;
  for (var step = 0u; step < pairs; step += LANES) {
    let place = step + lane % LANES;
    let inside = min(place, pairs - 1u);
    let first = inside % 4u * 2u;
    let at = codes_at + inside / 4u * CODES;
    let given = read_scales(scales_at, inside / 4u * SPANS + first / SPAN_CHUNKS);
    let d = given.d * REST;
    var bytes: array<vec4<u32>, 2>;
    bytes[0] = read_bytes(at, first);
    bytes[1] = read_bytes(at, first + 1u);
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      var part = vec4<f32>(0.0);
      var total = 0.0;
      #unroll
      for (var k = 0u; k < 2; k++) {
        let read = read_a(row_at[r] + inside * 2u + k);
        let values = select(vec4<f32>(0.0), read, place < pairs);
        let scaled = values * VALUE_FACTORS;
        total += sum4(values);
        #unroll
        for (var q = 0u; q < 4; q++) {
          part = fma(vec4<f32>(scaled[q]), codes_in(bytes[k], q), part);
        }
      }
      sums[r] = fma(d, part, fma(given.m, vec4<f32>(total), sums[r]));
    }
  }
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let sum = add_lanes(sums[r], lane);
    if lane % LANES == 0u {
      store(sum, batch, first_row + r, column4);
    }
  }
}
