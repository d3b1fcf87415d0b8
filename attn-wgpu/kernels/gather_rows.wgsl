// Rows of a table by number: out[i] = scale * table[ids[i]], for the numbers inside the window of the
// table that is bound; with the first window, NaN for numbers that the table does not have.
// An invocation owns ITEMS vec4s of the output, WORKGROUP apart. No workgroup memory.

struct Params {
  count: u32, chunks: u32,
  first_row: u32, window_rows: u32, table_rows: u32,
  // vec4s.
  table_start: u32, table_stride: u32, out_start: u32, out_stride: u32,
  // Words.
  ids_start: u32,
  scale: f32,
  // The bits of NaN, which WGSL has no constant for.
  nan: u32,
}

#import "halves"
#import "source"
#import "target"
#import "linear"

@group(0) @binding(0) var<storage, read> table: array<Source>; // [window_rows, chunks]
@group(0) @binding(1) var<storage, read> ids: array<u32>; // [count]
@group(0) @binding(2) var<storage, read_write> out: array<Target>; // [count, chunks]

@compute @workgroup_size(WORKGROUP)
fn gather_rows(
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
      let at = given.table_start + (id - given.first_row) * given.table_stride + chunk;
      out[out_at] = pack_target(unpack_source(table[at]) * given.scale);
    }
  }
}
