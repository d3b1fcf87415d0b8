//! Images: loading, overlays, results as JSON.
