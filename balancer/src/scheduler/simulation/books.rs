//! What the outside of the simulation writes down, and holds the scheduler's effects against.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::super::*;
use reparto_protocol::ErrorCode;

/// A task as it was submitted, by the serial number that its payload carries.
#[derive(Debug)]
pub(super) struct SimTask {
    pub(super) action: &'static str,
    pub(super) key: &'static [u8],
    pub(super) max_attempts: u8,
    /// Attempts that it has used up.
    pub(super) spent: u8,
    pub(super) deadline: Option<Time>,
    /// It may be expired from here on, having waited for its first assignment.
    pub(super) waits_until: Time,
    /// A worker that had it limits how long it runs, so that it may be expired for that.
    pub(super) is_limited: bool,
}

/// What a worker has not answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    pub(super) assignment: AssignmentId,
    pub(super) serial: u64,
    pub(super) recalled: bool,
}

/// A worker as the outside sees it.
#[derive(Debug, Default)]
pub(super) struct SimWorker {
    pub(super) id: String,
    pub(super) threads: u32,
    /// The largest that it has announced: it may hold as many after it has announced a smaller one.
    pub(super) window: u32,
    pub(super) actions: Vec<&'static str>,
    /// The oldest first.
    pub(super) holds: Vec<Hold>,
    /// It neither answers nor gives a sign of life.
    pub(super) hangs: bool,
    /// It is asked whether it is there.
    pub(super) heartbeats: bool,
    /// It was asked whether it is there, and has not answered.
    pub(super) asked: bool,
    pub(super) draining: bool,
    /// It hands back at once what is recalled.
    pub(super) hands_back: bool,
    /// It asks for its tasks.
    pub(super) pulls: Option<SimPuller>,
    /// It is all other balancers, and is given what it does not offer.
    pub(super) lends: bool,
}

/// What the outside knows of a worker that asks for its tasks.
#[derive(Debug, Default)]
pub(super) struct SimPuller {
    /// It has gone to sleep, and was not woken.
    pub(super) asleep: bool,
    /// What it has asked for and was not answered.
    pub(super) asked: u32,
    /// It limits how long a run takes, of one action at least.
    pub(super) limits: bool,
}

/// What somebody outside does at once when an effect reaches him.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    Alive(Peer),
    HandBack(Peer, AssignmentId),
}

/// An effect that has reached the outside.
pub(super) struct Note<'a> {
    pub(super) effect: Effect<'a>,
    /// Of an assignment.
    pub(super) details: Option<Assignment<'a>>,
    pub(super) now: Time,
}

/// The books.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// Events and effects are under way for a time, so that the scheduler may not know yet what stands here, nor the
    /// outside what the scheduler knows. Then only that is checked which holds all the same.
    pub(super) late: bool,
    /// What each client is owed an answer for: its own number, and the serial of what it submitted.
    pub(super) clients: BTreeMap<Peer, BTreeMap<u64, u64>>,
    pub(super) workers: BTreeMap<Peer, SimWorker>,
    pub(super) tasks: HashMap<u64, SimTask>,
    pub(super) replies: Vec<Reply>,
    /// A worker has limited how long a run takes.
    pub(super) some_limit: bool,
    pub(super) stopped: bool,
    /// What has happened at least once.
    pub(super) seen: BTreeSet<&'static str>,
    assignments: HashSet<AssignmentId>,
}

/// The form with which a pull worker asks.
pub(super) fn form_of(peer: Peer) -> u8 {
    peer.generation as u8
}

