// Product of few rows with packed weights, for devices on which accesses of memory cost more than anything
// else, however they are spread. Each weight is unpacked once for ROWS rows.
//
// A workgroup owns ROWS rows and WORKGROUP * CHUNKS chunks of four columns of one batch entry; a lane owns
// CHUNKS of them. For each step of 32 values of the depth, the lanes of a subgroup share the loads of a among
// EXCHANGE of them and broadcast what they hold. Sums of a span are those of values times codes, and of
// values alone, so that its scales are applied once: d * sum(a code) + m * sum(a). The order of sums depends
// on none of these numbers but EXCHANGE. No workgroup memory.

struct Params {
#import "packed_fields"
}

#import "packed_operands"
#import "matmul_store"

@compute @workgroup_size(WORKGROUP)
fn packed_few(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
#ifdef SUBGROUP
  @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
) {
  let item = linear_group(group, counts);
  let first_row = item % params.row_tiles * ROWS;
  let tile = item / params.row_tiles;
  let first_column = tile % params.column_tiles * (WORKGROUP * CHUNKS) + lane;
  let batch = tile / params.column_tiles;
  if batch >= params.batches {
    return;
  }
  let a_start = entry(params.a, batch);
#ifdef SUBGROUP
  let holder = subgroup_lane % EXCHANGE;
#else
  let holder = 0u;
#endif

  // Chunk x of a step of a: eight of each row.
  var held_at: array<u32, HELD>;
  #unroll
  for (var j = 0u; j < HELD; j++) {
    let x = j * EXCHANGE + holder;
    held_at[j] = a_start + min(first_row + x / 8u, params.rows - 1u) * params.a.w + x % 8u;
  }
  var codes_at: array<u32, CHUNKS>;
  var scales_at: array<u32, CHUNKS>;
  #unroll
  for (var c = 0u; c < CHUNKS; c++) {
    codes_at[c] = codes_of(first_column + c * WORKGROUP);
    scales_at[c] = scales_of(first_column + c * WORKGROUP);
  }

  var sums: array<vec4<f32>, ROWS * CHUNKS>;
  for (var block = 0u; block < params.blocks; block++) {
    var held: array<vec4<f32>, HELD>;
    var totals: array<f32, HELD>;
    #unroll
    for (var j = 0u; j < HELD; j++) {
      let value = read_a(held_at[j] + block * 8u);
      totals[j] = sum4(value);
      held[j] = value * VALUE_FACTORS;
    }
    var words: array<vec4<u32>, CHUNKS * CODES>;
    #unroll
    for (var c = 0u; c < CHUNKS; c++) {
      #unroll
      for (var j = 0u; j < CODES; j++) {
        words[c * CODES + j] = codes[codes_at[c] + block * CODES + j];
      }
    }
    #unroll
    for (var s = 0u; s < SPANS; s++) {
      var parts = array<vec4<f32>, ROWS * CHUNKS>();
      var total = array<f32, ROWS>();
      #unroll
      for (var k = 0u; k < SPAN_CHUNKS; k++) {
        const chunk = s * SPAN_CHUNKS + k;
        var bytes: array<vec4<u32>, CHUNKS>;
        #unroll
        for (var c = 0u; c < CHUNKS; c++) {
#ifdef Q6_K
          bytes[c] = bytes_of(words[c * CODES + chunk / 2u], words[c * CODES + 4u + chunk / 4u], chunk);
#else
#ifdef Q8_0
          bytes[c] = words[c * CODES + chunk];
#else
          bytes[c] = bytes_of(words[c * CODES + chunk / 2u], vec4<u32>(), chunk);
#endif
#endif
        }
        #unroll
        for (var r = 0u; r < ROWS; r++) {
          const x = r * 8u + chunk;
#ifdef SUBGROUP
          total[r] += subgroupBroadcast(totals[x / EXCHANGE], x % EXCHANGE);
#else
          total[r] += totals[x];
#endif
        }
        #unroll
        for (var q = 0u; q < 4; q++) {
          #unroll
          for (var r = 0u; r < ROWS; r++) {
            const x = r * 8u + chunk;
#ifdef SUBGROUP
            let value = vec4<f32>(subgroupBroadcast(held[x / EXCHANGE][q], x % EXCHANGE));
#else
            let value = vec4<f32>(held[x][q]);
#endif
            #unroll
            for (var c = 0u; c < CHUNKS; c++) {
              parts[r * CHUNKS + c] = fma(value, codes_in(bytes[c], q), parts[r * CHUNKS + c]);
            }
          }
        }
      }
      #unroll
      for (var c = 0u; c < CHUNKS; c++) {
        let given = read_scales(scales_at[c], block * SPANS + s);
        let d = given.d * REST;
        #unroll
        for (var r = 0u; r < ROWS; r++) {
          const at = r * CHUNKS + c;
          sums[at] = fma(d, parts[at], fma(given.m, vec4<f32>(total[r]), sums[at]));
        }
      }
    }
  }
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS; c++) {
      store(sums[r * CHUNKS + c], batch, first_row + r, first_column + c * WORKGROUP);
    }
  }
}
