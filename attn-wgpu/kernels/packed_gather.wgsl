// Rows of a packed table by number: out[i] = scale * table[ids[i]], for the numbers inside the window of the
// table that is bound; with the first window, NaN for numbers that the table does not have.
// An invocation owns ITEMS vec4s of the output, WORKGROUP apart. No workgroup memory.

struct Params {
  count: u32, chunks: u32,
  first_row: u32, window_rows: u32, table_rows: u32,
  // Start, and what four rows take.
  codes_start: u32, codes_stride: u32, scales_start: u32, scales_stride: u32,
  // vec4s.
  out_start: u32, out_stride: u32,
  // Words.
  ids_start: u32,
  scale: f32,
  // The bits of NaN, which WGSL has no constant for.
  nan: u32,
}

#import "halves"
#import "target"
#import "linear"

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>; // [rows / 4, width / 32, CODES]
@group(0) @binding(1) var<storage, read> scales: array<ScaleChunk>; // [rows / 4, blocks of the width, ..]
@group(0) @binding(2) var<storage, read> ids: array<u32>; // [count]
@group(0) @binding(3) var<storage, read_write> out: array<Target>; // [count, chunks]

#import "packed_block"

@compute @workgroup_size(WORKGROUP)
fn packed_gather(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  // Read once: behind every store drivers would read them again.
  let given = params;
  let first = linear_group(workgroup, counts) * (WORKGROUP * ITEMS) + lane;
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    let item = index / given.chunks;
    let chunk = index - item * given.chunks;
    if item >= given.count {
      break;
    }
    let id = ids[given.ids_start + item];
    let out_at = given.out_start + item * given.out_stride + chunk;
    if id >= given.table_rows && given.first_row == 0u {
      out[out_at] = pack_target(vec4<f32>(bitcast<f32>(given.nan)));
    }
    if id >= given.first_row && id - given.first_row < given.window_rows {
      let place = (id - given.first_row) / 4u;
      let at = given.codes_start + place * given.codes_stride + chunk / 8u * CODES;
      let spans = read_scales(given.scales_start + place * given.scales_stride, chunk / SPAN_CHUNKS);
      let block = transpose(weights_in(read_bytes(at, chunk % 8u), spans));
      // The table's first row is the first of four, and so is that of a window.
      let row = id % 4u;
      let pair = select(block[0], block[1], row == 1u);
      let value = select(select(block[2], block[3], row == 3u), pair, row < 2u);
      out[out_at] = pack_target(value * given.scale);
    }
  }
}
