//! The rules, one by one, with time moved by hand.

use std::time::Duration;

use bytes::Bytes;
use reparto_protocol::ErrorCode;

use super::*;

/// A scheduler, a clock, and what came out last.
struct World {
    scheduler: Scheduler,
    now: Time,
    peers: u32,
}

/// What came out, shortened to what tests ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Out {
    Assign(Peer, AssignmentId),
    Cancel(Peer, AssignmentId),
    Recall(Peer, AssignmentId),
    Result(Peer, u64, Bytes),
    Fail(Peer, u64, ErrorCode),
    Progress(Peer, u64, u64),
    Ack(Peer, u64),
    Ping(Peer),
    GoAway(Peer),
    Close(Peer, ErrorCode),
    Stopped,
}

impl From<Effect> for Out {
    fn from(effect: Effect) -> Out {
        match effect {
            Effect::Assign { peer, assignment } => Out::Assign(peer, assignment),
            Effect::CancelAssignment { peer, assignment, recall: false } => Out::Cancel(peer, assignment),
            Effect::CancelAssignment { peer, assignment, recall: true } => Out::Recall(peer, assignment),
            Effect::Result { peer, id, payload } => Out::Result(peer, id, payload),
            Effect::Fail { peer, id, code, .. } => Out::Fail(peer, id, code),
            Effect::Progress { peer, id, done, .. } => Out::Progress(peer, id, done),
            Effect::Acknowledge { peer, request, .. } => Out::Ack(peer, request),
            Effect::Ping { peer } => Out::Ping(peer),
            Effect::GoAway { peer } => Out::GoAway(peer),
            Effect::Close { peer, code, .. } => Out::Close(peer, code),
            Effect::Stopped => Out::Stopped,
        }
    }
}

impl World {
    fn new(config: Config) -> Self {
        World { scheduler: Scheduler::new(config), now: Time(1_000_000), peers: 0 }
    }

    fn handle(&mut self, event: Event<'_>) -> Vec<Out> {
        let mut effects = Vec::new();
        self.scheduler.handle(self.now, event, &mut effects);
        self.scheduler.assert_invariants();
        effects.into_iter().map(Out::from).collect()
    }

    /// Moves time on, stopping at every timer on the way.
    fn pass(&mut self, duration: Duration) -> Vec<Out> {
        let end = self.now.after(duration);
        let mut effects = Vec::new();
        while let Some(at) = self.scheduler.next_timer().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.scheduler.tick(self.now, &mut effects);
            self.scheduler.assert_invariants();
        }
        self.now = end;
        effects.into_iter().map(Out::from).collect()
    }

    fn peer(&mut self) -> Peer {
        self.peers += 1;
        Peer { index: self.peers - 1, generation: 1 }
    }

    fn client(&mut self) -> Peer {
        let peer = self.peer();
        assert_eq!(self.handle(Event::ClientJoined { peer }), []);
        peer
    }

    /// A worker that may hold `room` tasks.
    fn worker(&mut self, id: &str, threads: u32, room: u32, actions: &[&str]) -> Peer {
        self.worker_and_out(id, threads, room, actions).0
    }

    fn worker_and_out(&mut self, id: &str, threads: u32, room: u32, actions: &[&str]) -> (Peer, Vec<Out>) {
        let peer = self.peer();
        let mut out = self.register(peer, id, threads, room, actions);
        assert_eq!(out.remove(0), Out::Ack(peer, 1));
        (peer, out)
    }

    fn register(&mut self, peer: Peer, id: &str, threads: u32, room: u32, actions: &[&str]) -> Vec<Out> {
        let registration = Registration {
            request: 1,
            worker_id: id,
            threads,
            window: room,
            weight: 1,
            service_ns: (room > threads).then_some(1),
            actions: actions.to_vec(),
        };
        self.handle(Event::Register { peer, registration })
    }

    fn submit(&mut self, peer: Peer, id: u64, action: &str) -> Vec<Out> {
        self.handle(Event::Submit { peer, task: Submission::new(id, action, Bytes::from_static(b"x")) })
    }

    fn submit_with(&mut self, peer: Peer, id: u64, change: impl FnOnce(&mut Submission<'_>)) -> Vec<Out> {
        let mut task = Submission::new(id, "a", Bytes::from_static(b"x"));
        change(&mut task);
        self.handle(Event::Submit { peer, task })
    }

    /// Submits a task that goes straight to a worker.
    fn assigned(&mut self, client: Peer, id: u64) -> (Peer, AssignmentId) {
        match self.submit(client, id, "a")[..] {
            [Out::Assign(worker, assignment)] => (worker, assignment),
            ref other => panic!("not assigned: {other:?}"),
        }
    }

    fn finish(&mut self, (peer, assignment): (Peer, AssignmentId), finish: Finish<'_>) -> Vec<Out> {
        let payload = Bytes::from_static(b"result");
        self.handle(Event::Finished { peer, assignment, finish, service_ns: None, payload })
    }

    fn gone(&mut self, peer: Peer) -> Vec<Out> {
        self.handle(Event::Gone { peer })
    }
}

