// Product of few rows with weights that are contiguous along the depth: every weight is read once for
// ROWS rows, and is what the time goes into.
//
// A group of LANES lanes owns CHUNKS chunks of four columns of ROWS rows; its lanes take turns at the
// depth, and their sums are added by shuffles (SUBGROUP) or through 16 * WORKGROUP bytes of workgroup
// memory. Which terms a lane adds, and in which order, depends on LANES alone. Six storage buffers at
// most.

struct Params {
#import "matmul_fields"
}

#import "matmul_operands"
#import "matmul_store"
#import "matmul_lanes"

const COLUMNS = 4 * CHUNKS;

@compute @workgroup_size(WORKGROUP)
fn matmul_rows(
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
  let first_column4 = (tile % params.column_tiles * GROUPS + lane / LANES) * CHUNKS;
  let batch = tile / params.column_tiles;
  if batch >= params.batches {
    return;
  }
  let a_start = entry(params.a, batch);
  let b_start = entry(params.b, batch);
  var row_at: array<u32, ROWS>;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    row_at[r] = a_start + min(first_row + r, params.rows - 1u) * params.a.w;
  }
  var column_at: array<u32, COLUMNS>;
  #unroll
  for (var c = 0u; c < COLUMNS; c++) {
    column_at[c] = b_start + min(first_column4 * 4u + c, params.columns - 1u) * params.b.w;
  }

  var sums: array<vec4<f32>, ROWS * COLUMNS>;
  let depth4 = (params.depth + 3u) / 4u;
  for (var step = 0u; step < depth4; step += LANES * UNROLL) {
    #unroll
    for (var u = 0u; u < UNROLL; u++) {
      let place = step + u * LANES + lane % LANES;
      let inside = min(place, depth4 - 1u);
      var values: array<vec4<f32>, ROWS>;
      #unroll
      for (var r = 0u; r < ROWS; r++) {
        values[r] = select(vec4<f32>(0.0), read_a(row_at[r] + inside), place < depth4);
      }
      #unroll
      for (var c = 0u; c < COLUMNS; c++) {
        let weights = read_b(column_at[c] + inside);
        #unroll
        for (var r = 0u; r < ROWS; r++) {
          sums[r * COLUMNS + c] = fma(values[r], weights, sums[r * COLUMNS + c]);
        }
      }
    }
  }
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS; c++) {
      const at = r * COLUMNS + c * 4u;
      let elements = transpose(mat4x4<f32>(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]));
      let mine = (elements[0] + elements[1]) + (elements[2] + elements[3]);
      let sum = add_lanes(mine, lane);
      if lane % LANES == 0u {
        store(sum + first_sum(batch, first_row + r, first_column4 + c), batch, first_row + r, first_column4 + c);
      }
    }
  }
}
