//! What every blob store must do, as tests over any of them: `blob_conformance!(fixture)` makes them for one.

use std::collections::BTreeSet;

use super::*;
use crate::storage::{
    Answer, BlobKind, Body, Durability, NewTask, Operation, SqliteStore, Store as _, TaskId, TaskIds,
};

/// A place for blobs that outlives the stores opened on it.
pub(in crate::storage) trait BlobFixture {
    /// Opens the blob store, as a start of the balancer does.
    fn open(&self) -> Box<dyn BlobStore>;
}

/// The tests of one blob store; `$fixture` is a function that makes a [`BlobFixture`].
macro_rules! blob_conformance {
    ($fixture:path: $($rule:ident)*) => {
        $(#[test]
        fn $rule() {
            $crate::storage::blob::conformance::$rule(&$fixture());
        })*
    };
    ($fixture:path) => {
        $crate::storage::blob::conformance::blob_conformance! { $fixture:
            a_blob_is_read_back_as_it_was_put_and_after_a_restart
            a_deleted_blob_is_gone_and_deleting_it_again_is_no_error
            a_visit_shows_every_blob_and_can_be_stopped
            a_sweep_removes_old_blobs_that_no_task_names
        }
    };
}
pub(in crate::storage) use blob_conformance;

const NOW: i64 = 1_790_000_000_000_000;

fn keys(count: usize) -> Vec<BlobKey> {
    let mut ids = TaskIds::new();
    (0..count).map(|_| BlobKey::for_task(ids.next(NOW), BlobKind::Payload)).collect()
}

fn visited(blobs: &dyn BlobStore) -> BTreeSet<BlobKey> {
    let mut seen = BTreeSet::new();
    blobs.visit(&mut |info| seen.insert(info.key)).unwrap();
    seen
}

pub(in crate::storage) fn a_blob_is_read_back_as_it_was_put_and_after_a_restart(fixture: &dyn BlobFixture) {
    let blobs = fixture.open();
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let keys = keys(3);
    blobs.put(&keys[0], &large).unwrap();
    blobs.put(&keys[1], b"").unwrap();
    for blobs in [blobs, fixture.open()] {
        assert_eq!(blobs.get(&keys[0]).unwrap().unwrap(), large);
        assert_eq!(blobs.get(&keys[1]).unwrap().unwrap(), "");
        assert_eq!(blobs.get(&keys[2]).unwrap(), None);
    }
}

pub(in crate::storage) fn a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(
    fixture: &dyn BlobFixture,
) {
    let blobs = fixture.open();
    let keys = keys(2);
    for key in &keys {
        blobs.put(key, b"bytes").unwrap();
    }
    blobs.delete(&keys[0]).unwrap();
    blobs.delete(&keys[0]).unwrap();
    assert_eq!(blobs.get(&keys[0]).unwrap(), None);
    assert_eq!(blobs.get(&keys[1]).unwrap().unwrap(), "bytes");
}

pub(in crate::storage) fn a_visit_shows_every_blob_and_can_be_stopped(fixture: &dyn BlobFixture) {
    let blobs = fixture.open();
    assert_eq!(visited(&*blobs), BTreeSet::new());
    let keys = keys(20);
    for key in &keys {
        blobs.put(key, b"bytes").unwrap();
    }
    assert_eq!(visited(&*blobs), keys.into_iter().collect());
    let mut count = 0;
    let three = &mut |_| {
        count += 1;
        count < 3
    };
    blobs.visit(three).unwrap();
    assert_eq!(count, 3);
}

pub(in crate::storage) fn a_sweep_removes_old_blobs_that_no_task_names(fixture: &dyn BlobFixture) {
    let blobs = fixture.open();
    let folder = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(folder.path(), Durability::Fsync).unwrap();
    let keys = keys(4);
    let id_of = |key: &BlobKey| -> TaskId { key.task().unwrap() };
    for key in &keys {
        blobs.put(key, b"bytes").unwrap();
    }
    // The first is named; the second's task names another; the others have no task.
    let mut tasks =
        [NewTask::new(id_of(&keys[0]), "upper", "", NOW), NewTask::new(id_of(&keys[1]), "upper", "", NOW)];
    tasks[0].payload = Body::Blob(keys[0].clone());
    let mut answers = Vec::new();
    store.apply(&tasks.map(Operation::Accept), &mut answers).unwrap();
    assert_eq!(answers, [Answer::Accepted, Answer::Accepted]);
    let mut reader = store.reader().unwrap();
    assert_eq!(sweep(&*blobs, &mut *reader, Duration::from_secs(3600), || true), Ok(0));
    assert_eq!(visited(&*blobs).len(), 4);
    assert_eq!(sweep(&*blobs, &mut *reader, Duration::ZERO, || true), Ok(3));
    assert_eq!(visited(&*blobs), BTreeSet::from([keys[0].clone()]));
}
