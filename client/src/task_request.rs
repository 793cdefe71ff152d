//! A task as a client describes it: borrowed while it is being sent, owned when it must be kept to be sent later or
//! again.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reparto_protocol::{FIELD_HEADER_BYTES, HEADER_BYTES, Message, Task, TaskOptions, limits};

use crate::error::ClientError;

/// A task's payload: shared memory, or a slice that is copied when the task is handed in.
#[derive(Debug, Clone)]
pub(crate) enum Payload<'a> {
    Shared(Bytes),
    Slice(&'a [u8]),
}

impl Payload<'_> {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Payload::Shared(bytes) => bytes,
            Payload::Slice(bytes) => bytes,
        }
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Payload::Shared(bytes) => bytes.clone(),
            Payload::Slice(bytes) => Bytes::copy_from_slice(bytes),
        }
    }
}

/// Whether the balancer keeps the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    No,
    /// It lives with its client, and is kept as well.
    Recorded,
    /// It outlives its client.
    Background,
}

#[derive(Debug, Clone)]
pub(crate) struct TaskRequest<'a> {
    pub(crate) action: Cow<'a, str>,
    pub(crate) payload: Payload<'a>,
    pub(crate) priority: Option<u8>,
    pub(crate) deadline: Option<Duration>,
    /// When the task must have ended, reckoned from the moment it was handed in.
    pub(crate) deadline_at: Option<Instant>,
    pub(crate) wait_limit: Option<Duration>,
    pub(crate) key: Option<Cow<'a, [u8]>>,
    pub(crate) max_attempts: Option<u8>,
    pub(crate) safe_to_repeat: bool,
    pub(crate) keep: Keep,
    /// Apart from the others, since most tasks have none of them.
    pub(crate) kept_options: Option<Box<KeptOptions<'a>>>,
}

/// The options that only tasks have that are kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeptOptions<'a> {
    pub(crate) delay: Option<Duration>,
    /// When the delay is over, reckoned from the moment the task was handed in.
    pub(crate) delay_until: Option<Instant>,
    pub(crate) start_at: Option<SystemTime>,
    pub(crate) backoff: Option<Duration>,
    pub(crate) max_backoff: Option<Duration>,
    pub(crate) idempotency_key: Option<Cow<'a, [u8]>>,
    pub(crate) idempotency_window: Option<Duration>,
}

impl<'a> TaskRequest<'a> {
    pub(crate) fn new(action: &'a str) -> TaskRequest<'a> {
        TaskRequest {
            action: Cow::Borrowed(action),
            payload: Payload::Slice(&[]),
            priority: None,
            deadline: None,
            deadline_at: None,
            wait_limit: None,
            key: None,
            max_attempts: None,
            safe_to_repeat: false,
            keep: Keep::No,
            kept_options: None,
        }
    }

    pub(crate) fn kept_options_mut(&mut self) -> &mut KeptOptions<'a> {
        self.kept_options.get_or_insert_default()
    }