fn world() -> World {
    World::new(Config::default())
}

fn result() -> Bytes {
    Bytes::from_static(b"result")
}

fn assignments(out: &[Out]) -> Vec<(Peer, AssignmentId)> {
    out.iter()
        .filter_map(|out| match out {
            Out::Assign(peer, assignment) => Some((*peer, *assignment)),
            _ => None,
        })
        .collect()
}

const SECOND: Duration = Duration::from_secs(1);

// ---- the way of a task ----

#[test]
fn a_task_goes_to_a_worker_and_its_result_to_its_client() {
    let mut world = world();
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    let assigned = world.assigned(client, 7);
    assert_eq!(world.finish(assigned, Finish::Done), [Out::Result(client, 7, result())]);
    assert!(world.scheduler.is_quiet());
}

#[test]
fn a_task_waits_until_a_worker_has_room() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    let first = world.assigned(client, 1);
    assert_eq!(world.submit(client, 2, "a"), []);
    let out = world.finish(first, Finish::Done);
    assert_eq!(out[0], Out::Result(client, 1, result()));
    let next = assignments(&out);
    assert_eq!((next.len(), next[0].0), (1, worker));
    assert_eq!(world.finish(next[0], Finish::Done), [Out::Result(client, 2, result())]);
}

#[test]
fn a_task_waits_for_a_worker_that_offers_its_action() {
    let mut world = world();
    let client = world.client();
    world.worker("other", 1, 1, &["b"]);
    assert_eq!(world.submit(client, 1, "a"), []);
    let (worker, out) = world.worker_and_out("w", 1, 1, &["a", "b"]);
    assert_eq!(assignments(&out)[0].0, worker);
}

#[test]
fn an_action_that_nobody_offers_can_be_refused_at_once() {
    let mut world = World::new(Config { unknown_action: UnknownAction::Reject, ..Config::default() });
    let client = world.client();
    assert_eq!(world.submit(client, 1, "a"), [Out::Fail(client, 1, ErrorCode::UnknownAction)]);
    world.worker("w", 1, 1, &["a"]);
    world.assigned(client, 1);
    assert_eq!(world.submit(client, 2, "a"), []);
}

#[test]
fn the_attempt_and_the_options_reach_the_assignment() {
    let mut world = world();
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    let out = world.submit_with(client, 1, |task| {
        task.key = b"k";
        task.deadline = Some(SECOND);
    });
    let (_, assignment) = assignments(&out)[0];
    let details = world.scheduler.assignment(assignment).unwrap();
    assert_eq!((details.action, details.attempt, details.key), ("a", 1, &b"k"[..]));
    assert_eq!(details.deadline, Some(world.now.after(SECOND)));
}

#[test]
fn a_final_failure_is_told_and_not_tried_again() {
    let mut world = world();
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    let assigned = world.assigned(client, 1);
    let out = world.finish(assigned, Finish::Failed("no"));
    assert_eq!(out, [Out::Fail(client, 1, ErrorCode::WorkerFailed)]);
}

#[test]
fn a_retryable_failure_is_tried_until_the_attempts_are_used_up() {
    let mut world = world();
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    let mut assigned = world.assigned(client, 1);
    for attempt in 2..=3 {
        let out = world.finish(assigned, Finish::Retry("not now"));
        assigned = assignments(&out)[0];
        assert_eq!(world.scheduler.assignment(assigned.1).unwrap().attempt, attempt);
    }
    let out = world.finish(assigned, Finish::Retry("not now"));
    assert_eq!(out, [Out::Fail(client, 1, ErrorCode::AttemptsExhausted)]);
    assert!(world.scheduler.is_quiet());
}

