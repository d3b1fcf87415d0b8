// One side of linear attention in blocks (chunk_rows_operands.wgsl), through workgroup memory, for
// devices on which that is much faster than storage.
//
// A workgroup owns TILE_ROWS rows and TILE_COLUMNS columns of a block of one head; an invocation owns
// four by four of them. Staged depth by depth: TILE_DEPTH rows of A and of what it is multiplied with,
// and the weights of TILE_ROWS by TILE_COLUMNS pairs: 14 KiB. What M hides is never read into a sum.
// Needs no subgroups; six storage buffers.

struct Params {
#import "chunk_rows_fields"
}

#import "chunk_rows_operands"

const ROWS4 = TILE_ROWS / 4u;
const COLUMNS4 = TILE_COLUMNS / 4u;
const DEPTH4 = TILE_DEPTH / 4u;
const WORKGROUP = ROWS4 * COLUMNS4;

var<workgroup> tile_a: array<vec4<f32>, TILE_DEPTH * ROWS4>;
var<workgroup> tile_b: array<vec4<f32>, TILE_DEPTH * COLUMNS4>;
var<workgroup> pairs: array<vec4<f32>, TILE_COLUMNS * ROWS4>;

// Where the workgroup's part of the block lies.
struct Tile {
  head: u32,
  a_start: u32,
  first_row: u32,
  last: u32,
}

// TILE_DEPTH elements of TILE_ROWS rows of A, from chunk `step` on, with their powers if `with_powers`.
// Zero beyond the depth; rows beyond the last repeat it.
fn stage_a(tile: Tile, step: u32, with_powers: bool, lane: u32) {
  for (var x = lane; x < ROWS4 * DEPTH4; x += WORKGROUP) {
    let row4 = x / DEPTH4;
    let deep4 = x % DEPTH4;
    var block: mat4x4<f32>;
    #unroll
    for (var i = 0u; i < 4; i++) {
      let row = min(tile.first_row + 4u * row4 + i, tile.last);
      let at = tile.a_start + row * params.a.stride_2 + min(step + deep4, params.depth4 - 1u);
      let factor = select(1.0, power(tile.head, select(row + 1u, tile.last - row, params.upper > 0u)), with_powers);
      block[i] = select(vec4<f32>(0.0), unpack_source(a[at]) * factor, step + deep4 < params.depth4);
    }
    block = transpose(block);
    #unroll
    for (var i = 0u; i < 4; i++) {
      tile_a[(4u * deep4 + i) * ROWS4 + row4] = block[i];
    }
  }
}

// TILE_DEPTH elements, from chunk `step` on, of TILE_COLUMNS columns of the state.
fn stage_state(start: u32, step: u32, first_column4: u32, lane: u32) {
  for (var x = lane; x < COLUMNS4 * DEPTH4; x += WORKGROUP) {
    let column4 = x % COLUMNS4;
    let deep4 = x / COLUMNS4;
    let block = block_of_state(start, min(step + deep4, params.depth4 - 1u), min(first_column4 + column4, params.width4 - 1u));
    #unroll
    for (var i = 0u; i < 4; i++) {
      tile_b[(4u * deep4 + i) * COLUMNS4 + column4] = block[i];
    }
  }
}

// The same of TILE_COLUMNS rows of B, from `first` on.
fn stage_b(start: u32, step: u32, first: u32, last: u32, lane: u32) {
  for (var x = lane; x < COLUMNS4 * DEPTH4; x += WORKGROUP) {
    let column4 = x / DEPTH4;
    let deep4 = x % DEPTH4;
    var block: mat4x4<f32>;
    #unroll
    for (var i = 0u; i < 4; i++) {
      let row = min(first + 4u * column4 + i, last);
      block[i] = unpack_source(b[start + row * params.b.stride_2 + min(step + deep4, params.depth4 - 1u)]);
    }
    block = transpose(block);
    #unroll
    for (var i = 0u; i < 4; i++) {
      tile_b[(4u * deep4 + i) * COLUMNS4 + column4] = block[i];
    }
  }
}

