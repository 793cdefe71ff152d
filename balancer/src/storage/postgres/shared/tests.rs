//! Balancers that share a database: each task is one balancer's at a time, and none is nobody's for ever.

use std::sync::mpsc;
use std::thread;

use postgres::Client;

use super::*;
use crate::storage::conformance::{Fixture, NOW};
use crate::storage::postgres::tables::{uuid, wall_clock};
use crate::storage::postgres::tests::Schema;
use crate::storage::postgres::{Heard, PostgresStore};
use crate::storage::store::ToPublish;
use crate::storage::{Failure, IdempotencyKey, NewTask, Outcome, StoredTask, TaskIds, TaskState};

/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Leases that run out while a test waits, and others that do not.
fn quick() -> ShareSettings {
    ShareSettings {
        lease: Duration::from_millis(300),
        claim_time: Duration::ZERO,
        ..ShareSettings::default()
    }
}

/// A lease that no test outlives.
fn long() -> ShareSettings {
    ShareSettings { lease: Duration::from_secs(3600), ..quick() }
}

fn join(schema: &Schema, settings: &ShareSettings) -> SharedPostgresStore {
    SharedPostgresStore::join(&schema.url(), settings, |_| {}, || true).unwrap().unwrap()
}

/// A store that owns whatever an operation is about, as the suite expects of a store that is alone.
struct Owning(SharedPostgresStore, Client);

impl Store for Owning {
    fn apply(&mut self, operations: &[Operation], answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        // Each by itself, since what one frees is nobody's for the next.
        for operation in operations.chunks(1) {
            self.1.execute("UPDATE tasks SET owner = $1 WHERE state <= 2", &[&self.0.id()]).unwrap();
            self.0.apply(operation, answers)?;
        }
        Ok(())
    }

    fn upkeep(&mut self) -> Result<Option<Duration>, StoreError> {
        self.0.upkeep()
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        self.0.settle()
    }

    fn reader(&self) -> Result<Box<dyn StoreReader>, StoreError> {
        self.0.reader()
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Box::new(self.0).close()
    }
}

struct Shared(Schema);

impl Shared {
    fn new() -> Shared {
        Shared(Schema::new())
    }
}

impl Fixture for Shared {
    fn open(&self) -> Box<dyn Store> {
        Box::new(Owning(join(&self.0, &ShareSettings::default()), self.0.client()))
    }
}

mod in_a_schema {
    use super::Shared;
    crate::storage::conformance::conformance!(Shared::new);
}

fn apply(store: &mut SharedPostgresStore, operations: &[Operation]) -> Vec<Answer> {
    let since = Instant::now();
    loop {
        let mut answers = Vec::new();
        match store.apply(operations, &mut answers) {
            Ok(()) => return answers,
            Err(error) if error.is_passing() && since.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn one(store: &mut SharedPostgresStore, operation: Operation) -> Answer {
    apply(store, &[operation]).remove(0)
}

fn accept(store: &mut SharedPostgresStore) -> TaskId {
    let task = NewTask::new(TaskIds::new().next(wall_clock()), "upper", "hola", wall_clock());
    let id = task.id;
    assert_eq!(one(store, Operation::Accept(task)), Answer::Accepted);
    id
}

fn claim(store: &mut SharedPostgresStore, id: TaskId) -> Option<StoredTask> {
    match one(store, Operation::Claim { id, named: false }) {
        Answer::Claimed { task, .. } => Some(*task),
        Answer::Elsewhere => None,
        other => panic!("{other:?}"),
    }
}

fn done(id: TaskId) -> Operation {
    Operation::Finish(Outcome::done(id, 1, NOW, "HOLA"))
}

fn cancel(id: TaskId) -> Operation {
    let failure = Failure::new(reparto_protocol::ErrorCode::Cancelled, "cancelled");
    Operation::Finish(Outcome::without_result(id, TaskState::Cancelled, 0, NOW, failure))
}

/// Sweeps until there is something to publish.
fn sweep(store: &mut SharedPostgresStore) -> Vec<ToPublish> {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        match one(store, Operation::Sweep { now: wall_clock(), limit: 100 }) {
            Answer::Swept { to_publish, .. } if !to_publish.is_empty() => return to_publish,
            Answer::Swept { .. } => thread::sleep(Duration::from_millis(20)),
            other => panic!("{other:?}"),
        }
    }
    panic!("nothing is to be published");
}

fn state(store: &SharedPostgresStore, id: TaskId) -> TaskState {
    store.reader().unwrap().fetch(id).unwrap().unwrap().state
}

#[test]
fn a_task_is_claimed_by_one_balancer_and_only_that_one_records_it() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &quick()), join(&schema, &ShareSettings::default()));
    let id = accept(&mut first);
    let claimed = claim(&mut second, id).unwrap();
    assert_eq!((claimed.task.id, &*claimed.task.action, claimed.state), (id, "upper", TaskState::Queued));
    assert_eq!(claim(&mut second, id), None, "a message that came twice");
    assert_eq!(one(&mut first, done(id)), Answer::Elsewhere);
    assert_eq!(one(&mut first, Operation::Start { id }), Answer::Elsewhere);
    assert_eq!(one(&mut second, done(id)), Answer::Recorded);
    assert_eq!(one(&mut second, done(id)), Answer::AlreadyEnded(TaskState::Done));
    assert_eq!(claim(&mut first, id), None);
}

