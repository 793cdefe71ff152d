//! Clients of a run, through the project's library: they hand tasks in in bursts, cancel some, hand some in twice, and
//! fetch what has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use fastrand::Rng;
use reparto_client::{Accepted, Client, Fetched, Reply, TaskBuilder, TaskHandle};

use super::books::Books;
use super::plan::{Kind, Plan};

/// Most tasks that a client hands in at a time.
const MOST_IN_A_BURST: usize = 60;
/// How long outcomes are waited for before the next burst; the others are fetched in the end.
const FETCH_FOR: Duration = Duration::from_secs(1);
/// An answer that has not come by then, though the library has a connection or looks for one, does not come.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);

/// What all clients of a run share.
pub(super) struct Shared {
    pub(super) books: Books,
    pub(super) numbers: AtomicU64,
    pub(super) stop: AtomicBool,
    /// Tasks a second, each client's share.
    pub(super) rate: f64,
}

impl Shared {
    pub(super) fn next(&self) -> Plan {
        self.books.plan(self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Describes a task to the library.
pub(super) fn describe<'a>(client: &'a Client, plan: &'a Plan) -> TaskBuilder<'a> {
    let mut task = client
        .task(plan.action)
        .payload(plan.payload())
        .priority(plan.priority)
        .max_attempts(plan.max_attempts);
    if plan.kind == Kind::Foreground {
        // However long it takes to find a worker, or it would end for the wrong reason.
        return task.wait_limit(Duration::from_secs(24 * 3600));
    }
    let (first, most) = plan.backoff();
    task = task.backoff(first).max_backoff(most);
    if let Some(delay) = plan.delay {
        task = task.delay(delay);
    }
    if let Some(deadline) = plan.deadline {
        task = task.deadline(deadline);
    }
    if let Some(key) = &plan.idempotency_key {
        task = task.idempotency_key(key);
    }
    task.recorded(plan.kind == Kind::Recorded)
}

/// A task on its way.
enum Submitted {
    Background(Reply<Accepted>),
    Foreground(TaskHandle),
}

/// One client: a thread of bursts.
pub(super) struct Lane {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Client,
    /// Another connection, perhaps to another balancer: tasks with a key are handed in there as well.
    pub(super) other: Client,
    /// To whoever publishes tasks as JSON, where there is RabbitMQ.
    pub(super) to_publish: Option<Sender<Plan>>,
    pub(super) random: Rng,
}

impl Lane {
    /// Works until told to stop; what is on its way then is waited for.
    pub(super) fn run(mut self) {
        let began = Instant::now();
        let mut handed_in = 0;
        while !self.shared.stops() {
            let burst = self.random.usize(1..=MOST_IN_A_BURST);
            self.burst(burst);
            handed_in += burst;
            let due = began + Duration::from_secs_f64(handed_in as f64 / self.shared.rate.max(0.1));
            while Instant::now() < due && !self.shared.stops() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn burst(&mut self, tasks: usize) {
        let plans: Vec<Plan> = (0..tasks).map(|_| self.shared.next()).collect();
        let (published, plans): (Vec<Plan>, Vec<Plan>) =
            plans.into_iter().partition(|plan| plan.kind == Kind::Published);
        for plan in published {
            if let Some(to_publish) = &self.to_publish {
                // Whoever takes it ends after all who hand something in.
                let _ = to_publish.send(plan);
            }
        }
        let handed_in = Instant::now();
        let submitted: Vec<(&Plan, Submitted)> =
            plans.iter().filter_map(|plan| Some((plan, self.submit(plan)?))).collect();
        self.cancel_some(&submitted, handed_in);
        let mut accepted = Vec::new();
        for (plan, submitted) in &submitted {
            match submitted {
                Submitted::Background(reply) => {
                    if self.accepted(plan, reply) {
                        accepted.push(*plan);
                    }
                }
                Submitted::Foreground(handle) => self.answered(plan, handle),
            }
        }
        for plan in plans.iter().filter(|plan| plan.idempotency_key.is_some()) {
            if let Some(Submitted::Background(reply)) = self.submit_to(&self.other, plan) {
                self.accepted(plan, &reply);
            }
        }
        self.fetch(&accepted);
    }

    fn submit(&self, plan: &Plan) -> Option<Submitted> {
        self.submit_to(&self.client, plan)
    }

    fn submit_to(&self, client: &Client, plan: &Plan) -> Option<Submitted> {
        let books = &self.shared.books;
        books.submitted(plan);
        let task = describe(client, plan);
        let submitted = match plan.kind {
            Kind::Background | Kind::Published => task.submit_background().map(Submitted::Background),
            Kind::Foreground | Kind::Recorded => task.submit().map(Submitted::Foreground),
        };
        match submitted {
            Ok(submitted) => Some(submitted),
            Err(error) => {
                books.violate(Some(plan.number), format!("the library does not hand it in: {error}"));
                None
            }
        }
    }

    /// Cancels those that are to be cancelled, each in its time.
    fn cancel_some(&self, submitted: &[(&Plan, Submitted)], handed_in: Instant) {
        let books = &self.shared.books;
        let mut to_cancel: Vec<(Duration, &Plan, &Submitted)> = submitted
            .iter()
            .filter_map(|(plan, submitted)| Some((plan.cancel_after?, *plan, submitted)))
            .collect();
        to_cancel.sort_by_key(|(after, plan, _)| (*after, plan.number));
        let mut replies = Vec::new();
        for (after, plan, submitted) in to_cancel {
            std::thread::sleep((handed_in + after).saturating_duration_since(Instant::now()));
            match submitted {
                Submitted::Foreground(handle) => {
                    books.cancel_asked(plan);
                    handle.cancel();
                }
                Submitted::Background(reply) => {
                    let Some(Ok(accepted)) = reply.wait_timeout(FETCH_FOR) else { continue };
                    books.cancel_asked(plan);
                    if let Ok(reply) = self.other.cancel_task(accepted.task_id) {
                        replies.push((plan, reply));
                    }
                }
            }
        }
        for (plan, reply) in replies {
            match reply.wait_timeout(PATIENCE) {
                Some(Ok(standing)) => books.cancel_said(plan, standing.state),
                Some(Err(failure)) if failure.code == reparto_client::ErrorCode::NotFound => {
                    books.violate(Some(plan.number), "it was accepted, and a CANCEL does not find it");
                }
                Some(Err(_)) => {}
                None => books.violate(Some(plan.number), no_answer("CANCEL")),
            }
        }
    }

    /// Waits until a background task is taken in, and says whether it was.
    fn accepted(&self, plan: &Plan, reply: &Reply<Accepted>) -> bool {
        let books = &self.shared.books;
        match reply.wait_timeout(PATIENCE) {
            Some(Ok(accepted)) => {
                books.accepted(plan, accepted.task_id);
                true
            }
            Some(Err(failure)) => {
                books.not_accepted(plan, &failure);
                false
            }
            None => {
                books.violate(Some(plan.number), no_answer("background TASK"));
                false
            }
        }
    }

    /// Waits until a task that lives with its client is answered.
    fn answered(&self, plan: &Plan, handle: &TaskHandle) {
        let books = &self.shared.books;
        let outcome = handle.wait_timeout(PATIENCE);
        if plan.kind == Kind::Recorded
            && outcome.is_some()
            && let Some(id) = handle.wait_task_id()
        {
            books.accepted(plan, id);
        }
        match outcome {
            Some(outcome) => books.answered(plan, &outcome),
            None => books.violate(Some(plan.number), no_answer("TASK")),
        }
    }

    /// Fetches what ends soon.
    fn fetch(&self, accepted: &[&Plan]) {
        let books = &self.shared.books;
        let ids = accepted.iter().filter_map(|plan| Some((*plan, books.id_of(plan.number)?)));
        let asked: Vec<(&Plan, Reply<Fetched>)> =
            ids.filter_map(|(plan, id)| Some((plan, self.other.fetch(id, FETCH_FOR).ok()?))).collect();
        for (plan, reply) in asked {
            match reply.wait_timeout(PATIENCE) {
                Some(Ok(Fetched::Ended(outcome))) => books.fetched(plan, &outcome),
                Some(Err(failure)) if failure.code == reparto_client::ErrorCode::NotFound => {
                    books.violate(Some(plan.number), "it was accepted, and FETCH does not find it");
                }
                // It is fetched in the end.
                Some(Ok(Fetched::NotEnded(_)) | Err(_)) => {}
                None => books.violate(Some(plan.number), no_answer("FETCH")),
            }
        }
    }
}

fn no_answer(what: &str) -> String {
    format!("a {what} has no answer after {} s", PATIENCE.as_secs())
}
