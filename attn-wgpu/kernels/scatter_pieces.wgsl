// Sums of the pieces of long lists: out[piece] = sum of weight * source over the piece's places. The number
// of pieces is known on the device alone; what is behind it stays unwritten.
// An invocation owns four elements of a piece. No workgroup memory; needs up to six storage buffers.

struct Params {
  // Pieces at most, times chunks.
  count: u32,
  rows: u32, chunks: u32, share: u32,
  // vec4s.
  source_start: u32, source_stride: u32,
  // Words.
  weights_start: u32, row_ptr_start: u32,
}

#import "halves"
#import "source"
#import "linear"

@group(0) @binding(0) var<storage, read> offsets: array<u32>; // [rows + 1]
@group(0) @binding(1) var<storage, read> order: array<u32>; // [n]
@group(0) @binding(2) var<storage, read> row_ptr: array<u32>; // [rows + 1], pieces before each row
@group(0) @binding(3) var<storage, read> source: array<Source>; // [n / share, chunks]
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>; // [pieces, chunks]
#ifdef WEIGHTS
@group(0) @binding(5) var<storage, read> weights: array<f32>; // [n]
#endif

#import "row_of"
#import "scatter_sum"

@compute @workgroup_size(WORKGROUP)
fn scatter_pieces(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let piece = index / params.chunks;
  if index >= params.count || piece >= row_ptr[params.row_ptr_start + params.rows] {
    return;
  }
  let row = row_of(piece);
  let first = offsets[row] + (piece - row_ptr[params.row_ptr_start + row]) * PIECE;
  let end = min(first + PIECE, offsets[row + 1u]);
  out[index] = sum_of(first, end, index - piece * params.chunks);
}
