//! The exchange between reactors without sockets: what goes in comes out, in its order and once; what is full says
//! so and blocks nobody; who sleeps is woken.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use mio::{Events, Poll, Token, Waker};
use reparto_protocol::ErrorCode;

use super::mailbox::Closed;
use super::*;
use crate::dialect::Asked;
use crate::scheduler::{
    Assignment, AssignmentId, Effect, Event, Finish, Payload, ProgressKind, Pull, Registration, Submission,
    Time,
};

/// Texts and payloads that events and effects are made of: small ones, and some about the size from which on
/// payloads are shared.
struct Material {
    texts: Vec<String>,
    payloads: Vec<Bytes>,
}

impl Material {
    fn new() -> Material {
        let texts = ["", "a", "tamaño", "an action's name that is a little longer"];
        let sizes = [0, 1, 64, 4095, 4096, 40_000];
        Material {
            texts: texts.map(str::to_owned).into(),
            payloads: sizes.map(|size| Bytes::from(vec![size as u8; size])).into(),
        }
    }

    fn text(&self, random: &mut Rng) -> &str {
        &self.texts[random.usize(..self.texts.len())]
    }

    /// Whole, or a part of a buffer.
    fn payload(&self, random: &mut Rng) -> Payload<'_> {
        let bytes = &self.payloads[random.usize(..self.payloads.len())];
        Payload::within(bytes, &bytes[bytes.len().min(random.usize(..3))..])
    }

    fn event(&self, random: &mut Rng) -> Event<'_> {
        let peer = Peer { index: random.u32(..100), generation: random.u32(..) };
        let assignment = AssignmentId(random.u64(..));
        match random.u8(..12) {
            0 => Event::ClientJoined { peer },
            1..4 => {
                let action = self.text(random);
                let mut task = Submission::new(random.u64(..), action, self.payload(random));
                task.priority = random.u8(..10);
                task.key = self.text(random).as_bytes();
                task.deadline = random.bool().then(|| Duration::from_micros(random.u64(..1 << 40)));
                task.wait = random.bool().then(|| Duration::from_micros(random.u64(..1 << 40)));
                task.max_attempts = random.u8(..);
                Event::Submit { peer, task }
            }
            4 => Event::Cancel { peer, id: random.u64(..) },
            5 => Event::Register {
                peer,
                registration: Registration {
                    request: random.u64(..),
                    worker_id: self.text(random),
                    threads: random.u32(..),
                    window: random.u32(..),
                    weight: random.u32(..),
                    service_ns: random.bool().then(|| random.u64(..)),
                    heartbeats: random.bool(),
                    held: (0..random.usize(..3)).map(|_| [random.u8(..); 16]).collect(),
                    actions: (0..random.usize(..5)).map(|_| self.text(random)).collect(),
                },
            },
            6 => Event::Drain { peer, request: random.u64(..), resume: random.bool() },
            7 => {
                let finish = match random.u8(..4) {
                    0 => Finish::Failed(self.text(random)),
                    1 => Finish::Retry(self.text(random)),
                    2 => Finish::NotRun,
                    _ => Finish::Done,
                };
                let service_ns = random.bool().then(|| random.u64(..));
                Event::Finished { peer, assignment, finish, service_ns, payload: self.payload(random) }
            }
            8 => {
                let kind = [ProgressKind::Report, ProgressKind::Data][random.usize(..2)];
                Event::Progress { peer, assignment, kind, done: 1, total: 2, payload: self.payload(random) }
            }
            9 => Event::PullerJoined { peer, from: random.bool().then(|| [127, 0, 0, random.u8(..)].into()) },
            10 => Event::Pull { peer, pull: self.pull(random) },
            _ => [Event::Heard { peer }, Event::Gone { peer }][random.usize(..2)].clone(),
        }
    }

    fn pull(&self, random: &mut Rng) -> Pull<'_> {
        let limit = random.bool().then(|| Duration::from_millis(random.u64(..1000)));
        match random.u8(..6) {
            0 => Pull::Name(self.text(random)),
            1 => Pull::CanDo { action: self.text(random), limit },
            2 => Pull::CantDo { action: self.text(random) },
            3 => Pull::Reset,
            4 => Pull::Grab { form: random.u8(..) },
            _ => Pull::Sleep,
        }
    }

    fn effect(&self, random: &mut Rng) -> Effect<'_> {
        let peer = Peer { index: random.u32(..100), generation: random.u32(..) };
        let (id, code) = (random.u64(..), ErrorCode::Expired);
        let message = match random.bool() {
            true => Cow::Borrowed("a sentence"),
            false => Cow::Owned(self.text(random).to_owned()),
        };
        match random.u8(..10) {
            8 => Effect::Refused { peer, id, code, message },
            9 => [Effect::Created { peer, id }, Effect::NoTask { peer }, Effect::Wake { peer }]
                [random.usize(..3)]
            .clone(),
            0 => Effect::CancelAssignment { peer, assignment: AssignmentId(id), recall: random.bool() },
            1 => Effect::Fail { peer, id, code, message, payload: self.payload(random) },
            2 => {
                let kind = ProgressKind::Warning;
                Effect::Progress { peer, id, kind, done: 3, total: 4, payload: self.payload(random) }
            }
            3 => Effect::Acknowledge { peer, request: id, window: random.u32(..) },
            4 => [Effect::Ping { peer }, Effect::GoAway { peer }, Effect::Stopped][random.usize(..3)].clone(),
            5 => Effect::Close { peer, code, message },
            _ => Effect::Result { peer, id, payload: self.payload(random) },
        }
    }
}