#[test]
fn progress_reaches_the_client_under_its_own_number() {
    let mut world = world();
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    let (peer, assignment) = world.assigned(client, 9);
    let payload = Bytes::new();
    let out = world.handle(Event::Progress { peer, assignment, done: 3, total: 10, payload });
    assert_eq!(out, [Out::Progress(client, 9, 3)]);
}

// ---- lateness ----

#[test]
fn a_result_for_an_attempt_that_is_over_is_dropped() {
    let mut world = world();
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    let first = world.assigned(client, 1);
    world.finish(first, Finish::Done);
    let second = world.assigned(client, 2);
    assert_eq!(second.1.0 as u32, first.1.0 as u32, "the row is used again");
    assert_eq!(world.finish(first, Finish::Done), []);
    assert_eq!(world.finish(second, Finish::Done), [Out::Result(client, 2, result())]);
}

#[test]
fn a_result_from_another_worker_than_the_one_that_holds_the_task_is_dropped() {
    let mut world = world();
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    let (_, assignment) = world.assigned(client, 1);
    let other = world.worker("other", 1, 1, &["a"]);
    assert_eq!(world.finish((other, assignment), Finish::Done), []);
}

#[test]
fn events_of_a_peer_that_is_gone_are_dropped() {
    let mut world = world();
    let client = world.client();
    world.gone(client);
    assert_eq!(world.submit(client, 1, "a"), []);
    let newer = Peer { generation: 2, ..client };
    world.handle(Event::ClientJoined { peer: newer });
    assert_eq!(world.submit(client, 1, "a"), []);
    world.gone(client);
    world.worker("w", 1, 1, &["a"]);
    world.assigned(newer, 1);
}

// ---- credits ----

#[test]
fn a_worker_is_given_its_threads_until_it_tells_that_its_tasks_are_short() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 2, 2, &["a"]);
    world.register(worker, "w", 2, 100, &["a"]);
    let registration = Registration {
        request: 2,
        worker_id: "w",
        threads: 2,
        window: 100,
        weight: 1,
        service_ns: Some(100_000),
        actions: vec!["a"],
    };
    for id in 0..50 {
        world.submit(client, id, "a");
    }
    let out = world.handle(Event::Register { peer: worker, registration });
    let held = world.scheduler.workers(world.now, 0, 10)[0].in_flight;
    assert_eq!(held, 50, "a service time of 1 ns was told before: {out:?}");
    let slow = Registration {
        request: 3,
        worker_id: "slow",
        threads: 2,
        window: 100,
        weight: 1,
        service_ns: Some(100_000),
        actions: vec!["b"],
    };
    let peer = world.peer();
    world.handle(Event::Register { peer, registration: slow });
    for id in 100..150 {
        world.submit(client, id, "b");
    }
    assert_eq!(world.scheduler.workers(world.now, 1, 10)[0].in_flight, 20);
}

#[test]
fn bytes_in_flight_to_one_worker_are_bounded_and_one_task_is_always_let_through() {
    let mut world = World::new(Config { max_worker_bytes: 1_000, ..Config::default() });
    let client = world.client();
    let worker = world.worker("w", 10, 100, &["a"]);
    let large = Bytes::from(vec![0; 700]);
    for id in 0..4 {
        world.submit_with(client, id, |task| task.payload = large.clone());
    }
    assert_eq!(world.scheduler.workers(world.now, 0, 1)[0].in_flight, 2);
    world.gone(worker);
    let (_, out) = world.worker_and_out("w", 1, 1, &["a"]);
    assert_eq!(assignments(&out).len(), 1);
    let huge = World::new(Config { max_worker_bytes: 1, ..Config::default() });
    let mut world = huge;
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    world.assigned(client, 1);
}

