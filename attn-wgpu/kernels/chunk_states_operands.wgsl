// Operands of the kernels of states of linear attention in blocks: sums over the tokens of a block of
// products of a row of a and a row of b.

#import "halves"
#import "source"
#import "row_place"
#import "linear"

@group(0) @binding(0) var<storage, read> a: array<Source>; // strided [B, H, N, 4 depth4]
@group(0) @binding(1) var<storage, read> b: array<Source>; // strided [B, H, N, 4 width4]
@group(0) @binding(2) var<storage, read> first: array<vec4<f32>>; // [B, H, D, E]
@group(0) @binding(3) var<storage, read> powers: array<f32>; // [H, block + 1]
@group(0) @binding(4) var<storage, read_write> states: array<vec4<f32>>; // [B, H, blocks, D, E]
@group(0) @binding(5) var<storage, read_write> end: array<vec4<f32>>; // [B, H, D, E]

#import "chunk_powers"
