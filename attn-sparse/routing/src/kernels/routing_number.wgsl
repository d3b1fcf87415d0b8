// Numbers in planes become numbers in all: out[i] = i / each * width + given[i], where there are `each`
// numbers below `width` a plane; NONE stays.
// An invocation owns one number. No workgroup memory; needs two storage buffers.

struct Params {
  count: u32, each: u32, width: u32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> given: array<u32>; // [planes, each]
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // [planes, each]

fn one(index: u32) {
  let number = given[index];
  out[index] = select(index / params.each * params.width + number, NONE, number == NONE);
}

@compute @workgroup_size(WORKGROUP)
#import "each"
