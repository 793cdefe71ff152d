//! The library for submitting tasks to a Reparto balancer.
//!
//! What it does: keeps one connection to a balancer, with as many tasks in flight on it as you like, from as
//! many threads as you like; finds another balancer when that one is lost; tells how every task ended. What it
//! leaves to you: what the tasks mean. It needs no runtime; beside your threads it runs two of its own for a
//! connection, and one while it looks for a balancer.
//!
//! # One task
//!
//! ```no_run
//! use reparto_client::Client;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(["127.0.0.1:8888"])?;
//! let task = client.submit("upper", "hola")?;
//! assert_eq!(task.wait()?, "HOLA");
//! # Ok(())
//! # }
//! ```
//!
//! [`Client::submit`] does not wait for the network. The [`TaskHandle`] that it gives can be waited for, looked
//! at, cancelled, asked for progress, or awaited in any async runtime:
//!
//! ```no_run
//! # async fn example(client: reparto_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let (one, other) = (client.submit("fib", "30")?, client.submit("fib", "31")?);
//! println!("{:?} {:?}", one.await?, other.await?);
//! # Ok(())
//! # }
//! ```
//!
//! # Options
//!
//! ```no_run
//! use std::time::Duration;
//! # fn example(client: &reparto_client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let task = client
//!     .task("thumbnail")
//!     .payload(std::fs::read("photo.jpg")?)
//!     .priority(9)
//!     .deadline(Duration::from_secs(10))
//!     .key("photo.jpg")
//!     .safe_to_repeat(true)
//!     .submit()?;
//! # task.wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Many tasks
//!
//! A [`CompletionQueue`] gives the outcomes of many tasks back in batches, as they come. It costs no handle a
//! task and is the way to hundreds of thousands of them a second:
//!
//! ```no_run
//! # fn example(client: &reparto_client::Client) -> Result<(), reparto_client::ClientError> {
//! let queue = client.completion_queue(1_024);
//! std::thread::scope(|scope| {
//!     scope.spawn(|| {
//!         for line in 0..1_000_000u64 {
//!             let text = line.to_string();
//!             if queue.submit(line, client.task("echo").payload_slice(text.as_bytes())).is_err() {
//!                 break;
//!             }
//!         }
//!         queue.close();
//!     });
//!     let mut batch = Vec::new();
//!     while queue.recv_batch(&mut batch) {
//!         for completion in batch.drain(..) {
//!             println!("{} {:?}", completion.tag, completion.outcome);
//!         }
//!     }
//! });
//! # Ok(())
//! # }
//! ```
//!
//! # Background tasks
//!
//! A background task outlives its client and the balancer. Once it is durable it has an id, by which anyone can ask
//! for its outcome, wait for it, or cancel it:
//!
//! ```no_run
//! use reparto_client::{Client, Fetched};
//! use std::time::Duration;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(["127.0.0.1:8888"])?;
//! let task = client.task("upper").payload("hola").idempotency_key("order-17");
//! let id = task.submit_background()?.wait()?.task_id;
//! // Later, elsewhere, after a restart of everything:
//! let Fetched::Ended(outcome) = client.fetch(id, Duration::from_secs(30))?.wait()? else {
//!     return Err("it takes longer".into());
//! };
//! assert_eq!(outcome?, "HOLA");
//! # Ok(())
//! # }
//! ```
//!
//! They may begin [later](TaskBuilder::delay), at [some moment](TaskBuilder::start_at), and wait
//! [longer and longer](TaskBuilder::backoff) between attempts. [`Client::describe`] tells a task's history,
//! [`Client::tasks`] lists them; a task whose attempts are used up is dead until it is
//! [retried](Client::retry_task) or [dropped](Client::drop_task). [`Client::accepted_queue`] hands in many. A task
//! that somebody waits for can be [recorded](TaskBuilder::recorded) as well.
//!
//! # When something breaks
//!
//! - A task that the balancer or its worker refuses or fails ends with a [`TaskFailure`], whose
//!   [`code`](TaskFailure::code) is for programs and whose message is for people.
//! - A connection that ends takes its tasks along: they end with `connection_lost`, for nobody knows whether they
//!   ran. Those marked [`safe_to_repeat`](TaskBuilder::safe_to_repeat) are sent again on the next connection, and so
//!   are background tasks with an [`idempotency_key`](TaskBuilder::idempotency_key).
//! - Tasks submitted while there is no connection wait for one, up to
//!   [`reconnect_for`](ClientBuilder::reconnect_for). The search goes over all addresses, from the last good one
//!   on, with pauses of random length that grow to two seconds.
//! - A balancer that goes away (GOAWAY) finishes what it has; new tasks go to another one meanwhile.
//! - A balancer that says nothing while answers are due is asked with PING, and given up when it stays silent.
//!
//! # Bounds
//!
//! [`max_in_flight`](ClientBuilder::max_in_flight) bounds the tasks in flight, and
//! [`max_buffered_bytes`](ClientBuilder::max_buffered_bytes) the bytes that are not yet sent; at a bound
//! [`submit`](TaskBuilder::submit) waits, and [`try_submit`](TaskBuilder::try_submit) answers
//! [`ClientError::Full`]. A payload that the balancer would not take is refused here already. What the balancer
//! sends is bounded by the limit that it greeted with, and memory grows only with what really came.
//! Outcomes that you do not take are yours to bound: a completion queue does it by its capacity.

mod answer;
mod background;
mod cell;
mod client;
mod completer;
mod completion;
mod config;
mod connect;
mod connection;
mod error;
mod handle;
mod output;
mod request;
mod shared;
mod slab;
mod state;
mod status;
mod sync;
mod task_id;
mod task_request;

pub use background::{
    Accepted, FailedAttempt, Fetched, TaskDescription, TaskFilter, TaskPage, TaskStanding, Tasks,
};
pub use client::{Client, TaskBuilder};
pub use completion::{Completion, CompletionQueue};
pub use config::{
    ClientBuilder, DEFAULT_CONNECT_TIMEOUT, DEFAULT_MAX_BUFFERED_BYTES, DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_RECONNECT_FOR,
};
pub use error::{ClientError, ConnectAttempt, ConnectError, ConnectFailure, TaskFailure, TaskOutcome};
pub use handle::{ProgressReport, Reply, TaskHandle};
pub use reparto_protocol::{ErrorCode, TaskState};
pub use status::{ActionStatus, EngineStatus, Status, Totals, WorkerStatus};
pub use task_id::{BadTaskId, TaskId};
