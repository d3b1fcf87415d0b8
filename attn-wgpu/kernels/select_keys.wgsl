// What elements are sorted by: plane * classes + class, and NONE for classes that there are not.
// With ENTRIES the elements are entries of rows, `width` rows a plane, and rows are written, too;
// without, there are `width` elements a plane.
//
// An invocation owns ITEMS elements. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  width: u32, classes: u32, rows: u32,
  // Words.
  given_start: u32, row_ptr_start: u32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> given: array<u32>; // [count]
@group(0) @binding(1) var<storage, read_write> keys: array<u32>; // [count]
#ifdef ENTRIES
@group(0) @binding(2) var<storage, read> row_ptr: array<u32>; // [rows + 1]
@group(0) @binding(3) var<storage, read_write> row: array<u32>; // [count]

#import "row_of"
#endif

fn one(index: u32) {
  let class_of = given[params.given_start + index];
#ifdef ENTRIES
  let found = row_of(index);
  let exists = found < params.rows;
  let plane = found / params.width;
  row[index] = select(NONE, found, exists && class_of < params.classes);
#else
  let exists = true;
  let plane = index / params.width;
#endif
  keys[index] = select(NONE, plane * params.classes + class_of, exists && class_of < params.classes);
}

@compute @workgroup_size(WORKGROUP)
#import "each"
