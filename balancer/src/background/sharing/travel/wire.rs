//! What balancers write to each other about tasks that travel: a message's headers say what it is, its body is a payload
//! as it is.
//!
//! ```text
//!   lender                     action's queue              host
//!     |--- task ------------------->|----------------------->|
//!     |<-- taken ------------------------- lender's inbox ---|
//!     |<-- progress ... -------------------------------------|
//!     |<-- done | failed ------------------------------------|
//!     |<-- alive, every 2 s: all that it has of this lender -|
//!     |--- cancel -------------------------- host's inbox -->|
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use reparto_protocol::ErrorCode;

use crate::bus::{Delivery, Message, Properties, Queue, QueueKind};

/// A task on its way to another balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// Its lender's number for it.
    pub(super) number: u64,
    /// The lender's inbox.
    pub(super) lender: Arc<str>,
    pub(super) action: Arc<str>,
    pub(super) priority: u8,
    /// Which attempt it is, as its lender counts, from 1.
    pub(super) attempt: u8,
    pub(super) deadline: Option<Duration>,
    pub(super) payload: Bytes,
}

/// What is said about a task between its lender and its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// The host has it.
    Taken,
    /// It has ended with a result.
    Done(Bytes),
    /// It has ended without.
    Failed { code: ErrorCode, message: String, payload: Bytes },
    /// So far it is.
    Progress { done: u64, total: u64, payload: Bytes },
    /// Nobody wants it any more.
    Cancel,
}

/// What comes to an inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Letter {
    /// Something about one task.
    About { from: Arc<str>, number: u64, said: Said },
    /// The host lives, and these are all the tasks that it has of ours.
    Alive { from: Arc<str>, numbers: Vec<u64> },
}

const KIND: &str = "kind";
const ACTION: &str = "action";
const PRIORITY: &str = "priority";
const ATTEMPT: &str = "attempt";
const DEADLINE: &str = "deadline_us";
const CODE: &str = "code";
const MESSAGE: &str = "message";
const DONE: &str = "done";
const TOTAL: &str = "total";

fn header<'a>(properties: &'a Properties, name: &str) -> Option<&'a str> {
    properties.headers.iter().find(|(found, _)| found == name).map(|(_, text)| &**text)
}

fn number<T: std::str::FromStr>(properties: &Properties, name: &str) -> Option<T> {
    header(properties, name)?.parse().ok()
}

fn headers<const N: usize>(pairs: [(&str, String); N]) -> Vec<(String, String)> {
    pairs.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
}

impl Task {
    /// The message into an action's queue, in which it stays for `within` at most.
    pub(super) fn message(&self, queue: Queue, within: Duration) -> Message {
        let mut all = headers([
            (ACTION, self.action.to_string()),
            (PRIORITY, self.priority.to_string()),
            (ATTEMPT, self.attempt.to_string()),
        ]);
        if let Some(deadline) = self.deadline {
            all.push((DEADLINE.to_owned(), deadline.as_micros().to_string()));
        }
        let properties = Properties {
            correlation_id: Some(self.number.to_string()),
            reply_to: Some(self.lender.to_string()),
            headers: all,
            expires: Some(self.deadline.map_or(within, |deadline| deadline.min(within))),
            ..Properties::default()
        };
        Message { queue, body: self.payload.clone(), properties }
    }

    /// Reads such a message; `None` if it is none.
    pub(super) fn read(delivery: &Delivery) -> Option<Task> {
        let properties = &delivery.properties;
        Some(Task {
            number: properties.correlation_id.as_ref()?.parse().ok()?,
            lender: properties.reply_to.as_deref()?.into(),
            action: header(properties, ACTION)?.into(),
            priority: number(properties, PRIORITY)?,
            attempt: number(properties, ATTEMPT)?,
            deadline: number(properties, DEADLINE).map(Duration::from_micros),
            payload: delivery.body.clone(),
        })
    }
}

