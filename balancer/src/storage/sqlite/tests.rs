//! The embedded store passes the suite, and says clearly what is wrong with a database.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::storage::conformance::{Fixture, NOW, conformance};
use crate::storage::{NewTask, Outcome, TaskIds, TaskState};

struct Embedded {
    folder: TempDir,
    durability: Durability,
    lag_records: usize,
}

impl Fixture for Embedded {
    fn open(&self) -> Box<dyn Store> {
        let store = SqliteStore::open(self.folder.path(), self.durability).unwrap();
        Box::new(store.with_lag(self.lag_records))
    }
}

fn fsync() -> Embedded {
    Embedded { folder: tempfile::tempdir().unwrap(), durability: Durability::Fsync, lag_records: LAG_RECORDS }
}

fn interval() -> Embedded {
    Embedded { durability: Durability::Interval(Duration::from_millis(5)), ..fsync() }
}

/// Writes behind within every other commit, so that a restart finds some of a journal done.
fn little_lag() -> Embedded {
    Embedded { lag_records: 7, ..fsync() }
}

mod with_fsync {
    crate::storage::conformance::conformance!(super::fsync);
}

mod with_little_lag {
    super::conformance!(super::little_lag);
}

mod with_an_interval {
    super::conformance!(super::interval);
}

fn open(folder: &TempDir) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(folder.path(), Durability::Fsync)
}

fn accept(ids: &mut TaskIds) -> (TaskId, Operation) {
    let task = NewTask::new(ids.next(NOW), "upper", "payload", NOW);
    (task.id, Operation::Accept(task))
}

#[test]
fn a_second_store_on_a_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(&folder).unwrap();
    assert!(matches!(open(&folder).unwrap_err(), StoreError::InUse { .. }));
}

#[test]
fn a_newer_database_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder).unwrap());
    let connection = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    connection.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    connection.close().unwrap();
    let error = open(&folder).unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");
    assert!(error.to_string().contains("run the reparto that wrote it"), "{error}");
}

#[test]
fn a_file_that_is_no_database_is_called_damaged() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(DATABASE_FILE), "this is no database, ".repeat(1000)).unwrap();
    let error = open(&folder).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("Restore it from a backup"), "{error}");
}

#[test]
fn another_programs_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let connection = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    connection.execute_batch("CREATE TABLE theirs (x)").unwrap();
    connection.close().unwrap();
    let error = open(&folder).unwrap_err().to_string();
    assert!(error.contains("another program's database"), "{error}");
}

#[test]
fn a_damaged_journal_is_told_and_not_guessed_at() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(&folder).unwrap());
    let connection = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    connection.execute("INSERT INTO journal VALUES (1, 1, x'01FF')", []).unwrap();
    connection.close().unwrap();
    assert!(matches!(open(&folder).unwrap_err(), StoreError::Corrupt { .. }));
}

#[test]
fn a_task_that_ended_before_it_was_written_behind_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder).unwrap();
    let mut ids = TaskIds::new();
    let mut answers = Vec::new();
    let (id, operation) = accept(&mut ids);
    store.apply(&[operation], &mut answers).unwrap();
    store.apply(&[Operation::Finish(Outcome::done(id, 1, NOW, "HOLA"))], &mut answers).unwrap();
    let journal = |store: &SqliteStore| -> i64 {
        store.connection.query_row("SELECT count(*) FROM journal", [], |row| row.get(0)).unwrap()
    };
    let changes = store.connection.total_changes();
    assert_eq!(journal(&store), 2);
    store.settle().unwrap();
    assert_eq!(journal(&store), 0);
    assert_eq!(store.connection.total_changes() - changes, 3, "one row, and two of the journal deleted");
    assert_eq!(read(&store.overlay).tasks.iter().count(), 0);
}

#[test]
fn a_transaction_that_fails_is_tried_again_and_answers_as_if_nothing_had_been() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder).unwrap();
    let mut ids = TaskIds::new();
    let mut answers = Vec::new();
    let (first, operation) = accept(&mut ids);
    let mut due = NewTask::new(ids.next(NOW), "upper", "payload", NOW);
    due.due_at = Some(NOW);
    store.apply(&[operation, Operation::Accept(due.clone())], &mut answers).unwrap();
    store.settle().unwrap();
    let (second, operation) = accept(&mut ids);
    let operations = [
        operation,
        Operation::Finish(Outcome::done(first, 1, NOW, "HOLA")),
        Operation::TakeDue { now: NOW, limit: 9 },
        Operation::Finish(Outcome::done(second, 1, NOW, "HOLA")),
    ];
    answers.clear();

    // A limit of pages stands for a full disk.
    let pages: i64 = store.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    let fill = "CREATE TABLE fill (x); INSERT INTO fill VALUES (zeroblob(100));";
    store.connection.execute_batch(fill).unwrap();
    store.connection.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    let large = accept_large(&mut ids);
    let with_large: Vec<Operation> = operations.iter().cloned().chain([large]).collect();
    for _ in 0..3 {
        let error = store.apply(&with_large, &mut answers).unwrap_err();
        assert!(error.is_passing(), "{error}");
        assert!(answers.is_empty());
        let mut reader = store.reader().unwrap();
        assert_eq!(reader.fetch(second).unwrap(), None, "what is not durable is not seen");
        assert_eq!(reader.fetch(first).unwrap().unwrap().state, TaskState::Queued);
        assert_eq!(reader.fetch(due.id).unwrap().unwrap().state, TaskState::Scheduled);
    }
    store.connection.query_row("PRAGMA max_page_count = 1000000", [], |_| Ok(())).unwrap();
    store.apply(&with_large, &mut answers).unwrap();
    assert_eq!(answers.len(), 5);
    assert_eq!(
        (&answers[0], &answers[1], &answers[3]),
        (&Answer::Accepted, &Answer::Recorded, &Answer::Recorded)
    );
    assert!(
        matches!(&answers[2], Answer::Due { tasks, next: None } if tasks.len() == 1 && tasks[0].task.id == due.id)
    );
    let mut reader = store.reader().unwrap();
    for id in [first, second] {
        assert_eq!(reader.fetch(id).unwrap().unwrap().state, TaskState::Done);
    }
    assert_eq!(reader.fetch(due.id).unwrap().unwrap().state, TaskState::Queued);
}

fn accept_large(ids: &mut TaskIds) -> Operation {
    Operation::Accept(NewTask::new(ids.next(NOW), "upper", vec![7; 200_000], NOW))
}