#[test]
fn a_draining_worker_is_given_nothing_finishes_what_it_has_and_can_come_back() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 2, 2, &["a"]);
    let held = world.assigned(client, 1);
    let out = world.handle(Event::Drain { peer: worker, request: 5, resume: false });
    assert_eq!(out, [Out::Ack(worker, 5)]);
    assert_eq!(world.submit(client, 2, "a"), []);
    assert_eq!(world.finish(held, Finish::Done), [Out::Result(client, 1, result())]);
    let out = world.handle(Event::Drain { peer: worker, request: 6, resume: true });
    assert_eq!(out[0], Out::Ack(worker, 6));
    assert_eq!(assignments(&out).len(), 1);
}

#[test]
fn what_a_draining_worker_hands_back_costs_no_attempt() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 10, &["a"]);
    let held: Vec<_> = (0..3).map(|id| world.assigned(client, id)).collect();
    world.handle(Event::Drain { peer: worker, request: 5, resume: false });
    for assigned in held {
        assert_eq!(world.finish(assigned, Finish::NotRun), []);
    }
    let (_, out) = world.worker_and_out("w2", 3, 3, &["a"]);
    for (_, assignment) in assignments(&out) {
        assert_eq!(world.scheduler.assignment(assignment).unwrap().attempt, 1);
    }
}

#[test]
fn what_a_worker_hands_back_unasked_costs_an_attempt() {
    let mut world = world();
    let client = world.client();
    world.worker("w", 1, 1, &["a"]);
    let mut assigned = world.assigned(client, 1);
    for _ in 0..2 {
        assigned = assignments(&world.finish(assigned, Finish::NotRun))[0];
    }
    let out = world.finish(assigned, Finish::NotRun);
    assert_eq!(out, [Out::Fail(client, 1, ErrorCode::AttemptsExhausted)]);
}

#[test]
fn a_worker_can_change_its_actions_and_threads_without_leaving() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    let held = world.assigned(client, 1);
    assert_eq!(world.register(worker, "w", 3, 3, &["b"]), [Out::Ack(worker, 1)]);
    assert_eq!(world.submit(client, 2, "a"), [], "it no longer offers this");
    assert_eq!(assignments(&world.submit(client, 3, "b")).len(), 1);
    assert_eq!(assignments(&world.submit(client, 4, "b")).len(), 1);
    assert_eq!(world.submit(client, 5, "b"), []);
    assert_eq!(world.finish(held, Finish::Done)[0], Out::Result(client, 1, result()));
}

#[test]
fn a_second_worker_with_a_live_id_is_refused_and_welcome_once_the_first_is_gone() {
    let mut world = world();
    let first = world.worker("w", 1, 1, &["a"]);
    let second = world.peer();
    let out = world.register(second, "w", 1, 1, &["a"]);
    assert_eq!(out, [Out::Close(second, ErrorCode::DuplicateWorker)]);
    world.gone(first);
    assert_eq!(world.register(second, "w", 1, 1, &["a"]), [Out::Ack(second, 1)]);
}

#[test]
fn a_worker_may_not_change_its_id() {
    let mut world = world();
    let worker = world.worker("w", 1, 1, &["a"]);
    let out = world.register(worker, "v", 1, 1, &["a"]);
    assert_eq!(out, [Out::Close(worker, ErrorCode::BadFrame)]);
    assert_eq!(world.scheduler.totals().workers, 0);
}

// ---- losing workers ----

#[test]
fn a_lost_worker_s_tasks_go_to_the_head_of_their_queue_in_their_old_order() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 2, 4, &["a"]);
    for id in 0..4 {
        world.assigned(client, id);
    }
    assert_eq!(world.submit(client, 4, "a"), []);
    assert_eq!(world.gone(worker), []);
    let (_, out) = world.worker_and_out("w2", 5, 5, &["a"]);
    let attempts: Vec<u8> = assignments(&out)
        .iter()
        .map(|(_, assignment)| world.scheduler.assignment(*assignment).unwrap().attempt)
        .collect();
    assert_eq!(attempts, [2, 2, 1, 1, 1], "only the oldest two can have been running");
    for (id, assigned) in assignments(&out).into_iter().enumerate() {
        assert_eq!(world.finish(assigned, Finish::Done), [Out::Result(client, id as u64, result())]);
    }
}

#[test]
fn a_lost_worker_s_tasks_go_on_at_once_where_another_has_room() {
    let mut world = world();
    let client = world.client();
    let first = world.worker("w", 1, 1, &["a"]);
    world.assigned(client, 1);
    let second = world.worker("w2", 1, 1, &["a"]);
    assert_eq!(assignments(&world.gone(first))[0].0, second);
}

