//! What every task of a run is, by its number alone: so a failure is looked at again from its seed, and no payload has
//! to be remembered. A payload says itself what its worker is to do, and what the right result is.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use fastrand::Rng;

/// The actions that workers of a run offer. Not every worker offers the second.
pub(super) const ACTIONS: [&str; 2] = ["crash-a", "crash-b"];
/// With engines: an action for each balancer that only workers there offer, so that foreground tasks that are handed in
/// at the other one travel.
pub(super) const LOCAL_ACTIONS: [&str; 2] = ["crash-first", "crash-second"];
/// With engines: the action whose workers know only AMQP, and the queue that they consume.
pub(super) const AMQP_ACTION: &str = "crash-amqp";
/// With engines: the queue that tasks are published into as JSON.
pub(super) const AMQP_QUEUE: &str = "crash-orders";

/// Attempts of tasks that are to succeed: more than processes are killed while one runs.
const MANY_ATTEMPTS: u8 = 250;
/// Attempts of tasks that are to die.
const FEW_ATTEMPTS: u8 = 3;
/// How a payload begins: number, what to do, milliseconds, length of the result.
const HEAD_BYTES: usize = 8 + 1 + 4 + 4;
/// Larger payloads and results become blobs.
pub(super) const BLOB_THRESHOLD: usize = 16 << 10;
/// Time before the second attempt of a task that asks for one.
const BACKOFF: Duration = Duration::from_millis(20);
/// The longest time between two attempts.
const MAX_BACKOFF: Duration = Duration::from_millis(300);

/// Of what kind a task is for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Lives with its client.
    Foreground,
    /// Lives with its client, and is recorded.
    Recorded,
    /// Outlives its client.
    Background,
    /// The same, and published as JSON into a queue of RabbitMQ.
    Published,
}

/// What takes part in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    /// One balancer with its own store.
    Embedded,
    /// Two balancers over engines, and programs that know only AMQP.
    Engines,
}

/// What a worker does with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Gives the result.
    Succeed,
    /// Fails for good.
    Fail,
    /// Asks for another attempt twice, then gives the result.
    RetryThenSucceed,
    /// Asks for another attempt each time.
    AlwaysRetry,
    /// Panics in the handler.
    Panic,
    /// Ends the worker's process.
    KillWorker,
}

impl Deed {
    const ALL: [Deed; 6] =
        [Deed::Succeed, Deed::Fail, Deed::RetryThenSucceed, Deed::AlwaysRetry, Deed::Panic, Deed::KillWorker];

    fn from_number(number: u8) -> Option<Deed> {
        Deed::ALL.get(usize::from(number)).copied()
    }
}

/// The one outcome that is right for a task that nobody cancels and that is not late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Right {
    /// This result.
    Done(Bytes),
    /// Failed for good.
    Failed,
    /// Its attempts are used up.
    Dead,
}

/// A task.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) deed: Deed,
    pub(super) action: &'static str,
    /// How long it runs.
    pub(super) runs_for: Duration,
    pub(super) payload_bytes: usize,
    pub(super) result_bytes: usize,
    pub(super) priority: u8,
    pub(super) max_attempts: u8,
    pub(super) delay: Option<Duration>,
    /// So short that the task may expire.
    pub(super) deadline: Option<Duration>,
    pub(super) idempotency_key: Option<String>,
    /// Cancelled this long after it was handed in.
    pub(super) cancel_after: Option<Duration>,
    seed: u64,
}

impl Plan {
    /// The task of this number.
    pub(super) fn new(setting: Setting, seed: u64, number: u64) -> Plan {
        let mut plan = Plan::embedded(seed, number);
        if setting == Setting::Engines {
            plan.go_farther();
        }
        plan
    }

