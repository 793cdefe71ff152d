//! A task's way: assigned, answered, late, expired, cancelled, shared.

use super::*;

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
    let payload = Payload::EMPTY;
    let out = world.handle(Event::Progress {
        peer,
        assignment,
        kind: ProgressKind::Report,
        done: 3,
        total: 10,
        payload,
    });
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
fn what_a_worker_gives_up_after_the_deadline_is_expired_though_the_timer_has_not_come() {
    for finish in [Finish::Failed("too late"), Finish::Retry("too late"), Finish::NotRun] {
        let mut world = world();
        let client = world.client();
        world.worker("w", 1, 1, &["a"]);
        let out = world.submit_with(client, 1, |task| task.deadline = Some(SECOND));
        let assigned = assignments(&out)[0];
        world.now = world.now.after(SECOND);
        assert_eq!(world.finish(assigned, finish), [Out::Fail(client, 1, ErrorCode::Expired)]);
        assert!(world.scheduler.is_quiet());
    }
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