#[test]
fn a_task_of_another_balancer_can_be_cancelled() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &quick()), join(&schema, &quick()));
    let id = accept(&mut first);
    claim(&mut first, id).unwrap();
    assert_eq!(one(&mut second, cancel(id)), Answer::Recorded);
    assert_eq!(one(&mut first, done(id)), Answer::AlreadyEnded(TaskState::Cancelled));
}

#[test]
fn a_task_that_is_released_or_revived_can_be_claimed_elsewhere() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &quick()), join(&schema, &ShareSettings::default()));
    let id = accept(&mut first);
    claim(&mut first, id).unwrap();
    assert_eq!(one(&mut first, Operation::Release { id }), Answer::Noted);
    claim(&mut second, id).unwrap();
    let failure = Failure::new(reparto_protocol::ErrorCode::AttemptsExhausted, "three times");
    let dead = Outcome::without_result(id, TaskState::Dead, 3, NOW, failure);
    assert_eq!(one(&mut second, Operation::Finish(dead)), Answer::Recorded);
    assert_eq!(one(&mut first, Operation::Revive { id }), Answer::Noted);
    assert_eq!(claim(&mut second, id).unwrap().attempts, 0);
}

#[test]
fn what_a_balancer_held_is_freed_once_its_lease_has_run_out_and_it_goes_on_owning_nothing() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &quick()), join(&schema, &quick()));
    let (held, on_the_bus) = (accept(&mut first), accept(&mut first));
    claim(&mut first, held).unwrap();
    let before = first.id();
    // The first says nothing any more.
    let mut freed: Vec<TaskId> = sweep(&mut second).into_iter().map(|found| found.id).collect();
    freed.sort();
    let mut both = [held, on_the_bus];
    both.sort();
    assert_eq!(freed, both, "what it held, and what it had undertaken to publish");
    claim(&mut second, held).unwrap();
    assert_eq!(one(&mut first, done(held)), Answer::Elsewhere, "under a new number");
    assert!(first.id() > before);
    assert_eq!(one(&mut second, done(held)), Answer::Recorded);
}

#[test]
fn a_balancer_with_work_or_without_keeps_its_lease() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &long()), join(&schema, &long()));
    // As one that has been in touch for so long that it may give others up.
    second.in_touch_since = Instant::now().checked_sub(long().lease);
    let id = accept(&mut first);
    claim(&mut first, id).unwrap();
    let (number, mut client) = (first.id(), schema.client());
    for with_work in [false, true] {
        let is_over = "UPDATE balancers SET lease_until = now() - interval '1 second' WHERE id = $1";
        client.execute(is_over, &[&number]).unwrap();
        first.renewed_at = Instant::now().checked_sub(long().lease).unwrap();
        if with_work {
            one(&mut first, Operation::Start { id });
        } else {
            first.upkeep().unwrap();
        }
        let swept = one(&mut second, Operation::Sweep { now: wall_clock(), limit: 100 });
        assert!(matches!(&swept, Answer::Swept { to_publish, .. } if to_publish.is_empty()), "{swept:?}");
    }
    assert_eq!(first.id(), number);
    assert_eq!(one(&mut first, done(id)), Answer::Recorded);
}