#[test]
fn events_come_out_as_they_went_in_and_in_their_order_however_often_a_batch_is_used_again() {
    let (material, mut random) = (Material::new(), Rng::with_seed(1));
    let mut batch = EventBatch::default();
    for _ in 0..20 {
        let events: Vec<Event<'_>> = (0..200).map(|_| material.event(&mut random)).collect();
        events.iter().for_each(|event| batch.push(event));
        batch.ask_about(Peer { index: 1, generation: 2 }, 3, Asked::Status { offset: 4, limit: 5 });
        for (at, event) in events.iter().enumerate() {
            let Some(Said::Event(said)) = batch.get(at) else { panic!("{event:?} is not there") };
            assert_eq!(format!("{said:?}"), format!("{event:?}"));
        }
        let Some(Said::Asked { id: 3, asked, .. }) = batch.get(200) else { panic!("no question") };
        assert_eq!(asked, &Asked::Status { offset: 4, limit: 5 });
        assert!(batch.get(201).is_none() && batch.size().0 == 201);
        batch.clear();
        assert!(batch.is_empty() && batch.size() == (0, 0));
    }
}

#[test]
fn effects_come_out_as_they_went_in_and_in_their_order_however_often_a_batch_is_used_again() {
    let (material, mut random) = (Material::new(), Rng::with_seed(2));
    let mut batch = EffectBatch::default();
    let peer = Peer { index: 7, generation: 8 };
    for _ in 0..20 {
        let effects: Vec<Effect<'_>> = (0..200).map(|_| material.effect(&mut random)).collect();
        effects.iter().for_each(|effect| batch.push(effect.clone()));
        let details = Assignment {
            action: "upper",
            payload: material.payload(&mut random),
            attempt: 2,
            deadline: Some(Time(99)),
            key: b"key",
            task_id: Some([9; 16]),
            held: true,
            number: 1 << 41,
            form: 3,
        };
        batch.assign(peer, AssignmentId(5), &details);
        batch.report(peer, 6, Bytes::from_static(b"{}"));
        for (at, effect) in effects.iter().enumerate() {
            let Some(Told::Effect(told)) = batch.get(at) else { panic!("{effect:?} is not there") };
            assert_eq!(&told, effect);
        }
        let Some(Told::Assign(whom, AssignmentId(5), told)) = batch.get(200) else { panic!("no assignment") };
        assert_eq!((whom, format!("{told:?}")), (peer, format!("{details:?}")));
        let Some(Told::Report(_, 6, report)) = batch.get(201) else { panic!("no report") };
        assert_eq!(report, "{}");
        assert!(batch.get(202).is_none());
        batch.clear();
        assert!(batch.is_empty());
    }
}

