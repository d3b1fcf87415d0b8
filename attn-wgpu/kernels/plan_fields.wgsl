  // How kernels find the groups of one part of a plan; `Geometry` in plan/params.rs mirrors them.
  // Words at which regions of `plan` begin: plane_ptr; q_ptr or q_start; q_idx or q_len; row_ptr; data;
  // bias.
  at_planes: u32, at_rows: u32, at_members: u32, at_row_ptr: u32, at_data: u32, at_bias: u32,
  // Tiled rows: queries of a group, groups of a plane. Else: planes.
  bq: u32, plane_groups: u32, planes: u32,
  // Blocks and bits: keys of a block, first key of the grid; words of a group's bits.
  bk: u32, origin: u32, group_words: u32,
  // Keys that entries can hold, and whether a row sees nothing behind its position.
  entry_keys: u32, causal: u32,
  // Near part, and largest distance.
  sink: i32, window: i32, max_dist: i32,
  // Position of query 0.
  q_off: i32,
  // Heads of the plan in a batch entry, and query heads that share a group's rows.
  plan_heads: u32, pack: u32,
  // Query heads of a key head.
  head_group: u32,
  // Key heads that go through every group, and the number of the first one.
  kv_count: u32, kv_base: u32,
  // Keys of one chunk, and rows of one tile.
  chunk: u32, tile: u32,
  // Groups of this dispatch: first and number, and where they begin in `items`.
  first_group: u32, group_count: u32, base: u32,
  // Groups that `items` lists: behind their offsets lies the total, then their numbers of keys.
  listed: u32,