    /// With engines some tasks are for other workers, and some come another way.
    fn go_farther(&mut self) {
        let mut random = rng(self.seed.rotate_left(17), self.number);
        match random.u8(..100) {
            0..30 => self.action = LOCAL_ACTIONS[random.usize(..LOCAL_ACTIONS.len())],
            30..50 => self.action = AMQP_ACTION,
            _ => {}
        }
        if self.kind == Kind::Background && random.u8(..100) < 20 {
            // Its message's id is its key, and nobody knows the task's before it has ended.
            (self.kind, self.idempotency_key, self.cancel_after) = (Kind::Published, None, None);
        }
    }

    /// Whether its message is published twice.
    pub(super) fn comes_twice(&self) -> bool {
        self.number.is_multiple_of(5)
    }

    fn embedded(seed: u64, number: u64) -> Plan {
        let mut random = rng(seed, number);
        let kind = match random.u8(..100) {
            0..66 => Kind::Background,
            66..90 => Kind::Foreground,
            _ => Kind::Recorded,
        };
        let deed = match random.u16(..5000) {
            0..4300 => Deed::Succeed,
            4300..4500 => Deed::Fail,
            4500..4750 => Deed::RetryThenSucceed,
            4750..4900 => Deed::AlwaysRetry,
            4900..4999 => Deed::Panic,
            _ => Deed::KillWorker,
        };
        let kept = kind != Kind::Foreground;
        let background = kind == Kind::Background;
        let chance = |random: &mut Rng, percent: u8| random.u8(..100) < percent;
        let runs_for = match random.u16(..1000) {
            0..700 => Duration::ZERO,
            700..980 => Duration::from_millis(random.u64(1..60)),
            980..992 => Duration::from_millis(random.u64(60..1500)),
            // Long enough for the store to be told that it runs.
            _ => Duration::from_millis(random.u64(1500..5000)),
        };
        let mut plan = Plan {
            number,
            kind,
            deed,
            action: ACTIONS[usize::from(chance(&mut random, 40))],
            runs_for,
            payload_bytes: HEAD_BYTES + size(&mut random),
            result_bytes: size(&mut random),
            priority: random.u8(..10),
            max_attempts: match deed {
                Deed::AlwaysRetry | Deed::KillWorker => FEW_ATTEMPTS,
                _ => MANY_ATTEMPTS,
            },
            delay: (background && chance(&mut random, 6)).then(|| Duration::from_millis(random.u64(1..3000))),
            deadline: (kept && chance(&mut random, 4)).then(|| Duration::from_millis(random.u64(50..9000))),
            idempotency_key: (background && chance(&mut random, 15)).then(|| format!("key-{seed}-{number}")),
            cancel_after: chance(&mut random, 6).then(|| Duration::from_millis(random.u64(..400))),
            seed,
        };
        // The library refuses a deadline that passes before the task may begin.
        if plan.delay.is_some() {
            plan.deadline = None;
        }
        plan
    }

    /// Time before its second attempt, and the longest between two.
    pub(super) fn backoff(&self) -> (Duration, Duration) {
        (BACKOFF, MAX_BACKOFF)
    }

    /// What its worker gets.
    pub(super) fn payload(&self) -> Bytes {
        let mut payload = BytesMut::with_capacity(self.payload_bytes);
        payload.put_u64(self.number);
        payload.put_u8(self.deed as u8);
        payload.put_u32(u32::try_from(self.runs_for.as_millis()).unwrap_or(u32::MAX));
        payload.put_u32(u32::try_from(self.result_bytes).unwrap_or(u32::MAX));
        payload.resize(self.payload_bytes, 0);
        rng(!self.seed, self.number).fill(&mut payload[HEAD_BYTES..]);
        payload.freeze()
    }

    /// How it must end.
    pub(super) fn right(&self) -> Right {
        match self.deed {
            Deed::Succeed | Deed::RetryThenSucceed => Right::Done(result(&self.payload(), self.result_bytes)),
            Deed::Fail | Deed::Panic => Right::Failed,
            Deed::AlwaysRetry | Deed::KillWorker => Right::Dead,
        }
    }
}

