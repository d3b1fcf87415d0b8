//! Which tests notice a mutant: tables by flag and by file, what kills soonest first.
//!
//! A mutant's shaders are compiled anew, which costs seconds a variant on a software driver. Quick tests therefore
//! use small heads and few variants; those with many are long.

use std::fmt;

use super::mutants::Mutant;

/// A test by its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Test {
    pub program: &'static str,
    pub name: &'static str,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.program, self.name)
    }
}

/// What runs against a mutant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tests {
    pub quick: Vec<Test>,
    pub long: Vec<Test>,
}

struct Row {
    /// A flag around the line, or a file.
    of: &'static str,
    quick: &'static [&'static str],
    long: &'static [&'static str],
}

/// Lines under `#ifdef` of these flags.
const BY_FLAG: &[Row] = &[
    Row {
        of: "BITS",
        quick: &[
            "forms::nan_behind_bits_changes_nothing",
            "places::modifiers_in_documents_and_under_bits",
            "places::bits_beyond_65536_keys",
        ],
        long: &["forms::explicit_bits", "backward::nan_that_nobody_sees_changes_nothing"],
    },
    Row {
        of: "SOFT_CAP",
        quick: &[
            "places::digits_of_the_soft_cap",
            "forms::soft_cap",
            "places::modifiers_in_documents_and_under_bits",
            "backward::finite_differences",
        ],
        long: &["backward::soft_cap_modifiers_and_sinks"],
    },
    Row {
        of: "MODIFIER_SCORE",
        quick: &[
            "forms::modifiers_see_their_place",
            "places::modifiers_in_documents_and_under_bits",
            "backward::finite_differences",
        ],
        long: &[
            "forms::mask_modifiers_and_scores_that_mask",
            "backward::soft_cap_modifiers_and_sinks",
        ],
    },
    Row {
        of: "MODIFIER_MASK",
        quick: &[
            "places::modifiers_in_documents_and_under_bits",
            "backward::derivatives_are_asked_for_only_where_scores_change",
        ],
        long: &["forms::mask_modifiers_and_scores_that_mask"],
    },
    Row {
        of: "MODIFIER",
        quick: &[
            "forms::modifiers_see_their_place",
            "backward::derivatives_are_asked_for_only_where_scores_change",
        ],
        long: &["forms::mask_modifiers_and_scores_that_mask"],
    },
    Row {
        of: "NATURAL",
        quick: &["forms::modifiers_see_their_place", "backward::finite_differences"],
        long: &[],
    },
    Row { of: "BACKWARD", quick: &["backward::finite_differences"], long: &[] },
    Row {
        of: "SINKS",
        quick: &["forms::sinks", "places::parts_of_a_call_know_their_sinks"],
        long: &[],
    },
    Row {
        of: "KEY_BIAS",
        quick: &[
            "plan::biases_modifiers_and_soft_cap",
            "plan_laws::nan_in_keys_behind_a_row_changes_nothing_with_biases",
        ],
        long: &[],
    },
    Row { of: "STATS", quick: &["forms::row_max_and_argmax"], long: &[] },
    Row {
        of: "SLICED",
        quick: &["forms::sequences_beyond_65536_tokens", "forms::half_tensors_in_other_layouts"],
        long: &[],
    },
    Row {
        of: "F16",
        quick: &[
            "forms::half_tensors_in_other_layouts",
            "forms::half_storage_with_logits_beyond_f16",
        ],
        long: &["forms::half_storage_computes_in_f32"],
    },
    Row {
        of: "BF16",
        quick: &["forms::halves_are_rounded_to_even", "forms::half_storage_computes_in_f32"],
        long: &["backward::half_storage"],
    },
    Row { of: "LSE_COTANGENT", quick: &["backward::finite_differences"], long: &[] },
    Row {
        of: "PARTS_F32",
        quick: &["forms::the_neutral_element_of_merge", "forms::merging_disjoint_parts"],
        long: &[],
    },
    Row {
        of: "BY_KEYS",
        quick: &["backward::empty_rows_and_empty_tensors", "backward::every_mask"],
        long: &[],
    },
];

