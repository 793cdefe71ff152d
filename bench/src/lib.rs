//! Measures Reparto, and what people use today beside it.
//!
//! - `crash`: balancers, workers and engines killed under load, and every promise looked at (on Unix).
//! - `engines`: PostgreSQL, RabbitMQ and S3 for a run, brought up by `scripts/services` (on Unix).
//! - [`raw`]: minimal clients and workers over sockets, so that the server between them is what is measured.
//! - [`peers`]: the same work through Reparto and through other servers, in turns, as ratios.
//! - [`durable`]: what a durable task costs, beside other servers that keep theirs.
//! - [`load`]: load on a running balancer, closed loop or open loop.
//! - [`scale`]: cost as workers, queued tasks, idle connections and payloads grow.
//!
//! Absolute times mean little on a shared machine; what counts here are ratios inside one run.

#[cfg(unix)]
pub mod crash;
pub mod durable;
#[cfg(unix)]
pub mod engines;
pub mod load;
pub mod peers;
pub mod raw;
pub mod scale;
