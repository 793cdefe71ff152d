//! The store in PostgreSQL passes the suite, hands over from one leader to the next, and survives lost connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use postgres::{Client, NoTls};

use super::*;
use crate::storage::conformance::{Fixture, NOW};
use crate::storage::{BlobKey, BlobKind, Body, NewTask, Outcome, TaskIds};

/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A schema of its own in the database that scripts/services brings up.
pub(super) struct Schema {
    url: String,
    name: String,
}

impl Schema {
    pub(super) fn new() -> Schema {
        let url = std::env::var("REPARTO_POSTGRES_URL").unwrap_or_else(|_| {
            panic!("this test needs PostgreSQL; run: eval \"$(scripts/services up postgres)\"")
        });
        let name = format!("test_{:032x}", uuid::Uuid::new_v4().as_u128());
        let schema = Schema { url, name };
        schema.admin().batch_execute(&format!("CREATE SCHEMA {}", schema.name)).unwrap();
        schema
    }

    fn admin(&self) -> Client {
        Client::connect(&self.url, NoTls).unwrap()
    }

    /// A connection that sees the schema's tables.
    pub(super) fn client(&self) -> Client {
        Client::connect(&self.url(), NoTls).unwrap()
    }

    pub(super) fn url(&self) -> String {
        format!("{}?options=-csearch_path%3D{}", self.url, self.name)
    }

    fn lead(&self) -> PostgresStore {
        PostgresStore::lead(&self.url(), |_| {}, || true).unwrap().unwrap()
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        self.admin().batch_execute(&format!("DROP SCHEMA {} CASCADE", self.name)).unwrap();
    }
}

impl Fixture for Schema {
    fn open(&self) -> Box<dyn Store> {
        Box::new(self.lead())
    }
}

mod in_a_schema {
    use super::Schema;
    crate::storage::conformance::conformance!(Schema::new);
}

fn apply(store: &mut PostgresStore, operations: &[Operation]) -> Result<Vec<Answer>, StoreError> {
    let mut answers = Vec::new();
    store.apply(operations, &mut answers).map(|()| answers)
}