    pub(crate) fn into_owned(self) -> TaskRequest<'static> {
        let owned = |key: Cow<'a, [u8]>| Cow::Owned(key.into_owned());
        TaskRequest {
            action: Cow::Owned(self.action.into_owned()),
            payload: Payload::Shared(self.payload.to_bytes()),
            priority: self.priority,
            deadline: self.deadline,
            deadline_at: self.deadline_at,
            wait_limit: self.wait_limit,
            key: self.key.map(owned),
            max_attempts: self.max_attempts,
            safe_to_repeat: self.safe_to_repeat,
            keep: self.keep,
            kept_options: self.kept_options.map(|kept| {
                Box::new(KeptOptions {
                    delay: kept.delay,
                    delay_until: kept.delay_until,
                    start_at: kept.start_at,
                    backoff: kept.backoff,
                    max_backoff: kept.max_backoff,
                    idempotency_key: kept.idempotency_key.map(owned),
                    idempotency_window: kept.idempotency_window,
                })
            }),
        }
    }

    /// Times that the task counts from now begin to run.
    pub(crate) fn start_clocks(&mut self, now: Instant) {
        self.deadline_at = self.deadline.and_then(|deadline| now.checked_add(deadline));
        if let Some(kept) = &mut self.kept_options {
            kept.delay_until = kept.delay.and_then(|delay| now.checked_add(delay));
        }
    }

    /// It does no harm to send it a second time. A recorded task is cancelled when its connection is lost, so the key
    /// would lead a second one to that outcome.
    pub(crate) fn may_be_repeated(&self) -> bool {
        let has_key = || self.kept_options.as_ref().is_some_and(|kept| kept.idempotency_key.is_some());
        self.safe_to_repeat || self.keep == Keep::Background && has_key()
    }

    /// Bytes of the whole frame, header and fields included.
    pub(crate) fn frame_bytes(&self) -> usize {
        let field = |bytes: usize, there: bool| if there { FIELD_HEADER_BYTES + bytes } else { 0 };
        let key_bytes = |key: &Option<Cow<'_, [u8]>>| key.as_ref().map_or(0, |key| field(key.len(), true));
        let kept_bytes = |kept: &KeptOptions<'_>| {
            field(8, kept.delay.is_some())
                + field(8, kept.start_at.is_some())
                + field(4, kept.backoff.is_some())
                + field(4, kept.longest_backoff().is_some())
                + key_bytes(&kept.idempotency_key)
                + field(8, kept.idempotency_window.is_some())
        };
        HEADER_BYTES
            + field(self.action.len(), true)
            + field(1, self.priority.is_some())
            + field(8, self.deadline.is_some())
            + field(8, self.wait_limit.is_some())
            + key_bytes(&self.key)
            + field(1, self.max_attempts.is_some())
            + self.kept_options.as_deref().map_or(0, kept_bytes)
            + self.payload.as_slice().len()
    }

    /// The message, without its payload: that is appended by itself.
    pub(crate) fn head(&self, id: u64, now: Instant) -> Message<'_> {
        // What is left of a time, so that waiting for a connection counts.
        let left = |at: Instant| millis(at.saturating_duration_since(now));
        let mut options = TaskOptions {
            priority: self.priority,
            deadline_ms: self.deadline_at.map(|at| left(at).max(1)),
            wait_ms: self.wait_limit.map(millis),
            key: self.key.as_deref(),
            max_attempts: self.max_attempts,
            background: self.keep == Keep::Background,
            record: self.keep == Keep::Recorded,
            ..TaskOptions::default()
        };
        if let Some(kept) = &self.kept_options {
            options.delay_ms = kept.delay_until.map(left);
            options.start_at_ms = kept.start_at.map(unix_millis);
            options.backoff_first_ms = kept.backoff.map(short_millis);
            options.backoff_most_ms = kept.longest_backoff().map(short_millis);
            options.idempotency_key = kept.idempotency_key.as_deref();
            options.idempotency_ms = kept.idempotency_window.map(millis);
        }
        Message::Task(Task { id, action: &self.action, options, payload: &[] })
    }

    /// Checks every part against the protocol's limits, so that a mistake is told here and costs no connection.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        check_action(&self.action)?;
        if let Some(priority) = self.priority.filter(|priority| *priority > limits::MAX_PRIORITY) {
            return wrong("the priority", format!("is {priority}, over {}", limits::MAX_PRIORITY));
        }
        if self.max_attempts == Some(0) {
            return wrong("the number of attempts", "is 0; at least one is needed");
        }
        check_key("the key", self.key.as_deref(), limits::MAX_KEY_BYTES)?;
        check_time("the deadline", self.deadline)?;
        check_time("the wait limit", self.wait_limit)?;
        if self.keep == Keep::No {
            return self.kept_options.as_deref().map_or(Ok(()), KeptOptions::refuse_any);
        }
        if self.key.is_some() {
            return wrong(
                "the key",
                "has no use for a task that is kept; did you mean its idempotency_key()?",
            );
        }
        if self.wait_limit.is_some() {
            return wrong(
                "the wait limit",
                "has no use for a task that is kept; give it a deadline() instead",
            );
        }
        self.kept_options.as_deref().map_or(Ok(()), |kept| kept.check(self.deadline))
    }
}

