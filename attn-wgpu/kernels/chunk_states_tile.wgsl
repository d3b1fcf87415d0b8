// Sums of linear attention in blocks, of all blocks at once: of each block and head
//   sum_p F_p A_p^T B_p,   F_p = decay^(length - 1 - p), or reversed decay^(p + 1).
// chunk_pass.wgsl makes states of them.
//
// A workgroup owns TILE_ROWS by TILE_COLUMNS elements of a block's sum; an invocation owns four by
// four of them. Staged: TILE_DEPTH tokens of A and B, 6 KiB. Needs no subgroups; six storage buffers.

struct Params {
#import "chunk_states_fields"
}

#import "chunk_states_operands"

const ROWS4 = TILE_ROWS / 4u;
const COLUMNS4 = TILE_COLUMNS / 4u;
const WORKGROUP = ROWS4 * COLUMNS4;

var<workgroup> tile_a: array<vec4<f32>, TILE_DEPTH * ROWS4>;
var<workgroup> tile_b: array<vec4<f32>, TILE_DEPTH * COLUMNS4>;

@compute @workgroup_size(WORKGROUP)
fn chunk_states_tile(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let item = linear_group(workgroup, counts);
  let row_item = item / params.column_tiles;
  let first_column4 = item % params.column_tiles * COLUMNS4;
  let block_item = row_item / params.row_tiles;
  let first_row4 = row_item % params.row_tiles * ROWS4;
  let blocks = (params.tokens + params.block - 1u) / params.block;
  let block = block_item % blocks;
  let entry = block_item / blocks;
  if entry >= params.entries {
    return;
  }
  let batch = entry / params.heads;
  let head = entry % params.heads;
  let first_token = block * params.block;
  let length = min(params.block, params.tokens - first_token);
  let a_start = at_place(vec3<u32>(batch, head / params.group, first_token), params.a);
  let b_start = at_place(vec3<u32>(batch, head / params.group, first_token), params.b);
  let my_row4 = lane / COLUMNS4;
  let my_column4 = lane % COLUMNS4;

  var sums: array<vec4<f32>, 4>;
  for (var step = 0u; step < length; step += TILE_DEPTH) {
    workgroupBarrier();
    for (var x = lane; x < TILE_DEPTH * ROWS4; x += WORKGROUP) {
      let p = step + x / ROWS4;
      let inside = min(p, length - 1u);
      let chunk = min(first_row4 + x % ROWS4, params.depth4 - 1u);
      let factor = power(head, select(length - 1u - inside, inside + 1u, params.reversed > 0u));
      let value = unpack_source(a[a_start + inside * params.a.stride_2 + chunk]) * factor;
      tile_a[x] = select(vec4<f32>(0.0), value, p < length);
    }
    for (var x = lane; x < TILE_DEPTH * COLUMNS4; x += WORKGROUP) {
      let inside = min(step + x / COLUMNS4, length - 1u);
      let chunk = min(first_column4 + x % COLUMNS4, params.width4 - 1u);
      tile_b[x] = unpack_source(b[b_start + inside * params.b.stride_2 + chunk]);
    }
    workgroupBarrier();
    for (var k = 0u; k < TILE_DEPTH; k += 4u) {
      #unroll
      for (var i = 0u; i < 4; i++) {
        let values = tile_a[(k + i) * ROWS4 + my_row4];
        let weights = tile_b[(k + i) * COLUMNS4 + my_column4];
        #unroll
        for (var r = 0u; r < 4; r++) {
          sums[r] = fma(vec4<f32>(values[r]), weights, sums[r]);
        }
      }
    }
  }
  let column4 = first_column4 + my_column4;
  let row4 = first_row4 + my_row4;
  let at = at_place(vec3<u32>(batch, head, block), params.states) + 4u * row4 * params.width4 + column4;
  if row4 < params.depth4 && column4 < params.width4 {
    #unroll
    for (var r = 0u; r < 4; r++) {
      states[at + r * params.width4] = sums[r];
    }
  }
}