/// Applies as the writing thread does: until it works.
fn insist(store: &mut PostgresStore, operations: &[Operation]) -> Result<Vec<Answer>, StoreError> {
    let since = Instant::now();
    loop {
        match apply(store, operations) {
            Err(error) if error.is_passing() && since.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

fn accept(ids: &mut TaskIds) -> (TaskId, Operation) {
    let task = NewTask::new(ids.next(NOW), "upper", "payload", NOW);
    (task.id, Operation::Accept(task))
}

/// Ends a store's session at the server, as a restart of the server or a lost network does.
fn cut(schema: &Schema, store: &PostgresStore) {
    let end = "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE pid = $1";
    schema.admin().execute(end, &[&store.backend.process]).unwrap();
}

#[test]
fn a_standby_waits_until_the_leader_is_gone_and_then_leads() {
    let schema = Schema::new();
    let mut first = schema.lead();
    let (id, operation) = accept(&mut TaskIds::new());
    apply(&mut first, &[operation]).unwrap();
    let url = schema.url();
    let (told, tells) = mpsc::channel();
    let standby = thread::spawn(move || {
        PostgresStore::lead(&url, |standby| told.send(standby.clone()).unwrap(), || true).unwrap().unwrap()
    });
    match tells.recv_timeout(PATIENCE).unwrap() {
        Standby::Waiting { leader } => {
            assert!(leader.contains(&format!("process {}", std::process::id())), "{leader}");
        }
        other => panic!("{other:?}"),
    }
    let epoch = first.epoch();
    drop(first);
    let second = standby.join().unwrap();
    assert!(second.epoch() > epoch);
    let stored = second.reader().unwrap().fetch(id).unwrap().unwrap();
    assert_eq!(stored.state, TaskState::Queued);
}

#[test]
fn a_standby_can_be_told_to_stop_waiting() {
    let schema = Schema::new();
    let _first = schema.lead();
    let waits = AtomicBool::new(false);
    let none = PostgresStore::lead(
        &schema.url(),
        |_| waits.store(true, Ordering::SeqCst),
        || !waits.load(Ordering::SeqCst),
    );
    assert!(none.unwrap().is_none());
}

#[test]
fn a_leader_that_was_cut_off_writes_no_more_once_another_leads() {
    let schema = Schema::new();
    let mut ids = TaskIds::new();
    let mut first = schema.lead();
    // The server drops the first's session, and with it the lock; the first does not know it yet.
    cut(&schema, &first);
    let mut second = schema.lead();
    let (id, operation) = accept(&mut ids);
    let fenced = insist(&mut first, &[operation]).unwrap_err();
    assert_eq!(fenced, StoreError::Fenced { ours: first.epoch(), current: second.epoch() });
    assert!(matches!(first.upkeep(), Err(StoreError::Fenced { .. })));
    assert_eq!(second.reader().unwrap().fetch(id).unwrap(), None);
    let (_, operation) = accept(&mut ids);
    assert_eq!(apply(&mut second, &[operation]), Ok(vec![Answer::Accepted]));
}

#[test]
fn a_leader_that_hangs_and_keeps_its_connection_does_not_keep_the_lock() {
    let schema = Schema::new();
    // As one whose process is stopped: nothing is heard of it, and the system answers for its connection.
    let mut hangs = schema.lead();
    let next = schema.lead();
    assert!(next.epoch() > hangs.epoch());
    let (_, operation) = accept(&mut TaskIds::new());
    let fenced = insist(&mut hangs, &[operation]).unwrap_err();
    assert_eq!(fenced, StoreError::Fenced { ours: hangs.epoch(), current: next.epoch() });
}

#[test]
fn a_leader_without_the_lock_is_fenced_by_its_epoch_alone() {
    let schema = Schema::new();
    let mut store = schema.lead();
    let usurp = "UPDATE leader SET epoch = epoch + 1";
    schema.client().batch_execute(usurp).unwrap();
    let (_, operation) = accept(&mut TaskIds::new());
    assert!(matches!(apply(&mut store, &[operation]), Err(StoreError::Fenced { .. })));
}

#[test]
fn a_lost_connection_is_opened_again_and_the_operations_are_done() {
    let schema = Schema::new();
    let mut ids = TaskIds::new();
    let mut store = schema.lead();
    let mut reader = store.reader().unwrap();
    for _ in 0..3 {
        let (id, operation) = accept(&mut ids);
        cut(&schema, &store);
        assert_eq!(insist(&mut store, &[operation]), Ok(vec![Answer::Accepted]));
        assert!(reader.fetch(id).unwrap().is_some());
    }
    cut(&schema, &store);
    let since = Instant::now();
    while store.upkeep().is_err() {
        assert!(since.elapsed() < PATIENCE);
    }
}

#[test]
fn a_batch_whose_commit_was_not_answered_is_answered_as_the_first_time() {
    let schema = Schema::new();
    let mut ids = TaskIds::new();
    let mut store = schema.lead();
    let (id, operation) = accept(&mut ids);
    apply(&mut store, &[operation]).unwrap();
    let mut outcome = Outcome::done(id, 1, NOW, "");
    outcome.result = Body::Blob(BlobKey::for_task(id, BlobKind::Result));
    let batch = [Operation::Finish(outcome), accept(&mut ids).1];
    let first = apply(&mut store, &batch).unwrap();
    assert_eq!(first, [Answer::Recorded, Answer::Accepted]);
    // As it stands when the commit was done and its answer was lost.
    store.batch -= 1;
    store.pending = Some(Pending { answers: first.clone(), walked: None });
    cut(&schema, &store);
    assert_eq!(insist(&mut store, &batch), Ok(first));
    assert_eq!(apply(&mut store, &batch[..1]), Ok(vec![Answer::AlreadyEnded(TaskState::Done)]));
}

#[test]
fn a_batch_whose_commit_was_lost_is_done_again() {
    let schema = Schema::new();
    let mut store = schema.lead();
    let (id, operation) = accept(&mut TaskIds::new());
    store.pending = Some(Pending { answers: vec![Answer::Accepted], walked: None });
    cut(&schema, &store);
    assert_eq!(insist(&mut store, &[operation]), Ok(vec![Answer::Accepted]));
    assert!(store.reader().unwrap().fetch(id).unwrap().is_some());
}

#[test]
fn a_newer_database_is_refused_and_left_alone() {
    let schema = Schema::new();
    drop(schema.lead());
    schema.client().batch_execute("UPDATE reparto_version SET version = version + 1").unwrap();
    let error = PostgresStore::lead(&schema.url(), |_| {}, || true).unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");
}

#[test]
fn another_programs_tables_are_refused() {
    let schema = Schema::new();
    schema.client().batch_execute("CREATE TABLE tasks (x integer)").unwrap();
    let error = PostgresStore::lead(&schema.url(), |_| {}, || true).unwrap_err().to_string();
    assert!(error.contains("another program has a table 'tasks'"), "{error}");
}

#[test]
fn a_wrong_password_is_told_at_once_and_a_database_that_is_away_is_waited_for() {
    let schema = Schema::new();
    let (user_and_password, place) = schema.url.split_once('@').unwrap();
    let wrong = format!("{user_and_password}x@{place}");
    let error = PostgresStore::lead(&wrong, |_| {}, || true).unwrap_err();
    assert!(matches!(&error, StoreError::Open { .. }), "{error}");
    assert!(error.to_string().contains("password authentication failed"), "{error}");

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let told = AtomicBool::new(false);
    let away = PostgresStore::lead(
        &format!("postgres://ana:secret@{closed}/tasks"),
        |standby| {
            assert!(matches!(standby, Standby::Unreachable { .. }), "{standby:?}");
            told.store(true, Ordering::SeqCst);
        },
        || !told.load(Ordering::SeqCst),
    );
    assert!(away.unwrap().is_none());
}

#[test]
fn texts_that_postgresql_cannot_keep_are_kept_as_well_as_it_can() {
    let schema = Schema::new();
    let mut store = schema.lead();
    let (id, operation) = accept(&mut TaskIds::new());
    let failure = crate::storage::Failure::new(reparto_protocol::ErrorCode::WorkerFailed, "a\0b");
    let outcome = Outcome::without_result(id, TaskState::Failed, 1, NOW, failure);
    apply(&mut store, &[operation, Operation::Finish(outcome)]).unwrap();
    let stored = store.reader().unwrap().fetch(id).unwrap().unwrap();
    assert_eq!(stored.failure.unwrap().message, "a\u{FFFD}b");
}

#[test]
fn a_batch_of_many_is_copied_in_and_a_page_ends_at_its_bytes() {
    let schema = Schema::new();
    let mut store = schema.lead();
    let mut ids = TaskIds::new();
    let operations: Vec<Operation> = (0..3000)
        .map(|_| Operation::Accept(NewTask::new(ids.next(NOW), "upper", vec![7; 4000], NOW)))
        .collect();
    apply(&mut store, &operations).unwrap();
    let mut reader = store.reader().unwrap();
    let first = reader.open_tasks(None, MAX_PAGE).unwrap();
    assert!((1800..2100).contains(&first.tasks.len()), "{}", first.tasks.len());
    let second = reader.open_tasks(first.next, MAX_PAGE).unwrap();
    assert_eq!((first.tasks.len() + second.tasks.len(), second.next), (3000, None));
}

#[test]
fn people_read_results_from_a_view() {
    let schema = Schema::new();
    let mut store = schema.lead();
    let (id, operation) = accept(&mut TaskIds::new());
    apply(&mut store, &[operation, Operation::Finish(Outcome::done(id, 1, NOW, "HOLA"))]).unwrap();
    let select = "SELECT action, task::text, state, result, finished_at::text FROM task_results";
    let row = schema.client().query_one(select, &[]).unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("upper", &*id.to_string()));
    assert_eq!((row.get::<_, &str>(2), row.get::<_, &[u8]>(3)), ("done", &b"HOLA"[..]));
    assert!(row.get::<_, &str>(4).starts_with("2026-"));
}
