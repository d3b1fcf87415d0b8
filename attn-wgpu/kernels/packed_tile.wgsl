// Product of many rows with packed weights through workgroup memory, for devices on which that is much
// faster than storage.
//
// A workgroup owns TILE_ROWS * TILE_COLUMNS elements of one batch entry and goes through the depth in steps
// of TILE_DEPTH, a divisor of 32; an invocation owns ROW_CHUNKS * COLUMN_CHUNKS blocks of four by four.
// Weights are unpacked once for a tile. Both tiles lie in workgroup memory depth by depth:
// 4 * TILE_DEPTH * (TILE_ROWS + TILE_COLUMNS) bytes. An element is the sum over the depth in order.

struct Params {
#import "packed_fields"
}

#import "packed_operands"
#import "matmul_store"

const TILE_ROWS4 = TILE_ROWS / 4u;
const TILE_COLUMNS4 = TILE_COLUMNS / 4u;
const TILE_DEPTH4 = TILE_DEPTH / 4u;
// Invocations along the rows and along the columns.
const ALONG_ROWS = TILE_ROWS4 / ROW_CHUNKS;
const ALONG_COLUMNS = TILE_COLUMNS4 / COLUMN_CHUNKS;
const WORKGROUP = ALONG_ROWS * ALONG_COLUMNS;
const BLOCKS_A = TILE_ROWS4 * TILE_DEPTH4;
const BLOCKS_B = TILE_COLUMNS4 * TILE_DEPTH4;

var<workgroup> tile_a: array<vec4<f32>, TILE_DEPTH * TILE_ROWS4>;
var<workgroup> tile_b: array<vec4<f32>, TILE_DEPTH * TILE_COLUMNS4>;

// Four steps of the depth by four rows; rows beyond the last repeat it.
fn block_of_a(start: u32, depth4: u32, row4: u32) -> mat4x4<f32> {
  let at = start + depth4;
  let last = params.rows - 1u;
  return transpose(mat4x4<f32>(
    read_a(at + min(row4 * 4u, last) * params.a.w),
    read_a(at + min(row4 * 4u + 1u, last) * params.a.w),
    read_a(at + min(row4 * 4u + 2u, last) * params.a.w),
    read_a(at + min(row4 * 4u + 3u, last) * params.a.w)));
}

@compute @workgroup_size(WORKGROUP)
fn packed_tile(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let item = linear_group(group, counts);
  let tile = item / params.row_tiles;
  let batch = tile / params.column_tiles;
  if batch >= params.batches {
    return;
  }
  let tile_row = item % params.row_tiles * TILE_ROWS4;
  let tile_column = tile % params.column_tiles * TILE_COLUMNS4;
  let a_start = entry(params.a, batch);
  // Chunks of an invocation are ALONG_.. apart, so that neighbours read neighbours.
  let my_row = lane / ALONG_COLUMNS;
  let my_column = lane % ALONG_COLUMNS;

  var sums: array<vec4<f32>, 4 * ROW_CHUNKS * COLUMN_CHUNKS>;
  for (var step = 0u; step < params.blocks * 8u; step += TILE_DEPTH4) {
    for (var x = lane; x < BLOCKS_A + BLOCKS_B; x += WORKGROUP) {
      if x < BLOCKS_A {
        let row4 = x / TILE_DEPTH4;
        let deep4 = x % TILE_DEPTH4;
        let block = block_of_a(a_start, step + deep4, tile_row + row4);
        #unroll
        for (var i = 0u; i < 4; i++) {
          tile_a[(deep4 * 4u + i) * TILE_ROWS4 + row4] = block[i];
        }
      } else {
        let y = x - BLOCKS_A;
        let column4 = y / TILE_DEPTH4;
        let deep4 = y % TILE_DEPTH4;
        let chunk = step + deep4;
        let given = read_scales(scales_of(tile_column + column4), chunk / SPAN_CHUNKS);
        let at = codes_of(tile_column + column4) + chunk / 8u * CODES;
        let block = weights_in(read_bytes(at, chunk % 8u), given);
        #unroll
        for (var i = 0u; i < 4; i++) {
          tile_b[(deep4 * 4u + i) * TILE_COLUMNS4 + column4] = block[i];
        }
      }
    }
    workgroupBarrier();
    for (var k = 0u; k < TILE_DEPTH; k += 4u) {
      #unroll
      for (var i = 0u; i < 4; i++) {
        var weights: array<vec4<f32>, COLUMN_CHUNKS>;
        #unroll
        for (var c = 0u; c < COLUMN_CHUNKS; c++) {
          weights[c] = tile_b[(k + i) * TILE_COLUMNS4 + my_column + c * ALONG_COLUMNS];
        }
        #unroll
        for (var r4 = 0u; r4 < ROW_CHUNKS; r4++) {
          let values = tile_a[(k + i) * TILE_ROWS4 + my_row + r4 * ALONG_ROWS];
          #unroll
          for (var r = 0u; r < 4; r++) {
            #unroll
            for (var c = 0u; c < COLUMN_CHUNKS; c++) {
              const at = (r4 * 4u + r) * COLUMN_CHUNKS + c;
              sums[at] = fma(vec4<f32>(values[r]), weights[c], sums[at]);
            }
          }
        }
      }
    }
    workgroupBarrier();
  }
  #unroll
  for (var r = 0u; r < 4 * ROW_CHUNKS; r++) {
    #unroll
    for (var c = 0u; c < COLUMN_CHUNKS; c++) {
      let row = (tile_row + my_row + r / 4u * ALONG_ROWS) * 4u + r % 4u;
      store(sums[r * COLUMN_CHUNKS + c], batch, row, tile_column + my_column + c * ALONG_COLUMNS);
    }
  }
}
