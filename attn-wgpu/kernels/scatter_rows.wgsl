// Sums by row of a table: out[row] = factor * sum of weight * source over the row's places, 0 where it has
// none; with ACCUMULATE that is added to what is there. With PIECES long lists were summed in pieces before.
// An invocation owns four elements of a row. No workgroup memory; needs up to seven storage buffers.

struct Params {
  // Rows, times chunks.
  count: u32,
  chunks: u32, share: u32,
  // vec4s.
  source_start: u32, source_stride: u32, out_start: u32, out_stride: u32,
  // Words.
  weights_start: u32,
  factor: f32,
}

#import "halves"
#import "source"
#import "linear"

@group(0) @binding(0) var<storage, read> offsets: array<u32>; // [rows + 1]
@group(0) @binding(1) var<storage, read> order: array<u32>; // [n]
@group(0) @binding(2) var<storage, read> source: array<Source>; // [n / share, chunks]
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>; // [rows, chunks]
#ifdef WEIGHTS
@group(0) @binding(4) var<storage, read> weights: array<f32>; // [n]
#ifdef PIECES
@group(0) @binding(5) var<storage, read> piece_ptr: array<u32>; // [rows + 1]
@group(0) @binding(6) var<storage, read> pieces: array<vec4<f32>>; // [pieces, chunks]
#endif
#else
#ifdef PIECES
@group(0) @binding(4) var<storage, read> piece_ptr: array<u32>; // [rows + 1]
@group(0) @binding(5) var<storage, read> pieces: array<vec4<f32>>; // [pieces, chunks]
#endif
#endif

#import "scatter_sum"

@compute @workgroup_size(WORKGROUP)
fn scatter_rows(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= given.count {
    return;
  }
  let row = index / given.chunks;
  let chunk = index - row * given.chunks;
  let first = offsets[row];
  let end = offsets[row + 1u];
  var sum = vec4<f32>(0.0);
#ifdef PIECES
  let first_piece = piece_ptr[row];
  let end_piece = piece_ptr[row + 1u];
  if end_piece > first_piece {
    for (var piece = first_piece; piece < end_piece; piece++) {
      sum += pieces[piece * given.chunks + chunk];
    }
  } else {
    sum = sum_of(first, end, chunk);
  }
#else
  sum = sum_of(first, end, chunk);
#endif
  let at = given.out_start + row * given.out_stride + chunk;
#ifdef ACCUMULATE
  out[at] = fma(vec4<f32>(given.factor), sum, out[at]);
#else
  out[at] = given.factor * sum;
#endif
}
