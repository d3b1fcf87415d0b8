//! Laws of the reference.
