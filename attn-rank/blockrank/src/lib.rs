//! BlockRank on wgpu: in-context ranking of documents with block-structured attention.