#[test]
fn after_the_database_was_away_nobody_is_given_up_before_he_could_renew_his_lease() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &long()), join(&schema, &long()));
    let id = accept(&mut first);
    claim(&mut first, id).unwrap();
    schema.client().batch_execute("UPDATE balancers SET lease_until = now() - interval '1 minute'").unwrap();
    // The second is back first.
    (second.session, second.in_touch_since) = (None, None);
    let swept = one(&mut second, Operation::Sweep { now: wall_clock(), limit: 100 });
    assert!(matches!(&swept, Answer::Swept { to_publish, .. } if to_publish.is_empty()), "{swept:?}");
    assert_eq!(one(&mut first, done(id)), Answer::Recorded);
}

#[test]
fn running_tasks_of_a_dead_balancer_are_left_to_workers_that_name_them() {
    let schema = Schema::new();
    let patient = ShareSettings { claim_time: Duration::from_secs(3600), ..quick() };
    let (mut first, mut second) = (join(&schema, &quick()), join(&schema, &patient));
    let (queued, running, other) = (accept(&mut first), accept(&mut first), accept(&mut first));
    for id in [queued, running, other] {
        claim(&mut first, id).unwrap();
    }
    apply(&mut first, &[Operation::Start { id: running }, Operation::Start { id: other }]);
    assert_eq!(
        one(&mut second, Operation::Claim { id: running, named: true }),
        Answer::Elsewhere,
        "its owner lives"
    );
    let freed = sweep(&mut second);
    assert_eq!(freed.iter().map(|found| found.id).collect::<Vec<_>>(), [queued]);
    let named = one(&mut second, Operation::Claim { id: running, named: true });
    assert!(matches!(&named, Answer::Claimed { task, .. } if task.state == TaskState::Running), "{named:?}");
    // When their time is over, the others go to whoever has room.
    second.settings.claim_time = Duration::ZERO;
    assert_eq!(sweep(&mut second).iter().map(|found| found.id).collect::<Vec<_>>(), [other]);
}

#[test]
fn a_balancer_that_ends_leaves_what_it_holds_at_once() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &long()), join(&schema, &long()));
    let id = accept(&mut first);
    claim(&mut first, id).unwrap();
    Box::new(first).close().unwrap();
    assert_eq!(sweep(&mut second)[0].id, id);
}

#[test]
fn what_is_due_is_to_be_published_by_one_balancer() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &long()), join(&schema, &long()));
    let mut task = NewTask::new(TaskIds::new().next(NOW), "upper", "hola", NOW);
    let due = wall_clock() + 60_000_000;
    (task.due_at, task.priority) = (Some(due), 9);
    let id = task.id;
    one(&mut first, Operation::Accept(task));
    assert_eq!(claim(&mut second, id), None, "it is not due");
    let swept = one(&mut second, Operation::Sweep { now: wall_clock(), limit: 100 });
    assert!(matches!(swept, Answer::Swept { next_due: Some(_), .. }), "{swept:?}");
    let swept = one(&mut second, Operation::Sweep { now: due, limit: 100 });
    let wanted = [ToPublish { id, action: "upper".into(), priority: 9 }];
    assert!(matches!(&swept, Answer::Swept { to_publish, .. } if *to_publish == wanted), "{swept:?}");
    let swept = one(&mut first, Operation::Sweep { now: due, limit: 100 });
    assert!(matches!(&swept, Answer::Swept { to_publish, .. } if to_publish.is_empty()), "{swept:?}");
    claim(&mut first, id).unwrap();
}

