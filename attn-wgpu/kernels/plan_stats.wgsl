// Statistics of the rows of groups: log-sum-exp and delta. Without WEIGHTS they are those of queries,
// since all groups of a query are one softmax; with it, each group has its own. Needs
// plan_grad_fields, plan_fields and `table`.

// Word of `table` at which the listing of items begins: the first aligned one behind the modifier's.
const AT_ITEMS = (max(MODIFIER_WORDS, 1u) + 63u) / 64u * 64u;

fn item_word(index: u32) -> u32 {
  return table[AT_ITEMS + index];
}

// Where the statistics of a row of a group are. `row` is the one in the group; `batch` and `head` are
// those of the call.
fn stats_at(work: Work, row: u32, batch: u32, head: u32, query: u32) -> u32 {
#ifdef WEIGHTS
  let items = params.at_stat_items;
  let slot = work.copy * table[items + params.listed] + table[items + work.at] + row / params.stat_tile;
  return params.stats_start + slot * params.stat_tile + row % params.stat_tile;
#else
  return params.stats_start + (batch * params.heads + head) * params.queries + query;
#endif
}

// In base 2; the largest number where the row is empty, so that every weight is 0.
fn lse_at(at: u32) -> f32 {
  let lse = bitcast<f32>(table[at]);
  return select(3e38, lse * LOG2_E, lse > -1e29);
}

fn delta_at(at: u32) -> f32 {
  return bitcast<f32>(table[at + params.stats_stride]);
}
