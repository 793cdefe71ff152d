//! The threads answer each request once, keep their bounds, and outlive a store that is away.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::storage::conformance::NOW;
use crate::storage::testing::Nothing;
use crate::storage::{
    BlobError, Durability, FileBlobs, NewTask, Outcome, SqliteStore, StoreReader, TaskIds, TaskState,
};

/// Long enough for any machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    storage: Storage,
    woken: Receiver<()>,
    ids: TaskIds,
    token: u64,
}

impl Bench {
    fn with(store: Box<dyn Store>, blobs: Option<Arc<dyn BlobStore>>, settings: StorageSettings) -> Bench {
        let (wake, woken) = bounded(1);
        let storage = Storage::start(store, blobs, settings, move || _ = wake.try_send(())).unwrap();
        Bench { storage, woken, ids: TaskIds::new(), token: 0 }
    }

    fn on(folder: &TempDir, settings: StorageSettings) -> Bench {
        let store = SqliteStore::open(&folder.path().join("data"), Durability::Fsync).unwrap();
        let blobs: Arc<dyn BlobStore> = Arc::new(FileBlobs::open(&folder.path().join("blobs")).unwrap());
        Bench::with(Box::new(store), Some(blobs), settings)
    }

    fn task(&mut self, payload: impl Into<bytes::Bytes>) -> NewTask {
        NewTask::new(self.ids.next(NOW), "upper", payload, NOW)
    }

    fn request(&mut self, operation: Operation) -> Request {
        self.token += 1;
        Request { token: self.token, operation }
    }

    /// Completions by token, once there are as many as that.
    fn await_completions(&self, count: usize) -> BTreeMap<u64, Result<Reply, StoreError>> {
        let (mut found, mut some) = (BTreeMap::new(), Vec::new());
        let started = Instant::now();
        while found.len() < count {
            assert!(started.elapsed() < PATIENCE, "{} of {count} completions", found.len());
            let _ = self.woken.recv_timeout(Duration::from_millis(100));
            self.storage.take_completions(&mut some);
            for completion in some.drain(..) {
                let before = found.insert(completion.token, completion.reply);
                assert_eq!(before, None, "each is answered once");
            }
        }
        found
    }