#[test]
fn large_payloads_are_passed_on_without_a_copy() {
    let large = Bytes::from(vec![1; 100_000]);
    let mut batch = EventBatch::default();
    let task = Submission::new(1, "a", Payload::from(&large));
    batch.push(&Event::Submit { peer: Peer { index: 0, generation: 1 }, task });
    let Some(Said::Event(Event::Submit { task, .. })) = batch.get(0) else { panic!("a task") };
    assert_eq!(task.payload.to_bytes().as_ptr(), large.as_ptr());
}

#[test]
fn a_batch_is_full_by_its_rows_or_by_its_bytes() {
    let peer = Peer { index: 0, generation: 1 };
    let mut batch = EventBatch::default();
    while !batch.is_full() {
        batch.push(&Event::Heard { peer });
    }
    assert_eq!(batch.size(), (FULL_ROWS, 0));
    batch.clear();
    let large = Bytes::from(vec![1; FULL_BYTES]);
    batch.push(&Event::Submit { peer, task: Submission::new(1, "a", Payload::from(&large)) });
    assert!(batch.is_full());
}

#[test]
fn connections_of_all_reactors_are_numbered_densely_and_found_again() {
    for reactors in 1..=9 {
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..reactors {
            let numbering = Numbering::new(number, reactors);
            for index in 0..10 {
                let inside = Peer { index, generation: 3 };
                let outside = numbering.outside(inside);
                assert!(seen.insert(outside.index), "a number is given twice");
                assert_eq!(Numbering::new(0, reactors).inside(outside), (number, inside));
            }
        }
        let most = seen.last().copied().unwrap_or_default() as usize;
        assert!(most < 2 * reactors * 10, "{most} with {reactors} reactors");
        assert!(reactors > 1 || most == 9, "one reactor's numbers are its own");
    }
}

fn bell() -> Arc<Bell> {
    Arc::new(Bell::new(None))
}

/// An event that carries a number.
fn numbered(number: u64) -> Event<'static> {
    Event::Cancel { peer: Peer { index: 0, generation: 1 }, id: number }
}

fn number_of(batch: &EventBatch, at: usize) -> u64 {
    let Some(Said::Event(Event::Cancel { id, .. })) = batch.get(at) else { panic!("no number at {at}") };
    id
}

#[test]
fn a_full_mailbox_keeps_the_batch_with_its_sender_who_learns_when_there_is_room() {
    let (writer, reader) = (bell(), bell());
    let (mut outbox, inbox) = mailbox::<EventBatch>(&writer, &reader);
    let mut sent = 0;
    let all = loop {
        outbox.batch.push(&numbered(sent));
        sent += 1;
        let posted = outbox.post();
        if posted != Sent::All {
            break posted;
        }
        assert!(sent < 100, "a mailbox has an end");
    };
    assert_eq!((all, outbox.batch.size().0), (Sent::Full, 1), "nothing is thrown away");
    outbox.batch.push(&numbered(sent));
    writer.lie_down();
    let mut next = 0;
    while let Ok(Some(batch)) = inbox.take() {
        assert!(!writer.is_asleep(), "there is room again, and the writer knows");
        for at in 0..batch.size().0 {
            assert_eq!(number_of(&batch, at), next);
            next += 1;
        }
        inbox.give_back(batch);
    }
    assert_eq!(next, sent - 1);
    assert_eq!(outbox.post(), Sent::All);
    let last = inbox.take().expect("it is open").expect("a batch");
    assert_eq!([number_of(&last, 0), number_of(&last, 1)], [sent - 1, sent], "what was kept goes as one");
}

