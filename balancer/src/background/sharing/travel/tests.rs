//! What travels, where something is out of the ordinary.

use std::sync::Arc;

use bytes::Bytes;
use reparto_protocol::ErrorCode;

use super::super::claim_tests::Shared;
use super::wire::{Letter, Said, Task};
use super::{ALIVE, AtDoor, Guest};
use crate::background::tests::{CLIENT, Said as SaidToPeer};
use crate::background::{Answered, Assigned};
use crate::bus::{Delivery, Message, Queue, QueueKind, Tag};
use crate::scheduler::{AssignmentId, Event, Payload, RAN_TOO_LONG, Submission, Time};

const LENDER: &str = "inbox.lender";

fn delivery(message: Message) -> Delivery {
    Delivery { consumer: 1, tag: Tag::NOWHERE, body: message.body, properties: message.properties }
}

/// What was written to other balancers since the last time.
fn letters(shared: &mut Shared) -> Vec<Letter> {
    let published = shared.sharing().bus.published();
    published.into_iter().filter_map(|message| Letter::read(&delivery(message))).collect()
}

fn host(shared: &mut Shared, number: u64) {
    let travel = &mut shared.sharing().travel;
    travel.guests.insert(number, Guest { lender: LENDER.into(), number });
    travel.by_origin.insert((LENDER.into(), number), number);
}

/// A task of [`CLIENT`]'s that is lent.
fn lend(shared: &mut Shared) -> AssignmentId {
    let bench = &mut shared.bench;
    bench.scheduler.handle(Time(0), Event::ClientJoined { peer: CLIENT }, &mut bench.effects);
    let task = Submission { max_attempts: 1, ..Submission::new(7, "a", Payload::new(b"x")) };
    bench.scheduler.handle(Time(0), Event::Submit { peer: CLIENT, task }, &mut bench.effects);
    let action: Arc<str> = "a".into();
    shared.sharing().travel.looking.insert(1, Arc::clone(&action));
    let peer = shared.sharing().travel.others;
    let bench = &mut shared.bench;
    bench.keeper.queue_counted(&mut bench.scheduler, Time(0), 1, (0, 1), &mut bench.effects);
    let [SaidToPeer::Assigned(assignment)] = bench.said_to(peer)[..] else { panic!("it is not lent") };
    let (payload, task_id, deadline) = (Bytes::from_static(b"x"), None, None);
    let task = Assigned { peer, action, payload, attempt: 1, deadline, task_id };
    bench.keeper.lend_out(Time(0), assignment, task, 4);
    assignment
}

fn hear(shared: &mut Shared, assignment: AssignmentId, said: Said) {
    let bench = &mut shared.bench;
    let (host, effects) = ("inbox.host".into(), &mut bench.effects);
    bench.keeper.heard_of_lent(&mut bench.scheduler, Time(1), &host, assignment, said, effects);
}

#[test]
fn a_host_that_stops_goes_on_saying_what_it_has() {
    let mut shared = Shared::new();
    host(&mut shared, 7);
    let bench = &mut shared.bench;
    bench.keeper.begin_stopping(&mut bench.effects);
    let until = Time(0).after(ALIVE);
    for now in [Time(0), until] {
        let next = bench.keeper.next_timer(&bench.scheduler, now);
        assert!(next.is_some_and(|next| next <= until.after(ALIVE)), "{next:?}");
        bench.keeper.share(&mut bench.scheduler, now, &mut bench.effects);
    }
    let said = letters(&mut shared);
    let alive = |letter: &&Letter| matches!(letter, Letter::Alive { numbers, .. } if *numbers == [7]);
    assert_eq!(said.iter().filter(alive).count(), 2, "{said:?}");
}

#[test]
fn a_task_that_ran_too_long_at_its_host_has_failed_and_one_that_only_waited_there_has_not_been_run() {
    let mut shared = Shared::new();
    for (number, message, code) in
        [(1, RAN_TOO_LONG, ErrorCode::WorkerFailed), (2, "no worker had room", ErrorCode::Expired)]
    {
        host(&mut shared, number);
        let (payload, expired) = (Bytes::new(), ErrorCode::Expired);
        let ended = Answered::Failed { code: expired, message: message.into(), payload };
        shared.bench.keeper.guest_has_ended(number, ended);
        let said = letters(&mut shared).pop();
        assert!(
            matches!(&said, Some(Letter::About { said: Said::Failed { code: said, .. }, .. }) if *said == code),
            "{said:?}"
        );
    }
}

#[test]
fn a_lent_task_that_is_too_large_for_its_host_has_an_end() {
    let mut shared = Shared::new();
    let task = Task {
        number: 7,
        lender: LENDER.into(),
        action: "a".into(),
        priority: 4,
        attempt: 1,
        deadline: None,
        payload: vec![0; (1 << 20) + 1].into(),
    };
    let queue = Queue { name: "q".into(), kind: QueueKind::Transient };
    let delivery = delivery(task.message(queue, super::WITHIN));
    let arrived = AtDoor { since: Time(0), action: "a".into(), delivery };
    let bench = &mut shared.bench;
    bench.keeper.welcome(&mut bench.scheduler, Time(0), &arrived, &mut bench.effects);
    assert!(shared.sharing().travel.guests.is_empty());
    let said = letters(&mut shared);
    let [Letter::About { said: Said::Failed { code: ErrorCode::PayloadTooLarge, message, .. }, .. }] =
        &said[..]
    else {
        panic!("{said:?}")
    };
    assert!(message.contains("--max-frame"), "{message}");
    // Its lender does not lend it again.
    let mut shared = Shared::new();
    let lent = lend(&mut shared);
    let message = message.clone();
    let said = Said::Failed { code: ErrorCode::PayloadTooLarge, message, payload: Bytes::new() };
    hear(&mut shared, lent, said);
    assert!(shared.bench.said_to(CLIENT).contains(&SaidToPeer::Failed(7, ErrorCode::WorkerFailed)));
}

#[test]
fn a_result_that_is_too_large_here_is_a_failure_and_nothing_is_kept_of_its_host() {
    let mut shared = Shared::new();
    let lent = lend(&mut shared);
    hear(&mut shared, lent, Said::Taken);
    assert_eq!(shared.sharing().travel.heard.len(), 1);
    hear(&mut shared, lent, Said::Done(vec![0; (1 << 20) + 1].into()));
    assert!(shared.bench.said_to(CLIENT).contains(&SaidToPeer::Failed(7, ErrorCode::WorkerFailed)));
    let bench = &mut shared.bench;
    bench.keeper.look_at_lent(&mut bench.scheduler, Time(2), &mut bench.effects);
    assert!(shared.sharing().travel.heard.is_empty() && shared.sharing().travel.lent.is_empty());
}