    fn one(&mut self, operation: Operation) -> Answer {
        let request = self.request(operation);
        self.storage.try_submit(&mut vec![request]).unwrap();
        match self.await_completions(1).remove(&self.token) {
            Some(Ok(Reply::Answer(answer))) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, query: Query) -> Reply {
        self.token += 1;
        self.storage.try_query(self.token, query).unwrap();
        self.await_completions(1).remove(&self.token).unwrap().unwrap()
    }

    fn fetch(&mut self, id: TaskId) -> Option<StoredTask> {
        match self.ask(Query::Fetch(id)) {
            Reply::Task(found) => found.map(|stored| *stored),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_answered_is_there_after_a_stop_and_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::on(&folder, StorageSettings::default());
    let mut requests = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..1000 {
        let task = bench.task("hola");
        tasks.push(task.id);
        requests.push(bench.request(Operation::Accept(task)));
    }
    bench.storage.try_submit(&mut requests).unwrap();
    let completions = bench.await_completions(1000);
    assert!(completions.values().all(|reply| *reply == Ok(Reply::Answer(Answer::Accepted))));
    let mut requests: Vec<Request> =
        tasks.iter().map(|id| bench.request(Operation::Finish(Outcome::done(*id, 1, NOW, "HOLA")))).collect();
    bench.storage.try_submit(&mut requests).unwrap();
    let left = bench.storage.stop().unwrap();
    assert_eq!(left.len(), 1000, "a stop makes durable what was taken, and tells so");

    let mut bench = Bench::on(&folder, StorageSettings::default());
    for id in tasks {
        assert_eq!(bench.fetch(id).unwrap().state, TaskState::Done);
    }
    bench.storage.stop().unwrap();
}

#[test]
fn a_fetch_sees_a_task_as_soon_as_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::on(&folder, StorageSettings::default());
    for _ in 0..100 {
        let task = bench.task("hola");
        let id = task.id;
        assert_eq!(bench.one(Operation::Accept(task)), Answer::Accepted);
        assert_eq!(bench.fetch(id).unwrap().state, TaskState::Queued);
        bench.one(Operation::Finish(Outcome::done(id, 1, NOW, "HOLA")));
        assert_eq!(bench.fetch(id).unwrap().state, TaskState::Done);
    }
    let all = Query::List { filter: Filter::default(), before: None, limit: 1000 };
    assert!(matches!(bench.ask(all), Reply::Page(page) if page.tasks.len() == 100));
}

#[test]
fn a_large_payload_and_result_go_to_the_blob_store_and_go_with_their_task() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench =
        Bench::on(&folder, StorageSettings { blob_threshold: 1000, ..StorageSettings::default() });
    let blobs = FileBlobs::open(&folder.path().join("blobs")).unwrap();
    let count = || {
        let mut count = 0;
        blobs
            .visit(&mut |_| {
                count += 1;
                true
            })
            .unwrap();
        count
    };
    let task = bench.task(vec![b'a'; 1001]);
    let id = task.id;
    assert_eq!(bench.one(Operation::Accept(task)), Answer::Accepted);
    let Body::Blob(key) = bench.fetch(id).unwrap().task.payload else { panic!("it stands in the row") };
    assert_eq!(bench.ask(Query::Blob(key)), Reply::Blob(Some(vec![b'a'; 1001].into())));
    let result = Outcome::done(id, 1, NOW, vec![b'b'; 2000]);
    assert_eq!(bench.one(Operation::Finish(result.clone())), Answer::Recorded);
    assert_eq!(bench.one(Operation::Finish(result)), Answer::AlreadyEnded(TaskState::Done));
    assert_eq!(bench.fetch(id).unwrap().result, Some(Body::Inline(vec![b'b'; 2000].into())));
    let small = bench.task(vec![b'a'; 1000]);
    bench.one(Operation::Accept(small));
    assert!(matches!(bench.one(Operation::Drop { id }), Answer::Removed { count: 1, .. }));
    bench.storage.stop().unwrap();
    assert_eq!(count(), 0, "the payload, the result, and the one that came too late");
}

#[test]
fn what_makes_no_sense_is_refused_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::on(&folder, StorageSettings::default());
    let mut wrong = bench.task("hola");
    wrong.action = "x".repeat(256).into();
    let right = bench.task("hola");
    let mut requests = vec![bench.request(Operation::Accept(wrong)), bench.request(Operation::Accept(right))];
    bench.storage.try_submit(&mut requests).unwrap();
    let completions = bench.await_completions(2);
    let error = completions[&1].clone().unwrap_err();
    assert!(error.to_string().contains("256 bytes, and 255 is the limit"), "{error}");
    assert_eq!(completions[&2], Ok(Reply::Answer(Answer::Accepted)));
}

/// A store that is away until it is told to be back, and then counts.
struct Away {
    is_back: Arc<AtomicBool>,
    applied: Arc<AtomicU64>,
    fails_for_good: bool,
}

