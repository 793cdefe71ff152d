//! Tasks that wait here and are lent to other balancers, of which one may have a worker free; and the room that there is
//! here for theirs.
//!
//! Other balancers stand here as one worker that offers nothing, so that it is never chosen: tasks are given to it by
//! [`Scheduler::lend`] alone. Until one of them says that it has a task, the limit on the task's waiting stays in force;
//! and one that nobody took comes back as if it had never been away.

use std::collections::HashMap;
use std::time::Duration;

use super::choice::Change;
use super::task::{Place, Task};
use super::wheel::NO_SLOT;
use super::{AssignmentId, Effects, Peer, Role, Scheduler, Submission, Time};

/// Tasks of an action that are looked at in search of some to lend.
const MOST_LOOKED_AT: usize = 1024;

impl Scheduler {
    /// Actions of which clients' tasks wait here, and have for `age`, or for any time where no worker here offers them;
    /// `most` of them. The `turn` says where to begin among all actions that have tasks waiting.
    pub fn waiting_actions(&self, now: Time, age: Duration, turn: usize, most: usize) -> Vec<&str> {
        let begin = turn % self.backlog.len().max(1);
        let all = self.backlog[begin..].iter().chain(&self.backlog[..begin]).take(most);
        let waits = |action: &&u32| !self.to_lend(**action, now, age, 1).is_empty();
        all.filter(waits).map(|action| &*self.actions[*action].name).collect()
    }