#[test]
fn a_task_that_nobody_claims_expires_at_its_deadline() {
    let schema = Schema::new();
    let mut store = join(&schema, &ShareSettings::default());
    let mut task = NewTask::new(TaskIds::new().next(NOW), "upper", "hola", NOW);
    task.deadline_at = Some(wall_clock() - 1);
    let id = task.id;
    one(&mut store, Operation::Accept(task));
    let swept = one(&mut store, Operation::Sweep { now: wall_clock(), limit: 100 });
    assert!(matches!(&swept, Answer::Swept { expired, .. } if *expired == [id]), "{swept:?}");
    assert_eq!(state(&store, id), TaskState::Expired);
}

#[test]
fn a_task_whose_message_is_lost_is_published_again_and_then_ever_more_seldom() {
    let schema = Schema::new();
    let settings = ShareSettings { publish_again: Duration::from_secs(30), ..long() };
    let mut store = join(&schema, &settings);
    let id = accept(&mut store);
    let made = store.reader().unwrap().fetch(id).unwrap().unwrap().task.created_at;
    let is_published = |store: &mut SharedPostgresStore, second: i64| {
        // Each is a walk of its own.
        store.sweeping = Sweeping::new();
        match one(store, Operation::Sweep { now: made + second * 1_000_000, limit: 100 }) {
            Answer::Swept { to_publish, .. } => !to_publish.is_empty(),
            other => panic!("{other:?}"),
        }
    };
    let seconds = [29, 31, 61, 63, 125, 127].into_iter();
    let found: Vec<i64> = seconds.filter(|second| is_published(&mut store, *second)).collect();
    assert_eq!(found, [31, 63, 127]);
    // One that is held is not.
    claim(&mut store, id).unwrap();
    assert!(!is_published(&mut store, 100_000));
}

#[test]
fn a_walk_over_many_open_tasks_goes_in_steps() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &quick()), join(&schema, &quick()));
    let mut ids = TaskIds::new();
    let tasks: Vec<Operation> =
        (0..6000).map(|_| Operation::Accept(NewTask::new(ids.next(NOW), "upper", "hola", NOW))).collect();
    apply(&mut first, &tasks);
    let mut found = std::collections::HashSet::new();
    let since = Instant::now();
    while found.len() < 6000 {
        assert!(since.elapsed() < PATIENCE, "{} of 6000", found.len());
        let Answer::Swept { to_publish, .. } =
            one(&mut second, Operation::Sweep { now: wall_clock(), limit: 1000 })
        else {
            panic!("a sweep is answered so")
        };
        assert!(to_publish.len() <= 1000);
        for task in to_publish {
            assert!(found.insert(task.id), "each once");
        }
    }
}

#[test]
fn one_key_is_accepted_once_by_balancers_that_accept_it_at_the_same_time() {
    let schema = Schema::new();
    let stores: Vec<_> = (0..4).map(|_| join(&schema, &ShareSettings::default())).collect();
    let threads = stores.into_iter().map(|mut store| {
        thread::spawn(move || {
            let mut ids = TaskIds::new();
            (0..50)
                .map(|number: u32| {
                    let mut task = NewTask::new(ids.next(NOW), "upper", "hola", NOW);
                    let key = number.to_be_bytes().to_vec().into();
                    task.idempotency = Some(IdempotencyKey { key, until: NOW + 1_000_000 });
                    let id = task.id;
                    match one(&mut store, Operation::Accept(task)) {
                        Answer::Accepted => id,
                        Answer::SameKey(first) => first,
                        other => panic!("{other:?}"),
                    }
                })
                .collect::<Vec<_>>()
        })
    });
    let threads: Vec<_> = threads.collect();
    let answers: Vec<Vec<TaskId>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(answers.iter().all(|ids| *ids == answers[0]));
    let count: i64 = schema.client().query_one("SELECT count(*) FROM tasks", &[]).unwrap().get(0);
    assert_eq!(count, 50);
}