/// Mostly small, some near and over the blob threshold, a few large.
fn size(random: &mut Rng) -> usize {
    match random.u16(..1000) {
        0..50 => 0,
        50..750 => random.usize(1..300),
        750..940 => random.usize(300..8 << 10),
        940..996 => random.usize(BLOB_THRESHOLD - 64..BLOB_THRESHOLD * 4),
        _ => random.usize(256 << 10..1 << 20),
    }
}

fn rng(seed: u64, number: u64) -> Rng {
    // Neighbours in both must have nothing in common; the multiplier is that of the golden ratio.
    let mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) ^ number;
    Rng::with_seed(mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// What a payload asks of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) number: u64,
    pub(super) deed: Deed,
    pub(super) runs_for: Duration,
    pub(super) result_bytes: usize,
}

impl Order {
    /// Reads a payload; `None` for one that was not made here.
    pub(super) fn read(payload: &[u8]) -> Option<Order> {
        let (number, rest) = payload.split_first_chunk::<8>()?;
        let (deed, rest) = rest.split_first()?;
        let (millis, rest) = rest.split_first_chunk::<4>()?;
        let (bytes, _) = rest.split_first_chunk::<4>()?;
        Some(Order {
            number: u64::from_be_bytes(*number),
            deed: Deed::from_number(*deed)?,
            runs_for: Duration::from_millis(u32::from_be_bytes(*millis).into()),
            result_bytes: u32::from_be_bytes(*bytes) as usize,
        })
    }
}

/// The right result of a payload: bytes that hang on all of it.
pub(super) fn result(payload: &[u8], bytes: usize) -> Bytes {
    let mut result = vec![0; bytes];
    Rng::with_seed(fingerprint(payload)).fill(&mut result);
    result.into()
}

/// A number that hangs on every byte (FNV-1a, 64 bits).
pub(super) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_gives_the_same_task_each_time_and_its_payload_says_what_to_do() {
        for number in 0..2_000 {
            let setting = if number % 2 == 0 { Setting::Embedded } else { Setting::Engines };
            let (plan, again) = (Plan::new(setting, 7, number), Plan::new(setting, 7, number));
            assert_eq!((plan.payload(), plan.right()), (again.payload(), again.right()));
            assert_eq!(plan.payload().len(), plan.payload_bytes);
            let order = Order::read(&plan.payload()).expect("it was made here");
            assert_eq!((order.number, order.deed), (number, plan.deed));
            assert_eq!((order.runs_for, order.result_bytes), (plan.runs_for, plan.result_bytes));
        }
        assert_eq!(Order::read(b"short"), None);
    }

    #[test]
    fn a_run_has_tasks_of_every_kind() {
        let plans: Vec<Plan> = (0..50_000).map(|number| Plan::new(Setting::Engines, 1, number)).collect();
        for deed in Deed::ALL {
            assert!(plans.iter().any(|plan| plan.deed == deed), "{deed:?}");
        }
        for kind in [Kind::Foreground, Kind::Recorded, Kind::Background, Kind::Published] {
            assert!(plans.iter().any(|plan| plan.kind == kind), "{kind:?}");
        }
        for action in ACTIONS.iter().chain(&LOCAL_ACTIONS).chain([&AMQP_ACTION]) {
            for kind in [Kind::Foreground, Kind::Background, Kind::Published] {
                let is_such = |plan: &Plan| plan.kind == kind && plan.action == *action;
                assert!(plans.iter().any(is_such), "{kind:?} of {action}");
            }
        }
        let embedded = (0..1000).map(|number| Plan::new(Setting::Embedded, 1, number));
        assert!(embedded.into_iter().all(|plan| ACTIONS.contains(&plan.action)));
        assert!(plans.iter().any(|plan| plan.payload_bytes > BLOB_THRESHOLD));
        assert!(plans.iter().any(|plan| plan.delay.is_some()));
        assert!(plans.iter().any(|plan| plan.deadline.is_some()));
        assert!(plans.iter().any(|plan| plan.idempotency_key.is_some()));
        assert!(plans.iter().any(|plan| plan.cancel_after.is_some()));
    }
}
