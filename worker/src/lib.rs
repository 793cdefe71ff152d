//! A worker for Reparto: you write handlers, it runs the tasks that balancers send.
//!
//! ```
//! use std::time::Duration;
//! use reparto_worker::{Task, TaskError, Worker};
//!
//! let worker = Worker::builder()
//!     .balancer("127.0.0.1:8889")
//!     .threads(4)
//!     .action("upper", |task: &Task| {
//!         let text = std::str::from_utf8(task.payload()).map_err(|_| "upper: the text is not UTF-8")?;
//!         Ok(text.to_uppercase().into())
//!     })
//!     .action("flaky", |task: &Task| match task.attempt() {
//!         1 => Err(TaskError::retryable("not the first time")),
//!         _ => Ok("at last".into()),
//!     })
//!     .build()?;
//!
//! let handle = worker.handle();
//! std::thread::spawn(move || {
//!     // Another thread decides when it is over: finish within ten seconds, and leave.
//!     handle.stop(Duration::from_secs(10));
//! });
//! worker.run()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does for you
//!
//! - **It stays connected.** [`Worker::run`] connects to every balancer it was given and registers there. One that
//!   is not there, refuses, falls silent or goes away is tried again, after 100 ms at first and 5 s at most, each
//!   wait drawn at random. [`WorkerBuilder::on_event`] tells what happens.
//! - **It runs tasks on a pool of threads.** No task waits behind a slow one while a thread is free. Results are
//!   written together when tasks are quick, and at once when they are not.
//! - **It answers every task once**, as long as the connection lives: with the handler's result, with its error, or
//!   with a hand-back for one that never began. Results of a connection that was lost are dropped; the balancer
//!   gives those tasks to another worker.
//! - **It tells the balancer how long tasks take**, so that it is given about a millisecond of work and no more.
//! - **A handler's panic is a failed task.** The thread lives on.
//! - **It is bounded.** Tasks by the window, payloads that wait by 1 GiB, unwritten results by 4 MiB and the one
//!   that is added, frames by the balancer's limit. A result over that limit is a failed task that says so.
//!
//! # What it leaves to you
//!
//! - **Tasks may run more than once.** A worker that is lost has its tasks run elsewhere; it may have finished them.
//!   [`Task::attempt`] and [`Task::task_id`] help a handler to notice.
//! - **A cancelled handler is asked, never killed.** One that runs long should look at [`Task::is_cancelled`] or
//!   wait with [`Cancellation::wait_timeout`] instead of sleeping.
//! - **Errors are yours to sort.** [`TaskError::Final`] reaches the client as `worker_failed`;
//!   [`TaskError::Retryable`] costs an attempt and is tried again.
//!
//! # How it ends
//!
//! [`WorkerHandle::stop`] tells the balancers (DRAIN), hands back what has not begun, lets what has begun finish
//! within the grace, then cancels it, and closes. [`WorkerHandle::drain`] only takes nothing new, until
//! [`WorkerHandle::resume`]. Actions and the number of threads change without a new connection.
//!
//! # Parts
//!
//! [`builtin`] has the actions that every `reparto worker` offers; `exec` (on Unix) turns a shell command into a
//! handler. Inside, a `Link` is a connection's state, which its reader, its keeper and the pool's threads share;
//! `session` connects and reads; `pool` runs.

mod actions;
mod backoff;
pub mod builtin;
mod error;
mod event;
#[cfg(unix)]
pub mod exec;
mod held;
mod link;
mod pool;
mod service_time;
mod session;
mod task;
mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use actions::Actions;
pub use error::{ConfigError, ConnectionError, WorkerError};
pub use event::Event;
pub use task::{Cancellation, Task, TaskError};
pub use worker::{DEFAULT_BALANCER, MAX_BALANCERS, Worker, WorkerBuilder, WorkerHandle};

/// Locks. Handlers and callbacks never run under a lock of ours, so a poisoned one still guards whole state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
