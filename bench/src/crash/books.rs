//! What clients saw of every task, and what of it cannot be right.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reparto_client::{ErrorCode, TaskFailure, TaskId, TaskOutcome, TaskState};

use super::plan::{Kind, Plan, Right, Setting, fingerprint};
use super::worker::{FAILED_WORDS, PANIC_WORDS};

/// Violations that are kept; more tell nothing new.
const MOST_VIOLATIONS: usize = 100;

/// Something that must not happen.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Violation {
    /// Which task, if it is about one: its number in the run.
    pub number: Option<u64>,
    /// Its id, once it had one.
    pub task_id: Option<String>,
    /// What is wrong, as a sentence.
    pub what: String,
    /// What is known of the task, a line each; filled in at the end.
    pub history: Vec<String>,
}

/// An outcome, as far as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Done { bytes: usize, fingerprint: u64 },
    Failed { code: ErrorCode, message: String },
}

impl Seen {
    pub(super) fn of(outcome: &TaskOutcome) -> Seen {
        match outcome {
            Ok(result) => Seen::Done { bytes: result.len(), fingerprint: fingerprint(result) },
            Err(failure) => Seen::Failed { code: failure.code, message: failure.message.clone() },
        }
    }

    /// The state that a task with this outcome is in.
    pub(super) fn state(&self) -> Option<TaskState> {
        Some(match self {
            Seen::Done { .. } => TaskState::Done,
            Seen::Failed { code: ErrorCode::WorkerFailed, .. } => TaskState::Failed,
            Seen::Failed { code: ErrorCode::AttemptsExhausted, .. } => TaskState::Dead,
            Seen::Failed { code: ErrorCode::Cancelled, .. } => TaskState::Cancelled,
            Seen::Failed { code: ErrorCode::Expired, .. } => TaskState::Expired,
            Seen::Failed { .. } => return None,
        })
    }

    /// In words.
    pub(super) fn words(&self) -> String {
        match self {
            Seen::Done { bytes, fingerprint } => format!("done, {bytes} bytes ({fingerprint:016x})"),
            Seen::Failed { code, message } => format!("{code}: {message}"),
        }
    }
}

/// What happened to a task, as its clients saw it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Submitted,
    Accepted(TaskId),
    /// Handed in without being taken in, or nobody knows whether it was.
    NotAccepted(ErrorCode),
    CancelAsked,
    CancelSaid(TaskState),
    Answered(Seen),
    /// A message in a queue has told its outcome.
    Told(TaskId, Seen),
    Fetched(Seen),
}

/// What is known of a task.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) steps: Vec<(u32, Step)>,
    pub(super) task_id: Option<TaskId>,
    /// The first outcome that was fetched.
    pub(super) outcome: Option<Seen>,
    cancel_asked: bool,
    cancel_said: Option<TaskState>,
    /// Its client's connection was lost, so it may be cancelled for that.
    connection_lost: bool,
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<u64, Record>,
    numbers: HashMap<TaskId, u64>,
    violations: Vec<Violation>,
    /// How often what happened, by its name.
    counts: BTreeMap<&'static str, u64>,
    last_accepted: Option<Instant>,
    longest_outage: Duration,
    /// Tasks that may have been taken in though nobody was told.
    in_doubt: u64,
}

/// The books of a run. Shared by all its clients.
#[derive(Debug)]
pub(super) struct Books {
    seed: u64,
    setting: Setting,
    began: Instant,
    state: Mutex<State>,
}

impl Books {
    pub(super) fn new((setting, seed): (Setting, u64), began: Instant) -> Books {
        Books { seed, setting, began, state: Mutex::default() }
    }

    /// The task of this number.
    pub(super) fn plan(&self, number: u64) -> Plan {
        Plan::new(self.setting, self.seed, number)
    }

    /// Something has happened that is only counted.
    pub(super) fn count(&self, what: &'static str) {
        *self.lock().counts.entry(what).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by a thread that panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, state: &mut State, number: u64, step: Step) {
        let at = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        state.records.entry(number).or_default().steps.push((at, step));
    }

