//! Background tasks: what the store is told, when they are tried again, and what workers still hold of them.

use super::*;

const ID: BackgroundId = [7; 16];

fn task(id: BackgroundId) -> BackgroundTask<'static> {
    BackgroundTask {
        id,
        action: "a",
        payload: Payload::new(b"x"),
        priority: 4,
        deadline: None,
        max_attempts: 3,
        key: b"",
        spent: 0,
        backoff_first_ms: 1000,
        backoff_most_ms: 60_000,
        holder: None,
    }
}

fn note(attempts: u8, said: &str) -> Out {
    Out::Note(ID, attempts, said.to_owned())
}

impl World {
    fn enter(&mut self, task: BackgroundTask<'_>) -> Vec<Out> {
        self.handle(Event::Enter { task })
    }

    fn register_holding(&mut self, id: &str, held: &[BackgroundId]) -> (Peer, Vec<Out>) {
        let peer = self.peer();
        let registration = Registration { held: held.to_vec(), ..plain(id, 1, 1, &["a"]) };
        let mut out = self.handle(Event::Register { peer, registration });
        assert_eq!(out.remove(0), Out::Ack(peer, 1));
        (peer, out)
    }

    fn holds_none(&self) -> bool {
        self.scheduler.background() == (0, 0)
    }
}

#[test]
fn a_background_task_runs_without_a_client_and_its_end_is_noted_once() {
    let mut world = world();
    assert_eq!(world.enter(task(ID)), [], "it waits, and for as long as it takes");
    assert_eq!(world.pass(Duration::from_secs(3600)), []);
    let (_, out) = world.worker_and_out("w", 1, 1, &["a"]);
    let given = assignments(&out)[0];
    assert_eq!(world.scheduler.background(), (1, 1));
    assert_eq!(world.finish(given, Finish::Done), [note(1, "done result")]);
    assert_eq!(world.finish(given, Finish::Done), []);
    assert!(world.holds_none() && world.scheduler.is_quiet());
}

#[test]
fn one_that_is_held_already_is_not_taken_in_again() {
    let mut world = world();
    world.enter(task(ID));
    assert_eq!(world.enter(task(ID)), []);
    assert_eq!(world.scheduler.background().0, 1);
}

#[test]
fn a_task_that_runs_for_a_second_is_noted_as_started_and_a_shorter_one_is_not() {
    let mut world = world();
    let (worker, _) = world.worker_and_out("w", 1, 1, &["a"]);
    let given = assignments(&world.enter(task(ID)))[0];
    assert_eq!(world.pass(Duration::from_millis(900)), []);
    assert_eq!(world.pass(Duration::from_millis(200)), [note(0, "started")]);
    assert_eq!(given.0, worker);
    let out = world.finish(given, Finish::Failed("no"));
    assert_eq!(out, [note(1, "failed worker_failed: no")]);
}

#[test]
fn a_failed_attempt_goes_to_the_store_until_its_backoff_is_over_and_the_last_one_is_its_end() {
    let mut world = world();
    let (worker, _) = world.worker_and_out("w", 1, 1, &["a"]);
    for spent in 0..2 {
        let given = assignments(&world.enter(BackgroundTask { spent, ..task(ID) }))[0];
        assert_eq!(world.finish(given, Finish::Retry("busy")), [note(spent + 1, "retry later, w: busy")]);
        assert!(world.holds_none());
    }
    let given = assignments(&world.enter(BackgroundTask { spent: 2, ..task(ID) }))[0];
    assert_eq!(given.0, worker);
    let out = world.finish(given, Finish::Retry("busy"));
    assert_eq!(out, [note(3, "dead attempts_exhausted: 3 attempts used up; the last one: busy")]);
    assert!(world.scheduler.is_quiet());
}

#[test]
fn without_a_backoff_it_is_tried_again_at_once() {
    let mut world = world();
    let (worker, _) = world.worker_and_out("w", 1, 1, &["a"]);
    let given = assignments(&world.enter(BackgroundTask { backoff_first_ms: 0, ..task(ID) }))[0];
    let out = world.finish(given, Finish::Retry("busy"));
    assert_eq!(out[0], note(1, "retry at once, w: busy"));
    assert_eq!(assignments(&out)[0].0, worker);
}

#[test]
fn a_lost_worker_costs_an_attempt_and_no_wait() {
    let mut world = world();
    let (worker, _) = world.worker_and_out("w", 1, 1, &["a"]);
    world.enter(task(ID));
    assert_eq!(world.pass(Duration::from_millis(1100)), [note(0, "started")]);
    assert_eq!(world.gone(worker), [note(1, "retry at once, w: its worker 'w' was lost")]);
    let (_, out) = world.worker_and_out("w2", 1, 1, &["a"]);
    assert_eq!(assignments(&out).len(), 1);
}