impl Letter {
    /// The message into an inbox.
    pub(super) fn message(self, to: &Arc<str>) -> Message {
        let (from, number, all, body) = match self {
            Letter::Alive { from, numbers } => {
                let mut body = BytesMut::with_capacity(numbers.len() * 8);
                numbers.into_iter().for_each(|number| body.put_u64(number));
                (from, None, headers([(KIND, "alive".into())]), body.freeze())
            }
            Letter::About { from, number, said } => {
                let (all, body) = match said {
                    Said::Taken => (headers([(KIND, "taken".into())]), Bytes::new()),
                    Said::Done(result) => (headers([(KIND, "done".into())]), result),
                    Said::Failed { code, message, payload } => (
                        headers([
                            (KIND, "failed".into()),
                            (CODE, code.number().to_string()),
                            (MESSAGE, message),
                        ]),
                        payload,
                    ),
                    Said::Progress { done, total, payload } => (
                        headers([
                            (KIND, "progress".into()),
                            (DONE, done.to_string()),
                            (TOTAL, total.to_string()),
                        ]),
                        payload,
                    ),
                    Said::Cancel => (headers([(KIND, "cancel".into())]), Bytes::new()),
                };
                (from, Some(number.to_string()), all, body)
            }
        };
        let properties = Properties {
            correlation_id: number,
            reply_to: Some(from.to_string()),
            headers: all,
            ..Properties::default()
        };
        let queue = Queue { name: Arc::clone(to), kind: QueueKind::Foreign };
        Message { queue, body, properties }
    }

    /// Reads such a message; `None` if it is none.
    pub(super) fn read(delivery: &Delivery) -> Option<Letter> {
        let properties = &delivery.properties;
        let from = properties.reply_to.as_deref()?.into();
        let body = delivery.body.clone();
        let said = match header(properties, KIND)? {
            "alive" => {
                let mut rest = body;
                let mut numbers = Vec::with_capacity(rest.len() / 8);
                while rest.len() >= 8 {
                    numbers.push(rest.get_u64());
                }
                return Some(Letter::Alive { from, numbers });
            }
            "taken" => Said::Taken,
            "done" => Said::Done(body),
            "failed" => Said::Failed {
                code: ErrorCode::from_number(number(properties, CODE)?),
                message: header(properties, MESSAGE)?.to_owned(),
                payload: body,
            },
            "progress" => Said::Progress {
                done: number(properties, DONE)?,
                total: number(properties, TOTAL)?,
                payload: body,
            },
            "cancel" => Said::Cancel,
            _ => return None,
        };
        let number = properties.correlation_id.as_ref()?.parse().ok()?;
        Some(Letter::About { from, number, said })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Tag;

    fn delivered(message: Message) -> Delivery {
        let Message { body, properties, .. } = message;
        Delivery { consumer: 1, tag: Tag::NOWHERE, body, properties }
    }

    #[test]
    fn what_is_written_reads_back() {
        let inbox: Arc<str> = "inbox".into();
        let payload = Bytes::from_static(b"\xff\x00x");
        for deadline in [None, Some(Duration::from_micros(1_500_001))] {
            let task = Task {
                number: u64::MAX,
                lender: Arc::clone(&inbox),
                action: "upper".into(),
                priority: 9,
                attempt: 3,
                deadline,
                payload: payload.clone(),
            };
            let queue = Queue { name: "q".into(), kind: QueueKind::Transient };
            let message = task.message(queue, Duration::from_secs(2));
            assert_eq!(message.properties.expires, Some(deadline.unwrap_or(Duration::from_secs(2))));
            assert_eq!(Task::read(&delivered(message)), Some(task));
        }
        let message = "it broke".to_owned();
        for said in [
            Said::Taken,
            Said::Done(payload.clone()),
            Said::Failed { code: ErrorCode::WorkerFailed, message, payload: payload.clone() },
            Said::Progress { done: 1, total: 2, payload },
            Said::Cancel,
        ] {
            let letter = Letter::About { from: "host".into(), number: 7, said };
            let message = letter.clone().message(&inbox);
            assert_eq!(message.queue, Queue { name: Arc::clone(&inbox), kind: QueueKind::Foreign });
            assert_eq!(Letter::read(&delivered(message)), Some(letter));
        }
        let alive = Letter::Alive { from: "host".into(), numbers: vec![1, u64::MAX] };
        assert_eq!(Letter::read(&delivered(alive.clone().message(&inbox))), Some(alive));
    }

    #[test]
    fn what_is_something_else_is_nothing() {
        let nothing = Message {
            queue: Queue { name: "q".into(), kind: QueueKind::Foreign },
            body: Bytes::new(),
            properties: Properties::default(),
        };
        assert_eq!(Task::read(&delivered(nothing.clone())), None);
        assert_eq!(Letter::read(&delivered(nothing)), None);
    }
}
