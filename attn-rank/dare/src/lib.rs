//! DARE on wgpu: recommendation from long histories with decoupled embeddings.
