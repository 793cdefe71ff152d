//! What every store must do, as tests over any of them: `conformance!(fixture)` makes them for one.

use reparto_protocol::ErrorCode;

use super::*;

/// A place for tasks that outlives the stores opened on it.
pub(super) trait Fixture {
    /// Opens the store, as a start of the balancer does. At most one is open at a time.
    fn open(&self) -> Box<dyn Store>;
}

/// A moment in 2026, in microseconds.
pub(super) const NOW: i64 = 1_790_000_000_000_000;
const SECOND: i64 = 1_000_000;

/// The tests of one store; `$fixture` is a function that makes a [`Fixture`].
macro_rules! conformance {
    ($fixture:path: $($rule:ident)*) => {
        $(#[test]
        fn $rule() {
            $crate::storage::conformance::$rule(&$fixture());
        })*
    };
    ($fixture:path) => {
        $crate::storage::conformance::conformance! { $fixture:
            an_accepted_task_is_fetched_as_it_was_handed_in
            an_accepted_task_survives_a_store_that_is_not_closed
            an_outcome_is_recorded_once
            an_outcome_is_recorded_once_across_restarts
            an_outcome_in_the_batch_of_its_task_is_recorded
            an_outcome_of_an_unknown_task_is_told_so
            a_cancelled_task_takes_no_result
            a_retry_waits_until_it_is_due
            what_is_due_is_taken_once
            what_is_due_is_taken_in_parts
            a_start_and_a_requeue_cost_no_attempt
            a_dead_task_has_its_history_and_can_be_revived
            only_dead_tasks_are_revived_and_only_ended_ones_dropped
            a_dropped_task_is_gone_for_good
            a_key_stands_for_the_first_task_until_its_window_ends
            keys_are_removed_after_their_window
            open_tasks_come_in_order_and_in_pages
            lists_are_filtered_and_paged
            old_results_are_removed_in_small_steps_and_open_tasks_are_not
            a_history_of_random_operations_ends_as_a_simple_model_says
        }
    };
}
pub(super) use conformance;

/// A store with the ids for its tasks.
struct Bench {
    store: Box<dyn Store>,
    ids: TaskIds,
}

impl Bench {
    fn on(fixture: &dyn Fixture) -> Bench {
        Bench { store: fixture.open(), ids: TaskIds::new() }
    }

    /// What a restart finds: the store is dropped as it is.
    fn restart(self, fixture: &dyn Fixture) -> Bench {
        drop(self.store);
        Bench { store: fixture.open(), ids: self.ids }
    }

    fn apply(&mut self, operations: &[Operation]) -> Vec<Answer> {
        let mut answers = Vec::new();
        self.store.apply(operations, &mut answers).unwrap();
        assert_eq!(answers.len(), operations.len());
        answers
    }

    fn one(&mut self, operation: Operation) -> Answer {
        self.apply(&[operation]).remove(0)
    }

    fn task(&mut self, action: &str, at: i64) -> NewTask {
        NewTask::new(self.ids.next(at), action, "payload", at)
    }

    fn accept(&mut self, action: &str, at: i64) -> TaskId {
        let task = self.task(action, at);
        let id = task.id;
        assert_eq!(self.one(Operation::Accept(task)), Answer::Accepted);
        id
    }

    fn fetch(&self, id: TaskId) -> Option<StoredTask> {
        self.store.reader().unwrap().fetch(id).unwrap()
    }

    fn state(&self, id: TaskId) -> Option<TaskState> {
        self.fetch(id).map(|stored| stored.state)
    }

    fn due(&mut self, now: i64, limit: usize) -> (Vec<TaskId>, Option<i64>) {
        match self.one(Operation::TakeDue { now, limit }) {
            Answer::Due { tasks, next } => {
                assert!(tasks.iter().all(|stored| stored.state == TaskState::Queued));
                (tasks.into_iter().map(|stored| stored.task.id).collect(), next)
            }
            other => panic!("{other:?}"),
        }
    }

    fn die(&mut self, id: TaskId, at: i64) {
        let failure = Failure::new(ErrorCode::AttemptsExhausted, "three times");
        let outcome = Outcome::without_result(id, TaskState::Dead, 3, at, failure);
        assert_eq!(self.one(Operation::Finish(outcome)), Answer::Recorded);
    }
}

