//! From a map to prompts: points, refinement, ensembles, suppression of duplicates.