/// The serial that a payload carries.
pub(super) fn serial_of(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Books {
    pub(super) fn new(late: bool) -> Books {
        Books { late, ..Books::default() }
    }

    /// A worker is lost: its oldest tasks, as many as it runs at once, have used up an attempt.
    pub(super) fn worker_lost(&mut self, peer: Peer) -> bool {
        let Some(worker) = self.workers.remove(&peer) else { return false };
        for hold in worker.holds.iter().take(worker.threads as usize) {
            self.spend(hold.serial);
        }
        true
    }

    pub(super) fn spend(&mut self, serial: u64) {
        let task = self.tasks.get_mut(&serial).expect("a task that a worker holds was submitted");
        task.spent = task.spent.saturating_add(1);
    }

    /// Another balancer has a task that was lent: it does not wait any more.
    pub(super) fn taken(&mut self, serial: u64) {
        self.tasks.entry(serial).and_modify(|task| task.waits_until = Time(u64::MAX));
    }

    /// A task that was lent waits here again, as long as it might before or, had it been taken, until then.
    pub(super) fn waits_anew(&mut self, serial: u64, until: Time) {
        let was_taken = |task: &SimTask| task.waits_until == Time(u64::MAX);
        self.tasks.entry(serial).and_modify(|task| {
            if was_taken(task) {
                task.waits_until = until;
            }
        });
    }

    /// Holds an effect against what is known, and writes it down.
    pub(super) fn note(&mut self, note: Note<'_>) {
        let Note { effect, details, now } = note;
        match effect {
            Effect::Assign { peer, assignment } => {
                self.assigned(&details.expect("its details are there"), peer, assignment);
            }
            Effect::CancelAssignment { peer, assignment, recall } => {
                let worker = self.workers.get_mut(&peer).expect("a cancel is for a worker that is there");
                let at = worker.holds.iter().position(|hold| hold.assignment == assignment);
                if self.late && at.is_none() {
                    self.seen.insert("cancelled what was answered");
                    return;
                }
                let at = at.expect("a cancel is for what the worker holds");
                if worker.lends {
                    // Whoever speaks for them ends it at once.
                    self.replies.push(Reply::HandBack(peer, assignment));
                }
                if recall {
                    assert!(self.late || at >= worker.threads as usize, "what can be running is recalled");
                    assert!(!worker.holds[at].recalled, "it is recalled twice");
                    worker.holds[at].recalled = true;
                    self.seen.insert("recalled");
                    if worker.hands_back && !worker.hangs {
                        self.replies.push(Reply::HandBack(peer, assignment));
                    }
                }
            }
            Effect::Result { peer, id, payload } => {
                let serial = self.answered(peer, id);
                let (asked, told) = (&self.tasks[&serial], &self.tasks[&serial_of(payload.as_slice())]);
                let same = (asked.action, asked.key) == (told.action, told.key);
                assert!(
                    serial == serial_of(payload.as_slice()) || (same && !asked.key.is_empty()),
                    "another's result"
                );
                self.seen.insert(if serial == serial_of(payload.as_slice()) {
                    "done"
                } else {
                    "done for another, too"
                });
            }
            Effect::Fail { peer, id, code, .. } => self.failed(now, peer, id, code),
            Effect::Progress { peer, id, .. } => {
                assert!(self.clients[&peer].contains_key(&id), "progress comes before the answer");
            }
            Effect::Close { peer, code, .. } => {
                // Its loss was written down before, with the first effect of the event that lost it.
                assert!(!self.workers.contains_key(&peer));
                self.seen.insert(code.name());
            }
            Effect::Ping { peer } => {
                let worker = self.workers.get_mut(&peer).expect("a worker that is there is asked");
                assert!(worker.heartbeats, "a worker without heartbeats is asked");
                worker.asked = true;
                if !worker.hangs {
                    self.replies.push(Reply::Alive(peer));
                }
            }
            Effect::Stopped => {
                assert!(!std::mem::replace(&mut self.stopped, true), "it stops once");
                assert!(self.clients.values().all(BTreeMap::is_empty), "it stops when all are answered");
            }
            Effect::Note { .. } | Effect::Claim { .. } | Effect::Unwanted { .. } | Effect::Answer { .. } => {
                panic!("there are no background tasks here")
            }
            Effect::Created { peer, id } => {
                assert!(self.clients[&peer].contains_key(&id), "it is announced before the answer");
            }
            Effect::Refused { peer, id, code, .. } => {
                self.answered(peer, id);
                self.seen.insert(code.name());
            }
            Effect::NoTask { peer } => {
                self.puller(peer).asked -= 1;
                self.seen.insert("asked in vain");
            }
            Effect::Wake { peer } => {
                assert!(std::mem::take(&mut self.puller(peer).asleep), "one that is awake is woken");
                self.seen.insert("woken");
            }
            Effect::Acknowledge { .. } | Effect::GoAway { .. } => {}
        }
    }

    pub(super) fn puller(&mut self, peer: Peer) -> &mut SimPuller {
        let worker = self.workers.get_mut(&peer).expect("it is there");
        worker.pulls.as_mut().expect("it pulls")
    }

    fn assigned(&mut self, details: &Assignment<'_>, peer: Peer, assignment: AssignmentId) {
        assert!(self.assignments.insert(assignment), "an assignment's id is new");
        let serial = serial_of(details.payload.as_slice());
        let task = &self.tasks[&serial];
        assert_eq!((details.action, details.key), (task.action, task.key));
        assert!(details.attempt <= task.max_attempts, "no attempt is left");
        assert!(self.late || details.attempt == task.spent + 1, "attempts are counted");
        let worker = self.workers.get_mut(&peer).expect("a task is given to a worker that is there");
        if !self.late {
            assert!(worker.lends || worker.actions.contains(&task.action), "it does not offer the action");
            assert!(!worker.asked, "a worker that may be lost is given a task");
            assert!(!worker.draining, "a draining worker is given a task");
        }
        if let Some(puller) = &mut worker.pulls {
            puller.asked = puller.asked.checked_sub(1).expect("it has asked for a task");
            // What is looked up afterwards does not have it.
            assert!(!self.late || details.form == form_of(peer), "the form is what it asked with");
            self.seen.insert("given what it asked for");
            self.tasks.entry(serial).and_modify(|task| task.is_limited |= puller.limits);
        }
        worker.holds.push(Hold { assignment, serial, recalled: false });
        assert!(worker.holds.len() <= worker.window as usize, "a worker is over its window");
    }

    fn failed(&mut self, now: Time, peer: Peer, id: u64, code: ErrorCode) {
        let serial = self.answered(peer, id);
        let task = &self.tasks[&serial];
        // One that has joined another shares that one's fate.
        if task.key.is_empty() && !task.is_limited {
            match code {
                ErrorCode::AttemptsExhausted => {
                    assert!(self.late || task.spent == task.max_attempts, "it had attempts left");
                }
                ErrorCode::Expired => {
                    let due = task.deadline.is_some_and(|deadline| deadline <= now);
                    // Of an assignment it may not have been told yet.
                    let may_be_limited = self.late && self.some_limit;
                    assert!(due || task.waits_until <= now || may_be_limited, "expired before its time");
                }
                _ => {}
            }
        }
        self.seen.insert(code.name());
    }

    /// A client has its answer. Says which of the tasks submitted it was for.
    fn answered(&mut self, peer: Peer, id: u64) -> u64 {
        let owed = self.clients.get_mut(&peer).expect("an answer is for a client that is there");
        owed.remove(&id).unwrap_or_else(|| panic!("task {id} has a second answer, or nobody asked for it"))
    }

    /// Panics when a task is owed an answer long after its deadline.
    pub(super) fn assert_deadlines_are_kept(&self, now: Time) {
        for serial in self.clients.values().flat_map(BTreeMap::values) {
            let task = &self.tasks[serial];
            let deadline = task.deadline.filter(|_| task.key.is_empty());
            assert!(
                deadline.is_none_or(|deadline| now.0 < deadline.0 + 2_048),
                "{task:?} outlives its deadline"
            );
        }
    }

    /// Panics when a task still waits for a worker that is there, idle and willing.
    pub(super) fn assert_nobody_waits_for_an_idle_worker(&self) {
        assert!(self.workers.values().all(|worker| worker.holds.is_empty()));
        for serial in self.clients.values().flat_map(BTreeMap::values) {
            let action = self.tasks[serial].action;
            let offered = self.workers.values().any(|w| !w.draining && w.actions.contains(&action));
            assert!(!offered, "a task of '{action}' waits for ever");
        }
    }
}
