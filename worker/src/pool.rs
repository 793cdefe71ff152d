//! The threads that run tasks. They draw tickets from one bounded channel and stay with a balancer's queue until
//! it is empty.

use std::any::Any;
use std::borrow::Cow;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use reparto_protocol::Outcome;

use crate::error::WorkerError;
use crate::link::{Finished, Job};
use crate::lock;
use crate::task::{Task, TaskError};
use crate::worker::Shared;

/// Tasks that a thread runs for one balancer while another one's tasks wait.
const TURN_TASKS: u32 = 16;

struct PoolThread {
    /// Tells the thread to end after the task that it runs.
    retired: Arc<AtomicBool>,
    /// Dropping it ends the thread when it is idle.
    _quit: Sender<Infallible>,
    handle: JoinHandle<()>,
}

/// The threads. Their number can change while they run.
#[derive(Default)]
pub(crate) struct Pool {
    threads: Mutex<Vec<PoolThread>>,
}

impl Pool {
    /// Makes the pool `count` threads large. Threads too many end after the task that they run.
    pub(crate) fn resize(&self, shared: &Arc<Shared>, count: usize) -> Result<(), WorkerError> {
        let mut threads = lock(&self.threads);
        while threads.len() < count {
            let index = threads.len();
            let (quit, quitted) = bounded(0);
            let retired = Arc::new(AtomicBool::new(false));
            let run = {
                let (shared, retired) = (Arc::clone(shared), Arc::clone(&retired));
                move || work(&shared, &retired, &quitted)
            };
            let handle = std::thread::Builder::new()
                .name(format!("task-{index}"))
                .spawn(run)
                .map_err(|source| WorkerError::Thread { purpose: "running tasks", source })?;
            threads.push(PoolThread { retired, _quit: quit, handle });
        }
        shared.threads.store(count, Ordering::Release);
        for thread in threads.drain(count..) {
            thread.retired.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Ends the threads, and waits for them if they are known to be `idle`. One whose handler does not return
    /// ends with the process.
    pub(crate) fn end(&self, shared: &Shared, idle: bool) {
        shared.threads.store(0, Ordering::Release);
        let threads = std::mem::take(&mut *lock(&self.threads));
        let retire = |thread: PoolThread| {
            thread.retired.store(true, Ordering::Release);
            thread.handle
        };
        let handles: Vec<_> = threads.into_iter().map(retire).collect();
        if idle {
            for handle in handles {
                // A thread's own panic was told by the panic hook.
                let _ = handle.join();
            }
        }
    }
}

/// What one thread does.
fn work(shared: &Shared, retired: &AtomicBool, quitted: &Receiver<Infallible>) {
    let mut seat = Task::detached("", Bytes::new());
    let tickets = &shared.tickets;
    loop {
        let balancer = match tickets.try_recv() {
            Ok(balancer) => balancer,
            Err(_) => select! {
                recv(tickets) -> ticket => match ticket {
                    Ok(balancer) => balancer,
                    Err(_) => return,
                },
                recv(quitted) -> _ => return,
            },
        };
        serve(shared, balancer, retired, &mut seat);
        if retired.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Runs a balancer's tasks until none wait, the thread is not needed any more, or it is another balancer's turn.
fn serve(shared: &Shared, balancer: usize, retired: &AtomicBool, seat: &mut Task) {
    let slot = &shared.slots[balancer];
    slot.tickets.waiting.fetch_sub(1, Ordering::AcqRel);
    let Some(link) = slot.current() else { return };
    seat.link = Some(Arc::clone(&link));
    let mut finished = None;
    let mut tasks = 0;
    loop {
        let over = shared.slots.len() > 1 && tasks >= TURN_TASKS && !shared.tickets.is_empty();
        let take = !over && !retired.load(Ordering::Acquire);
        let Some((job, place)) = link.next(finished.take(), take, &mut seat.cancellation) else {
            if !take {
                link.invite();
            }
            break;
        };
        finished = Some(run(job, place, seat));
        tasks += 1;
    }
    seat.payload = Bytes::new();
    seat.link = None;
}

/// Runs one task. `seat` is the thread's own, used again for every task.
fn run(job: Job, place: usize, seat: &mut Task) -> Finished {
    let Job { id, action, payload, attempt, deadline, key, task_id } = job;
    seat.id = id;
    seat.action = action;
    seat.payload = payload;
    seat.attempt = attempt;
    seat.deadline = deadline;
    seat.key = key;
    seat.task_id = task_id;
    let task: &Task = seat;
    let began = Instant::now();
    let returned = catch_unwind(AssertUnwindSafe(|| task.action.run(task)));
    let took = began.elapsed();
    let (outcome, message, payload) = match returned {
        Ok(Ok(payload)) => (Outcome::Done, Cow::Borrowed(""), payload),
        // The failure is most likely our own doing, and the task may well succeed elsewhere.
        Ok(Err(_)) if task.cancellation.is_stopping() => {
            (Outcome::Retry, Cow::Borrowed("the worker was stopped before the task had ended"), Bytes::new())
        }
        Ok(Err(TaskError::Final { message, payload })) => (Outcome::Failed, said(message), payload),
        Ok(Err(TaskError::Retryable { message, payload })) => (Outcome::Retry, said(message), payload),
        Err(panic) => (Outcome::Failed, panicked(task.action(), &*panic), Bytes::new()),
    };
    Finished { place, id, task_id, outcome, message, payload, took }
}

fn said(message: String) -> Cow<'static, str> {
    if message.is_empty() { "the handler gave no reason".into() } else { message.into() }
}

fn panicked(action: &str, panic: &(dyn Any + Send)) -> Cow<'static, str> {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    match text {
        Some(text) => format!("the handler of '{action}' panicked: {text}").into(),
        None => format!("the handler of '{action}' panicked").into(),
    }
}
