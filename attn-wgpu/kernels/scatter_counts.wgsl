// Into how many pieces of PIECE places the list of each row of a table is cut; 0 for lists that are no
// longer than one piece. An invocation owns ITEMS rows. No workgroup memory; needs two storage buffers.

struct Params {
  count: u32,
}

@group(0) @binding(0) var<storage, read> offsets: array<u32>; // [count + 1]
@group(0) @binding(1) var<storage, read_write> pieces: array<u32>; // [count]

fn one(index: u32) {
  let length = offsets[index + 1u] - offsets[index];
  pieces[index] = select(0u, (length + PIECE - 1u) / PIECE, length > PIECE);
}

@compute @workgroup_size(WORKGROUP)
#import "each"
