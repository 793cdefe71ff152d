//! The keeper with a store that is told what it can do: it works, is busy, is away, or has failed for good. Nothing here
//! depends on a clock but that other threads are waited for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Instant;

use super::*;
use crate::scheduler::{AssignmentId, Config, Effects, Finish, Registration, StoreAnswer};
use crate::storage::testing::Nothing;
use crate::storage::{Answer, Store, StoreReader};

/// How long a test waits for the storage's threads.
const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const CLIENT: Peer = Peer { index: 1, generation: 1 };
pub(super) const WORKER: Peer = Peer { index: 2, generation: 1 };

/// What a store can do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Can {
    Work,
    /// What it has been given last takes as long as this lasts.
    OnlyWait,
    /// It is away, and may come back.
    NotNow,
    NothingEver,
}

/// A store that can do what it is told.
struct Obedient {
    can: Arc<AtomicU8>,
}

impl Store for Obedient {
    fn apply(&mut self, operations: &[Operation], answers: &mut Vec<Answer>) -> Result<(), StoreError> {
        loop {
            match self.can.load(Ordering::Acquire) {
                can if can == Can::Work as u8 => break,
                can if can == Can::OnlyWait as u8 => thread::sleep(Duration::from_millis(1)),
                can if can == Can::NotNow as u8 => {
                    return Err(StoreError::Unavailable { reason: "full".into() });
                }
                _ => return Err(StoreError::Corrupt { place: "it".into(), reason: "a page is torn".into() }),
            }
        }
        answers.extend(operations.iter().map(|operation| match operation {
            Operation::Accept(_) => Answer::Accepted,
            Operation::Finish(_) => Answer::Recorded,
            Operation::TakeDue { .. } => Answer::Due { tasks: vec![], next: None },
            Operation::RemoveEnded { .. } | Operation::RemoveKeys { .. } => {
                Answer::Removed { count: 0, more: false, blobs: vec![] }
            }
            Operation::Claim { .. } => Answer::Elsewhere,
            _ => Answer::Noted,
        }));
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

/// What was said to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Accepted(u64),
    Failed(u64, ErrorCode),
    Assigned(AssignmentId),
    Unwanted,
}

/// Takes effects, and keeps what a test asks for.
#[derive(Debug, Default)]
pub(super) struct Effected {
    said: Vec<(Peer, Said)>,
    notes: VecDeque<Noted>,
    count: usize,
}

impl<'a> Effects<'a> for Effected {
    fn push(&mut self, effect: Effect<'a>) {
        self.count += 1;
        self.notes.extend(Noted::of(&effect));
        let said = match effect {
            Effect::Answer { peer, id, answer: StoreAnswer::Accepted { .. } } => (peer, Said::Accepted(id)),
            Effect::Fail { peer, id, code, .. } => (peer, Said::Failed(id, code)),
            Effect::Assign { peer, assignment } => (peer, Said::Assigned(assignment)),
            Effect::Unwanted { peer, .. } => (peer, Said::Unwanted),
            _ => return,
        };
        self.said.push(said);
    }

    fn count(&self) -> usize {
        self.count
    }
}

impl Outlet for Effected {
    fn take_note(&mut self) -> Option<Noted> {
        self.notes.pop_front()
    }
}

/// A keeper whose storage takes two requests at a time, and whose time stands still.
pub(super) struct Bench {
    can: Arc<AtomicU8>,
    pub(super) keeper: Keeper,
    pub(super) scheduler: Scheduler,
    pub(super) effects: Effected,
}

impl Bench {
    pub(super) fn new(sharing: Option<Box<Sharing>>) -> Bench {
        let can = Arc::new(AtomicU8::new(Can::Work as u8));
        let settings = StorageSettings { max_waiting: 2, ..StorageSettings::default() };
        let store = Box::new(Obedient { can: Arc::clone(&can) });
        let storage = Storage::start(store, None, settings, || {}).unwrap();
        Bench {
            can,
            keeper: Keeper::over(StoreSettings::new("nowhere"), storage, sharing, 1 << 20),
            scheduler: Scheduler::new(Config::default()),
            effects: Effected::default(),
        }
    }

    pub(super) fn let_store(&self, can: Can) {
        self.can.store(can as u8, Ordering::Release);
    }

