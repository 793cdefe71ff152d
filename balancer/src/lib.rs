//! Reparto's balancer: it takes tasks from clients and gives each to the worker best placed to run it.
//!
//! Six rooms, each with one duty:
//!
//! - [`scheduler`] decides who runs what, when. No sockets, no clock, no threads.
//! - [`dialect`] turns bytes into the scheduler's events, and its effects into bytes. No sockets either.
//! - [`reactor`] moves the bytes: one mio loop over every connection. It decides nothing about tasks.
//! - [`background`] carries background tasks between clients, scheduler and store.
//! - [`storage`] keeps background tasks and their results, on threads of its own.
//! - [`bus`] carries messages to and from other balancers through RabbitMQ, on threads of its own.
//!
//! ```
//! use reparto_balancer::{Balancer, Settings};
//!
//! let any_port = ([127, 0, 0, 1], 0).into();
//! let balancer = Balancer::bind(Settings { clients: any_port, workers: any_port, ..Settings::default() })?;
//! let handle = balancer.handle();
//! let serving = std::thread::spawn(move || balancer.run());
//! handle.shutdown();
//! serving.join().expect("the balancer's thread does not panic")?;
//! # Ok::<(), reparto_balancer::BalancerError>(())
//! ```

pub mod background;
pub mod bus;
pub mod dialect;
pub mod reactor;
pub mod scheduler;
pub mod storage;

pub use background::{AmqpWorker, BlobPlace, OpenedStore, SharingSettings, StorePlace, StoreSettings};
pub use dialect::lines::Upstream;
pub use reactor::{Balancer, BalancerError, Handle, Settings};