#[test]
fn a_deadline_ends_it_in_the_queue_and_at_a_worker() {
    let mut world = world();
    world.enter(BackgroundTask { deadline: Some(SECOND), ..task(ID) });
    let out = world.pass(2 * SECOND);
    assert!(matches!(&out[..], [Out::Note(ID, 0, said)] if said.starts_with("expired expired")), "{out:?}");
    let (worker, _) = world.worker_and_out("w", 1, 1, &["a"]);
    let given = assignments(&world.enter(BackgroundTask { deadline: Some(3 * SECOND), ..task(ID) }))[0];
    let out = world.pass(4 * SECOND);
    assert_eq!(out[0], note(0, "started"));
    assert!(matches!(&out[1], Out::Note(ID, 0, said) if said.starts_with("expired")), "{out:?}");
    assert_eq!(out[2], Out::Cancel(worker, given.1));
    assert_eq!(world.finish(given, Finish::Done), [], "it is too late");
    assert!(world.scheduler.is_quiet());
}

#[test]
fn a_withdrawn_task_is_cancelled_at_its_worker_and_noted_no_more() {
    let mut world = world();
    world.enter(task(ID));
    assert_eq!(world.handle(Event::Withdraw { id: ID }), []);
    let (worker, _) = world.worker_and_out("w", 1, 1, &["a"]);
    let given = assignments(&world.enter(task(ID)))[0];
    assert_eq!(world.handle(Event::Withdraw { id: ID }), [Out::Cancel(worker, given.1)]);
    assert_eq!(world.finish(given, Finish::Done), []);
    assert!(world.scheduler.is_quiet());
}

#[test]
fn background_tasks_take_turns_with_clients() {
    let mut world = world();
    for number in 0..200u8 {
        world.enter(task([number; 16]));
    }
    let client = world.client();
    for id in 0..200 {
        world.submit(client, id + 1, "a");
    }
    let (mut given, _) = (Vec::new(), ());
    let (_, out) = world.worker_and_out("w", 1, 1, &["a"]);
    let mut next = assignments(&out)[0];
    for _ in 0..200 {
        let out = world.finish(next, Finish::Done);
        given.push(matches!(out[0], Out::Note(..)));
        next = assignments(&out)[0];
    }
    let background = given.iter().filter(|background| **background).count();
    assert!((60..=140).contains(&background), "{background} of 200 were background tasks");
}

#[test]
fn what_a_worker_names_that_comes_back_is_its_own_again_and_costs_no_attempt() {
    let mut world = world();
    world.enter(task(ID));
    let (worker, out) = world.register_holding("w", &[ID]);
    let given = assignments(&out)[0];
    assert_eq!(given.0, worker);
    assert!(world.scheduler.assignment(given.1).is_some_and(|details| details.task_id == Some(ID)));
    assert_eq!(world.finish(given, Finish::Done), [note(1, "done result")]);
}

#[test]
fn what_a_worker_names_that_is_not_known_here_is_asked_for() {
    let mut world = world();
    let (worker, out) = world.register_holding("w", &[ID, [8; 16]]);
    assert_eq!(out, [Out::Claim(worker, ID), Out::Claim(worker, [8; 16])]);
    let out = world.enter(BackgroundTask { holder: Some(worker), ..task(ID) });
    assert_eq!(assignments(&out)[0].0, worker);
    let out = world.handle(Event::Unclaimed { peer: worker, id: [8; 16] });
    assert_eq!(out, [Out::Unwanted(worker, [8; 16])]);
    world.gone(worker);
    assert_eq!(world.handle(Event::Unclaimed { peer: worker, id: [8; 16] }), []);
}

#[test]
fn what_another_has_been_given_meanwhile_is_not_wanted_from_the_one_who_comes_back() {
    let mut world = world();
    world.worker_and_out("w1", 1, 1, &["a"]);
    world.enter(task(ID));
    let (late, out) = world.register_holding("w2", &[ID]);
    assert_eq!(out, [Out::Unwanted(late, ID)]);
}

#[test]
fn a_task_whose_holder_has_left_before_it_came_in_waits_for_others() {
    let mut world = world();
    let (worker, _) = world.register_holding("w", &[ID]);
    world.gone(worker);
    let out = world.enter(BackgroundTask { holder: Some(worker), ..task(ID) });
    assert_eq!(out, [note(0, "requeued")]);
    assert_eq!(world.scheduler.background_runs(&ID), Some(false));
}

#[test]
fn a_shutdown_leaves_background_tasks_to_the_store_but_notes_what_ends_within_its_grace() {
    let mut world = world();
    let (worker, _) = world.worker_and_out("w", 2, 2, &["a"]);
    let given = assignments(&world.enter(task(ID)))[0];
    world.enter(task([8; 16]));
    world.enter(task([9; 16]));
    let out = world.handle(Event::Shutdown { grace: 10 * SECOND });
    assert_eq!(out, [Out::GoAway(worker)]);
    assert_eq!(world.finish(given, Finish::Done), [note(1, "done result")]);
    let out = world.pass(11 * SECOND);
    assert!(!out.iter().any(|out| matches!(out, Out::Cancel(..) | Out::Fail(..))), "{out:?}");
    assert_eq!(out.last(), Some(&Out::Stopped));
    assert!(world.holds_none());
}