// Adds the product of what is staged.
fn multiply(sums: ptr<function, array<vec4<f32>, 4>>, row4: u32, column4: u32) {
  for (var k = 0u; k < TILE_DEPTH; k += 4u) {
    #unroll
    for (var i = 0u; i < 4; i++) {
      let values = tile_a[(k + i) * ROWS4 + row4];
      let weights = tile_b[(k + i) * COLUMNS4 + column4];
      #unroll
      for (var r = 0u; r < 4; r++) {
        (*sums)[r] = fma(vec4<f32>(values[r]), weights, (*sums)[r]);
      }
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn chunk_rows_tile(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let item = linear_group(workgroup, counts);
  let row_item = item / params.column_tiles;
  let first_column4 = item % params.column_tiles * COLUMNS4;
  let block_item = row_item / params.row_tiles;
  let first_row = row_item % params.row_tiles * TILE_ROWS;
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
  let last = length - 1u;
  let upper = params.upper > 0u;
  let members = select(1u, params.group, upper);
  let first_pair = select(0u, first_row / TILE_COLUMNS * TILE_COLUMNS, upper);
  let pair_end = select(min(first_row + TILE_ROWS, length), length, upper);
  let my_row4 = lane / COLUMNS4;
  let my_column4 = lane % COLUMNS4;
  let column4 = first_column4 + my_column4;
  let row = first_row + 4u * my_row4;
  let a_start = at_place(vec3<u32>(batch, own_head, first_token), params.a);

  // The first row in order that a number of X enters which is no number.
  var spoilt = vec4<u32>(0xffffffffu);
  var sums: array<vec4<f32>, 4>;
  for (var member = 0u; member < members; member++) {
    let head = select(own_head, own_head * params.group + member, upper);
    let other_head = select(own_head / params.group, head, upper);
    let b_start = at_place(vec3<u32>(batch, other_head, first_token), params.b);
    let x_start = at_place(vec3<u32>(batch, other_head, first_token), params.x);
    let state = at_place(vec3<u32>(batch, head, block), params.states);
    let tile = Tile(head, a_start, first_row, last);
    for (var step = 0u; step < params.depth4; step += DEPTH4) {
      workgroupBarrier();
      stage_a(tile, step, true, lane);
      stage_state(state, step, first_column4, lane);
      workgroupBarrier();
      multiply(&sums, my_row4, my_column4);
    }

    for (var first = first_pair; first < pair_end; first += TILE_COLUMNS) {
      var mine: array<vec4<f32>, 4>;
      for (var step = 0u; step < params.depth4; step += DEPTH4) {
        workgroupBarrier();
        stage_a(tile, step, false, lane);
        stage_b(b_start, step, first, last, lane);
        workgroupBarrier();
        multiply(&mine, my_row4, my_column4);
      }
      let columns = vec4<u32>(first + 4u * my_column4) + vec4<u32>(0u, 1u, 2u, 3u);
      // Row and column differ by `least` to `least + 6`.
      let least = i32(row) - i32(columns.x) - 3;
      var decays: array<f32, 7>;
      #unroll
      for (var i = 0u; i < 7; i++) {
        decays[i] = power(head, min(u32(abs(least + i32(i))), params.block));
      }
      #unroll
      for (var r = 0u; r < 4; r++) {
        let decay = vec4<f32>(decays[r + 3], decays[r + 2], decays[r + 1], decays[r]);
        let seen = (in_order(columns) <= in_order(vec4<u32>(row + r))) & (columns < vec4<u32>(length));
        mine[r] = select(vec4<f32>(0.0), mine[r] * decay, seen);
      }
      let by_column = transpose(mat4x4<f32>(mine[0], mine[1], mine[2], mine[3]));
      #unroll
      for (var i = 0u; i < 4; i++) {
        pairs[(4u * my_column4 + i) * ROWS4 + my_row4] = by_column[i];
      }

      let count = min(pair_end - first, TILE_COLUMNS);
      let skipped = select(0u, (max(first_row, first) - first) / TILE_DEPTH * TILE_DEPTH, upper);
      for (var step = skipped; step < count; step += TILE_DEPTH) {
        workgroupBarrier();
        for (var y = lane; y < TILE_DEPTH * COLUMNS4; y += WORKGROUP) {
          let token = min(first + step + y / COLUMNS4, last);
          let chunk = min(first_column4 + y % COLUMNS4, params.width4 - 1u);
          tile_b[y] = unpack_source(x[x_start + token * params.x.stride_2 + chunk]);
        }
        workgroupBarrier();
        for (var k = 0u; k < TILE_DEPTH; k++) {
          let values = pairs[(step + k) * ROWS4 + my_row4];
          let read = tile_b[k * COLUMNS4 + my_column4];
          // A weight of 0 times what is no number would reach rows that may not see it.
          let bits = bitcast<vec4<u32>>(read) & vec4<u32>(0x7f800000u);
          let is_number = bits != vec4<u32>(0x7f800000u);
          let place = in_order(vec4<u32>(min(first + step + k, last)));
          spoilt = min(spoilt, select(place, vec4<u32>(0xffffffffu), is_number));
          let weights = select(vec4<f32>(0.0), read, is_number);
          #unroll
          for (var r = 0u; r < 4; r++) {
            sums[r] = fma(vec4<f32>(values[r]), weights, sums[r]);
          }
        }
      }
    }
  }

  let out_at = at_place(vec3<u32>(batch, own_head, first_token), params.out) + column4;
  #unroll
  for (var r = 0u; r < 4; r++) {
    if row + r < length && column4 < params.width4 {
      let is_spoilt = in_order(vec4<u32>(row + r)) >= spoilt;
      let value = select(sums[r], vec4<f32>(bitcast<f32>(params.nan)), is_spoilt);
      out[out_at + (row + r) * params.out.stride_2] = pack_source(value);
    }
  }
}
