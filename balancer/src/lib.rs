//! Reparto's balancer.

pub mod scheduler;
