// Packed weights: a weight is d * code + m, with d and m for each span of 32 or 16 values and codes without
// sign. Everything is of four rows at once. A step of 32 values has CODES chunks of words: a word of each row,
// which holds four codes in bytes or eight in nibbles. A step has SPANS spans
// of SPAN_CHUNKS chunks of four codes.
//
// Codes are converted where they lie in their word, by a mask alone: the one in byte q comes out 256^q times
// as large (but that in the upper byte of Q8_0, which as an integer would be negative), and the other factor
// is as much smaller. These factors are powers of two, so nothing is rounded.

struct Scales {
  d: vec4<f32>,
  m: vec4<f32>,
}

#ifdef Q8_0
const CODE_MASK = 0xffu;
// What values that meet codes are multiplied by, and what is left for d.
const VALUE_FACTORS = vec4<f32>(256.0, 1.0, 0.00390625, 256.0);
const REST = 0.00390625;
// The same if all of it is left to d.
const CODE_FACTORS = vec4<f32>(1.0, 0.00390625, 0.0000152587890625, 1.0);
#else
#ifdef Q6_K
const CODE_MASK = 0x3fu;
#else
const CODE_MASK = 0x0fu;
#endif
const VALUE_FACTORS = vec4<f32>(4096.0, 16.0, 0.0625, 0.000244140625);
const REST = 0.000244140625;
const CODE_FACTORS = vec4<f32>(1.0, 0.00390625, 0.0000152587890625, 0.000000059604644775390625);
#endif

// Scales of span `span` of four rows whose scales begin at `start`.
fn read_scales(start: u32, span: u32) -> Scales {
#ifdef Q4_1
  let chunk = scales[start + span];
  return Scales(unpack_f16(chunk.xy), unpack_f16(chunk.zw));
#else
#ifdef Q4_K
  // d and minimum, then of the scales and minima of 8 spans lower nibbles, lower nibbles, upper bits.
  let at = start + span / 8u * 4u;
  let both = scales[at];
  let part = span % 8u;
  let upper = scales[at + 3u] >> vec4<u32>(2u * part);
  let d = ((scales[at + 1u] >> vec4<u32>(4u * part)) & vec4<u32>(15u)) | ((upper & vec4<u32>(3u)) << vec4<u32>(4u));
  let m = ((scales[at + 2u] >> vec4<u32>(4u * part)) & vec4<u32>(15u)) | (((upper >> vec4<u32>(16u)) & vec4<u32>(3u)) << vec4<u32>(4u));
  return Scales(unpack_f16(both.xy) * vec4<f32>(d), -(unpack_f16(both.zw) * vec4<f32>(m)));
#else
#ifdef Q6_K
  // The scales of 16 spans, four in a word, then d.
  let at = start + span / 16u * 9u;
  let word = at + span % 16u / 4u * 2u;
  let bytes = bitcast<vec4<i32>>(vec4<u32>(scales[word], scales[word + 1u]) << vec4<u32>(24u - span % 4u * 8u));
  let d = unpack_f16(scales[at + 8u]) * vec4<f32>(bytes >> vec4<u32>(24u));
  return Scales(d, d * -32.0);
#else
  let d = unpack_f16(scales[start + span]);
#ifdef Q8_0
  return Scales(d, d * -128.0);
#else
  return Scales(d, d * -8.0);
#endif
#endif
#endif
#endif
}

// The chunk of words that has chunk `chunk` (of 8) of a step, of its CODES chunks.
fn word_of(chunk: u32) -> u32 {
#ifdef Q8_0
  return chunk;
#else
  return chunk / 2u;
#endif
}

// Four codes of each row in bytes, from words, and for Q6_K the words with their upper bits.
fn bytes_of(words: vec4<u32>, upper: vec4<u32>, chunk: u32) -> vec4<u32> {
#ifdef Q8_0
  return words;
#else
  let lower = (words >> vec4<u32>(chunk % 2u * 4u)) & vec4<u32>(0x0f0f0f0fu);
#ifdef Q6_K
  return lower | (((upper >> vec4<u32>(chunk % 4u * 2u)) & vec4<u32>(0x03030303u)) << vec4<u32>(4u));
#else
  return lower;
#endif
#endif
}

// The same from memory; the step's words begin at `at`.
fn read_bytes(at: u32, chunk: u32) -> vec4<u32> {
  let words = codes[at + word_of(chunk)];
#ifdef Q6_K
  return bytes_of(words, codes[at + 4u + chunk / 4u], chunk);
#else
  return bytes_of(words, words, chunk);
#endif
}

// The codes in bytes `q`, times 1 / CODE_FACTORS[q].
fn codes_in(bytes: vec4<u32>, q: u32) -> vec4<f32> {
#ifdef Q8_0
  if q == 3u {
    return vec4<f32>(bitcast<vec4<i32>>(bytes >> vec4<u32>(24u)));
  }
#endif
  return vec4<f32>(bitcast<vec4<i32>>(bytes & vec4<u32>(CODE_MASK << (8u * q))));
}

// Four weights of each of four rows: a row of the block is a value of the depth.
fn weights_in(bytes: vec4<u32>, given: Scales) -> mat4x4<f32> {
  var block: mat4x4<f32>;
  #unroll
  for (var q = 0u; q < 4; q++) {
    let d = given.d * CODE_FACTORS[q];
#ifdef Q6_K
    // The product with d needs a rounding, so it comes last.
    block[q] = (codes_in(bytes, q) - vec4<f32>(32.0 / CODE_FACTORS[q])) * d;
#else
    block[q] = fma(codes_in(bytes, q), d, given.m);
#endif
  }
  return block;
}