impl Store for Away {
    fn apply(&mut self, operations: &[Operation], answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        if self.fails_for_good {
            return Err(StoreError::Fenced { ours: 1, current: 2 });
        }
        if !self.is_back.load(Ordering::Acquire) {
            return Err(StoreError::unavailable("the disk is full"));
        }
        self.applied.fetch_add(operations.len() as u64, Ordering::AcqRel);
        answers.extend(operations.iter().map(|_| Answer::Accepted));
        Ok(())
    }
    fn upkeep(&mut self) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }
    fn settle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
    fn reader(&self) -> Result<Box<dyn StoreReader>, StoreError> {
        Ok(Box::new(Nothing))
    }
    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn while_the_store_is_away_requests_wait_up_to_the_bound_and_are_then_refused_by_name() {
    let (is_back, applied) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let store = Away { is_back: Arc::clone(&is_back), applied: Arc::clone(&applied), fails_for_good: false };
    let settings = StorageSettings { max_waiting: 10, ..StorageSettings::default() };
    let mut bench = Bench::with(Box::new(store), None, settings);
    let mut requests = Vec::new();
    for _ in 0..15 {
        let task = bench.task("hola");
        requests.push(bench.request(Operation::Accept(task)));
    }
    let error = bench.storage.try_submit(&mut requests).unwrap_err();
    assert!(matches!(error, SubmitError::Full { waiting: 10, .. }), "{error}");
    assert_eq!(requests.len(), 5);
    let started = Instant::now();
    while bench.storage.status().trouble.is_none() {
        assert!(started.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(5));
    }
    let error = bench.storage.try_submit(&mut requests).unwrap_err().to_string();
    assert!(error.contains("takes no more") && error.contains("the disk is full"), "{error}");
    is_back.store(true, Ordering::Release);
    assert_eq!(bench.await_completions(10).len(), 10);
    bench.storage.try_submit(&mut requests).unwrap();
    assert_eq!(bench.await_completions(5).len(), 5);
    assert_eq!(applied.load(Ordering::Acquire), 15);
    assert_eq!(bench.storage.status(), StorageStatus::default());
}

#[test]
fn waiting_bytes_are_bounded_and_a_single_large_request_is_taken_alone() {
    let (is_back, applied) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let store = Away { is_back: Arc::clone(&is_back), applied, fails_for_good: false };
    let settings = StorageSettings { max_waiting_bytes: 1000, ..StorageSettings::default() };
    let mut bench = Bench::with(Box::new(store), None, settings);
    let mut requests = Vec::new();
    for _ in 0..2 {
        let task = bench.task(vec![0; 5000]);
        requests.push(bench.request(Operation::Accept(task)));
    }
    assert!(bench.storage.try_submit(&mut requests).is_err());
    assert_eq!(requests.len(), 1);
    is_back.store(true, Ordering::Release);
    bench.await_completions(1);
    bench.storage.try_submit(&mut requests).unwrap();
}

#[test]
fn a_store_that_failed_for_good_answers_all_with_the_reason() {
    let (is_back, applied) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let store = Away { is_back, applied, fails_for_good: true };
    let mut bench = Bench::with(Box::new(store), None, StorageSettings::default());
    let task = bench.task("hola");
    let request = bench.request(Operation::Accept(task));
    bench.storage.try_submit(&mut vec![request.clone()]).unwrap();
    let completions = bench.await_completions(1);
    assert_eq!(completions[&1], Err(StoreError::Fenced { ours: 1, current: 2 }));
    let error = bench.storage.try_submit(&mut vec![request]).unwrap_err().to_string();
    assert!(error.contains("takes nothing any more: another balancer has taken over"), "{error}");
    assert!(bench.storage.stop().is_err());
}

/// A blob store that is away.
struct NoBlobs;

impl BlobStore for NoBlobs {
    fn put(&self, _: &BlobKey, _: &[u8]) -> Result<(), BlobError> {
        Err(BlobError::Unavailable { place: "nowhere".into(), reason: "it is away".into() })
    }
    fn get(&self, _: &BlobKey) -> Result<Option<bytes::Bytes>, BlobError> {
        Ok(None)
    }
    fn delete(&self, _: &BlobKey) -> Result<(), BlobError> {
        Ok(())
    }
    fn visit(&self, _: &mut dyn FnMut(crate::storage::BlobInfo) -> bool) -> Result<(), BlobError> {
        Ok(())
    }
}

#[test]
fn a_large_task_is_refused_while_the_blob_store_is_away_and_small_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path(), Durability::Fsync).unwrap();
    let settings = StorageSettings { blob_threshold: 1000, ..StorageSettings::default() };
    let mut bench = Bench::with(Box::new(store), Some(Arc::new(NoBlobs)), settings);
    let large = bench.task(vec![0; 5000]);
    let request = bench.request(Operation::Accept(large));
    bench.storage.try_submit(&mut vec![request]).unwrap();
    let error = bench.await_completions(1)[&1].clone().unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    let small = bench.task("hola");
    assert_eq!(bench.one(Operation::Accept(small)), Answer::Accepted);
    bench.storage.stop().unwrap();
}