fn retry(id: TaskId, attempts: u8, at: i64, due_at: Option<i64>) -> Operation {
    let failure = Failure::new(ErrorCode::WorkerFailed, format!("attempt {attempts} failed"));
    Operation::Retry { attempt: FailedAttempt { id, attempts, at, worker: "ana".into(), failure }, due_at }
}

fn cancel(id: TaskId, at: i64) -> Operation {
    let failure = Failure::new(ErrorCode::Cancelled, "cancelled by its client");
    Operation::Finish(Outcome::without_result(id, TaskState::Cancelled, 0, at, failure))
}

/// Runs `check` at once, after everything stands in its final place, and after a restart.
fn at_each_stage(mut bench: Bench, fixture: &dyn Fixture, check: impl Fn(&Bench)) -> Bench {
    check(&bench);
    bench.store.settle().unwrap();
    check(&bench);
    let bench = bench.restart(fixture);
    check(&bench);
    bench
}

pub(super) fn an_accepted_task_is_fetched_as_it_was_handed_in(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let plain = bench.task("upper", NOW);
    let mut full = bench.task("thumbnail", NOW + 1);
    full.priority = 9;
    full.max_attempts = 7;
    full.due_at = Some(NOW + SECOND);
    full.deadline_at = Some(NOW + 2 * SECOND);
    full.backoff = Backoff { first_ms: 100, most_ms: 60_000 };
    full.payload = Body::Blob(BlobKey::for_task(full.id, BlobKind::Payload));
    let unknown = bench.ids.next(NOW + 2);
    bench.apply(&[Operation::Accept(plain.clone()), Operation::Accept(full.clone())]);
    at_each_stage(bench, fixture, |bench| {
        assert_eq!(bench.fetch(plain.id), Some(StoredTask::accepted(plain.clone())));
        assert_eq!(bench.fetch(full.id), Some(StoredTask::accepted(full.clone())));
        assert_eq!(bench.fetch(unknown), None);
    });
}

pub(super) fn an_accepted_task_survives_a_store_that_is_not_closed(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let ids: Vec<TaskId> = (0..100).map(|number| bench.accept("upper", NOW + number)).collect();
    let bench = bench.restart(fixture);
    for id in ids {
        assert_eq!(bench.state(id), Some(TaskState::Queued));
    }
    let again = bench.restart(fixture);
    again.store.close().unwrap();
    fixture.open().close().unwrap();
}

pub(super) fn an_outcome_is_recorded_once(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let id = bench.accept("upper", NOW);
    let first = Operation::Finish(Outcome::done(id, 1, NOW + 5, "HOLA"));
    let second = Operation::Finish(Outcome::done(id, 2, NOW + 6, "OTHER"));
    assert_eq!(
        bench.apply(&[first, second.clone()]),
        [Answer::Recorded, Answer::AlreadyEnded(TaskState::Done)]
    );
    assert_eq!(bench.one(second), Answer::AlreadyEnded(TaskState::Done));
    at_each_stage(bench, fixture, |bench| {
        let stored = bench.fetch(id).unwrap();
        assert_eq!((stored.state, stored.attempts, stored.ended_at), (TaskState::Done, 1, Some(NOW + 5)));
        assert_eq!(stored.result, Some(Body::Inline("HOLA".into())));
        assert_eq!(stored.failure, None);
    });
}

pub(super) fn an_outcome_is_recorded_once_across_restarts(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let (early, late) = (bench.accept("upper", NOW), bench.accept("upper", NOW));
    bench.one(Operation::Finish(Outcome::done(early, 1, NOW, "first")));
    let mut bench = bench.restart(fixture);
    for id in [early, late, early, late] {
        bench.one(Operation::Finish(Outcome::done(id, 1, NOW + 1, "second")));
    }
    let result = |text: &'static str| Some(Body::Inline(text.into()));
    at_each_stage(bench, fixture, |bench| {
        assert_eq!(bench.fetch(early).unwrap().result, result("first"));
        assert_eq!(bench.fetch(late).unwrap().result, result("second"));
    });
}