#[test]
fn a_poison_task_dies_with_its_third_worker_and_its_neighbours_live() {
    let mut world = world();
    let client = world.client();
    let mut worker = world.worker("w", 1, 10, &["a"]);
    for id in 0..5 {
        world.assigned(client, id);
    }
    for round in 0..3 {
        let out = world.gone(worker);
        let dead: Vec<&Out> = out.iter().filter(|out| matches!(out, Out::Fail(..))).collect();
        if round < 2 {
            assert!(dead.is_empty());
        } else {
            assert_eq!(dead, [&Out::Fail(client, 0, ErrorCode::AttemptsExhausted)]);
        }
        worker = world.worker("w", 1, 10, &["a"]);
    }
    assert_eq!(world.scheduler.workers(world.now, 0, 1)[0].in_flight, 4);
}

#[test]
fn a_silent_worker_is_asked_and_then_lost() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    world.submit_with(client, 1, |task| task.wait = Some(Duration::from_secs(1_000)));
    assert_eq!(world.pass(Duration::from_millis(4_999)), []);
    assert_eq!(world.pass(Duration::from_millis(2)), [Out::Ping(worker)]);
    assert_eq!(world.pass(Duration::from_secs(9)), []);
    assert_eq!(world.pass(SECOND), [Out::Close(worker, ErrorCode::TimedOut)]);
    assert_eq!(world.scheduler.totals().queued, 1);
}

#[test]
fn a_worker_that_is_heard_is_not_lost_however_long_its_task_runs() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    let assigned = world.assigned(client, 1);
    for _ in 0..1_000 {
        assert_eq!(world.pass(Duration::from_secs(5)), [Out::Ping(worker)]);
        world.handle(Event::Heard { peer: worker });
    }
    assert_eq!(world.finish(assigned, Finish::Done), [Out::Result(client, 1, result())]);
}

// ---- recall ----

#[test]
fn what_a_stalled_worker_has_not_begun_is_recalled_when_another_is_free() {
    let mut world = world();
    let client = world.client();
    let stalled = world.worker("stalled", 1, 10, &["a"]);
    let held: Vec<_> = (0..4).map(|id| world.assigned(client, id)).collect();
    assert_eq!(world.pass(Duration::from_millis(100)), [], "nobody else is free");
    let free = world.worker("free", 2, 2, &["a"]);
    let recalled = world.pass(Duration::from_millis(40));
    let expected: Vec<Out> = held[1..].iter().rev().map(|(_, id)| Out::Recall(stalled, *id)).collect();
    assert_eq!(recalled, expected, "the one that can be running stays");
    assert_eq!(world.pass(Duration::from_millis(100)), [], "once is enough");
    for assigned in [held[3], held[2]] {
        let next = assignments(&world.finish(assigned, Finish::NotRun));
        assert_eq!(next[0].0, free);
        assert_eq!(world.scheduler.assignment(next[0].1).unwrap().attempt, 1);
    }
    assert_eq!(world.finish(held[1], Finish::NotRun), [], "nobody has room now");
    let out = world.finish(held[0], Finish::Done);
    assert_eq!(assignments(&out)[0].0, stalled, "it delivers again");
}

#[test]
fn a_worker_that_delivers_is_not_recalled_from() {
    let mut world = world();
    let client = world.client();
    world.worker("busy", 1, 100, &["a"]);
    let mut held: Vec<_> = (0..50).map(|id| world.assigned(client, id)).collect();
    held.reverse();
    world.worker("free", 1, 1, &["a", "b"]);
    while let Some(assigned) = held.pop() {
        assert_eq!(world.pass(Duration::from_millis(10)), []);
        world.finish(assigned, Finish::Done);
    }
}

// ---- time ----

#[test]
fn a_task_waits_a_minute_for_its_first_assignment_and_no_longer() {
    let mut world = world();
    let client = world.client();
    world.submit(client, 1, "a");
    assert_eq!(world.pass(Duration::from_millis(59_999)), []);
    assert_eq!(world.pass(Duration::from_millis(3)), [Out::Fail(client, 1, ErrorCode::Expired)]);
    assert!(world.scheduler.is_quiet());
}

