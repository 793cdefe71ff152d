//! Minimal clients and workers over sockets, one pair for each server's protocol, so that the server between them
//! is what is measured.
//!
//! They do what a fast peer does and nothing else: a client fills its window with one write and takes as many
//! results as one read brings; a worker reads many assignments and writes all their results at once; the clock
//! is read once a batch. Where a server has several ways to do a thing, they take the one that suits it best.
//! Every task is an echo: its result is its payload. Each client checks that it gets one answer a task, of the
//! right size.
//!
//! - A [`Protocol`] makes the codecs of one wire format: [`Reparto`], [`Gearman`], [`Nats`], [`AmqpQueue`], and
//!   [`Relay`] for servers that pass bytes on.
//! - A [`ClientProtocol`] makes codecs for clients alone, of tasks that outlive them: [`RepartoBackground`],
//!   [`RepartoFetched`], [`JetStream`], [`AmqpConfirmed`], [`Beanstalk`] and [`GearmanBackground`]. Here a client checks
//!   that each of its tasks is acknowledged once.
//! - [`drive`] runs clients against a server, closed loop or open loop, and gives a [`Measurement`].
//! - [`Workers`] are the workers, on threads of their own. A relay's are [`EchoServers`]: they listen.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use std::time::Duration;
//! use reparto_bench::raw::{EchoServers, Load, Relay, drive};
//!
//! // No server between: clients talk to the echoing worker itself.
//! let workers = EchoServers::start(1)?;
//! let load = Load { connections: 1, window: 8, size: 64, duration: Duration::from_millis(20), ..Load::default() };
//! let measurement = drive(&Relay, workers.addresses()[0], &load, &AtomicBool::new(false))?;
//! assert!(measurement.tasks > 0);
//! # Ok::<(), reparto_bench::raw::RawError>(())
//! ```

mod amqp;
mod beanstalk;
mod client;
mod echo;
mod error;
mod gearman;
mod jetstream;
mod link;
mod nats;
mod open_loop;
mod output;
mod protocol;
mod relay;
mod reparto;
mod reparto_background;
#[cfg(test)]
mod tests;
mod worker;

pub use amqp::{AmqpConfirmed, AmqpQueue};
pub use beanstalk::Beanstalk;
pub use client::{Load, Measurement, Pace, drive};
pub use echo::EchoServers;
pub use error::RawError;
pub use gearman::{Gearman, GearmanBackground};
pub use jetstream::JetStream;
pub use nats::Nats;
pub use output::Output;
pub use protocol::{ClientCodec, ClientProtocol, MIN_PAYLOAD_BYTES, Protocol, WorkerCodec};
pub use relay::Relay;
pub use reparto::Reparto;
pub use reparto_background::{RepartoBackground, RepartoFetched};
pub use worker::Workers;