    /// Gives other balancers, which stand here as the worker `peer`, up to `most` tasks of an action that have waited for
    /// `age`: those that have waited longest of the highest priority. Says how many.
    pub fn lend<'a>(
        &mut self,
        now: Time,
        peer: Peer,
        action: &str,
        (age, most): (Duration, usize),
        effects: &mut impl Effects<'a>,
    ) -> usize {
        self.now = self.now.max(now);
        let (Role::Worker(worker), Some(action)) = (self.role(peer), self.find_action(action)) else {
            return 0;
        };
        if self.stopping.is_some() {
            return 0;
        }
        let row = &self.workers[worker];
        let room = usize::try_from(row.threads.saturating_sub(row.in_flight)).unwrap_or(0);
        let tasks = self.to_lend(action, self.now, age, most.min(room));
        let mut lent = 0;
        for task in tasks {
            if !self.workers[worker].has_room() {
                break;
            }
            self.lend_one(task, worker, effects);
            lent += 1;
        }
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        lent
    }

    fn to_lend(&self, action: u32, now: Time, age: Duration, most: usize) -> Vec<u32> {
        let row = &self.actions[action];
        let nobody = row.offers.workers == 0;
        let may_be_lent = |task: &Task| {
            let client = &self.clients[task.client];
            // What other balancers have lent to this one stays; background tasks travel in their own way.
            !client.gone && !client.peer.is_insider() && (nobody || now.since(task.since) >= age)
        };
        self.flows.oldest(&row.queue, &self.tasks, MOST_LOOKED_AT, most, may_be_lent)
    }

    fn lend_one<'a>(&mut self, task: u32, worker: u32, effects: &mut impl Effects<'a>) {
        self.unqueue(task);
        let peer = self.hold(task, worker);
        effects.assign(peer, self.assignment_id(task), self.details(task));
    }

    /// Another balancer has taken a lent task: it waits no longer.
    pub fn lent_is_taken(&mut self, now: Time, assignment: AssignmentId) {
        self.now = self.now.max(now);
        let Some(task) = self.task_of(assignment) else { return };
        let deadline = self.tasks.deadline(task);
        self.wheel.clear(&mut self.tasks, task);
        if deadline != Task::NEVER && self.tasks[task].is_wanted() {
            self.wheel.set(&mut self.tasks, task, deadline);
        }
    }

    /// A lent task was not run, and comes back at no cost.
    pub fn lent_comes_back<'a>(
        &mut self,
        now: Time,
        peer: Peer,
        assignment: AssignmentId,
        effects: &mut impl Effects<'a>,
    ) {
        self.now = self.now.max(now);
        let Role::Worker(worker) = self.role(peer) else { return };
        let Some(task) =
            self.task_of(assignment).filter(|task| self.tasks[*task].place() == Place::Held(worker))
        else {
            return;
        };
        let action = self.tasks[task].action;
        self.take_back(task, worker);
        if self.tasks[task].timer_slot == NO_SLOT && self.tasks[task].is_wanted() {
            // It had been taken, and now waits anew.
            let until = self.now.after(self.config.default_wait);
            let until = until.min(self.tasks.deadline(task));
            self.wheel.set(&mut self.tasks, task, until);
        }
        self.requeue(task, effects);
        self.choice.update(&mut self.workers, &mut self.actions, worker, Change::Other);
        self.serve(action, effects);
        if self.stopping.is_some() {
            self.stop_if_quiet(effects);
        }
    }

    /// Takes in what another balancer has lent, for the client `peer`: this attempt and no other, of which its worker is
    /// told the number that its lender has given it.
    pub fn host<'a>(
        &mut self,
        now: Time,
        peer: Peer,
        task: Submission<'_>,
        attempt: u8,
        effects: &mut impl Effects<'a>,
    ) {
        self.now = self.now.max(now);
        let Role::Client(client) = self.role(peer) else { return };
        let attempt = attempt.max(1);
        let task = Submission { max_attempts: attempt, ..task };
        self.submit_after(client, &task, attempt - 1, effects);
    }

    /// Whether a worker here would be given a task of this action at once, or sleeps and would be woken for it.
    pub fn has_room_for(&self, action: &str) -> bool {
        let Some(row) = self.find_action(action).map(|action| &self.actions[action]) else { return false };
        let somebody = || self.choice.pick(&row.offers).or_else(|| self.choice.pick_asleep(&row.offers));
        self.stopping.is_none() && row.queue.is_empty() && somebody().is_some()
    }

    /// For each action that workers here offer: how many tasks of it they would be given at once. A worker that offers
    /// several actions counts for each, and one that sleeps as one task.
    pub fn free_room(&self) -> Vec<(&str, usize)> {
        let mut room: HashMap<u32, usize> = HashMap::new();
        for (_, worker) in self.workers.iter() {
            let free = worker.free_room() + usize::from(worker.may_be_woken());
            for action in self.choice.actions(worker.group) {
                *room.entry(*action).or_default() += free;
            }
        }
        room.into_iter().map(|(action, free)| (&*self.actions[action].name, free)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{Config, Effect, Event, Finish, Payload, Pull, Registration};
    use reparto_protocol::ErrorCode;

    const CLIENT: Peer = Peer { index: 0, generation: 1 };
    const WORKER: Peer = Peer { index: 1, generation: 1 };
    const OTHERS: Peer = Peer::insider(0);
    const GUESTS: Peer = Peer::insider(1);

    struct Bench(Scheduler);

    impl Bench {
        fn new() -> Bench {
            let mut bench = Bench(Scheduler::new(Config::default()));
            bench.at(0, Event::ClientJoined { peer: CLIENT });
            bench.at(0, Event::ClientJoined { peer: GUESTS });
            bench.register(OTHERS, "others", 100, vec![]);
            bench
        }

        fn at(&mut self, ms: u64, event: Event<'static>) -> Vec<Effect<'static>> {
            let mut effects = Vec::new();
            self.0.handle(Time(ms * 1000), event, &mut effects);
            self.0.assert_invariants();
            effects
        }

        fn register(&mut self, peer: Peer, worker_id: &str, threads: u32, actions: Vec<&'static str>) {
            let registration = Registration {
                request: 1,
                worker_id,
                threads,
                window: threads,
                weight: 1,
                service_ns: None,
                heartbeats: true,
                actions,
                held: vec![],
            };
            self.0.handle(Time(0), Event::Register { peer, registration }, &mut Vec::new());
        }

        fn submit(&mut self, ms: u64, peer: Peer, id: u64) -> Vec<Effect<'static>> {
            self.at(ms, Event::Submit { peer, task: Submission::new(id, "a", Payload::new(b"x")) })
        }

        fn lend(&mut self, ms: u64, age_ms: u64, most: usize) -> Vec<AssignmentId> {
            let mut effects: Vec<Effect<'static>> = Vec::new();
            let age = Duration::from_millis(age_ms);
            let lent = self.0.lend(Time(ms * 1000), OTHERS, "a", (age, most), &mut effects);
            self.0.assert_invariants();
            let ids: Vec<_> = effects
                .iter()
                .filter_map(|effect| match effect {
                    Effect::Assign { peer: OTHERS, assignment } => Some(*assignment),
                    _ => None,
                })
                .collect();
            assert_eq!(ids.len(), lent);
            ids
        }

        fn tick(&mut self, ms: u64) -> Vec<Effect<'static>> {
            let mut effects = Vec::new();
            self.0.tick(Time(ms * 1000), &mut effects);
            self.0.assert_invariants();
            // Whoever speaks for the other balancers is there.
            effects.retain(|effect| !matches!(effect, Effect::Ping { .. }));
            self.at(ms, Event::Heard { peer: OTHERS });
            effects
        }
    }

    #[test]
    fn what_no_worker_here_offers_is_lent_at_once_and_its_result_comes_once() {
        let mut bench = Bench::new();
        bench.submit(1, CLIENT, 7);
        assert_eq!(bench.0.waiting_actions(Time(1000), Duration::from_secs(1), 0, 10), ["a"]);
        let lent = bench.lend(1, 1000, 10);
        assert_eq!(lent.len(), 1);
        assert!(bench.0.waiting_actions(Time(1000), Duration::ZERO, 5, 10).is_empty());
        let done = || Event::Finished {
            peer: OTHERS,
            assignment: lent[0],
            finish: Finish::Done,
            service_ns: None,
            payload: Payload::new(b"X"),
        };
        let result = Effect::Result { peer: CLIENT, id: 7, payload: Payload::new(b"X") };
        assert_eq!(bench.at(2, done()), [result]);
        assert_eq!(bench.at(3, done()), []);
    }

    #[test]
    fn what_workers_here_may_soon_take_is_lent_only_after_a_while_and_others_guests_never() {
        let mut bench = Bench::new();
        bench.register(WORKER, "w", 1, vec!["a"]);
        bench.submit(1, CLIENT, 1);
        bench.submit(1, GUESTS, 1);
        bench.submit(2, CLIENT, 2);
        assert!(bench.lend(20, 20, 10).is_empty());
        assert_eq!(bench.lend(22, 20, 10).len(), 1);
        assert!(bench.lend(60_000, 20, 10).is_empty(), "what another balancer has lent to this one stays");
    }

    #[test]
    fn a_lent_task_that_nobody_takes_waits_no_longer_than_it_may_and_costs_no_attempt_when_it_comes_back() {
        let mut bench = Bench::new();
        bench.submit(0, CLIENT, 1);
        let lent = bench.lend(1, 0, 10)[0];
        bench.0.lent_comes_back(Time(2000), OTHERS, lent, &mut Vec::new());
        bench.0.assert_invariants();
        let lent = bench.lend(3, 0, 10)[0];
        assert_eq!(bench.0.assignment(lent).map(|details| details.attempt), Some(1));
        let effects = bench.tick(60_001);
        assert!(
            matches!(effects[..], [Effect::Fail { id: 1, .. }, Effect::CancelAssignment { .. }]),
            "{effects:?}"
        );
        bench.0.lent_comes_back(Time(60_002_000), OTHERS, lent, &mut Vec::new());
        bench.0.assert_invariants();
        assert!(bench.0.is_quiet());
    }

    #[test]
    fn a_lent_task_that_was_taken_has_time_and_one_whose_balancer_is_lost_has_spent_an_attempt() {
        let mut bench = Bench::new();
        bench.submit(0, CLIENT, 1);
        let lent = bench.lend(1, 0, 10)[0];
        bench.0.lent_is_taken(Time(2000), lent);
        assert_eq!(bench.tick(70_000), []);
        let lost = Event::Finished {
            peer: OTHERS,
            assignment: lent,
            finish: Finish::Retry("lost"),
            service_ns: None,
            payload: Payload::EMPTY,
        };
        bench.at(70_001, lost);
        let lent = bench.lend(70_002, 0, 10)[0];
        assert_eq!(bench.0.assignment(lent).map(|details| details.attempt), Some(2));
        // Taken, and given back without having been run: it waits anew, and not for ever.
        bench.0.lent_is_taken(Time(70_003_000), lent);
        bench.0.lent_comes_back(Time(70_004_000), OTHERS, lent, &mut Vec::new());
        bench.0.assert_invariants();
        let expired = bench.tick(140_000);
        assert!(expired.iter().any(|effect| matches!(effect, Effect::Fail { id: 1, .. })), "{expired:?}");
    }

    #[test]
    fn a_worker_that_sleeps_until_there_is_a_task_is_room_and_its_run_is_the_lenders_attempt() {
        let mut bench = Bench::new();
        bench.at(0, Event::PullerJoined { peer: WORKER, from: None });
        bench.at(0, Event::Pull { peer: WORKER, pull: Pull::CanDo { action: "a", limit: None } });
        assert!(!bench.0.has_room_for("a"));
        bench.at(0, Event::Pull { peer: WORKER, pull: Pull::Sleep });
        assert!(bench.0.has_room_for("a"));
        assert_eq!(bench.0.free_room(), [("a", 1)]);
        let mut effects: Vec<Effect<'static>> = Vec::new();
        let task = Submission::new(7, "a", Payload::new(b"x"));
        bench.0.host(Time(1000), GUESTS, task, 3, &mut effects);
        assert_eq!(effects, [Effect::Wake { peer: WORKER }]);
        assert!(!bench.0.has_room_for("a"));
        let given = bench.at(2, Event::Pull { peer: WORKER, pull: Pull::Grab { form: 0 } });
        let [Effect::Assign { assignment, .. }] = given[..] else { panic!("{given:?}") };
        assert_eq!(bench.0.assignment(assignment).map(|details| details.attempt), Some(3));
        let finish = Finish::Retry("so");
        let payload = Payload::EMPTY;
        let ended =
            bench.at(3, Event::Finished { peer: WORKER, assignment, finish, service_ns: None, payload });
        assert!(
            matches!(ended[..], [Effect::Fail { peer: GUESTS, code: ErrorCode::AttemptsExhausted, .. }]),
            "{ended:?}"
        );
    }

    #[test]
    fn free_room_is_what_workers_would_be_given_at_once() {
        let mut bench = Bench::new();
        bench.register(WORKER, "w", 3, vec!["a", "b"]);
        bench.submit(1, CLIENT, 1);
        let mut room = bench.0.free_room();
        room.sort_unstable();
        assert_eq!(room, [("a", 2), ("b", 2)]);
        assert!(bench.0.has_room_for("a") && !bench.0.has_room_for("c"));
        bench.submit(1, CLIENT, 2);
        bench.submit(1, CLIENT, 3);
        assert!(!bench.0.has_room_for("b"));
    }
}