#[test]
fn once_assigned_a_task_may_run_and_wait_again_for_ever() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    world.assigned(client, 1);
    world.gone(worker);
    assert_eq!(world.pass(Duration::from_secs(100_000)), []);
    assert_eq!(world.scheduler.totals().queued, 1);
}

#[test]
fn a_task_with_a_deadline_waits_until_then() {
    let mut world = world();
    let client = world.client();
    world.submit_with(client, 1, |task| task.deadline = Some(Duration::from_secs(300)));
    assert_eq!(world.pass(Duration::from_secs(299)), []);
    assert_eq!(world.pass(Duration::from_secs(2)), [Out::Fail(client, 1, ErrorCode::Expired)]);
}

#[test]
fn a_running_task_s_deadline_answers_its_client_and_cancels_it_at_its_worker() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    let out = world.submit_with(client, 1, |task| task.deadline = Some(SECOND));
    let assigned = assignments(&out)[0];
    let out = world.pass(Duration::from_millis(1_002));
    assert_eq!(out, [Out::Fail(client, 1, ErrorCode::Expired), Out::Cancel(worker, assigned.1)]);
    assert_eq!(world.submit(client, 2, "a"), [], "it keeps its place until the worker answers");
    let out = world.finish(assigned, Finish::Done);
    assert_eq!(assignments(&out).len(), 1, "the late result is dropped: {out:?}");
    assert_eq!(out.len(), 1);
}

#[test]
fn a_deadline_of_nothing_expires_at_once() {
    let mut world = world();
    let client = world.client();
    world.submit_with(client, 1, |task| task.deadline = Some(Duration::ZERO));
    assert_eq!(world.pass(Duration::from_millis(3)), [Out::Fail(client, 1, ErrorCode::Expired)]);
}

// ---- cancelling and leaving ----

#[test]
fn a_cancelled_task_that_waits_is_answered_and_gone() {
    let mut world = world();
    let client = world.client();
    world.submit(client, 1, "a");
    let out = world.handle(Event::Cancel { peer: client, id: 1 });
    assert_eq!(out, [Out::Fail(client, 1, ErrorCode::Cancelled)]);
    assert!(world.scheduler.is_quiet());
}

#[test]
fn a_cancel_reaches_the_running_worker_and_the_task_keeps_its_place_there() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    let assigned = world.assigned(client, 1);
    let out = world.handle(Event::Cancel { peer: client, id: 1 });
    assert_eq!(out, [Out::Fail(client, 1, ErrorCode::Cancelled), Out::Cancel(worker, assigned.1)]);
    assert_eq!(world.submit(client, 2, "a"), []);
    assert_eq!(assignments(&world.finish(assigned, Finish::Failed("cancelled"))).len(), 1);
}

#[test]
fn to_cancel_what_has_ended_is_no_error() {
    let mut world = world();
    let client = world.client();
    assert_eq!(world.handle(Event::Cancel { peer: client, id: 1 }), []);
}

#[test]
fn a_client_that_leaves_takes_its_tasks_along() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    let assigned = world.assigned(client, 1);
    world.submit(client, 2, "a");
    assert_eq!(world.gone(client), [Out::Cancel(worker, assigned.1)]);
    assert_eq!(world.finish(assigned, Finish::Done), []);
    assert!(world.scheduler.is_quiet());
}

#[test]
fn two_tasks_of_one_number_are_refused_while_the_first_is_in_flight() {
    let mut world = world();
    let (client, other) = (world.client(), world.client());
    world.submit(client, 1, "a");
    assert_eq!(world.submit(client, 1, "a"), [Out::Fail(client, 1, ErrorCode::DuplicateTask)]);
    assert_eq!(world.submit(other, 1, "a"), [], "numbers are each client's own");
}

// ---- keys ----

fn with_key(task: &mut Submission<'_>) {
    task.key = b"same";
}