impl KeptOptions<'_> {
    /// The longest time between two attempts: never shorter than the first one asked for.
    fn longest_backoff(&self) -> Option<Duration> {
        self.max_backoff.or(self.backoff.filter(|first| *first > limits::DEFAULT_BACKOFF_MOST))
    }

    /// None of these has a meaning for a task that is not kept.
    fn refuse_any(&self) -> Result<(), ClientError> {
        let given = [
            ("the delay", self.delay.is_some()),
            ("the start time", self.start_at.is_some()),
            ("the backoff", self.backoff.is_some() || self.max_backoff.is_some()),
            ("the idempotency key", self.idempotency_key.is_some()),
            ("the idempotency window", self.idempotency_window.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((what, _)) => wrong(
                what,
                "has a use only for a task that is kept; hand it in with submit_background(), or as recorded()",
            ),
            None => Ok(()),
        }
    }

    fn check(&self, deadline: Option<Duration>) -> Result<(), ClientError> {
        check_time("the delay", self.delay)?;
        check_time("the idempotency window", self.idempotency_window)?;
        check_key("the idempotency key", self.idempotency_key.as_deref(), limits::MAX_IDEMPOTENCY_KEY_BYTES)?;
        if self.idempotency_window.is_some() && self.idempotency_key.is_none() {
            return wrong("the idempotency window", "has no use without an idempotency key");
        }
        if self.start_at.is_some_and(|start| unix_millis(start) > limits::MAX_MOMENT_MS) {
            return wrong("the start time", "is after the year 9999");
        }
        let longest = Duration::from_millis(u32::MAX.into());
        for time in [self.backoff, self.max_backoff].into_iter().flatten() {
            if time > longest {
                return wrong("the backoff", format!("is over {} days", longest.as_secs() / 86_400));
            }
        }
        let first = self.backoff.unwrap_or(limits::DEFAULT_BACKOFF_FIRST);
        if let Some(most) = self.max_backoff.filter(|most| *most < first) {
            let why = format!("of {most:?} at most is shorter than the first one of {first:?}");
            return wrong("the backoff", why);
        }
        let until_start = self.start_at.and_then(|start| start.duration_since(SystemTime::now()).ok());
        if let Some(wait) = self.delay.max(until_start)
            && deadline.is_some_and(|deadline| deadline <= wait)
        {
            return wrong("the deadline", "passes before the task may begin");
        }
        Ok(())
    }
}

fn wrong(what: &'static str, why: impl Into<String>) -> Result<(), ClientError> {
    Err(ClientError::Invalid { what, why: why.into() })
}

pub(crate) fn check_action(action: &str) -> Result<(), ClientError> {
    if action.is_empty() {
        return wrong("the action", "is empty; name what the task asks for, such as \"upper\"");
    }
    let (bytes, most) = (action.len(), limits::MAX_ACTION_BYTES);
    if bytes > most {
        return wrong("the action", format!("is {bytes} bytes long, over {most}"));
    }
    Ok(())
}

