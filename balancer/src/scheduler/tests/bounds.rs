//! What a peer can make grow, and what happens at each bound.

use reparto_protocol::limits;

use super::*;

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

#[test]
fn a_worker_s_numbers_count_no_more_than_the_protocol_allows() {
    for policy in [Policy::Weighted, Policy::RoundRobin, Policy::LeastLoaded] {
        let mut world = World::new(Config { policy, ..Config::default() });
        let client = world.client();
        for id in ["v", "w"] {
            let peer = world.peer();
            let registration = Registration {
                request: 1,
                worker_id: id,
                threads: u32::MAX,
                window: u32::MAX,
                weight: u32::MAX,
                service_ns: Some(0),
                actions: vec!["a"],
            };
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