#[test]
fn balancers_that_claim_and_record_at_the_same_time_do_not_get_into_each_others_way() {
    let schema = Schema::new();
    let mut store = join(&schema, &ShareSettings::default());
    let mut ids = TaskIds::new();
    let all: Vec<TaskId> = (0..400).map(|_| ids.next(NOW)).collect();
    let tasks: Vec<Operation> =
        all.iter().map(|id| Operation::Accept(NewTask::new(*id, "upper", "hola", NOW))).collect();
    apply(&mut store, &tasks);
    let threads = (0..4).map(|number: usize| {
        let (mut store, mut ids) = (join(&schema, &ShareSettings::default()), all.clone());
        thread::spawn(move || {
            ids.rotate_left(number * 100);
            let mut recorded = 0;
            for chunk in ids.chunks(50) {
                let claims: Vec<_> =
                    chunk.iter().map(|id| Operation::Claim { id: *id, named: false }).collect();
                let ends: Vec<_> = chunk.iter().rev().map(|id| done(*id)).collect();
                let answers = apply(&mut store, &[claims, ends].concat());
                let of = |wanted: &Answer| answers.iter().filter(|answer| *answer == wanted).count();
                let claimed =
                    answers.iter().filter(|answer| matches!(answer, Answer::Claimed { .. })).count();
                assert_eq!(of(&Answer::Recorded), claimed);
                recorded += claimed;
            }
            recorded
        })
    });
    let threads: Vec<_> = threads.collect();
    let recorded: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(recorded, 400);
}

#[test]
fn a_batch_whose_commit_was_not_answered_is_answered_as_the_first_time() {
    let schema = Schema::new();
    let mut store = join(&schema, &ShareSettings::default());
    let task = NewTask::new(TaskIds::new().next(NOW), "upper", "hola", NOW);
    let batch = [Operation::Accept(task.clone()), Operation::Claim { id: task.id, named: false }];
    let first = apply(&mut store, &batch);
    assert!(matches!(&first[..], [Answer::Accepted, Answer::Claimed { .. }]), "{first:?}");
    // As it stands when the commit was done and its answer was lost.
    store.batch -= 1;
    store.pending = Some(Pending { answers: first.clone(), walked: None });
    store.session = None;
    assert_eq!(apply(&mut store, &batch), first);
    // The same, and the balancer was given up for gone meanwhile, and its row removed.
    store.pending = Some(Pending { answers: first, walked: None });
    let remove = schema.client().execute("DELETE FROM balancers WHERE id = $1", &[&store.id()]).unwrap();
    assert_eq!(remove, 1);
    assert_eq!(apply(&mut store, &batch[..1]), [Answer::Accepted]);
    let count =
        schema.client().query_one("SELECT count(*) FROM tasks WHERE id = $1", &[&uuid(task.id)]).unwrap();
    assert_eq!(count.get::<_, i64>(0), 1);
}

#[test]
fn an_end_is_heard_of_at_other_balancers_and_not_at_its_own() {
    let schema = Schema::new();
    let (mut first, mut second) =
        (join(&schema, &ShareSettings::default()), join(&schema, &ShareSettings::default()));
    let listen = |store: &SharedPostgresStore| {
        let (told, heard) = mpsc::channel();
        let listener = store.hearing().start(move |heard| drop(told.send(heard))).unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), Heard::Gap);
        (listener, heard)
    };
    let ((_listens, at_first), (_listens_too, at_second)) = (listen(&first), listen(&second));
    let (recorded, cancelled) = (accept(&mut first), accept(&mut second));
    claim(&mut first, recorded).unwrap();
    one(&mut first, done(recorded));
    assert_eq!(at_second.recv_timeout(PATIENCE).unwrap(), Heard::Ended(vec![recorded]));
    one(&mut second, cancel(cancelled));
    assert_eq!(at_first.recv_timeout(PATIENCE).unwrap(), Heard::Ended(vec![cancelled]));
    // A lost connection is told, since something may have been missed on it.
    schema
        .client()
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = $1",
            &[&format!("LISTEN {}", listener::channel(first.lock_key))],
        )
        .unwrap();
    assert_eq!(at_first.recv_timeout(PATIENCE).unwrap(), Heard::Gap);
}