pub(super) fn an_outcome_in_the_batch_of_its_task_is_recorded(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let task = bench.task("upper", NOW);
    let id = task.id;
    let mut outcome = Outcome::done(id, 1, NOW, "");
    outcome.result = Body::Blob(BlobKey::for_task(id, BlobKind::Result));
    let answers = bench.apply(&[
        Operation::Accept(task),
        Operation::Start { id },
        Operation::Finish(outcome.clone()),
        cancel(id, NOW),
    ]);
    assert_eq!(
        answers,
        [Answer::Accepted, Answer::Noted, Answer::Recorded, Answer::AlreadyEnded(TaskState::Done)]
    );
    at_each_stage(bench, fixture, |bench| {
        assert_eq!(bench.fetch(id).unwrap().result, Some(outcome.result.clone()));
    });
}

pub(super) fn an_outcome_of_an_unknown_task_is_told_so(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let id = bench.ids.next(NOW);
    let operations = [
        cancel(id, NOW),
        Operation::Start { id },
        retry(id, 1, NOW, None),
        Operation::Drop { id },
        Operation::Revive { id },
    ];
    assert!(bench.apply(&operations).iter().all(|answer| *answer == Answer::Unknown));
    assert_eq!(bench.fetch(id), None);
}

pub(super) fn a_cancelled_task_takes_no_result(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let mut task = bench.task("upper", NOW);
    task.due_at = Some(NOW + SECOND);
    let id = task.id;
    bench.one(Operation::Accept(task));
    assert_eq!(bench.one(cancel(id, NOW)), Answer::Recorded);
    assert_eq!(
        bench.one(Operation::Finish(Outcome::done(id, 1, NOW, "late"))),
        Answer::AlreadyEnded(TaskState::Cancelled)
    );
    assert_eq!(bench.due(NOW + 2 * SECOND, 10), (vec![], None));
    at_each_stage(bench, fixture, |bench| {
        let stored = bench.fetch(id).unwrap();
        assert_eq!((stored.state, stored.result), (TaskState::Cancelled, None));
        assert_eq!(stored.failure.unwrap().code, ErrorCode::Cancelled);
    });
}

pub(super) fn a_retry_waits_until_it_is_due(fixture: &dyn Fixture) {
    for settles in [false, true] {
        let mut bench = Bench::on(fixture);
        let id = bench.accept("upper", NOW);
        if settles {
            bench.store.settle().unwrap();
        }
        assert_eq!(bench.one(retry(id, 1, NOW, Some(NOW + SECOND))), Answer::Noted);
        let mut bench = at_each_stage(bench, fixture, |bench| {
            let stored = bench.fetch(id).unwrap();
            assert_eq!((stored.state, stored.attempts), (TaskState::Scheduled, 1));
            assert_eq!(stored.task.due_at, Some(NOW + SECOND));
            assert_eq!(stored.failure.unwrap().message, "attempt 1 failed");
        });
        assert_eq!(bench.due(NOW + SECOND - 1, 10), (vec![], Some(NOW + SECOND)));
        assert_eq!(bench.due(NOW + SECOND, 10), (vec![id], None));
        assert_eq!(bench.one(retry(id, 2, NOW, None)), Answer::Noted);
        assert_eq!(bench.state(id), Some(TaskState::Queued));
        bench.one(cancel(id, NOW));
    }
}

pub(super) fn what_is_due_is_taken_once(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let mut ids = Vec::new();
    for (number, settles) in [(3, true), (1, false), (2, true), (0, false)] {
        let mut task = bench.task("upper", NOW);
        task.due_at = Some(NOW + number * SECOND);
        ids.push((number, task.id));
        bench.one(Operation::Accept(task));
        if settles {
            bench.store.settle().unwrap();
        }
    }
    ids.sort_unstable();
    let ids: Vec<TaskId> = ids.into_iter().map(|(_, id)| id).collect();
    assert_eq!(bench.due(NOW - 1, 10), (vec![], Some(NOW)));
    assert_eq!(bench.due(NOW + 2 * SECOND, 10), (ids[..3].to_vec(), Some(NOW + 3 * SECOND)));
    assert_eq!(bench.due(NOW + 2 * SECOND, 10), (vec![], Some(NOW + 3 * SECOND)));
    let mut bench = at_each_stage(bench, fixture, |bench| {
        for id in &ids[..3] {
            assert_eq!(bench.state(*id), Some(TaskState::Queued));
        }
        assert_eq!(bench.state(ids[3]), Some(TaskState::Scheduled));
    });
    assert_eq!(bench.due(NOW + 3 * SECOND, 10), (ids[3..].to_vec(), None));
}