const FORWARD: Row = Row {
    of: "",
    quick: &[
        "attention::grouped_query_ratios",
        "places::statistics_in_views",
        "attention::chunked_prefill_equals_one_call",
        "attention::causal_masks_are_aligned_bottom_right",
        "forms::any_configuration_equals_the_reference",
        "attention::nan_in_masked_keys_and_values_changes_nothing",
        "forms::modifiers_see_their_place",
    ],
    long: &[
        "forms::soft_cap",
        "forms::row_max_and_argmax",
        "attention::strided_inputs_and_outputs",
        "attention::extreme_and_equal_logits",
        "attention::rows_without_keys_are_zero",
        "attention::a_batch_entry_and_a_head_are_the_same_alone_bit_for_bit",
        "attention::unequal_head_dims",
        "golden::masks_of_longca_bench",
        "attention::lengths_under_every_mask",
        "forms::half_storage_computes_in_f32",
        "places::statistics_in_views",
    ],
};

/// Those that compare with the reference first: others compare the device with itself.
const BACKWARD: Row = Row {
    of: "",
    quick: &[
        "backward::empty_rows_and_empty_tensors",
        "backward::every_mask",
        "backward::nan_that_nobody_sees_changes_nothing",
        "backward::runs_splits_and_batches_are_bit_equal",
        "backward::strided_cotangents_and_inputs",
        "places::gradients_know_their_batch_and_head",
    ],
    long: &[
        "backward::any_configuration_equals_the_reference",
        "backward::finite_differences",
        "backward::sequences_beyond_65536_tokens_are_right_or_refused",
        "golden::longca_bench",
        "places::statistics_in_views",
        "backward::head_dims_and_ratios",
    ],
};

const DECODE: Row = Row {
    of: "",
    quick: &[
        "forms::modifiers_see_their_place",
        "forms::decode_equals_prefill",
        "places::sinks_beyond_a_chunk",
        "attention::causal_masks_are_aligned_bottom_right",
        "forms::decode_of_long_keys",
        "forms::any_configuration_equals_the_reference",
    ],
    long: &[
        "attention::a_batch_entry_and_a_head_are_the_same_alone_bit_for_bit",
        "attention::lengths_under_every_mask",
        "forms::half_storage_computes_in_f32",
        "forms::explicit_bits",
        "attention::head_dims",
        "forms::sinks",
    ],
};

const MERGE: Row = Row {
    of: "",
    quick: &[
        "forms::the_neutral_element_of_merge",
        "places::parts_of_small_weight",
        "forms::decode_equals_prefill",
        "forms::merging_disjoint_parts",
        "forms::sinks",
        "places::parts_of_a_call_know_their_sinks",
        "places::bits_beyond_65536_keys",
        "places::statistics_in_views",
    ],
    long: &[
        "forms::sequences_beyond_65536_tokens",
        "forms::decode_of_long_keys",
        "forms::half_storage_computes_in_f32",
    ],
};

/// Lines that only run where dispatches are folded.
const FOLDED: Row = Row { of: "", quick: &["places::folded_dispatches_change_no_bit"], long: &[] };

/// Lanes that share a row, unevenly.
const UNEVEN: Row = Row {
    of: "",
    quick: &[
        "places::heads_that_do_not_fill_their_lanes",
        "places::lanes_beyond_the_head_read_no_other_token",
        "places::lanes_wait_for_each_other",
    ],
    long: &[],
};

/// Windows around tiles.
const WINDOWS: Row =
    Row { of: "", quick: &["places::windows_wider_than_tiles_and_one_sided_ones"], long: &[] };

/// Fields of 16 bits.
const HEADS: Row = Row { of: "", quick: &["places::a_group_of_many_heads"], long: &[] };

const COLUMNS: Row = Row {
    of: "",
    quick: &[
        "backward::into_a_callers_tensors",
        "forms::column_sums",
        "places::column_sums_know_their_batch_and_head",
        "places::statistics_in_views",
    ],
    long: &[],
};

const TRANSPOSED: Row = Row {
    of: "",
    quick: &["forms::transposed_reads_what_is_seen", "forms::transposed"],
    long: &[],
};

const WEIGHTS: Row = Row {
    of: "",
    quick: &[
        "weights::heads_and_dims",
        "weights::lengths_around_tiles",
        "weights::some_rows_are_those_of_the_whole",
        "weights::strided_inputs_and_targets",
        "weights::nan_that_nobody_sees_changes_nothing",
        "weights::modifiers_know_their_batch_and_head",
        "weights::splits_change_no_bit",
    ],
    long: &["weights::every_mask"],
};