#[test]
fn a_closed_mailbox_gives_what_was_sent_then_says_so_and_its_reader_is_not_waited_for() {
    let (mut outbox, inbox) = mailbox::<EventBatch>(&bell(), &bell());
    outbox.batch.push(&numbered(1));
    assert_eq!(outbox.post(), Sent::All);
    drop(outbox);
    assert!(matches!(inbox.take(), Ok(Some(_))));
    assert_eq!(inbox.take().err(), Some(Closed));
    let (mut outbox, inbox) = mailbox::<EventBatch>(&bell(), &bell());
    drop(inbox);
    outbox.batch.push(&numbered(1));
    assert_eq!(outbox.post(), Sent::Closed);
}

#[test]
fn who_is_awake_is_not_woken_and_who_sleeps_is_woken_once_a_batch() {
    let reader = bell();
    let (mut outbox, inbox) = mailbox::<EventBatch>(&bell(), &reader);
    reader.lie_down();
    assert_eq!((outbox.post(), reader.is_asleep()), (Sent::All, true), "there is nothing to wake it for");
    outbox.batch.push(&numbered(1));
    assert_eq!((outbox.post(), reader.is_asleep()), (Sent::All, false));
    assert!(inbox.take().is_ok_and(|batch| batch.is_some()));
}

/// A thread's way to sleep, as reactors do.
struct Sleeper {
    poll: Poll,
    bell: Arc<Bell>,
}

impl Sleeper {
    fn new() -> Sleeper {
        let poll = Poll::new().expect("an event queue");
        let waker = Waker::new(poll.registry(), Token(0)).expect("a waker");
        Sleeper { poll, bell: Arc::new(Bell::new(Some(Arc::new(waker)))) }
    }

    /// Sleeps until the bell rings, unless it `may` not.
    fn sleep(&mut self, may: impl FnOnce() -> bool) {
        self.bell.lie_down();
        if may() {
            let mut events = Events::with_capacity(8);
            let patience = Duration::from_secs(60);
            self.poll.poll(&mut events, Some(patience)).expect("an event queue");
            assert!(!events.is_empty(), "nobody has rung for {patience:?}");
        }
        self.bell.get_up();
    }
}

#[test]
fn two_threads_that_sleep_whenever_they_can_hand_everything_over_in_order() {
    const NUMBERS: u64 = 200_000;
    let (mut writer, mut reader) = (Sleeper::new(), Sleeper::new());
    let (mut outbox, inbox) = mailbox::<EventBatch>(&writer.bell, &reader.bell);
    let reading = std::thread::spawn(move || {
        let (mut next, mut random) = (0, Rng::with_seed(4));
        loop {
            match inbox.take() {
                Ok(Some(batch)) => {
                    for at in 0..batch.size().0 {
                        assert_eq!(number_of(&batch, at), next);
                        next += 1;
                    }
                    inbox.give_back(batch);
                    if random.u8(..50) == 0 {
                        std::thread::yield_now();
                    }
                }
                Ok(None) => reader.sleep(|| inbox.is_empty()),
                Err(Closed) => return next,
            }
        }
    });
    let (mut sent, mut random) = (0, Rng::with_seed(3));
    while sent < NUMBERS {
        for _ in 0..random.u64(1..100) {
            outbox.batch.push(&numbered(sent));
            sent += 1;
        }
        if outbox.post() == Sent::Full && outbox.batch.size().0 > 500 {
            writer.sleep(|| outbox.post() == Sent::Full);
        }
    }
    while outbox.post() == Sent::Full {
        writer.sleep(|| outbox.post() == Sent::Full);
    }
    drop(outbox);
    assert_eq!(reading.join().expect("the reader ends"), sent);
}