    /// Milliseconds since the run began.
    pub(super) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().counts.clone()
    }

    pub(super) fn longest_outage(&self) -> Duration {
        self.lock().longest_outage
    }

    pub(super) fn in_doubt(&self) -> u64 {
        self.lock().in_doubt
    }

    pub(super) fn violate(&self, number: Option<u64>, what: impl Into<String>) {
        let mut state = self.lock();
        let violations = &mut state.violations;
        if violations.len() < MOST_VIOLATIONS {
            violations.push(Violation { number, task_id: None, what: what.into(), history: Vec::new() });
        }
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        let state = self.lock();
        let mut violations = state.violations.clone();
        for violation in &mut violations {
            let record = violation.number.and_then(|number| state.records.get(&number));
            violation.task_id = record.and_then(|record| record.task_id).map(|id| id.to_string());
        }
        violations
    }

    pub(super) fn has_violations(&self) -> bool {
        !self.lock().violations.is_empty()
    }

    // ---- what clients see ----

    pub(super) fn submitted(&self, plan: &Plan) {
        let mut state = self.lock();
        *state.counts.entry("submitted").or_default() += 1;
        self.step(&mut state, plan.number, Step::Submitted);
    }

    /// ACCEPTED came. A task is given one id and no more, however often it is handed in under its key.
    pub(super) fn accepted(&self, plan: &Plan, id: TaskId) {
        let mut state = self.lock();
        self.step(&mut state, plan.number, Step::Accepted(id));
        let now = Instant::now();
        if let Some(last) = state.last_accepted.replace(now) {
            state.longest_outage = state.longest_outage.max(now - last);
        }
        *state.counts.entry("accepted").or_default() += 1;
        let record = state.records.entry(plan.number).or_default();
        let first = *record.task_id.get_or_insert(id);
        let other = state.numbers.insert(id, plan.number).filter(|other| *other != plan.number);
        drop(state);
        if first != id {
            self.violate(
                Some(plan.number),
                format!("one idempotency key was given two tasks, {first} and {id}"),
            );
        }
        if let Some(other) = other {
            self.violate(Some(plan.number), format!("{id} was given to task {other} as well"));
        }
    }

    /// A task that was to be kept was not taken in, or its client does not know.
    pub(super) fn not_accepted(&self, plan: &Plan, failure: &TaskFailure) {
        let mut state = self.lock();
        self.step(&mut state, plan.number, Step::NotAccepted(failure.code));
        if failure.code == ErrorCode::ConnectionLost {
            *state.counts.entry("in doubt (the connection ended first)").or_default() += 1;
            state.in_doubt += 1;
            state.records.entry(plan.number).or_default().connection_lost = true;
            return;
        }
        *state.counts.entry("refused").or_default() += 1;
        let is_fine = match failure.code {
            ErrorCode::StoreUnavailable
            | ErrorCode::ShuttingDown
            | ErrorCode::QueueFull
            | ErrorCode::Overloaded => true,
            // Its time was up before any balancer was reached.
            ErrorCode::Expired => plan.deadline.is_some(),
            _ => false,
        };
        drop(state);
        if !is_fine {
            self.violate(Some(plan.number), format!("it was refused without a good reason: {failure}"));
        }
    }

    pub(super) fn cancel_asked(&self, plan: &Plan) {
        let mut state = self.lock();
        self.step(&mut state, plan.number, Step::CancelAsked);
        state.records.entry(plan.number).or_default().cancel_asked = true;
    }

    /// The answer to a CANCEL: from then on the outcome is known.
    pub(super) fn cancel_said(&self, plan: &Plan, said: TaskState) {
        let mut state = self.lock();
        self.step(&mut state, plan.number, Step::CancelSaid(said));
        *state.counts.entry("cancels answered").or_default() += 1;
        let record = state.records.entry(plan.number).or_default();
        let before = record.cancel_said.replace(said);
        drop(state);
        if !said.is_ended() {
            let what = format!("a CANCEL was answered while the task was {}", said.name());
            self.violate(Some(plan.number), what);
        }
        if let Some(before) = before.filter(|before| *before != said) {
            let what = format!("one CANCEL was answered {}, a later one {}", before.name(), said.name());
            self.violate(Some(plan.number), what);
        }
    }

    /// A foreground task was answered on its connection, or that ended.
    pub(super) fn answered(&self, plan: &Plan, outcome: &TaskOutcome) {
        use ErrorCode::{ConnectionLost, Overloaded, QueueFull, ShuttingDown, StoreUnavailable};
        let mut state = self.lock();
        let seen = Seen::of(outcome);
        self.step(&mut state, plan.number, Step::Answered(seen));
        *state.counts.entry("answered on the connection").or_default() += 1;
        let what = match outcome {
            Err(failure) if failure.code == ConnectionLost => {
                let record = state.records.entry(plan.number).or_default();
                record.connection_lost = true;
                let was_accepted = record.task_id.is_some();
                *state.counts.entry("connection ended before the answer").or_default() += 1;
                if plan.kind == Kind::Recorded && !was_accepted {
                    state.in_doubt += 1;
                }
                Ok(())
            }
            Err(failure)
                if matches!(failure.code, ShuttingDown | QueueFull | Overloaded)
                    || failure.code == StoreUnavailable && plan.kind == Kind::Recorded =>
            {
                *state.counts.entry("refused").or_default() += 1;
                Ok(())
            }
            outcome_or_failure => {
                let outcome: Result<&[u8], &TaskFailure> = match outcome_or_failure {
                    Ok(result) => Ok(result),
                    Err(failure) => Err(failure),
                };
                judge(plan, state.records.entry(plan.number).or_default(), outcome)
            }
        };
        drop(state);
        if let Err(what) = what {
            self.violate(Some(plan.number), format!("its client was answered wrongly: {what}"));
        }
    }

    /// The outcome of a task that was published as JSON has come to where it was to be told. It may be told twice, but the
    /// same, and one message is one task.
    pub(super) fn told(&self, plan: &Plan, id: TaskId, outcome: &TaskOutcome) {
        let mut state = self.lock();
        self.step(&mut state, plan.number, Step::Told(id, Seen::of(outcome)));
        let record = state.records.entry(plan.number).or_default();
        let is_new = record.task_id.is_none();
        let first = *record.task_id.get_or_insert(id);
        let other = state.numbers.insert(id, plan.number).filter(|other| *other != plan.number);
        let what = if is_new { "outcomes told in a queue" } else { "outcomes told in a queue once more" };
        *state.counts.entry(what).or_default() += 1;
        drop(state);
        if first != id {
            self.violate(Some(plan.number), format!("one message has become two tasks, {first} and {id}"));
        }
        if let Some(other) = other {
            self.violate(Some(plan.number), format!("{id} was given to task {other} as well"));
        }
        self.fetched(plan, outcome);
    }

    /// A task's outcome was fetched.
    pub(super) fn fetched(&self, plan: &Plan, outcome: &TaskOutcome) {
        let mut state = self.lock();
        let seen = Seen::of(outcome);
        let record = state.records.entry(plan.number).or_default();
        if let Some(first) = &record.outcome {
            let changed = (*first != seen).then(|| format!("{}, and now {}", first.words(), seen.words()));
            if let Some(changed) = changed {
                self.step(&mut state, plan.number, Step::Fetched(seen));
                drop(state);
                self.violate(Some(plan.number), format!("its outcome has changed: it was {changed}"));
            }
            return;
        }
        record.outcome = Some(seen.clone());
        let verdict = judge(plan, record, outcome.as_ref().map(|result| &result[..]));
        let answered = record.steps.iter().find_map(|(_, step)| match step {
            // Only what the task itself came to; a connection's end says nothing of it.
            Step::Answered(answered) if answered.state().is_some() => Some(answered.clone()),
            _ => None,
        });
        let said = record.cancel_said;
        self.step(&mut state, plan.number, Step::Fetched(seen.clone()));
        *state.counts.entry(seen.state().map_or("ended oddly", ended_name)).or_default() += 1;
        drop(state);
        if let Err(what) = verdict {
            self.violate(Some(plan.number), format!("its recorded outcome is wrong: {what}"));
        }
        if let Some(answered) = answered.filter(|answered| answered.state() != seen.state()) {
            let what = format!("its client was told {}, but recorded is {}", answered.words(), seen.words());
            self.violate(Some(plan.number), what);
        }
        if let Some(said) = said.filter(|said| Some(*said) != seen.state()) {
            let what = format!("a CANCEL was answered {}, but recorded is {}", said.name(), seen.words());
            self.violate(Some(plan.number), what);
        }
    }

    // ---- what is looked at in the end ----

    /// Accepted tasks, of which no outcome is known yet.
    pub(super) fn open(&self) -> Vec<(u64, TaskId)> {
        self.some(|record| record.outcome.is_none())
    }

    /// The id of a task, once it was accepted.
    pub(super) fn id_of(&self, number: u64) -> Option<TaskId> {
        self.lock().records.get(&number)?.task_id
    }

    /// All accepted tasks.
    pub(super) fn all_accepted(&self) -> Vec<(u64, TaskId)> {
        self.some(|_| true)
    }

    fn some(&self, which: impl Fn(&Record) -> bool) -> Vec<(u64, TaskId)> {
        let state = self.lock();
        let chosen = state.records.iter().filter(|(_, record)| which(record));
        let mut tasks: Vec<(u64, TaskId)> =
            chosen.filter_map(|(number, record)| Some((*number, record.task_id?))).collect();
        tasks.sort_unstable();
        tasks
    }

    /// The number of an accepted task, and the state that its outcome stands for.
    pub(super) fn known(&self, id: TaskId) -> Option<(u64, Option<TaskState>)> {
        let state = self.lock();
        let number = *state.numbers.get(&id)?;
        Some((number, state.records.get(&number)?.outcome.as_ref().and_then(Seen::state)))
    }

    /// What clients saw of a task, a line each.
    pub(super) fn history(&self, number: u64) -> Vec<(u64, String)> {
        let state = self.lock();
        let Some(record) = state.records.get(&number) else { return Vec::new() };
        let line = |(at, step): &(u32, Step)| {
            let words = match step {
                Step::Submitted => "submitted".to_owned(),
                Step::Accepted(id) => format!("ACCEPTED as {id}"),
                Step::NotAccepted(code) => format!("not accepted: {code}"),
                Step::CancelAsked => "CANCEL sent".into(),
                Step::CancelSaid(state) => format!("CANCEL answered: {}", state.name()),
                Step::Answered(seen) => format!("answered: {}", seen.words()),
                Step::Told(id, seen) => format!("told in a queue, as {id}: {}", seen.words()),
                Step::Fetched(seen) => format!("fetched: {}", seen.words()),
            };
            (u64::from(*at), format!("client: {words}"))
        };
        record.steps.iter().map(line).collect()
    }
}