    /// Turns until something has come about.
    fn turn_until(&mut self, what: &str, mut so: impl FnMut(&Bench) -> bool) {
        let began = Instant::now();
        while !so(self) {
            assert!(began.elapsed() < PATIENCE, "{what} has not come about: {:?}", self.effects.said);
            self.keeper.turn(&mut self.scheduler, Time(0), &mut self.effects);
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn ask(&mut self, ask: Ask) {
        self.keeper.ask(&mut self.scheduler, Time(0), CLIENT, ask, &mut self.effects);
    }

    fn handle(&mut self, event: Event<'_>) {
        self.scheduler.handle(Time(0), event, &mut self.effects);
    }

    /// What was said to a peer, in order.
    pub(super) fn said_to(&self, peer: Peer) -> Vec<Said> {
        self.effects.said.iter().filter(|(to, _)| *to == peer).map(|(_, said)| *said).collect()
    }

    /// Has the store fail for good, by something that nobody waits for.
    pub(super) fn fail_for_good(&mut self) {
        self.turn_until("there is room", |bench| {
            bench.keeper.storage.as_ref().unwrap().room_for_requests() > 0
        });
        self.let_store(Can::NothingEver);
        let request = Request { token: u64::MAX, operation: Operation::Requeue { id: TaskId([9; 16]) } };
        self.keeper.storage.as_ref().unwrap().try_submit(&mut vec![request]).unwrap();
        let began = Instant::now();
        while self.keeper.failure().is_none() {
            assert!(began.elapsed() < PATIENCE, "the store has not failed");
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn register(&mut self) {
        let registration = Registration {
            request: 1,
            worker_id: "ana",
            threads: 1,
            window: 8,
            weight: 1,
            service_ns: None,
            heartbeats: true,
            actions: vec!["a"],
            held: vec![],
        };
        self.handle(Event::Register { peer: WORKER, registration });
    }
}

impl Drop for Bench {
    /// The storage ends once it has done what it was given.
    fn drop(&mut self) {
        if self.keeper.failure().is_none() {
            self.let_store(Can::Work);
        }
    }
}

/// A foreground task that is to be recorded.
fn recorded(id: u64) -> Ask {
    Ask::Submit(Box::new(NewBackgroundTask {
        id,
        record: true,
        action: "a".into(),
        payload: Bytes::new(),
        priority: limits::DEFAULT_PRIORITY,
        max_attempts: 3,
        deadline: None,
        delay: None,
        start_at_ms: None,
        backoff_first_ms: 1000,
        backoff_most_ms: 1000,
        key: Bytes::new(),
        idempotency_key: Bytes::new(),
        idempotency_window: Duration::ZERO,
    }))
}

#[test]
fn who_waits_for_a_recorded_task_is_told_when_its_end_cannot_be_recorded() {
    for has_failed_before in [false, true] {
        let mut bench = Bench::new(None);
        bench.register();
        bench.ask(recorded(1));
        let assigned = |bench: &Bench| {
            bench.said_to(WORKER).into_iter().find_map(|said| match said {
                Said::Assigned(assignment) => Some(assignment),
                _ => None,
            })
        };
        bench.turn_until("the task is at its worker", |bench| assigned(bench).is_some());
        if has_failed_before {
            bench.fail_for_good();
        } else {
            bench.let_store(Can::NothingEver);
        }
        let assignment = assigned(&bench).unwrap();
        let finish = Finish::Done;
        let payload = Payload::new(b"result");
        bench.handle(Event::Finished { peer: WORKER, assignment, finish, service_ns: None, payload });
        bench.turn_until("its client is told", |bench| bench.said_to(CLIENT).len() == 2);
        let expected = [Said::Accepted(1), Said::Failed(1, ErrorCode::StoreUnavailable)];
        assert_eq!(bench.said_to(CLIENT), expected, "failed before: {has_failed_before}");
    }
}

#[test]
fn a_cancel_and_a_retry_are_refused_while_the_store_is_behind_and_taken_again_when_it_is_not() {
    let mut bench = Bench::new(None);
    let task = [7; 16];
    bench.turn_until("the start is over", |bench| bench.keeper.pending.is_empty());
    bench.let_store(Can::NotNow);
    // As many as the storage takes, and one more.
    for id in 1..=3 {
        bench.ask(Ask::Cancel { id, task });
    }
    bench.turn_until("the store is behind and has trouble", |bench| bench.keeper.refuses_tasks().is_some());
    assert_eq!(bench.said_to(CLIENT), []);
    bench.ask(Ask::Cancel { id: 4, task });
    bench.ask(Ask::Retry { id: 5, task });
    bench.ask(recorded(6));
    let refused = [4, 5, 6].map(|id| Said::Failed(id, ErrorCode::StoreUnavailable));
    assert_eq!(bench.said_to(CLIENT), refused);
    bench.let_store(Can::Work);
    // This store knows no task.
    let answered = |bench: &Bench, id| bench.said_to(CLIENT).contains(&Said::Failed(id, ErrorCode::NotFound));
    bench.turn_until("what was taken is answered", |bench| (1..=3).all(|id| answered(bench, id)));
    bench.ask(Ask::Retry { id: 7, task });
    bench.ask(Ask::Cancel { id: 8, task });
    bench.turn_until("it is taken again", |bench| answered(bench, 7) && answered(bench, 8));
}

#[test]
fn what_a_store_takes_only_later_is_held_back_in_order_and_answered_then() {
    let mut bench = Bench::new(None);
    bench.turn_until("the start is over", |bench| bench.keeper.pending.is_empty());
    bench.let_store(Can::OnlyWait);
    for id in 1..=10 {
        bench.ask(recorded(id));
        bench.keeper.turn(&mut bench.scheduler, Time(0), &mut bench.effects);
    }
    assert!(bench.keeper.is_behind() && !bench.keeper.is_quiet());
    bench.let_store(Can::Work);
    bench.turn_until("all are accepted", |bench| bench.said_to(CLIENT).len() == 10);
    assert_eq!(bench.said_to(CLIENT), (1..=10).map(Said::Accepted).collect::<Vec<_>>());
    assert!(bench.keeper.is_quiet());
}
