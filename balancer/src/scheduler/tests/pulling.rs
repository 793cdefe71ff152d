//! Workers that ask for their tasks one by one, and sleep.

use super::*;

impl World {
    /// A pull worker that offers these actions and is awake.
    fn puller(&mut self, actions: &[&str]) -> Peer {
        let peer = self.peer();
        assert_eq!(self.handle(Event::PullerJoined { peer, from: None }), []);
        for action in actions {
            assert_eq!(self.can_do(peer, action), []);
        }
        peer
    }

    fn pull(&mut self, peer: Peer, pull: Pull<'_>) -> Vec<Out> {
        self.handle(Event::Pull { peer, pull })
    }

    fn can_do(&mut self, peer: Peer, action: &str) -> Vec<Out> {
        self.pull(peer, Pull::CanDo { action, limit: None })
    }

    fn grab(&mut self, peer: Peer) -> Vec<Out> {
        self.pull(peer, Pull::Grab { form: 0 })
    }

    fn sleep(&mut self, peer: Peer) -> Vec<Out> {
        self.pull(peer, Pull::Sleep)
    }

    fn grabbed(&mut self, peer: Peer) -> (Peer, AssignmentId) {
        match self.grab(peer)[..] {
            [Out::Assign(whom, assignment)] if whom == peer => (whom, assignment),
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_task_is_given_to_a_pull_worker_only_when_it_asks() {
    let mut world = world();
    let (client, worker) = (world.client(), world.puller(&["a"]));
    assert_eq!(world.grab(worker), [Out::NoTask(worker)]);
    assert_eq!(world.submit(client, 1, "a"), [], "it neither sleeps nor asks");
    let task = world.grabbed(worker);
    assert_eq!(world.finish(task, Finish::Done), [Out::Result(client, 1, result())]);
    assert_eq!(world.grab(worker), [Out::NoTask(worker)]);
}

#[test]
fn each_task_wakes_one_that_sleeps_the_longest_asleep_and_reserves_nothing() {
    let mut world = world();
    let (client, first, second) = (world.client(), world.puller(&["a"]), world.puller(&["a"]));
    assert_eq!(world.sleep(first), []);
    assert_eq!(world.sleep(second), []);
    assert_eq!(world.submit(client, 1, "a"), [Out::Wake(first)]);
    assert_eq!(world.submit(client, 2, "a"), [Out::Wake(second)]);
    assert_eq!(world.submit(client, 3, "a"), [], "nobody sleeps");
    world.grabbed(second);
    world.grabbed(second);
    world.grabbed(second);
    assert_eq!(world.grab(first), [Out::NoTask(first)], "another was faster");
}

#[test]
fn one_that_goes_to_sleep_while_a_task_waits_is_woken_at_once() {
    let mut world = world();
    let (client, worker) = (world.client(), world.puller(&["a"]));
    assert_eq!(world.grab(worker), [Out::NoTask(worker)]);
    world.submit(client, 1, "a");
    assert_eq!(world.sleep(worker), [Out::Wake(worker)]);
    world.grabbed(worker);
}

#[test]
fn who_was_woken_and_leaves_or_does_not_ask_or_takes_another_task_has_another_one_woken() {
    // It leaves.
    let mut world = world();
    let client = world.client();
    let workers: Vec<Peer> = (0..4).map(|_| world.puller(&["a", "b"])).collect();
    workers.iter().for_each(|worker| assert_eq!(world.sleep(*worker), []));
    assert_eq!(world.submit(client, 1, "a"), [Out::Wake(workers[0])]);
    assert_eq!(world.gone(workers[0]), [Out::Wake(workers[1])]);
    // It cannot do it any more.
    assert_eq!(world.pull(workers[1], Pull::CantDo { action: "a" }), [Out::Wake(workers[2])]);
    // It says nothing. That is 20 ms, of which it had them all.
    assert_eq!(world.pass(Duration::from_millis(19)), []);
    assert_eq!(world.pass(Duration::from_millis(2)), [Out::Wake(workers[3])]);
    world.grabbed(workers[3]);
    // It takes a task of another action.
    assert_eq!(world.sleep(workers[3]), []);
    assert_eq!(world.sleep(workers[2]), []);
    assert_eq!(world.can_do(workers[1], "a"), []);
    assert_eq!(world.sleep(workers[1]), []);
    assert_eq!(world.submit(client, 2, "a"), [Out::Wake(workers[3])]);
    let urgent = |task: &mut Submission<'_>| (task.action, task.priority) = ("b", 9);
    assert_eq!(world.submit_with(client, 3, urgent), [Out::Wake(workers[2])]);
    let out = world.grab(workers[3]);
    assert!(matches!(out[..], [Out::Assign(..), Out::Wake(worker)] if worker == workers[1]), "{out:?}");
}

#[test]
fn what_a_pull_worker_can_do_comes_and_goes_one_by_one() {
    let mut world = world();
    let (client, worker) = (world.client(), world.puller(&["a"]));
    world.submit(client, 1, "b");
    assert_eq!(world.sleep(worker), []);
    assert_eq!(world.can_do(worker, "b"), [Out::Wake(worker)]);
    assert_eq!(world.pull(worker, Pull::Reset), []);
    assert_eq!(world.grab(worker), [Out::NoTask(worker)]);
    assert_eq!(world.can_do(worker, "b"), []);
    assert_eq!(world.can_do(worker, "b"), [], "twice is once");
    world.grabbed(worker);
    assert_eq!(world.pull(worker, Pull::CantDo { action: "c" }), []);
    assert_eq!(world.pull(worker, Pull::CantDo { action: "b" }), []);
    assert_eq!(world.scheduler.actions(0, 10).len(), 1, "its task is still running");
}

#[test]
fn a_worker_with_room_goes_before_one_that_would_have_to_be_woken() {
    let mut world = world();
    let (client, puller) = (world.client(), world.puller(&["a"]));
    assert_eq!(world.sleep(puller), []);
    let pushed = world.worker("w", 1, 1, &["a"]);
    let task = world.assigned(client, 1);
    assert_eq!(task.0, pushed);
    assert_eq!(world.submit(client, 2, "a"), [Out::Wake(puller)]);
    let out = world.finish(task, Finish::Done);
    assert!(matches!(out[..], [Out::Result(..), Out::Assign(worker, _)] if worker == pushed), "{out:?}");
    assert_eq!(world.grab(puller), [Out::NoTask(puller)]);
}

#[test]
fn a_run_that_takes_longer_than_its_worker_allows_ends_and_the_worker_goes_on() {
    let mut world = world();
    let (client, worker) = (world.client(), world.puller(&[]));
    let limit = Some(2 * SECOND);
    assert_eq!(world.pull(worker, Pull::CanDo { action: "a", limit }), []);
    world.submit_with(client, 1, |task| task.wait = Some(Duration::MAX));
    world.submit_with(client, 2, |task| task.wait = Some(Duration::MAX));
    assert_eq!(world.pass(1000 * SECOND), [], "waiting has no limit");
    let first = world.grabbed(worker);
    assert_eq!(world.pass(SECOND), []);
    let out = world.pass(2 * SECOND);
    assert_eq!(out, [Out::Fail(client, 1, ErrorCode::Expired), Out::Cancel(worker, first.1)]);
    let second = world.grabbed(worker);
    assert_eq!(world.finish(first, Finish::Done), [], "it came too late");
    assert_eq!(world.finish(second, Finish::Done), [Out::Result(client, 2, result())]);
    // A run that a lost worker began does not count for the next.
    world.submit_with(client, 3, |task| task.wait = Some(Duration::MAX));
    world.grabbed(worker);
    world.pass(SECOND);
    world.gone(worker);
    assert_eq!(world.pass(100 * SECOND), []);
    let other = world.puller(&["a"]);
    let third = world.grabbed(other);
    assert_eq!(world.pass(100 * SECOND), []);
    assert_eq!(world.finish(third, Finish::Done), [Out::Result(client, 3, result())]);
}

#[test]
fn what_a_lost_pull_worker_had_asked_for_has_used_an_attempt() {
    let mut world = world();
    let client = world.client();
    world.submit_with(client, 1, |task| task.max_attempts = 2);
    world.submit_with(client, 2, |task| task.max_attempts = 2);
    let next = world.puller(&["a"]);
    let worker = world.puller(&["a"]);
    world.grabbed(worker);
    world.grabbed(worker);
    assert_eq!(world.sleep(next), []);
    assert_eq!(world.gone(worker), [Out::Wake(next)], "one sleeps, so one is woken for two tasks");
    world.grabbed(next);
    world.grabbed(next);
    let out = world.gone(next);
    let code = ErrorCode::AttemptsExhausted;
    assert_eq!(out, [Out::Fail(client, 2, code), Out::Fail(client, 1, code)]);
}

#[test]
fn a_task_that_asked_for_it_is_announced_before_anything_else_or_refused_without_an_answer() {
    let mut world = World::new(Config { max_tasks: 1, ..Config::default() });
    let (client, worker) = (world.client(), world.puller(&["a"]));
    let announced = |task: &mut Submission<'_>| task.announced = true;
    assert_eq!(world.submit_with(client, 1, announced), [Out::Created(client, 1)]);
    assert_eq!(world.submit_with(client, 2, announced), [Out::Refused(client, 2, ErrorCode::QueueFull)]);
    let task = world.grabbed(worker);
    assert_eq!(world.finish(task, Finish::Done), [Out::Result(client, 1, result())]);
}

#[test]
fn a_connection_may_be_a_client_and_a_pull_worker() {
    for client_first in [true, false] {
        let mut world = world();
        let peer = world.peer();
        let events = [Event::ClientJoined { peer }, Event::PullerJoined { peer, from: None }];
        for at in if client_first { [0, 1] } else { [1, 0] } {
            assert_eq!(world.handle(events[at].clone()), []);
        }
        world.can_do(peer, "a");
        assert_eq!(world.sleep(peer), []);
        assert_eq!(world.submit(peer, 1, "a"), [Out::Wake(peer)]);
        let task = world.grabbed(peer);
        assert_eq!(world.finish(task, Finish::Done), [Out::Result(peer, 1, result())]);
        world.submit(peer, 2, "a");
        world.grabbed(peer);
        world.submit(peer, 3, "a");
        world.gone(peer);
        assert!(world.scheduler.is_quiet());
        assert_eq!((world.scheduler.totals().workers, world.scheduler.totals().clients), (0, 0));
    }
}

#[test]
fn data_and_warnings_reach_everybody_who_waits_and_reports_are_remembered() {
    let mut world = world();
    let worker = world.puller(&["a"]);
    let clients: Vec<Peer> = (0..3).map(|_| world.client()).collect();
    for (id, client) in (1..).zip(&clients) {
        world.submit_with(*client, id, |task| task.key = b"k");
    }
    let (peer, assignment) = world.grabbed(worker);
    for kind in [ProgressKind::Data, ProgressKind::Warning, ProgressKind::Report] {
        let payload = Payload::new(b"part");
        let out = world.handle(Event::Progress { peer, assignment, kind, done: 3, total: 9, payload });
        assert_eq!(out.len(), 3, "{kind:?}");
    }
}

#[test]
fn what_a_pull_worker_asks_for_and_offers_is_bounded() {
    let mut world = world();
    let (client, worker) = (world.client(), world.puller(&["a"]));
    for id in 0..1030 {
        world.submit(client, id, "a");
    }
    let held: Vec<_> = (0..1024).map(|_| world.grabbed(worker)).collect();
    assert_eq!(world.grab(worker), [Out::NoTask(worker)]);
    assert_eq!(world.sleep(worker), [], "to be woken would not help it");
    let out = world.finish(held[0], Finish::Done);
    assert_eq!(out, [Out::Result(client, 0, result()), Out::Wake(worker)]);
    let other = world.puller(&[]);
    let mut out = Vec::new();
    for number in 0..600 {
        out.extend(world.can_do(other, &format!("ability {number}")));
    }
    assert_eq!(out, [Out::Close(other, ErrorCode::Overloaded)]);
}

#[test]
fn people_may_keep_drop_and_bound_an_action() {
    let mut world = world();
    let (client, worker) = (world.client(), world.puller(&["a"]));
    assert!(world.scheduler.keep_action("b"));
    assert_eq!(world.scheduler.actions(0, 10).len(), 2);
    assert_eq!(world.scheduler.drop_action("b"), Some(true));
    assert_eq!(world.scheduler.drop_action("b"), None);
    assert_eq!(world.scheduler.drop_action("a"), Some(false), "a worker offers it");
    world.scheduler.bound_action("a", [0, 2, 1]);
    let with_priority =
        |world: &mut World, id, priority| world.submit_with(client, id, |task| task.priority = priority);
    assert_eq!(with_priority(&mut world, 1, 0), []);
    assert_eq!(with_priority(&mut world, 2, 0), [Out::Fail(client, 2, ErrorCode::QueueFull)]);
    assert_eq!(with_priority(&mut world, 3, 4), []);
    assert_eq!(with_priority(&mut world, 4, 4), [Out::Fail(client, 4, ErrorCode::QueueFull)]);
    assert_eq!(with_priority(&mut world, 5, 9), []);
    world.grabbed(worker);
    world.scheduler.bound_action("a", [0; 3]);
    assert_eq!(with_priority(&mut world, 6, 0), []);
}

#[test]
fn ten_thousand_sleeps_and_wake_ups_under_random_arrival_lose_none() {
    let mut random = fastrand::Rng::with_seed(10);
    let mut world = world();
    let client = world.client();
    let workers: Vec<Peer> = (0..5).map(|_| world.puller(&["a", "b"])).collect();
    let mut asleep: Vec<bool> = workers.iter().map(|worker| world.sleep(*worker).is_empty()).collect();
    let mut held = vec![Vec::new(); workers.len()];
    let (mut wake_ups, mut answered, mut submitted) = (0, 0, 0);
    while wake_ups < 10_000 {
        let at = random.usize(..workers.len());
        let out = match random.u8(..4) {
            0 => {
                submitted += 1;
                world.submit(client, submitted, if random.bool() { "a" } else { "b" })
            }
            1 if !asleep[at] => world.grab(workers[at]),
            2 if !asleep[at] => {
                asleep[at] = true;
                world.sleep(workers[at])
            }
            3 if !held[at].is_empty() => world.finish(held[at].swap_remove(0), Finish::Done),
            _ => world.pass(Duration::from_micros(random.u64(..5_000))),
        };
        for out in out {
            match out {
                Out::Wake(peer) => {
                    let at = workers.iter().position(|worker| *worker == peer).expect("a worker");
                    assert!(std::mem::take(&mut asleep[at]), "one that is awake is woken");
                    wake_ups += 1;
                }
                Out::Assign(peer, assignment) => {
                    held[workers.iter().position(|worker| *worker == peer).expect("a worker")]
                        .push((peer, assignment));
                }
                Out::Result(..) => answered += 1,
                Out::NoTask(_) => {}
                other => panic!("{other:?}"),
            }
        }
        // Whoever is awake would ask sooner or later; if nobody is, nothing waits.
        assert!(!asleep.iter().all(|asleep| *asleep) || world.scheduler.totals().queued == 0);
    }
    // Those who are awake do what is left.
    loop {
        for (at, worker) in workers.iter().enumerate() {
            for task in std::mem::take(&mut held[at]) {
                answered +=
                    world.finish(task, Finish::Done).iter().filter(|o| matches!(o, Out::Result(..))).count();
            }
            if !asleep[at]
                && let [Out::Assign(peer, assignment), ..] = world.grab(*worker)[..]
            {
                held[at].push((peer, assignment));
            }
        }
        if world.scheduler.is_quiet() {
            break;
        }
    }
    assert_eq!(answered, submitted as usize);
}

#[test]
fn how_a_task_stands_is_known_by_its_number_and_by_its_key() {
    let mut world = world();
    let (client, other, worker) = (world.client(), world.client(), world.puller(&["a"]));
    let keyed = |task: &mut Submission<'_>| task.key = b"k";
    world.submit_with(client, 1, keyed);
    world.submit_with(other, 7, keyed);
    let waits = JobStatus { runs: false, done: 0, total: 0, waiting: 2 };
    assert_eq!(world.scheduler.job(client.index, 1), Some(waits));
    assert_eq!(world.scheduler.job(other.index, 7), Some(waits));
    assert_eq!(world.scheduler.job_by_key(b"k"), Some(waits));
    let (peer, assignment) = world.grabbed(worker);
    let (kind, payload) = (ProgressKind::Report, Payload::EMPTY);
    world.handle(Event::Progress { peer, assignment, kind, done: 3, total: 9, payload });
    let runs = JobStatus { runs: true, done: 3, total: 9, waiting: 2 };
    assert_eq!(world.scheduler.job(client.index, 1), Some(runs));
    assert_eq!(world.scheduler.held_tasks(10).map(|task| task.key).collect::<Vec<_>>(), [b"k"]);
    let mut effects = Vec::new();
    assert!(world.scheduler.cancel_job(world.now, (other.index, 7), &mut effects));
    assert_eq!(effects.len(), 3, "two who waited, and the worker");
    world.scheduler.assert_invariants();
    for (connection, number) in [(client.index, 1), (other.index, 7), (worker.index, 1), (99, 1)] {
        assert_eq!(world.scheduler.job(connection, number), None);
    }
    assert_eq!(world.scheduler.job_by_key(b"k"), None);
}

#[test]
fn tasks_that_wait_are_counted_by_the_class_of_their_priority() {
    let mut world = world();
    let client = world.client();
    for (id, priority) in [(1, 9), (2, 5), (3, 4), (4, 0), (5, 1), (6, 3)] {
        world.submit_with(client, id, |task| task.priority = priority);
    }
    assert_eq!(world.scheduler.actions(0, 9)[0].queued_by_class, [2, 1, 3]);
    world.handle(Event::Cancel { peer: client, id: 2 });
    assert_eq!(world.scheduler.actions(0, 9)[0].queued_by_class, [1, 1, 3]);
}
