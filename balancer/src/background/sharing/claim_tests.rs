//! Deliveries and confirmations when the store or the bus does not go on.

use std::net::TcpListener;
use std::sync::Arc;

use bytes::Bytes;

use super::working::Claimant;
use super::{OpenedSharing, Sharing, SharingSettings, start};
use crate::background::tests::{Bench, CLIENT, Said, WORKER};
use crate::background::{Pending, Tie};
use crate::bus::{Address, Delivery, Properties, Tag};
use crate::scheduler::Time;
use crate::storage::{Hearing, TaskId};

/// A consumer's number.
const CONSUMER: u64 = 7;
const TASK: TaskId = TaskId([1; 16]);

/// A bench that shares over a bus that takes connections and says nothing on them, so that it is in no trouble yet.
pub(super) struct Shared {
    // Closed before the bus ends, which would wait for it.
    _silent: TcpListener,
    pub(super) bench: Bench,
}

impl Shared {
    pub(super) fn new() -> Shared {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let bus = format!("amqp://nobody:x@{}", silent.local_addr().unwrap());
        let opened = OpenedSharing {
            settings: SharingSettings::new(Address::parse(&bus).unwrap()),
            hearing: Hearing::of_nobody(),
            installation: "test".into(),
        };
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        Shared { _silent: silent, bench: Bench::new(Some(start(opened, &wake).unwrap())) }
    }

    pub(super) fn sharing(&mut self) -> &mut Sharing {
        self.bench.keeper.sharing.as_mut().unwrap()
    }

    /// A message for [`TASK`] comes, and there is room for it.
    fn deliver(&mut self, tag: Tag) {
        let action: Arc<str> = "a".into();
        let sharing = self.sharing();
        sharing.course(&action).target = 4;
        sharing.consumers.insert(CONSUMER, (action, 1));
        let body = Bytes::copy_from_slice(&TASK.0);
        let delivery = Delivery { consumer: CONSUMER, tag, body, properties: Properties::default() };
        sharing.delivered(Time(0), delivery);
    }

    fn hand_over(&mut self) {
        let bench = &mut self.bench;
        bench.keeper.hand_over(&mut bench.scheduler, Time(0), &mut bench.effects);
    }
}

#[test]
fn a_delivery_whose_claim_the_store_takes_no_more_goes_back_and_is_held_here_no_longer() {
    let mut shared = Shared::new();
    let tag = Tag::numbered(5);
    shared.deliver(tag);
    shared.bench.keeper.claim_what_waits();
    assert_eq!((shared.sharing().held.len(), shared.sharing().courses["a"].held), (1, 1));
    shared.bench.fail_for_good();
    shared.hand_over();
    assert_eq!((shared.sharing().held.len(), shared.sharing().courses["a"].held), (0, 0));
    assert_eq!(shared.sharing().bus.given_back(), [tag]);
}

#[test]
fn a_worker_that_has_named_a_task_is_told_when_the_store_can_claim_it_no_more() {
    let mut shared = Shared::new();
    shared.bench.register();
    shared.bench.keeper.claim_for(WORKER, TASK);
    shared.bench.fail_for_good();
    shared.hand_over();
    assert!(shared.bench.said_to(WORKER).contains(&Said::Unwanted));
}

#[test]
fn nothing_is_claimed_of_a_store_that_has_failed() {
    let mut shared = Shared::new();
    shared.bench.fail_for_good();
    shared.deliver(Tag::numbered(5));
    shared.bench.keeper.claim_what_waits();
    assert!(shared.sharing().held.is_empty(), "{:?}", shared.sharing().held);
    assert!(
        !shared
            .bench
            .keeper
            .pending
            .values()
            .any(|pending| { matches!(pending, Pending::Claim { from: Claimant::Bus(_), .. }) })
    );
}

#[test]
fn a_balancer_does_not_end_before_it_has_told_what_the_bus_has_confirmed() {
    let mut shared = Shared::new();
    assert!(shared.bench.keeper.is_quiet());
    // The bus counts it no more, and its word is not taken yet.
    let client = Tie::None;
    shared.bench.keeper.token(Pending::Publish { peer: CLIENT, id: 1, task: TASK, client });
    assert!(!shared.bench.keeper.is_quiet());
}
