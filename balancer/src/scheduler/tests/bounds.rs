//! What a peer can make grow, and what happens at each bound.

use reparto_protocol::limits;

use super::*;
use crate::scheduler::clients::MOST_WAITERS;

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
    let payload = |bytes| move |task: &mut Submission<'_>| task.payload = Payload::new(&[0; 100][..bytes]);
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

#[test]
fn a_worker_s_numbers_count_no_more_than_the_protocol_allows() {
    for policy in [Policy::Weighted, Policy::RoundRobin, Policy::LeastLoaded] {
        let mut world = World::new(Config { policy, ..Config::default() });
        let client = world.client();
        for id in ["v", "w"] {
            let peer = world.peer();
            let (weight, service_ns) = (u32::MAX, Some(0));
            let registration = Registration { weight, service_ns, ..plain(id, u32::MAX, u32::MAX, &["a"]) };
            world.handle(Event::Register { peer, registration });
        }
        for id in 0..10 {
            world.assigned(client, id);
        }
        let worker = &world.scheduler.workers(world.now, 0, 1)[0];
        let most = (limits::MAX_THREADS, limits::MAX_WINDOW, limits::MAX_WEIGHT);
        assert_eq!((worker.threads, worker.window, worker.weight), most);
    }
}

#[test]
fn a_priority_beyond_the_highest_counts_as_the_highest() {
    let mut world = world();
    let client = world.client();
    assert_eq!(world.submit_with(client, 1, |task| task.priority = u8::MAX), []);
    world.worker("w", 1, 1, &["a"]);
}

#[test]
fn what_a_client_has_left_behind_is_taken_out_a_part_at_a_time() {
    let mut world = world();
    world.scheduler.work_a_call = 10;
    let (client, other) = (world.client(), world.client());
    for id in 0..95 {
        assert_eq!(world.submit(client, id, "a"), []);
    }
    assert_eq!(world.submit(other, 1, "a"), []);
    assert_eq!(world.gone(client), []);
    for left in (0..=85).rev().step_by(10) {
        assert_eq!(world.scheduler.totals().queued, left + 1);
        assert!(world.more_is_due());
        assert_eq!(world.tick(), []);
    }
    assert!(!world.more_is_due());
    assert_eq!((world.scheduler.totals().queued, world.scheduler.totals().clients), (1, 1));
}

#[test]
fn a_client_that_is_gone_is_told_nothing_while_it_is_seen_off() {
    let mut world = world();
    world.scheduler.work_a_call = 1;
    let (client, other) = (world.client(), world.client());
    let worker = world.worker("w", 3, 3, &["a"]);
    let mut held: Vec<_> = (0..2).map(|id| world.assigned(client, id)).collect();
    held.push(assignments(&world.submit_with(client, 2, |task| task.key = b"shared"))[0]);
    assert_eq!(world.submit_with(client, 3, |task| task.key = b"shared"), []);
    assert_eq!(world.submit_with(other, 9, |task| task.key = b"shared"), []);
    let mut out = world.gone(client);
    let progress = Event::Progress {
        peer: worker,
        assignment: held[2].1,
        kind: ProgressKind::Report,
        done: 1,
        total: 2,
        payload: Payload::EMPTY,
    };
    assert_eq!(world.handle(progress), [Out::Progress(other, 9, 1)]);
    out.extend(held.iter().flat_map(|assigned| world.finish(*assigned, Finish::Done)));
    while world.more_is_due() {
        out.extend(world.tick());
    }
    out.retain(|out| !matches!(out, Out::Cancel(..)));
    assert_eq!(out, [Out::Result(other, 9, result())]);
    assert!(world.scheduler.is_quiet());
    let totals = world.scheduler.totals();
    assert_eq!(totals.done + totals.failed, totals.submitted);
}

#[test]
fn a_shutdown_answers_a_part_at_a_time() {
    let mut world = world();
    world.scheduler.work_a_call = 10;
    let client = world.client();
    let worker = world.worker("w", 20, 20, &["a"]);
    for id in 0..100 {
        world.submit(client, id, "a");
    }
    let mut answered = world.handle(Event::Shutdown { grace: SECOND }).len() - 2;
    while world.more_is_due() {
        let out = world.tick();
        assert!(out.len() <= 10, "{out:?}");
        answered += out.len();
    }
    assert_eq!(answered, 80, "what waits is answered at once");
    world.now = world.now.after(SECOND);
    let mut out = Vec::new();
    while world.more_is_due() {
        out.extend(world.tick());
    }
    assert_eq!(out.iter().filter(|out| matches!(out, Out::Fail(_, _, ErrorCode::ShuttingDown))).count(), 20);
    assert_eq!(out.iter().filter(|out| matches!(out, Out::Cancel(peer, _) if *peer == worker)).count(), 20);
    assert_eq!(out.last(), Some(&Out::Stopped));
}

