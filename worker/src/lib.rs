//! reparto-worker