#[test]
fn one_that_leads_alone_and_those_that_share_keep_out_of_each_others_way() {
    let schema = Schema::new();
    let leader = PostgresStore::lead(&schema.url(), |_| {}, || true).unwrap().unwrap();
    let waits = std::cell::Cell::new(false);
    let none = SharedPostgresStore::join(
        &schema.url(),
        &quick(),
        |standby| {
            assert!(
                matches!(standby, Standby::Waiting { leader } if leader.contains("without --bus")),
                "{standby:?}"
            );
            waits.set(true);
        },
        || !waits.get(),
    );
    assert!(none.unwrap().is_none());
    drop(leader);
    let _shares = join(&schema, &quick());
    let _shares_too = join(&schema, &quick());
    let waits = std::cell::Cell::new(false);
    let none = PostgresStore::lead(&schema.url(), |_| waits.set(true), || !waits.get());
    assert!(none.unwrap().is_none());
}

#[test]
fn tasks_of_a_balancer_that_led_alone_are_published_by_those_that_share() {
    let schema = Schema::new();
    let mut leader = PostgresStore::lead(&schema.url(), |_| {}, || true).unwrap().unwrap();
    let task = NewTask::new(TaskIds::new().next(NOW), "upper", "hola", NOW);
    let id = task.id;
    let mut answers = Vec::new();
    leader.apply(&[Operation::Accept(task), Operation::Start { id }], &mut answers).unwrap();
    drop(leader);
    let mut store = join(&schema, &ShareSettings::default());
    assert_eq!(sweep(&mut store)[0].id, id);
    claim(&mut store, id).unwrap();
}

/// What a step of the sweep finds to be owed.
fn owed(store: &mut SharedPostgresStore) -> Vec<TaskId> {
    match one(store, Operation::Sweep { now: wall_clock(), limit: 100 }) {
        Answer::Swept { owed, .. } => owed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_outcome_that_is_owed_is_told_by_whoever_recorded_it_and_by_another_once_that_one_is_gone() {
    let schema = Schema::new();
    let (mut first, mut second) = (join(&schema, &long()), join(&schema, &long()));
    let mut ids = TaskIds::new();
    let mut accept = |store: &mut SharedPostgresStore| {
        let id = ids.next(NOW);
        let task = NewTask { reply: Some("where\0to".into()), ..NewTask::new(id, "a", "x", NOW) };
        assert_eq!(one(store, Operation::Accept(task)), Answer::Accepted);
        id
    };
    let (done, cancelled) = (accept(&mut first), accept(&mut first));
    let claimed = one(&mut first, Operation::Claim { id: done, named: false });
    assert!(
        matches!(&claimed, Answer::Claimed { task, .. } if task.task.reply.as_deref() == Some("where\u{FFFD}to")),
        "{claimed:?}"
    );
    // Not while it is open.
    assert_eq!(owed(&mut second), []);
    // That one is alive, and tells it; it did so a moment ago, however long this test takes.
    let outcome = Outcome::done(done, 1, wall_clock() + 3_600_000_000, "y");
    assert_eq!(one(&mut first, Operation::Finish(outcome)), Answer::Recorded);
    assert_eq!(owed(&mut second), []);
    let failure = Failure::new(reparto_protocol::ErrorCode::Cancelled, "cancelled");
    let outcome = Outcome::without_result(cancelled, TaskState::Cancelled, 0, wall_clock(), failure);
    assert_eq!(one(&mut second, Operation::Finish(outcome)), Answer::Recorded);
    // Whoever cancels need not know that somebody waits.
    assert_eq!(owed(&mut first), [cancelled]);
    assert_eq!(one(&mut first, Operation::Settle { id: cancelled }), Answer::Noted);
    Box::new(first).close().unwrap();
    assert_eq!(owed(&mut second), [done]);
    assert_eq!(one(&mut second, Operation::Settle { id: done }), Answer::Noted);
    assert_eq!(owed(&mut second), []);
    let count = schema.client().query_one("SELECT count(*) FROM tasks WHERE reply IS NOT NULL", &[]).unwrap();
    assert_eq!(count.get::<_, i64>(0), 0);
}
