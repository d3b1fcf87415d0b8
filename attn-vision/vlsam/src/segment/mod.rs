//! What segments by prompts, and what names objects.