const DELTA: Row = Row {
    of: "",
    quick: &[
        "backward::empty_rows_and_empty_tensors",
        "backward::runs_splits_and_batches_are_bit_equal",
        "backward::strided_cotangents_and_inputs",
        "places::statistics_in_views",
    ],
    long: &["backward::any_configuration_equals_the_reference", "backward::half_storage"],
};

const SINKS: Row = Row {
    of: "",
    quick: &[
        "backward::into_a_callers_tensors",
        "backward::finite_differences",
        "places::heads_that_do_not_fill_their_lanes",
        "places::folded_dispatches_change_no_bit",
    ],
    long: &["backward::empty_rows_and_empty_tensors", "backward::soft_cap_modifiers_and_sinks"],
};

const COPY: Row = Row {
    of: "",
    quick: &[
        "tensor::fill_of_a_part",
        "tensor::fill_and_copy_of_whole_workgroups",
        "tensor::copies_write_nothing_but_their_target",
        "tensor::padded_halves",
        "tensor::copies_of_views",
        "tensor::strided_views_of_halves",
        "attention::strided_inputs_and_outputs",
        "forms::half_tensors_in_other_layouts",
        "device::fill_and_copy_of_four_million_elements",
        "device::workgroups_around_the_limit_of_one_dimension",
    ],
    long: &[
        "attention::head_dims",
        "forms::half_storage_computes_in_f32",
        "device::poisoned_buffers",
    ],
};

const MATMUL: Row = Row {
    of: "",
    quick: &[
        "matmul::smoke_tile_edges_of_every_kernel",
        "matmul::extents_of_zero",
        "matmul::rows_and_columns_do_not_touch_each_other",
        "matmul::into_views_of_a_callers_tensor",
        "matmul::plain_devices_and_poisoned_buffers",
    ],
    long: &[
        "matmul::every_pair_of_types_with_every_epilogue",
        "matmul::operands_above_the_binding_limit_are_split",
        "matmul::work_above_the_cap_is_split_and_changes_no_bit",
        "matmul::loops_are_kept_below_the_limit",
        "matmul::anything_equals_loops_in_f64",
    ],
};

const NORM: Row = Row {
    of: "",
    quick: &["norm::norms_are_those_of_f64", "norm::large_rows_keep_their_digits"],
    long: &[],
};

const PACKED: Row = Row {
    of: "",
    quick: &[
        "packed::values_are_those_of_the_formats",
        "packed::smoke_every_type_on_every_kernel",
        "packed::extents_of_zero",
        "packed::unusable_numbers_stay_where_they_are",
        "packed::strides_of_operands_and_results",
        "packed::rows_by_number",
    ],
    long: &[
        "packed::any_number_of_rows",
        "packed::every_epilogue_with_every_type",
        "packed::rows_depend_on_nothing_else",
        "packed::what_no_binding_holds_is_split",
        "packed::work_above_the_cap_is_split_and_changes_no_bit",
        "packed::plain_devices_and_poisoned_buffers",
    ],
};

const SCATTER: Row = Row {
    of: "",
    quick: &[
        "scatter::what_weighs_nothing_is_not_read",
        "scatter::scattering_is_what_gathering_needs",
        "scatter::sums_are_those_of_a_loop",
    ],
    long: &[],
};

const ELEMENTS: Row = Row {
    of: "",
    quick: &[
        "norm::elementwise_functions_are_those_of_f64",
        "norm::conversion_rounds_to_nearest_even",
        "activation::smoke_activations_of_any_size",
        "activation::nan_stays_nan",
    ],
    long: &[],
};

const ROPE: Row = Row {
    of: "",
    quick: &[
        "rope::rotation_is_that_of_f64",
        "rope::positions_beyond_the_table_are_nan",
        "rope::caches_hold_what_was_appended",
    ],
    long: &[],
};

const TABLE: Row = Row {
    of: "",
    quick: &["rope::rows_of_a_table", "rope::tables_over_the_binding_limit"],
    long: &[],
};

const SOFTMAX: Row = Row {
    of: "",
    quick: &[
        "softmax::softmax_is_that_of_f64",
        "softmax::many_equal_halves_sum_to_one",
        "softmax::a_nan_stays_in_its_row",
    ],
    long: &["softmax::parts_of_large_tensors"],
};