#[test]
fn deadlines_that_pass_at_one_moment_are_answered_a_part_at_a_time() {
    let mut world = world();
    world.scheduler.work_a_call = 10;
    let client = world.client();
    for id in 0..100 {
        world.submit_with(client, id, |task| task.deadline = Some(SECOND));
    }
    world.now = world.now.after(2 * SECOND);
    let mut answered = 0;
    while world.more_is_due() {
        let out = world.tick();
        assert!(out.len() <= 10);
        answered += out.len();
    }
    assert_eq!(answered, 100);
}

#[test]
fn those_who_wait_for_one_task_are_bounded() {
    let mut world = world();
    let client = world.client();
    let shared = |task: &mut Submission<'_>| task.key = b"shared";
    let most = MOST_WAITERS as u64;
    for id in 0..=most {
        let mut effects = Vec::new();
        let mut task = Submission::new(id, "a", Payload::EMPTY);
        shared(&mut task);
        world.scheduler.handle(world.now, Event::Submit { peer: client, task }, &mut effects);
        assert_eq!(effects, []);
    }
    let full = Out::Fail(client, most + 1, ErrorCode::QueueFull);
    assert_eq!(world.submit_with(client, most + 1, shared), [full]);
    assert_eq!(world.handle(Event::Cancel { peer: client, id: 5 }).len(), 1);
    assert_eq!(world.submit_with(client, most + 1, shared), []);
}

#[test]
fn progress_is_passed_on_to_the_first_always_and_to_many_no_oftener_than_is_affordable() {
    let mut world = world();
    let (first, other) = (world.client(), world.client());
    let shared = |task: &mut Submission<'_>| task.key = b"shared";
    let worker = world.worker("w", 1, 1, &["a"]);
    let assigned = assignments(&world.submit_with(first, 1, shared))[0];
    for id in 0..1_000 {
        world.submit_with(other, id, shared);
    }
    let mut told = (0, 0);
    for _ in 0..1_000 {
        let payload = Payload::EMPTY;
        let event = Event::Progress {
            peer: worker,
            assignment: assigned.1,
            kind: ProgressKind::Report,
            done: 1,
            total: 2,
            payload,
        };
        let out = world.handle(event);
        assert_eq!(out[0], Out::Progress(first, 1, 1));
        told = (told.0 + 1, told.1 + out.len() - 1);
    }
    assert_eq!(told.0, 1_000);
    assert!((1_000..100_000).contains(&told.1), "{told:?}");
    world.pass(SECOND);
    let payload = Payload::EMPTY;
    let event = Event::Progress {
        peer: worker,
        assignment: assigned.1,
        kind: ProgressKind::Report,
        done: 2,
        total: 2,
        payload,
    };
    assert_eq!(world.handle(event).len(), 1_001, "a while later it may be told to all again");
}

#[test]
fn what_workers_offer_together_is_bounded() {
    let mut world = World::new(Config { max_offers: 5, ..Config::default() });
    world.worker("u", 1, 1, &["a", "b"]);
    world.worker("v", 1, 1, &["b", "a"]);
    let worker = world.worker("w", 1, 1, &["b", "c", "d"]);
    let peer = world.peer();
    assert_eq!(world.register(peer, "x", 1, 1, &["b"]), [Out::Close(peer, ErrorCode::Overloaded)]);
    assert_eq!(world.register(worker, "w", 1, 1, &["a", "b"]), [Out::Ack(worker, 1)], "it had three before");
    world.worker("x", 1, 1, &["e", "f"]);
    assert_eq!(world.register(worker, "w", 1, 1, &["a", "e"]), [Out::Close(worker, ErrorCode::Overloaded)]);
    let totals = world.scheduler.totals();
    assert_eq!((totals.workers, totals.actions), (3, 4));
}

#[test]
fn a_payload_keeps_no_memory_alive_that_is_more_than_twice_its_own() {
    let mut world = world();
    let client = world.client();
    let read = Bytes::from(vec![7; 256 * 1024]);
    for (id, bytes) in [(1, 100), (2, 100 * 1024), (3, 200 * 1024)] {
        world.submit_with(client, id, |task| task.payload = Payload::within(&read, &read[..bytes]));
    }
    let (_, out) = world.worker_and_out("w", 3, 3, &["a"]);
    let kept = assignments(&out).into_iter().map(|(_, assignment)| {
        world.scheduler.assignment(assignment).expect("it is held").payload.as_slice().as_ptr()
            == read.as_ptr()
    });
    assert_eq!(kept.collect::<Vec<_>>(), [false, false, true]);
}