pub(super) fn what_is_due_is_taken_in_parts(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let mut waiting = Vec::new();
    for number in 0..50 {
        let mut task = bench.task("upper", NOW);
        task.due_at = Some(NOW + number);
        waiting.push(task.id);
        bench.one(Operation::Accept(task));
        if number == 25 {
            bench.store.settle().unwrap();
        }
    }
    let mut taken = Vec::new();
    loop {
        let (part, next) = bench.due(NOW + SECOND, 7);
        assert!(part.len() <= 7);
        taken.extend(part);
        match next {
            Some(next) => assert!(next <= NOW + SECOND),
            None => break,
        }
    }
    taken.sort_unstable();
    assert_eq!(taken, waiting);
}

pub(super) fn a_start_and_a_requeue_cost_no_attempt(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let (running, back) = (bench.accept("upper", NOW), bench.accept("upper", NOW));
    bench.store.settle().unwrap();
    bench.apply(&[
        Operation::Start { id: running },
        Operation::Start { id: back },
        Operation::Requeue { id: back },
    ]);
    at_each_stage(bench, fixture, |bench| {
        assert_eq!(bench.state(running), Some(TaskState::Running));
        assert_eq!(bench.state(back), Some(TaskState::Queued));
        assert_eq!(bench.fetch(back).unwrap().attempts, 0);
    });
}

pub(super) fn a_dead_task_has_its_history_and_can_be_revived(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let id = bench.accept("upper", NOW);
    bench.apply(&[retry(id, 1, NOW + 1, None), retry(id, 2, NOW + 2, None)]);
    bench.die(id, NOW + 3);
    bench.store.settle().unwrap();
    let stored = bench.fetch(id).unwrap();
    assert_eq!((stored.state, stored.attempts), (TaskState::Dead, 3));
    assert_eq!(stored.task.payload, Body::Inline("payload".into()), "a revived task needs it");
    let history = bench.store.reader().unwrap().history(id).unwrap();
    let told: Vec<_> =
        history.iter().map(|attempt| (attempt.attempts, attempt.at, &*attempt.worker)).collect();
    assert_eq!(told, [(1, NOW + 1, "ana"), (2, NOW + 2, "ana")]);
    assert_eq!(history[1].failure.message, "attempt 2 failed");

    assert_eq!(bench.one(Operation::Revive { id }), Answer::Noted);
    let mut bench = at_each_stage(bench, fixture, |bench| {
        let stored = bench.fetch(id).unwrap();
        assert_eq!((stored.state, stored.attempts, stored.ended_at), (TaskState::Queued, 0, None));
        assert_eq!(stored.task.payload, Body::Inline("payload".into()));
    });
    bench.one(Operation::Finish(Outcome::done(id, 1, NOW + 4, "at last")));
    at_each_stage(bench, fixture, |bench| {
        let stored = bench.fetch(id).unwrap();
        assert_eq!((stored.state, stored.attempts, stored.failure), (TaskState::Done, 1, None));
    });
}

pub(super) fn only_dead_tasks_are_revived_and_only_ended_ones_dropped(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let id = bench.accept("upper", NOW);
    assert_eq!(bench.one(Operation::Revive { id }), Answer::NotNow(TaskState::Queued));
    assert_eq!(bench.one(Operation::Drop { id }), Answer::NotNow(TaskState::Queued));
    bench.one(Operation::Finish(Outcome::done(id, 1, NOW, "")));
    assert_eq!(bench.one(Operation::Revive { id }), Answer::NotNow(TaskState::Done));
    assert_eq!(bench.one(Operation::Start { id }), Answer::AlreadyEnded(TaskState::Done));
    assert_eq!(bench.one(retry(id, 2, NOW, None)), Answer::AlreadyEnded(TaskState::Done));
}

