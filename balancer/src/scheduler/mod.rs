//! The scheduler: who runs what, when. A deterministic state machine without I/O, clock or threads.

mod api;

pub use api::*;

/// The state machine. See [`Scheduler::handle`].
#[derive(Debug)]
pub struct Scheduler {}

impl Scheduler {
    /// An empty scheduler.
    pub fn new(_config: Config) -> Self {
        Scheduler {}
    }

    /// Takes an event at a moment, and appends what is to be done about it.
    pub fn handle(&mut self, _now: Time, _event: Event<'_>, _effects: &mut Vec<Effect>) {}

    /// Does what is due by `now`. Call it when [`next_timer`](Self::next_timer) has come.
    pub fn tick(&mut self, _now: Time, _effects: &mut Vec<Effect>) {}

    /// When [`tick`](Self::tick) is next needed.
    pub fn next_timer(&self) -> Option<Time> {
        None
    }

    /// The details of an assignment that a worker holds.
    pub fn assignment(&self, _id: AssignmentId) -> Option<Assignment<'_>> {
        None
    }

    /// Counts, for people.
    pub fn totals(&self) -> Totals {
        Totals::default()
    }

    /// A page of the workers, in an order that stays while none comes or goes.
    pub fn workers(&self, _now: Time, _offset: usize, _limit: usize) -> Vec<WorkerStatus> {
        Vec::new()
    }

    /// A page of the actions, in an order that stays while none comes or goes.
    pub fn actions(&self, _offset: usize, _limit: usize) -> Vec<ActionStatus> {
        Vec::new()
    }
}
