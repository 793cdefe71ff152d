//! Who goes first: priorities, waiting, clients and actions taking turns.

use super::*;

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

#[test]
fn under_an_endless_flood_nothing_starves() {
    // Nine levels are worth 45 s, and those of the flood that go first have waited themselves, for 20 s at most.
    let bound = Duration::from_secs(45 + 20 + 5);
    for seed in 0..10 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = world();
        let flooding: Vec<Peer> = (0..3).map(|_| world.client()).collect();
        let patient: Vec<Peer> = (0..3).map(|_| world.client()).collect();
        world.worker("w", 1, 1, &["a", "b"]);
        let mut waiting = std::collections::HashMap::new();
        let mut held: Option<(Peer, AssignmentId)> = None;
        for step in 0..2_000_u64 {
            let mut out = Vec::new();
            for n in 0..2 {
                out.extend(world.submit_with(flooding[random.usize(..3)], 2 * step + n, |task| {
                    task.priority = random.u8(5..10);
                    task.wait = Some(Duration::from_secs(20));
                }));
            }
            if step % 20 == 0 {
                let peer = patient[random.usize(..3)];
                waiting.insert((peer, step), world.now);
                out.extend(world.submit_with(peer, step, |task| {
                    task.action = ["a", "b"][random.usize(..2)];
                    task.priority = random.u8(..10);
                    task.wait = Some(Duration::from_secs(100_000));
                }));
            }
            if let Some(assigned) = held {
                world.handle(Event::Heard { peer: assigned.0 });
                out.extend(world.finish(assigned, Finish::Done));
            }
            out.extend(world.pass(Duration::from_millis(100)));
            for out in out {
                match out {
                    Out::Assign(peer, assignment) => held = Some((peer, assignment)),
                    Out::Result(peer, id, _) => _ = waiting.remove(&(peer, id)),
                    _ => {}
                }
            }
            let longest = waiting.values().map(|since| world.now.since(*since)).max();
            assert!(longest.is_none_or(|longest| longest < bound), "seed {seed}: {longest:?}");
        }
    }
}

#[test]
fn a_worker_is_given_many_tasks_at_once_in_the_order_in_which_it_would_be_given_one_by_one() {
    for seed in 0..20 {
        let order = |room: u32| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut world = world();
            let clients: Vec<Peer> = (0..3).map(|_| world.client()).collect();
            for id in 0..200 {
                world.pass(Duration::from_millis(random.u64(..200)));
                world.submit_with(clients[random.usize(..3)], id, |task| {
                    task.action = ["a", "b", "c", "d", "e"][random.usize(..5)];
                    task.priority = random.u8(..10);
                    task.payload = Payload::new(&[0; 1 << 13][..1 << random.u32(..14)]);
                });
            }
            let (_, out) = world.worker_and_out("w", 1, room, &["a", "b", "c", "d", "e", "f", "g"]);
            let mut held = std::collections::VecDeque::from(assignments(&out));
            let mut order = Vec::new();
            while let Some(assigned) = held.pop_front() {
                let out = world.finish(assigned, Finish::Done);
                let Out::Result(peer, id, _) = out[0] else { panic!("{out:?}") };
                order.push((peer, id));
                held.extend(assignments(&out));
            }
            assert_eq!(order.len(), 200);
            order
        };
        let one_by_one = order(1);
        for room in [2, 7, 200] {
            assert_eq!(order(room), one_by_one, "seed {seed}, {room} at once");
        }
    }
}
