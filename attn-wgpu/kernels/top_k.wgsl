// The k largest elements of each row, of equals the first, in the row's order.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for counts. Needs
// three storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place,
  count: u32,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read_write> found_keys: array<u32>; // [rows, count]
@group(0) @binding(2) var<storage, read_write> found_elements: array<u32>; // [rows, count]

#import "row_keys"
#import "row_select"

// Elements of a lane's slice above the threshold, and equal to it.
var<workgroup> slices: array<vec2<u32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn top_k(
#import "arguments"
) {
#import "row_item"
  let at = at_place(numbers, params.x);
  let unused = Scale(0.0, 0.0);
  let key = search(at, in_row, f32(params.count), true, unused);

  let slice = slice_of(in_row);
  var own = vec2<u32>(0u);
  for (var c = slice.start; c < slice.end; c++) {
    let keys = chunk_keys(at, c);
    #unroll
    for (var j = 0u; j < 4u; j++) {
      let inside = 4u * c + j < width;
      own += vec2<u32>(select(0u, 1u, keys[j] > key), select(0u, 1u, inside && keys[j] == key));
    }
  }
  slices[lane] = own;
  workgroupBarrier();
  var before = vec2<u32>(0u);
  var above = 0u;
  for (var i = 0u; i < LANES; i++) {
    let other = slices[lane - in_row + i];
    before += select(vec2<u32>(0u), other, i < in_row);
    above += other.x;
  }
  let quota = params.count - min(above, params.count);

  if !is_row {
    return;
  }
  var equals = before.y;
  var place = before.x + min(equals, quota);
  for (var c = slice.start; c < slice.end; c++) {
    let keys = chunk_keys(at, c);
    for (var j = 0u; j < 4u; j++) {
      let is_equal = 4u * c + j < width && keys[j] == key;
      if (keys[j] > key || (is_equal && equals < quota)) && place < params.count {
        found_keys[row * params.count + place] = keys[j];
        found_elements[row * params.count + place] = 4u * c + j;
        place += 1u;
      }
      equals += select(0u, 1u, is_equal);
    }
  }
}