const CHOICE: Row = Row {
    of: "",
    quick: &[
        "softmax::choices_are_those_of_a_sort",
        "softmax::samples_are_those_of_the_definition",
        "softmax::a_nan_stays_in_its_row",
    ],
    long: &["softmax::samples_follow_the_distribution", "softmax::large_vocabularies"],
};

const LINEAR: Row = Row {
    of: "",
    quick: &[
        "linear_attention::smoke_blocks_are_the_recurrence",
        "linear_attention::what_is_no_number_stays_in_its_rows",
        "linear_attention::neighbours_and_layouts_change_no_bit",
    ],
    long: &[
        "linear_attention::any_call_is_the_recurrence",
        "linear_attention::parts_change_no_bit",
    ],
};

const LINEAR_DECODE: Row =
    Row { of: "", quick: &["linear_attention::tokens_one_by_one_are_one_call"], long: &[] };

const RECURRENCES: Row = Row {
    of: "",
    quick: &["scan::smoke_recurrences_are_loops"],
    long: &["scan::recurrences_in_every_form"],
};

const PREFIXES: Row = Row {
    of: "",
    quick: &[
        "scan::smoke_softmax_scans_are_loops",
        "scan::large_scores",
        "scan::nothing_but_masks_is_nothing",
    ],
    long: &[],
};

const TOKEN_SUMS: Row =
    Row { of: "", quick: &["scan::smoke_column_sums_and_row_products"], long: &[] };

const COUNTED: Row = Row {
    of: "",
    quick: &[
        "select::prefix_sums_are_those_of_the_host",
        "select::folded_dispatches_change_nothing",
        "select::prefix_sums_of_many_values_and_of_views",
    ],
    long: &[],
};

const SELECTED: Row = Row {
    of: "",
    quick: &["select_rows::top_k_is_that_of_a_sort", "select_rows::covers_are_those_of_a_sort"],
    long: &[
        "select_rows::rounded_quotients_do_not_contradict_the_sum",
        "select_rows::many_rows_and_wide_ones",
    ],
};

const BLOCK_SETS: Row = Row {
    of: "",
    quick: &[
        "select_bits::sets_of_blocks_are_those_of_the_host",
        "select_bits::rows_of_numbers_and_bits",
        "select_bits::views_of_larger_tensors",
        "select_bits::sets_into_a_callers_tensor",
    ],
    long: &["select_bits::many_rows"],
};

const POOLED: Row = Row { of: "", quick: &["select_blocks::pools_are_those_of_f64"], long: &[] };

const PROBED: Row = Row {
    of: "",
    quick: &[
        "select_blocks::profiles_of_few_keys",
        "select_blocks::profiles_are_those_of_f64",
        "select_blocks::profiles_over_several_slabs",
    ],
    long: &[],
};

const BLOCK_ROWS: Row =
    Row { of: "", quick: &["select_blocks::block_scores_are_those_of_f64"], long: &[] };

const SORTED: Row = Row {
    of: "",
    quick: &[
        "select::sorting_is_that_of_the_host",
        "select::lists_and_their_transpose_are_those_of_the_host",
        "select::views_of_larger_tensors",
        "select::folded_dispatches_change_nothing",
    ],
    long: &[],
};

const PLAN: Row = Row {
    of: "",
    quick: &[
        "plan::empty_rows_and_empty_tensors",
        "plan_laws::every_key_counts_once",
        "plan::plans_that_kernels_write",
        "plan_backward::weighted_groups_know_their_rows",
        "plan_backward::groups_around_tiles",
        "plan_laws::nan_in_keys_that_are_not_selected_changes_nothing",
        "plan_laws::neighbours_splits_and_runs_change_no_bit",
        "plan::chunks_of_any_length",
        "plan::biases_modifiers_and_soft_cap",
        "plan::extreme_and_equal_logits",
        "plan::head_dims",
    ],
    long: &[
        "plan_laws::rows_of_every_kind_are_the_same_plan",
        "plan::groups_of_very_different_sizes",
        "plan::strided_inputs_and_outputs",
        "plan::plans_that_are_used_again",
        "plan::lengths_ratios_and_shares",
        "plan::long_keys_are_computed_in_chunks",
        "plan::plain_devices_and_poisoned_buffers",
        "plan::any_plan_equals_the_reference",
    ],
};