#[test]
fn tasks_of_one_action_and_key_that_meet_share_one_run() {
    let mut world = world();
    let (first, second) = (world.client(), world.client());
    world.worker("w", 5, 5, &["a", "b"]);
    let assigned = assignments(&world.submit_with(first, 1, with_key))[0];
    assert_eq!(world.submit_with(second, 8, with_key), []);
    assert_eq!(world.submit_with(first, 2, with_key), []);
    let out = world.finish(assigned, Finish::Done);
    let expected =
        [Out::Result(first, 1, result()), Out::Result(second, 8, result()), Out::Result(first, 2, result())];
    assert_eq!(out, expected);
    assert_eq!(assignments(&world.submit_with(first, 3, with_key)).len(), 1, "the run is over");
    let other_action = |task: &mut Submission<'_>| (task.key, task.action) = (b"same", "b");
    assert_eq!(assignments(&world.submit_with(first, 4, other_action)).len(), 1);
}

#[test]
fn a_shared_task_is_cancelled_only_when_the_last_who_waits_leaves() {
    let mut world = world();
    let (first, second) = (world.client(), world.client());
    let worker = world.worker("w", 1, 1, &["a"]);
    let assigned = assignments(&world.submit_with(first, 1, with_key))[0];
    world.submit_with(second, 8, with_key);
    world.submit_with(first, 2, with_key);
    assert_eq!(world.gone(first), []);
    let out = world.handle(Event::Cancel { peer: second, id: 8 });
    assert_eq!(out, [Out::Fail(second, 8, ErrorCode::Cancelled), Out::Cancel(worker, assigned.1)]);
}

#[test]
fn a_shared_task_that_waits_outlives_its_first_client() {
    let mut world = world();
    let (first, second) = (world.client(), world.client());
    world.submit_with(first, 1, with_key);
    world.submit_with(second, 8, with_key);
    world.gone(first);
    let (_, out) = world.worker_and_out("w", 1, 1, &["a"]);
    assert_eq!(world.finish(assignments(&out)[0], Finish::Done), [Out::Result(second, 8, result())]);
    assert!(world.scheduler.is_quiet());
}

// ---- bounds ----

#[test]
fn a_full_queue_refuses_by_name_and_takes_again_when_there_is_room() {
    let mut world = World::new(Config { max_tasks: 3, ..Config::default() });
    let client = world.client();
    for id in 0..3 {
        assert_eq!(world.submit(client, id, "a"), []);
    }
    assert_eq!(world.submit(client, 3, "a"), [Out::Fail(client, 3, ErrorCode::QueueFull)]);
    world.handle(Event::Cancel { peer: client, id: 0 });
    assert_eq!(world.submit(client, 3, "a"), []);
}

#[test]
fn bytes_are_bounded_as_tasks_are() {
    let mut world = World::new(Config { max_bytes: 100, ..Config::default() });
    let client = world.client();
    let payload = |bytes| move |task: &mut Submission<'_>| task.payload = Bytes::from(vec![0; bytes]);
    assert_eq!(world.submit_with(client, 1, payload(60)), []);
    assert_eq!(world.submit_with(client, 2, payload(41)), [Out::Fail(client, 2, ErrorCode::QueueFull)]);
    assert_eq!(world.submit_with(client, 3, payload(40)), []);
}

#[test]
fn one_client_that_fills_the_queue_does_not_shut_another_out() {
    let mut world = World::new(Config { max_tasks: 640, ..Config::default() });
    let (flood, other) = (world.client(), world.client());
    for id in 0..640 {
        assert_eq!(world.submit(flood, id, "a"), []);
    }
    assert_eq!(world.submit(flood, 700, "a"), [Out::Fail(flood, 700, ErrorCode::QueueFull)]);
    assert_eq!(world.submit(other, 1, "a"), []);
}

#[test]
fn action_names_are_bounded_and_forgotten_when_idle() {
    let mut world = World::new(Config { max_actions: 2, ..Config::default() });
    let client = world.client();
    world.submit(client, 1, "a");
    world.submit(client, 2, "b");
    assert_eq!(world.submit(client, 3, "c"), [Out::Fail(client, 3, ErrorCode::QueueFull)]);
    world.handle(Event::Cancel { peer: client, id: 1 });
    assert_eq!(world.submit(client, 3, "c"), []);
    let peer = world.peer();
    let out = world.register(peer, "w", 1, 1, &["b", "d"]);
    assert_eq!(out, [Out::Close(peer, ErrorCode::Overloaded)]);
}

#[test]
fn workers_are_bounded() {
    let mut world = World::new(Config { max_workers: 1, ..Config::default() });
    world.worker("w", 1, 1, &["a"]);
    let peer = world.peer();
    assert_eq!(world.register(peer, "v", 1, 1, &["a"]), [Out::Close(peer, ErrorCode::Overloaded)]);
}

