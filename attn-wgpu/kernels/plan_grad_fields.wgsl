  // Of the kernels that compute gradients under a plan; `GradFields` in plan/gradients.rs mirrors them.
  // The scale without log2(e), and heads of the call.
  grad_scale: f32, heads: u32,
  // How far the deltas are behind the log-sum-exps, which begin at word `stats_start` of `table`.
  stats_stride: u32,
  // WEIGHTS: word of `table` at which the listing begins by whose items the statistics are numbered,
  // and its rows of a tile.
  at_stat_items: u32, stat_tile: u32,