const PLAN_GRADS: Row = Row {
    of: "",
    quick: &[
        "plan_backward::empty_rows_and_empty_tensors",
        "plan_backward::weighted_groups_know_their_rows",
        "plan_backward::groups_around_tiles",
        "plan_backward::chunks_of_any_length",
        "plan_backward::groups_windows_and_callers_tensors",
        "plan_backward::biases_modifiers_and_soft_cap",
        "plan_laws::gradients_of_nan_are_nan_where_it_is_seen",
        "plan_backward::nan_in_keys_that_are_not_selected_changes_nothing",
        "plan_backward::head_dims",
    ],
    long: &[
        "plan_backward::lengths_ratios_and_shares",
        "plan_backward::named_plans",
        "plan_backward::runs_splits_and_devices_change_no_bit",
        "plan_backward::any_plan_equals_the_reference",
    ],
};

const PLAN_LISTS: Row = Row {
    of: "",
    quick: &["plan_lists::clusters_of_tokens", "plan_lists::the_best_queries_of_clusters"],
    long: &[],
};

/// Files with the kernels that they are or that import them; a snippet's first kernels first.
const BY_FILE: &[(&str, &[&Row])] = &[
    ("attention_forward", &[&FORWARD, &UNEVEN]),
    ("attention_absorb", &[&FORWARD, &DECODE, &UNEVEN]),
    ("attention_logits", &[&FORWARD, &DECODE, &WINDOWS, &BACKWARD, &HEADS]),
    ("attention_lanes", &[&UNEVEN, &FORWARD, &DECODE, &BACKWARD]),
    ("attention_arguments", &[&FORWARD, &DECODE, &BACKWARD]),
    ("attention_item", &[&FORWARD, &DECODE, &BACKWARD, &FOLDED]),
    ("attention_segments", &[&WINDOWS, &FORWARD, &BACKWARD]),
    ("attention_storage", &[&FORWARD, &DECODE]),
    ("attention_decode", &[&DECODE, &UNEVEN]),
    ("attention_merge", &[&MERGE]),
    ("attention_plan", &[&PLAN]),
    ("attention_plan_merge", &[&PLAN, &PLAN_GRADS]),
    ("attention_plan_q", &[&PLAN_GRADS]),
    ("attention_plan_kv", &[&PLAN_GRADS]),
    ("attention_plan_keys", &[&PLAN_GRADS]),
    ("attention_plan_stats", &[&PLAN_GRADS]),
    ("plan_cost", &[&PLAN]),
    ("plan_cursor", &[&PLAN]),
    ("plan_dispatch", &[&PLAN]),
    ("plan_fields", &[&PLAN]),
    ("plan_groups", &[&PLAN]),
    ("plan_grad_fields", &[&PLAN_GRADS]),
    ("plan_items", &[&PLAN]),
    ("plan_listed", &[&PLAN_LISTS]),
    ("plan_listing", &[&PLAN_LISTS]),
    ("plan_places", &[&PLAN_GRADS]),
    ("plan_stats", &[&PLAN_GRADS]),
    ("plan_step", &[&PLAN, &PLAN_GRADS]),
    ("plan_visit", &[&PLAN_GRADS]),
    ("plan_walk", &[&PLAN, &PLAN_GRADS]),
    ("plan_work", &[&PLAN, &PLAN_GRADS]),
    ("attention_backward_q", &[&BACKWARD, &UNEVEN]),
    ("attention_backward_kv", &[&BACKWARD, &UNEVEN]),
    ("attention_pairs", &[&BACKWARD]),
    ("attention_columns", &[&COLUMNS, &UNEVEN]),
    ("attention_keys", &[&COLUMNS, &TRANSPOSED, &WEIGHTS]),
    ("attention_transposed", &[&TRANSPOSED]),
    ("attention_weights", &[&WEIGHTS]),
    ("attention_delta", &[&DELTA]),
    ("attention_sinks", &[&SINKS]),
    ("linear", &[&COPY, &FOLDED]),
    ("copy", &[&COPY]),
    ("copy_chunks", &[&COPY, &MATMUL]),
    ("copy_half", &[&COPY]),
    ("copy_places", &[&COPY]),
    ("fill", &[&COPY]),
    ("matmul_direct", &[&MATMUL]),
    ("matmul_fields", &[&MATMUL]),
    ("matmul_lanes", &[&MATMUL, &PACKED]),
    ("matmul_left", &[&MATMUL, &PACKED]),
    ("matmul_operands", &[&MATMUL]),
    ("matmul_rows", &[&MATMUL]),
    ("matmul_store", &[&MATMUL]),
    ("matmul_tile", &[&MATMUL]),
    ("packed_block", &[&PACKED]),
    ("packed_direct", &[&PACKED]),
    ("packed_few", &[&PACKED]),
    ("packed_fields", &[&PACKED]),
    ("packed_gather", &[&PACKED]),
    ("packed_lanes", &[&PACKED]),
    ("packed_operands", &[&PACKED]),
    ("packed_tile", &[&PACKED]),
    ("each", &[&SCATTER, &SORTED]),
    ("scatter_counts", &[&SCATTER]),
    ("scatter_pieces", &[&SCATTER]),
    ("scatter_rows", &[&SCATTER]),
    ("scatter_sum", &[&SCATTER]),
    ("activation", &[&ELEMENTS, &MATMUL]),
    ("halves", &[&ELEMENTS, &MATMUL, &NORM]),
    ("map", &[&ELEMENTS]),
    ("soft_cap", &[&ELEMENTS, &SOFTMAX]),
    ("source", &[&ELEMENTS, &NORM, &SOFTMAX]),
    ("target", &[&ELEMENTS, &NORM, &SOFTMAX]),
    ("norm", &[&NORM]),
    ("simple_norm", &[&NORM]),
    ("row_root", &[&NORM]),
    ("row_dot", &[&TOKEN_SUMS]),
    ("chunk_pass", &[&LINEAR]),
    ("chunk_powers", &[&LINEAR]),
    ("chunk_rows", &[&LINEAR]),
    ("chunk_rows_fields", &[&LINEAR]),
    ("chunk_rows_operands", &[&LINEAR]),
    ("chunk_rows_tile", &[&LINEAR]),
    ("chunk_states", &[&LINEAR]),
    ("chunk_states_fields", &[&LINEAR]),
    ("chunk_states_operands", &[&LINEAR]),
    ("chunk_states_tile", &[&LINEAR]),
    ("linear_decode", &[&LINEAR_DECODE]),
    ("scan_columns", &[&TOKEN_SUMS]),
    ("scan_item", &[&RECURRENCES, &PREFIXES, &TOKEN_SUMS]),
    ("scan_place", &[&RECURRENCES, &PREFIXES, &TOKEN_SUMS]),
    ("scan_recurrence", &[&RECURRENCES]),
    ("scan_recurrence_totals", &[&RECURRENCES]),
    ("scan_softmax", &[&PREFIXES]),
    ("scan_softmax_totals", &[&PREFIXES]),
    ("scan_weight", &[&PREFIXES]),
    ("rope", &[&ROPE]),
    ("gather_rows", &[&TABLE]),
    ("softmax", &[&SOFTMAX]),
    ("log_softmax", &[&SOFTMAX]),
    ("row_item", &[&SOFTMAX, &NORM, &CHOICE]),
    ("row_place", &[&SOFTMAX, &NORM, &CHOICE]),
    ("row_reduce", &[&SOFTMAX, &NORM, &CHOICE]),
    ("argmax", &[&CHOICE]),
    ("keys", &[&CHOICE]),
    ("row_best", &[&CHOICE]),
    ("row_keys", &[&CHOICE]),
    ("row_mass", &[&CHOICE, &PROBED, &BLOCK_ROWS]),
    ("row_select", &[&CHOICE]),
    ("sample", &[&CHOICE]),
    ("top_k", &[&CHOICE]),
    ("top_k_rank", &[&CHOICE]),
    ("select_before", &[&COUNTED]),
    ("select_bit_columns", &[&BLOCK_SETS]),
    ("select_bit_counts", &[&BLOCK_SETS]),
    ("select_bit_set", &[&BLOCK_SETS]),
    ("select_bits", &[&BLOCK_SETS]),
    ("select_block_rows", &[&BLOCK_ROWS]),
    ("select_bounds", &[&SORTED]),
    ("select_cover", &[&SELECTED]),
    ("select_each", &[&SORTED, &BLOCK_SETS]),
    ("select_keys", &[&SORTED]),
    ("select_pool", &[&POOLED]),
    ("select_probe_columns", &[&PROBED]),
    ("select_probe_distances", &[&PROBED]),
    ("select_probe_lse", &[&PROBED]),
    ("select_row_of", &[&SORTED]),
    ("select_scan", &[&COUNTED]),
    ("select_search", &[&SELECTED]),
    ("select_sort", &[&SORTED]),
    ("select_take", &[&SORTED]),
    ("select_top", &[&SELECTED]),
];

