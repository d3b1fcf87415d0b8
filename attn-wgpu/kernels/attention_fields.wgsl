  // Parameters that all attention kernels have; `Common` in params.rs mirrors them.
  // Heads of this dispatch, times 65,536 plus query heads per key head; lengths.
  heads_group: u32, queries: u32, keys: u32,
  // vec4s of the head dimensions: of queries and keys, times 65,536 plus of values.
  dims: u32,
  // Offsets and strides in vec4s: start, batch, head, token. In backward kernels `out` is the
  // cotangent of the output.
  q_start: u32, q_batch: u32, q_head: u32, q_token: u32,
  k_start: u32, k_batch: u32, k_head: u32, k_token: u32,
  v_start: u32, v_batch: u32, v_head: u32, v_token: u32,
  out_start: u32, out_batch: u32, out_head: u32, out_token: u32,
  // Statistics of rows: stats_start + (batch * heads + head) * queries + query, in words.
  stats_start: u32,
  // Tiles of this dispatch: first, per head, and workgroups with work.
  first_tile: u32, tiles: u32, total: u32,
  // scale, times log2(e) where logits are not used in their natural form.
  scale: f32,
  soft_cap: f32,
  // Window around the query's position; a negative `left` means the table, whose rows begin at
  // word `right`.
  left: i32, right: i32,
  // Numbers that the first batch entry and the first head of this dispatch have in the call.
  first_batch: u32, first_head: u32,