fn check_key(what: &'static str, key: Option<&[u8]>, most: usize) -> Result<(), ClientError> {
    match key {
        Some(key) if !(1..=most).contains(&key.len()) => {
            wrong(what, format!("is {} bytes long, not 1 to {most}", key.len()))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_time(what: &'static str, time: Option<Duration>) -> Result<(), ClientError> {
    if time.is_some_and(|time| time > limits::MAX_TIME) {
        return wrong(what, format!("is over {} days", limits::MAX_TIME.as_secs() / 86_400));
    }
    Ok(())
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn short_millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Milliseconds since 1970, UTC; 0 for a moment before.
pub(crate) fn unix_millis(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut TaskRequest<'static>);

    fn kept(keep: Keep, change: impl FnOnce(&mut TaskRequest<'static>)) -> Result<(), String> {
        let mut task = TaskRequest { keep, ..TaskRequest::new("upper") };
        change(&mut task);
        task.check().map_err(|error| error.to_string())
    }

    #[test]
    fn what_only_kept_tasks_have_is_refused_for_the_others_and_the_other_way_round() {
        let delay = |task: &mut TaskRequest<'_>| task.kept_options_mut().delay = Some(Duration::ZERO);
        assert!(kept(Keep::No, delay).unwrap_err().starts_with("the delay has a use only"));
        for keep in [Keep::Recorded, Keep::Background] {
            assert_eq!(kept(keep, delay), Ok(()));
            let error = kept(keep, |task| task.key = Some(Cow::Borrowed(b"k"))).unwrap_err();
            assert!(error.contains("idempotency_key()"), "{error}");
            let error = kept(keep, |task| task.wait_limit = Some(Duration::ZERO)).unwrap_err();
            assert!(error.contains("deadline()"), "{error}");
        }
    }

    #[test]
    fn options_of_a_kept_task_that_cannot_be_meant_are_refused() {
        let second = Duration::from_secs(1);
        let refused = |change: Change| kept(Keep::Background, change).unwrap_err();
        let cases: [(Change, &str); 6] = [
            (
                |task| task.kept_options_mut().idempotency_window = Some(Duration::ZERO),
                "without an idempotency key",
            ),
            (|task| task.kept_options_mut().idempotency_key = Some(Cow::Owned(vec![b'k'; 256])), "256 bytes"),
            (|task| task.kept_options_mut().delay = Some(limits::MAX_TIME * 2), "the delay is over 366 days"),
            (|task| task.kept_options_mut().backoff = Some(limits::MAX_TIME), "the backoff is over 49 days"),
            (
                |task| task.kept_options_mut().max_backoff = Some(Duration::from_millis(1)),
                "shorter than the first",
            ),
            (
                |task| {
                    task.deadline = Some(Duration::from_secs(10));
                    task.kept_options_mut().start_at = Some(SystemTime::now() + Duration::from_secs(100));
                },
                "the deadline passes before",
            ),
        ];
        for (change, words) in cases {
            let error = refused(change);
            assert!(error.contains(words), "{error}");
        }
        let fine = kept(Keep::Background, |task| {
            task.deadline = Some(second * 2);
            task.kept_options_mut().delay = Some(second);
            task.kept_options_mut().start_at = Some(UNIX_EPOCH - second);
        });
        assert_eq!(fine, Ok(()));
    }

    #[test]
    fn a_first_backoff_over_the_usual_longest_one_is_kept() {
        let hour = Duration::from_secs(3600);
        let kept = KeptOptions { backoff: Some(hour), ..KeptOptions::default() };
        assert_eq!(kept.longest_backoff(), Some(hour));
        let kept = KeptOptions { backoff: Some(Duration::ZERO), ..KeptOptions::default() };
        assert_eq!(kept.longest_backoff(), None);
    }

    #[test]
    fn only_a_background_task_is_made_repeatable_by_its_idempotency_key() {
        let mut task = TaskRequest::new("upper");
        task.kept_options_mut().idempotency_key = Some(Cow::Borrowed(b"k"));
        for (keep, repeatable) in [(Keep::Recorded, false), (Keep::Background, true)] {
            task.keep = keep;
            assert_eq!(task.may_be_repeated(), repeatable);
        }
        task.kept_options = None;
        assert!(!task.may_be_repeated());
    }
}