fn ended_name(state: TaskState) -> &'static str {
    match state {
        TaskState::Done => "ended: done",
        TaskState::Failed => "ended: failed",
        TaskState::Dead => "ended: dead",
        TaskState::Cancelled => "ended: cancelled",
        TaskState::Expired => "ended: expired",
        _ => "not ended",
    }
}

/// Whether an outcome is a right one, else what is wrong with it.
fn judge(plan: &Plan, record: &Record, outcome: Result<&[u8], &TaskFailure>) -> Result<(), String> {
    let right = plan.right();
    let is_right = match outcome {
        Ok(result) => matches!(&right, Right::Done(expected) if expected == result),
        Err(failure) => match failure.code {
            ErrorCode::WorkerFailed => {
                right == Right::Failed
                    && [FAILED_WORDS, PANIC_WORDS].iter().any(|words| failure.message.contains(words))
            }
            ErrorCode::AttemptsExhausted => right == Right::Dead,
            ErrorCode::Cancelled => {
                record.cancel_asked || plan.kind == Kind::Recorded && record.connection_lost
            }
            ErrorCode::Expired => plan.deadline.is_some(),
            _ => false,
        },
    };
    if is_right {
        return Ok(());
    }
    let got = match outcome {
        Ok(result) => format!("a result of {} bytes ({:016x})", result.len(), fingerprint(result)),
        Err(failure) => failure.to_string(),
    };
    let wanted = match right {
        Right::Done(result) => format!("a result of {} bytes ({:016x})", result.len(), fingerprint(&result)),
        Right::Failed => "worker_failed".into(),
        Right::Dead => "attempts_exhausted".into(),
    };
    Err(format!("{got} instead of {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn id(number: u8) -> TaskId {
        TaskId::from_bytes([number; 16])
    }

    fn books() -> Books {
        Books::new((Setting::Embedded, 1), Instant::now())
    }

    /// A background task that must end with a result, and that nobody cancels.
    fn plan() -> Plan {
        let plain = |plan: &Plan| {
            let is_plain =
                plan.kind == Kind::Background && plan.cancel_after.is_none() && plan.deadline.is_none();
            is_plain && matches!(plan.right(), Right::Done(_))
        };
        (0..).map(|number| books().plan(number)).find(plain).expect("most are like that")
    }

    fn done(plan: &Plan) -> TaskOutcome {
        let Right::Done(result) = plan.right() else { unreachable!("chosen so") };
        Ok(result)
    }

    fn failure(code: ErrorCode) -> TaskOutcome {
        Err(TaskFailure::new(code, "so"))
    }

    fn complaints(books: &Books) -> Vec<String> {
        books.violations().into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn the_right_outcome_is_taken_as_often_as_it_is_fetched() {
        let (books, plan) = (books(), plan());
        books.accepted(&plan, id(7));
        assert_eq!(books.open(), [(plan.number, id(7))]);
        books.fetched(&plan, &done(&plan));
        books.fetched(&plan, &done(&plan));
        assert_eq!(complaints(&books), [""; 0]);
        assert_eq!(books.open(), []);
    }

    #[test]
    fn a_wrong_result_a_changed_one_and_an_unasked_cancel_are_found() {
        let plan = plan();
        let wrong = books();
        wrong.fetched(&plan, &Ok(Bytes::from_static(b"another task's")));
        assert!(complaints(&wrong)[0].contains("recorded outcome is wrong"), "{:?}", complaints(&wrong));
        let changed = books();
        changed.fetched(&plan, &done(&plan));
        changed.fetched(&plan, &failure(ErrorCode::AttemptsExhausted));
        assert!(complaints(&changed)[0].contains("has changed"), "{:?}", complaints(&changed));
        let cancelled = books();
        cancelled.fetched(&plan, &failure(ErrorCode::Cancelled));
        assert_eq!(complaints(&cancelled).len(), 1);
        let cancelled = books();
        cancelled.cancel_asked(&plan);
        cancelled.cancel_said(&plan, TaskState::Cancelled);
        cancelled.fetched(&plan, &failure(ErrorCode::Cancelled));
        assert_eq!(complaints(&cancelled), [""; 0]);
    }

    #[test]
    fn what_a_cancel_was_answered_must_be_what_is_recorded() {
        let (books, plan) = (books(), plan());
        books.cancel_asked(&plan);
        books.cancel_said(&plan, TaskState::Cancelled);
        books.fetched(&plan, &done(&plan));
        assert!(
            complaints(&books)[0].contains("a CANCEL was answered cancelled"),
            "{:?}",
            complaints(&books)
        );
    }

    #[test]
    fn two_tasks_for_one_key_and_one_id_for_two_tasks_are_found() {
        let (books, plan) = (books(), plan());
        books.accepted(&plan, id(7));
        books.accepted(&plan, id(8));
        assert!(complaints(&books)[0].contains("two tasks"), "{:?}", complaints(&books));
        let other = books.plan(plan.number + 1);
        books.accepted(&other, id(7));
        assert!(complaints(&books)[1].contains("as well"), "{:?}", complaints(&books));
    }

    #[test]
    fn an_outcome_may_be_told_twice_but_not_another_one_nor_of_another_task() {
        let (books, mut plan) = (books(), plan());
        plan.kind = Kind::Published;
        books.told(&plan, id(7), &done(&plan));
        books.told(&plan, id(7), &done(&plan));
        assert_eq!(complaints(&books), [""; 0]);
        assert_eq!(books.all_accepted(), [(plan.number, id(7))]);
        books.told(&plan, id(8), &done(&plan));
        assert!(complaints(&books)[0].contains("two tasks"), "{:?}", complaints(&books));
        books.told(&plan, id(7), &failure(ErrorCode::AttemptsExhausted));
        assert!(complaints(&books)[1].contains("has changed"), "{:?}", complaints(&books));
    }

    #[test]
    fn an_answer_on_the_connection_that_is_not_recorded_is_found() {
        let (books, mut plan) = (books(), plan());
        plan.kind = Kind::Recorded;
        books.accepted(&plan, id(7));
        books.answered(&plan, &done(&plan));
        books.cancel_asked(&plan);
        books.fetched(&plan, &failure(ErrorCode::Cancelled));
        assert!(complaints(&books)[0].contains("its client was told done"), "{:?}", complaints(&books));
    }

    #[test]
    fn a_refusal_needs_a_good_reason() {
        let (books, plan) = (books(), plan());
        books.not_accepted(&plan, &TaskFailure::new(ErrorCode::StoreUnavailable, "full"));
        books.not_accepted(&plan, &TaskFailure::new(ErrorCode::ConnectionLost, "gone"));
        assert_eq!((complaints(&books).len(), books.in_doubt()), (0, 1));
        books.not_accepted(&plan, &TaskFailure::new(ErrorCode::Internal, "odd"));
        assert_eq!(complaints(&books).len(), 1);
    }
}