// ---- order ----

/// The clients of the tasks that a lone worker is given one after the other.
fn served(world: &mut World, tasks: usize) -> Vec<(Peer, u64)> {
    let (_, out) = world.worker_and_out("w", 1, 1, &["a", "b"]);
    let mut next = assignments(&out);
    let mut order = Vec::new();
    for _ in 0..tasks {
        let out = world.finish(next[0], Finish::Done);
        let Out::Result(peer, id, _) = out[0] else { panic!("{out:?}") };
        order.push((peer, id));
        next = assignments(&out);
    }
    order
}

#[test]
fn the_higher_priority_goes_first_and_equal_ones_in_their_order() {
    let mut world = world();
    let client = world.client();
    for (id, priority) in [(1, 4), (2, 9), (3, 0), (4, 9), (5, 4)] {
        world.submit_with(client, id, |task| task.priority = priority);
    }
    let order: Vec<u64> = served(&mut world, 5).into_iter().map(|(_, id)| id).collect();
    assert_eq!(order, [2, 4, 1, 5, 3]);
}

#[test]
fn waiting_raises_a_task_s_priority() {
    let mut world = world();
    let client = world.client();
    world.submit_with(client, 1, |task| task.priority = 3);
    world.pass(Duration::from_secs(11));
    world.submit_with(client, 2, |task| task.priority = 5);
    world.submit_with(client, 3, |task| task.priority = 6);
    let order: Vec<u64> = served(&mut world, 3).into_iter().map(|(_, id)| id).collect();
    assert_eq!(order, [3, 1, 2]);
}

#[test]
fn a_client_with_few_tasks_has_its_turn_beside_one_with_many() {
    let mut world = world();
    let (many, few) = (world.client(), world.client());
    for id in 0..1_000 {
        world.submit(many, id, "a");
    }
    world.submit(few, 1, "a");
    let order = served(&mut world, 200);
    assert!(order.contains(&(few, 1)));
}

#[test]
fn a_client_of_one_action_has_its_turn_beside_a_flood_of_another_action() {
    let mut world = world();
    let (many, few) = (world.client(), world.client());
    for id in 0..1_000 {
        world.submit(many, id, "a");
    }
    world.pass(SECOND);
    world.submit(few, 1, "b");
    let order = served(&mut world, 3);
    assert!(order.contains(&(few, 1)), "{order:?}");
}

// ---- the end ----

#[test]
fn a_shutdown_answers_what_waits_and_lets_what_runs_end() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    let assigned = world.assigned(client, 1);
    world.submit(client, 2, "a");
    let out = world.handle(Event::Shutdown { grace: Duration::from_secs(10) });
    let expected = [Out::GoAway(client), Out::GoAway(worker), Out::Fail(client, 2, ErrorCode::ShuttingDown)];
    assert_eq!(out, expected);
    assert_eq!(world.submit(client, 3, "a"), [Out::Fail(client, 3, ErrorCode::ShuttingDown)]);
    assert_eq!(world.finish(assigned, Finish::Done), [Out::Result(client, 1, result()), Out::Stopped]);
}

#[test]
fn a_shutdown_waits_no_longer_than_its_grace() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    let assigned = world.assigned(client, 1);
    world.handle(Event::Shutdown { grace: SECOND });
    let out = world.pass(Duration::from_millis(1_001));
    let expected =
        [Out::Fail(client, 1, ErrorCode::ShuttingDown), Out::Cancel(worker, assigned.1), Out::Stopped];
    assert_eq!(out, expected);
    assert_eq!(world.pass(SECOND), [], "it stops once");
}

#[test]
fn a_shutdown_with_nothing_to_do_is_over_at_once() {
    let mut world = world();
    assert_eq!(world.handle(Event::Shutdown { grace: SECOND }), [Out::Stopped]);
}

#[test]
fn a_worker_lost_during_a_shutdown_answers_its_tasks() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    world.assigned(client, 1);
    world.handle(Event::Shutdown { grace: SECOND });
    assert_eq!(world.gone(worker), [Out::Fail(client, 1, ErrorCode::ShuttingDown), Out::Stopped]);
}