/// A file without a row gets every row, so that a new one is not forgotten.
const ALL: &[&Row] = &[
    &FORWARD,
    &DECODE,
    &BACKWARD,
    &MERGE,
    &COLUMNS,
    &TRANSPOSED,
    &WEIGHTS,
    &DELTA,
    &SINKS,
    &COPY,
    &FOLDED,
    &UNEVEN,
    &MATMUL,
    &PACKED,
    &SCATTER,
    &NORM,
    &LINEAR,
    &LINEAR_DECODE,
    &RECURRENCES,
    &PREFIXES,
    &TOKEN_SUMS,
    &ELEMENTS,
    &ROPE,
    &TABLE,
    &SOFTMAX,
    &CHOICE,
    &COUNTED,
    &SORTED,
    &SELECTED,
    &BLOCK_SETS,
    &POOLED,
    &PROBED,
    &BLOCK_ROWS,
    &PLAN,
];

/// The tests to run against a mutant, each once.
pub fn tests_of(mutant: &Mutant) -> Tests {
    let flags = flags(&mutant.text, mutant.line);
    let by_flag = flags.iter().flat_map(|flag| BY_FLAG.iter().filter(move |row| row.of == *flag));
    let rows = BY_FILE.iter().find(|(file, _)| *file == mutant.file).map_or(ALL, |(_, rows)| rows);
    let rows: Vec<&Row> = by_flag.chain(rows.iter().copied()).collect();
    let mut tests = Tests::default();
    let mut seen = Vec::new();
    let mut add = |to: &mut Vec<Test>, names: &[&'static str]| {
        for name in names {
            if let Some((program, name)) = name.split_once("::") {
                let test = Test { program, name };
                if !seen.contains(&test) {
                    seen.push(test);
                    to.push(test);
                }
            }
        }
    };
    rows.iter().for_each(|row| add(&mut tests.quick, row.quick));
    rows.iter().for_each(|row| add(&mut tests.long, row.long));
    tests
}

