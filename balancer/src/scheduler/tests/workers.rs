//! Workers: their credits, how they change, how they are lost, what is recalled from them.

use super::*;

// ---- credits ----

#[test]
fn a_worker_is_given_its_threads_until_it_tells_that_its_tasks_are_short() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 2, 2, &["a"]);
    world.register(worker, "w", 2, 100, &["a"]);
    let service_ns = Some(100_000);
    let registration = Registration { request: 2, service_ns, ..plain("w", 2, 100, &["a"]) };
    for id in 0..50 {
        world.submit(client, id, "a");
    }
    let out = world.handle(Event::Register { peer: worker, registration });
    let held = world.scheduler.workers(world.now, 0, 10)[0].in_flight;
    assert_eq!(held, 50, "a service time of 1 ns was told before: {out:?}");
    let slow = Registration { request: 3, service_ns, ..plain("slow", 2, 100, &["b"]) };
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
    let large = [0; 700];
    for id in 0..4 {
        world.submit_with(client, id, |task| task.payload = Payload::new(&large));
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
fn a_worker_without_heartbeats_is_neither_asked_nor_lost_and_recall_works_all_the_same() {
    let mut world = world();
    let client = world.client();
    let worker = world.peer();
    let registration = Registration { service_ns: Some(1), heartbeats: false, ..plain("w", 1, 4, &["a"]) };
    world.handle(Event::Register { peer: worker, registration });
    assert_eq!(world.pass(Duration::from_secs(100_000)), []);
    let assigned = world.assigned(client, 1);
    assert_eq!(world.pass(Duration::from_secs(100_000)), []);
    assert_eq!(world.finish(assigned, Finish::Done), [Out::Result(client, 1, result())]);
    for id in 2..5 {
        world.assigned(client, id);
    }
    world.worker("free", 1, 1, &["a"]);
    let recalled = world.pass(Duration::from_secs(1));
    assert_eq!(recalled.len(), 2, "what it has not begun, and no question: {recalled:?}");
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

#[test]
fn no_worker_is_lost_unasked_when_the_balancer_itself_stood_still() {
    let mut world = world();
    let worker = world.worker("w", 1, 1, &["a"]);
    world.now = world.now.after(60 * SECOND);
    assert_eq!(world.tick(), [Out::Ping(worker)]);
    assert_eq!(world.pass(Duration::from_secs(9)), []);
    world.now = world.now.after(60 * SECOND);
    assert_eq!(world.tick(), [Out::Ping(worker)], "its answer may wait to be read");
    world.handle(Event::Heard { peer: worker });
    assert_eq!(world.pass(Duration::from_secs(4)), []);
    assert_eq!(world.pass(SECOND), [Out::Ping(worker)]);
    assert_eq!(world.pass(Duration::from_secs(9)), []);
    assert_eq!(world.pass(SECOND), [Out::Close(worker, ErrorCode::TimedOut)]);
}

#[test]
fn a_worker_that_was_asked_whether_it_is_there_is_given_nothing_until_it_answers() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("w", 1, 1, &["a"]);
    assert_eq!(world.pass(Duration::from_secs(6)), [Out::Ping(worker)]);
    assert_eq!(world.submit(client, 1, "a"), []);
    assert_eq!(assignments(&world.handle(Event::Heard { peer: worker })).len(), 1);
}

#[test]
fn a_task_spends_no_attempts_on_workers_that_fall_silent_together() {
    let mut world = world();
    let client = world.client();
    for id in ["u", "v", "w", "x"] {
        world.worker(id, 2, 2, &["a"]);
    }
    world.submit_with(client, 1, |task| task.wait = Some(60 * SECOND));
    let out = world.pass(20 * SECOND);
    assert_eq!(out.iter().filter(|out| matches!(out, Out::Close(..))).count(), 4);
    let (_, out) = world.worker_and_out("y", 1, 1, &["a"]);
    let (_, assignment) = assignments(&out)[0];
    assert_eq!(world.scheduler.assignment(assignment).map(|details| details.attempt), Some(2));
}

#[test]
fn whatever_heartbeat_and_silence_are_set_time_goes_on() {
    let settings = [(0, 0), (0, 5), (5, 0), (5, 5), (10, 5)];
    for (heartbeat, silence) in settings.map(|(a, b)| (Duration::from_secs(a), Duration::from_secs(b))) {
        let mut world = World::new(Config { heartbeat, silence, ..Config::default() });
        world.worker("w", 1, 1, &["a"]);
        let mut ticks = 0;
        let end = world.now.after(10 * SECOND);
        while let Some(at) = world.scheduler.next_timer().filter(|at| *at <= end) {
            world.now = world.now.max(at);
            world.tick();
            ticks += 1;
            assert!(ticks < 20_000, "{heartbeat:?} {silence:?}");
        }
    }
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

#[test]
fn a_stalled_worker_is_asked_for_all_that_it_has_not_begun_a_part_at_a_time() {
    let mut world = world();
    let client = world.client();
    world.worker("stalled", 1, 1_001, &["a"]);
    for id in 0..1_001 {
        world.assigned(client, id);
    }
    let free = world.worker("free", 1_000, 1_000, &["a"]);
    let mut moved = 0;
    for _ in 0..20 {
        let recalled = world.pass(Duration::from_millis(10));
        assert!(recalled.len() <= 256);
        for out in recalled {
            let Out::Recall(peer, assignment) = out else { panic!("{out:?}") };
            let next = assignments(&world.finish((peer, assignment), Finish::NotRun));
            assert_eq!((next.len(), next[0].0), (1, free));
            moved += 1;
        }
    }
    assert_eq!(moved, 1_000);
}

#[test]
fn a_worker_that_hangs_is_asked_once_for_each_task_however_long_it_hangs() {
    let mut world = world();
    let client = world.client();
    let worker = world.worker("hangs", 1, 1_001, &["a"]);
    for id in 0..1_001 {
        world.assigned(client, id);
    }
    world.worker("free", 1, 1, &["a"]);
    let mut recalled = 0;
    for _ in 0..20 {
        world.handle(Event::Heard { peer: worker });
        recalled += world.pass(SECOND).iter().filter(|out| matches!(out, Out::Recall(..))).count();
    }
    assert_eq!(recalled, 1_000);
}

#[test]
fn a_burst_of_very_short_tasks_fills_free_threads_and_then_wakes_one_worker_alone() {
    let mut world = world();
    let client = world.client();
    let workers = [world.worker("one", 1, 1000, &["a"]), world.worker("two", 1, 1000, &["a"])];
    let given: Vec<Peer> = (1..=40).map(|id| world.assigned(client, id).0).collect();
    assert_eq!([given[0], given[1]], workers, "each free thread has a task");
    assert!(given[2..].iter().all(|worker| *worker == given[2]), "what follows goes to one");
}

#[test]
fn tasks_that_follow_one_that_took_a_workers_last_free_thread_go_on_to_that_worker() {
    let mut world = world();
    let client = world.client();
    let [one, two] = ["one", "two"].map(|id| worker_of_one_thread(&mut world, id, 2_000));
    let given = [world.assigned(client, 1), world.assigned(client, 2)];
    assert_eq!(given.map(|(worker, _)| worker), [one, two]);
    world.finish(given[0], Finish::Done);
    assert!((3..=5).all(|id| world.assigned(client, id).0 == one), "'two' has one already");
}

#[test]
fn free_threads_fill_first_however_short_the_tasks_are() {
    let mut world = world();
    let client = world.client();
    let workers = ["one", "two", "three"].map(|id| worker_of_one_thread(&mut world, id, 10));
    let given: Vec<Peer> = (1..=40).map(|id| world.assigned(client, id).0).collect();
    assert_eq!(given[..3], workers);
}

fn worker_of_one_thread(world: &mut World, id: &str, service_ns: u64) -> Peer {
    let peer = world.peer();
    let service_ns = Some(service_ns);
    let registration = Registration { service_ns, ..plain(id, 1, 1000, &["a"]) };
    world.handle(Event::Register { peer, registration });
    peer
}