pub(super) fn a_dropped_task_is_gone_for_good(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let mut tasks = [bench.task("upper", NOW), bench.task("upper", NOW)];
    let mut blobs = Vec::new();
    for task in &mut tasks {
        let key = BlobKey::for_task(task.id, BlobKind::Payload);
        task.payload = Body::Blob(key.clone());
        blobs.push(key);
    }
    let [early, late] = [tasks[0].id, tasks[1].id];
    bench.apply(&tasks.map(Operation::Accept));
    bench.apply(&[retry(early, 1, NOW, None), retry(late, 1, NOW, None)]);
    bench.die(early, NOW);
    bench.store.settle().unwrap();
    bench.die(late, NOW);
    for (id, blob) in [early, late].into_iter().zip(blobs) {
        let removed = Answer::Removed { count: 1, more: false, blobs: vec![blob] };
        assert_eq!(
            bench.apply(&[Operation::Drop { id }, Operation::Drop { id }]),
            [removed, Answer::Unknown]
        );
    }
    at_each_stage(bench, fixture, |bench| {
        let mut reader = bench.store.reader().unwrap();
        for id in [early, late] {
            assert_eq!(reader.fetch(id).unwrap(), None);
        }
    })
    .store
    .settle()
    .unwrap();
    let bench = Bench::on(fixture);
    let mut reader = bench.store.reader().unwrap();
    assert_eq!(reader.list(&Filter::default(), None, 10).unwrap(), Page { tasks: vec![], next: None });
    assert_eq!(reader.history(early).unwrap(), []);
    assert_eq!(reader.history(late).unwrap(), []);
}

fn with_key(bench: &mut Bench, key: &'static str, at: i64, until: i64) -> NewTask {
    let mut task = bench.task("upper", at);
    task.idempotency = Some(IdempotencyKey { key: key.into(), until });
    task
}

pub(super) fn a_key_stands_for_the_first_task_until_its_window_ends(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let first = with_key(&mut bench, "a", NOW, NOW + SECOND);
    let second = with_key(&mut bench, "a", NOW, NOW + SECOND);
    let other = with_key(&mut bench, "b", NOW, NOW + SECOND);
    let (first_id, second_id) = (first.id, second.id);
    assert_eq!(
        bench.apply(&[first, second, other].map(Operation::Accept)),
        [Answer::Accepted, Answer::SameKey(first_id), Answer::Accepted]
    );
    assert_eq!(bench.fetch(second_id), None);
    bench.one(Operation::Finish(Outcome::done(first_id, 1, NOW, "")));
    for stage in 0..3 {
        match stage {
            1 => bench.store.settle().unwrap(),
            2 => bench = bench.restart(fixture),
            _ => {}
        }
        let again = with_key(&mut bench, "a", NOW + SECOND - 1, NOW + 9 * SECOND);
        assert_eq!(bench.one(Operation::Accept(again)), Answer::SameKey(first_id), "stage {stage}");
    }
    let next = with_key(&mut bench, "a", NOW + SECOND, NOW + 2 * SECOND);
    let next_id = next.id;
    assert_eq!(bench.one(Operation::Accept(next)), Answer::Accepted);
    bench.store.settle().unwrap();
    let again = with_key(&mut bench, "a", NOW + SECOND, NOW + 2 * SECOND);
    assert_eq!(bench.one(Operation::Accept(again)), Answer::SameKey(next_id));
}

