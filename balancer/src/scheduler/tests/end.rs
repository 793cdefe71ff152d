//! How the scheduler stops.

use super::*;

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
