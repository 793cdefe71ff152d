//! reparto-client