pub(super) fn keys_are_removed_after_their_window(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let keys = ["a", "b", "c", "d", "e"];
    for (number, key) in (1..).zip(keys) {
        let task = with_key(&mut bench, key, NOW, NOW + number * SECOND);
        bench.one(Operation::Accept(task));
    }
    bench.store.settle().unwrap();
    let mut counts = Vec::new();
    for _ in 0..3 {
        match bench.one(Operation::RemoveKeys { now: NOW + 3 * SECOND, limit: 2 }) {
            Answer::Removed { count, more, .. } => counts.push((count, more)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counts, [(2, true), (1, false), (0, false)]);
    let task = with_key(&mut bench, "d", NOW, NOW + SECOND);
    assert!(matches!(bench.one(Operation::Accept(task)), Answer::SameKey(_)));
}

pub(super) fn open_tasks_come_in_order_and_in_pages(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let mut open = Vec::new();
    for number in 0..90 {
        let id = bench.accept("upper", NOW + number);
        match number % 4 {
            0 => {
                bench.one(Operation::Finish(Outcome::done(id, 1, NOW, "")));
                continue;
            }
            1 => drop(bench.one(Operation::Start { id })),
            2 => drop(bench.one(retry(id, 1, NOW, Some(NOW + SECOND)))),
            _ => {}
        }
        open.push(id);
    }
    let bench = bench.restart(fixture);
    let mut reader = bench.store.reader().unwrap();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = reader.open_tasks(after, 10).unwrap();
        assert!(page.tasks.len() <= 10);
        found.extend(page.tasks.iter().map(|stored| stored.task.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, open);
}

pub(super) fn lists_are_filtered_and_paged(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let states = [TaskState::Queued, TaskState::Done, TaskState::Dead, TaskState::Cancelled];
    let mut all = Vec::new();
    for number in 0..48 {
        let at = NOW + i64::from(number) * SECOND;
        let action = if number % 3 == 0 { "upper" } else { "sum" };
        let id = bench.accept(action, at);
        let state = states[number as usize % 4];
        match state {
            TaskState::Done => drop(bench.one(Operation::Finish(Outcome::done(id, 1, at, "x".repeat(9999))))),
            TaskState::Dead => bench.die(id, at),
            TaskState::Cancelled => drop(bench.one(cancel(id, at))),
            _ => {}
        }
        all.push((id, action, state, at));
    }
    bench.store.settle().unwrap();
    let mut reader = bench.store.reader().unwrap();
    let filters = [
        Filter::default(),
        Filter { action: Some("upper".into()), ..Filter::default() },
        Filter { state: Some(TaskState::Queued), ..Filter::default() },
        Filter { state: Some(TaskState::Done), ..Filter::default() },
        Filter { state: Some(TaskState::Dead), since: Some(NOW + 20 * SECOND), action: Some("sum".into()) },
        Filter { since: Some(NOW + 47 * SECOND), ..Filter::default() },
        Filter { action: Some("unknown".into()), ..Filter::default() },
    ];
    for filter in filters {
        let wanted: Vec<TaskId> = all
            .iter()
            .rev()
            .filter(|(_, action, state, at)| {
                filter.action.as_ref().is_none_or(|wanted| wanted == action)
                    && filter.state.is_none_or(|wanted| wanted == *state)
                    && filter.since.is_none_or(|since| *at >= since)
            })
            .map(|(id, ..)| *id)
            .collect();
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = reader.list(&filter, before, 5).unwrap();
            found.extend(page.tasks);
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(found.iter().map(|stored| stored.task.id).collect::<Vec<_>>(), wanted, "{filter:?}");
        assert!(found.iter().all(|stored| stored.memory() < 4096), "long results are left out");
    }
}

pub(super) fn old_results_are_removed_in_small_steps_and_open_tasks_are_not(fixture: &dyn Fixture) {
    let mut bench = Bench::on(fixture);
    let (mut old, mut kept) = (Vec::new(), Vec::new());
    for number in 0..60 {
        let at = NOW + number * SECOND;
        let id = bench.accept("upper", at);
        match number % 3 {
            0 => kept.push(id),
            1 => {
                let mut outcome = Outcome::done(id, 1, at, "");
                outcome.result = Body::Blob(BlobKey::for_task(id, BlobKind::Result));
                bench.one(Operation::Finish(outcome));
                if number < 40 { old.push(id) } else { kept.push(id) }
            }
            _ => {
                // Long in the queue, and ended only now.
                bench.one(Operation::Finish(Outcome::done(id, 1, NOW + 3600 * SECOND, "")));
                kept.push(id);
            }
        }
    }
    bench.store.settle().unwrap();
    let (mut count, mut blobs) = (0, Vec::new());
    loop {
        match bench.one(Operation::RemoveEnded { before: NOW + 40 * SECOND, limit: 7 }) {
            Answer::Removed { count: some, more, blobs: keys } => {
                assert!(some <= 7);
                count += some;
                blobs.extend(keys);
                if !more {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(count, old.len());
    assert_eq!(blobs.iter().filter_map(BlobKey::task).collect::<Vec<_>>(), old);
    at_each_stage(bench, fixture, |bench| {
        assert!(old.iter().all(|id| bench.fetch(*id).is_none()));
        assert!(kept.iter().all(|id| bench.fetch(*id).is_some()));
    });
}

/// What the model knows of a task.
#[derive(Debug, Clone, PartialEq)]
struct Modelled {
    state: TaskState,
    attempts: u8,
    result: Option<String>,
}

pub(super) fn a_history_of_random_operations_ends_as_a_simple_model_says(fixture: &dyn Fixture) {
    let seed = std::env::var("REPARTO_STORAGE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("REPARTO_STORAGE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bench = Bench::on(fixture);
    let mut model: Vec<(TaskId, Option<Modelled>)> = Vec::new();
    for step in 0..400 {
        let mut operations = Vec::new();
        let mut wanted = Vec::new();
        for _ in 0..random.usize(1..12) {
            let (operation, answer) = random_operation(&mut random, &mut bench.ids, &mut model, step);
            operations.push(operation);
            wanted.push(answer);
        }
        assert_eq!(bench.apply(&operations), wanted, "seed {seed}, step {step}, {operations:?}");
        match random.u8(..) {
            0..=9 => bench.store.settle().unwrap(),
            10..=19 => drop(bench.store.upkeep().unwrap()),
            20..=24 => bench = bench.restart(fixture),
            _ => {}
        }
        if random.u8(..) < 20 || step == 399 {
            let mut reader = bench.store.reader().unwrap();
            for (id, modelled) in &model {
                let found = reader.fetch(*id).unwrap().map(|stored| Modelled {
                    state: stored.state,
                    attempts: stored.attempts,
                    result: stored.result.map(|result| match result {
                        Body::Inline(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                        Body::Blob(key) => panic!("{key}"),
                    }),
                });
                assert_eq!(found, *modelled, "seed {seed}, step {step}, {id}");
            }
        }
    }
}

fn random_operation(
    random: &mut fastrand::Rng,
    ids: &mut TaskIds,
    model: &mut Vec<(TaskId, Option<Modelled>)>,
    step: i64,
) -> (Operation, Answer) {
    let at = NOW + step * SECOND;
    if model.is_empty() || random.u8(..) < 70 {
        let task = NewTask::new(ids.next(at), "upper", "payload", at);
        let state = TaskState::Queued;
        model.push((task.id, Some(Modelled { state, attempts: 0, result: None })));
        return (Operation::Accept(task), Answer::Accepted);
    }
    // Mostly one of the last, so that many histories run their whole way.
    let range = if random.bool() { model.len().saturating_sub(20)..model.len() } else { 0..model.len() };
    let (id, slot) = &mut model[random.usize(range)];
    let id = *id;
    let attempts = random.u8(1..200);
    let text = format!("result of step {step}, {attempts}");
    let operation = match random.u8(0..8) {
        0 => Operation::Start { id },
        1 => Operation::Requeue { id },
        2 => retry(id, attempts, at, random.bool().then_some(at + SECOND)),
        3 => Operation::Revive { id },
        4 => Operation::Drop { id },
        5 => {
            let failure = Failure::new(ErrorCode::AttemptsExhausted, "three times");
            Operation::Finish(Outcome::without_result(id, TaskState::Dead, attempts, at, failure))
        }
        6 => cancel(id, at),
        _ => Operation::Finish(Outcome::done(id, attempts, at, text.clone())),
    };
    let Some(task) = slot else { return (operation, Answer::Unknown) };
    let ended = task.state.is_ended();
    let answer = match &operation {
        Operation::Revive { .. } if task.state == TaskState::Dead => {
            (task.state, task.attempts) = (TaskState::Queued, 0);
            Answer::Noted
        }
        Operation::Revive { .. } => Answer::NotNow(task.state),
        Operation::Drop { .. } if ended => {
            *slot = None;
            Answer::Removed { count: 1, more: false, blobs: vec![] }
        }
        Operation::Drop { .. } => Answer::NotNow(task.state),
        _ if ended => Answer::AlreadyEnded(task.state),
        Operation::Start { .. } => {
            task.state = TaskState::Running;
            Answer::Noted
        }
        Operation::Requeue { .. } => {
            task.state = TaskState::Queued;
            Answer::Noted
        }
        Operation::Retry { due_at, .. } => {
            task.state = if due_at.is_some() { TaskState::Scheduled } else { TaskState::Queued };
            task.attempts = attempts;
            Answer::Noted
        }
        Operation::Finish(outcome) => {
            task.state = outcome.state;
            task.attempts = outcome.attempts;
            task.result = (outcome.state == TaskState::Done).then_some(text);
            Answer::Recorded
        }
        other => panic!("{other:?}"),
    };
    (operation, answer)
}