/// The flags that are set where a line is compiled, innermost first. A line `#ifdef` counts as under its own flag.
fn flags(text: &str, line: usize) -> Vec<&str> {
    let mut open: Vec<(&str, bool)> = Vec::new();
    for text in text.lines().take(line) {
        let mut words = text.split_whitespace();
        match words.next() {
            Some("#ifdef") => open.push((words.next().unwrap_or(""), true)),
            Some("#else") => {
                open.iter_mut().last().into_iter().for_each(|(_, kept)| *kept = !*kept)
            }
            Some("#endif") => drop(open.pop()),
            _ => {}
        }
    }
    open.into_iter().rev().filter(|(_, kept)| *kept).map(|(flag, _)| flag).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::mutate::mutants;
    use crate::workspace::Workspace;

    #[test]
    fn flags_around_a_line() {
        let text = "a\n#ifdef X\nb\n#ifdef Y\nc\n#else\nd\n#endif\n#endif\ne\n";
        let of = |line| flags(text, line);
        assert_eq!((of(1), of(3), of(5)), (vec![], vec!["X"], vec!["Y", "X"]));
        assert_eq!((of(2), of(7), of(10)), (vec!["X"], vec!["X"], vec![]));
    }

    #[test]
    fn every_name_is_a_test() {
        let root = Workspace::load().unwrap().root;
        let rows = BY_FLAG.iter().chain(BY_FILE.iter().flat_map(|(_, rows)| rows.iter().copied()));
        for name in rows.flat_map(|row| row.quick.iter().chain(row.long)) {
            let (program, name) = name.split_once("::").unwrap();
            let path = root.join(format!("attn-wgpu/tests/{program}.rs"));
            let text = fs::read_to_string(path).unwrap();
            assert!(text.contains(&format!("fn {name}(")), "{program}::{name}");
        }
    }

    #[test]
    fn every_mutant_has_tests_and_every_file_a_row() {
        let files = mutants::files(&Workspace::load().unwrap().root).unwrap();
        for mutant in mutants::all(&files) {
            assert!(BY_FILE.iter().any(|(file, _)| *file == mutant.file), "{}", mutant.file);
            assert!(!tests_of(&mutant).quick.is_empty());
        }
        for (file, _) in BY_FILE {
            assert!(files.contains_key(*file), "{file}");
        }
    }
}
