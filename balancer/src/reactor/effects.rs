//! Carrying out what the scheduler wants: effects become bytes in the outputs of the connections they concern, as
//! they come.

use bytes::Bytes;

use super::connection::Connection;
use super::decider::Decider;
use super::net::Net;
use super::turn::Reactor;
use crate::background::{Noted, Outlet};
use crate::dialect::{Answer, Asked};
use crate::scheduler::{
    Assignment, AssignmentId, Effect, Effects, Event, Payload, Peer, ProgressKind, Pulled,
};

impl<'a> Effects<'a> for Net {
    fn push(&mut self, effect: Effect<'a>) {
        self.effects += 1;
        self.carry_out(effect);
    }

    #[inline]
    fn assign(&mut self, peer: Peer, assignment: AssignmentId, details: Assignment<'_>) {
        self.effects += 1;
        let now = self.now;
        let told = self.append(peer, |connection| {
            connection.session.assign(now, assignment, &details, &mut connection.output);
        });
        if !told && peer.is_insider() {
            self.notes.push_back(Noted::assigned(peer, assignment, &details));
        }
    }

    #[inline]
    fn result(&mut self, peer: Peer, id: u64, payload: Payload<'a>) {
        self.effects += 1;
        let told =
            self.append(peer, |connection| connection.session.result(id, payload, &mut connection.output));
        if !told && peer.is_insider() {
            self.notes.extend(Noted::of(&Effect::Result { peer, id, payload }));
        }
    }

    #[inline]
    fn assign_some<'p>(
        &mut self,
        peer: Peer,
        action: &str,
        assignments: &mut impl Iterator<Item = (AssignmentId, Payload<'p>)>,
    ) {
        self.effects += 1;
        let open = self.append(peer, |connection| {
            connection.session.assign_some(action, assignments, &mut connection.output);
        });
        if !open {
            // It is over, or it is no connection's: what is for such a one is noted.
            each(assignments, |(assignment, payload)| {
                self.assign(peer, assignment, Assignment::first(action, payload));
            });
        }
    }

    #[inline]
    fn result_some(&mut self, peer: Peer, results: &mut impl Iterator<Item = (u64, Payload<'a>)>) {
        self.effects += 1;
        let open = self.append(peer, |connection| {
            connection.session.result_some(results, &mut connection.output);
        });
        if !open {
            each(results, |(id, payload)| self.result(peer, id, payload));
        }
    }

    #[inline]
    fn created_some(&mut self, peer: Peer, ids: &mut impl Iterator<Item = u64>) {
        self.effects += 1;
        let open = self.append_patiently(peer, |connection| {
            connection.session.created_some(ids, &mut connection.output);
        });
        if !open {
            each(ids, |id| self.push(Effect::Created { peer, id }));
        }
    }

    #[inline]
    fn assign_pulled<'p>(
        &mut self,
        peer: Peer,
        alike: (&str, u8),
        assignments: &mut impl Iterator<Item = Pulled<'p>>,
    ) {
        self.effects += 1;
        let open = self.append(peer, |connection| {
            connection.session.assign_pulled(alike, assignments, &mut connection.output);
        });
        if !open {
            // Nobody but a connection pulls.
            each(assignments, |_| {});
        }
    }

    #[inline]
    fn no_task_some(&mut self, peer: Peer, count: usize) {
        self.effects += 1;
        self.append(peer, |connection| connection.session.no_task_some(count, &mut connection.output));
    }

    fn count(&self) -> usize {
        self.effects
    }
}

/// Takes what is for no open connection, one by one.
#[cold]
fn each<T>(rest: &mut dyn Iterator<Item = T>, take: impl FnMut(T)) {
    rest.for_each(take);
}

impl Outlet for Net {
    fn take_note(&mut self) -> Option<Noted> {
        self.notes.pop_front()
    }
}

impl Net {
    /// The effects that come far less often than assignments and results.
    #[inline(never)]
    fn carry_out(&mut self, effect: Effect<'_>) {
        let peer = match &effect {
            Effect::Note { .. } | Effect::Claim { .. } => {
                self.notes.extend(Noted::of(&effect));
                return;
            }
            Effect::Stopped => {
                self.stopped = true;
                return;
            }
            Effect::Created { peer, id } => {
                let (peer, id) = (*peer, *id);
                let created = |connection: &mut Connection| {
                    connection.session.created_some(&mut std::iter::once(id), &mut connection.output);
                };
                if !self.append_patiently(peer, created) && peer.is_insider() {
                    self.notes.extend(Noted::of(&effect));
                }
                return;
            }
            Effect::Progress { peer, kind: ProgressKind::Report, .. } if self.is_full(*peer) => return,
            Effect::Assign { peer, .. }
            | Effect::CancelAssignment { peer, .. }
            | Effect::Result { peer, .. }
            | Effect::Fail { peer, .. }
            | Effect::Progress { peer, .. }
            | Effect::Refused { peer, .. }
            | Effect::NoTask { peer }
            | Effect::Wake { peer }
            | Effect::Acknowledge { peer, .. }
            | Effect::Ping { peer }
            | Effect::Unwanted { peer, .. }
            | Effect::Answer { peer, .. }
            | Effect::GoAway { peer }
            | Effect::Close { peer, .. } => *peer,
        };
        if peer.is_insider() {
            self.notes.extend(Noted::of(&effect));
            return;
        }
        let closing = matches!(effect, Effect::Close { .. });
        let told = self.append(peer, |connection| connection.session.encode(effect, &mut connection.output));
        if told && closing {
            self.begin_closing(peer);
        }
    }

    /// A page of the status report has come from another reactor for one who asked.
    pub(super) fn report_has_come(&mut self, peer: Peer, id: u64, report: &Bytes) {
        self.append(peer, |connection| connection.session.report(id, report, &mut connection.output));
        if let Some(connection) = self.connections.get_mut(peer) {
            connection.waiting = false;
        }
        self.queue_again(peer);
    }

    /// Whether so much waits for a connection that what can be spared is not told to it.
    fn is_full(&mut self, peer: Peer) -> bool {
        let soft = self.settings.output_soft_bytes;
        self.connections.get_mut(peer).is_some_and(|connection| connection.output.len() >= soft)
    }
}

impl<D: Decider> Reactor<D> {
    /// Hands an event on, to whoever decides what is to be done about it.
    #[inline]
    pub(super) fn handle(&mut self, event: Event<'_>) {
        self.decider.handle(&mut self.net, event);
    }

    /// Has done what is due.
    pub(super) fn tick(&mut self) {
        self.decider.tick(&mut self.net);
    }

    /// Answers a frame that the scheduler has no part in. Says whether the connection has enough to read now.
    pub(super) fn answer(&mut self, peer: Peer, answer: &Answer) -> bool {
        let full = self.net.is_full(peer);
        // What waits unread tells a peer that we are alive, and pongs must not pile up on it.
        if full && matches!(answer, Answer::Pong(_)) {
            return false;
        }
        let asked = match answer {
            Answer::Status { id, offset, limit } => {
                Some((*id, Asked::Status { offset: *offset, limit: *limit }))
            }
            Answer::Question(question) => Some((0, Asked::Gearman(question.clone()))),
            _ => None,
        };
        if let Some((id, asked)) = asked {
            return !self.report(peer, id, asked) || full;
        }
        let context = self.net.context.clone();
        let open = self.net.append(peer, |connection| {
            connection.session.answer(&context, answer, &mut connection.output);
        });
        full || !open
    }

    /// Answers a question. Says whether the connection can go on: where the report comes from
    /// another reactor, it waits, lest its answers change places or its questions pile up.
    fn report(&mut self, peer: Peer, id: u64, asked: Asked) -> bool {
        match self.decider.report(&mut self.net, peer, id, asked) {
            Some(report) => self.net.append(peer, |connection| {
                connection.session.report(id, &report, &mut connection.output);
            }),
            None => {
                if let Some(connection) = self.net.connections.get_mut(peer) {
                    connection.waiting = true;
                }
                false
            }
        }
    }

    /// Ends the connections that were doomed while effects were carried out.
    pub(super) fn settle(&mut self) {
        while let Some(peer) = self.net.doomed.pop() {
            self.lost(peer, "it does not read what it is sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Listener;
    use crate::reactor::Settings;

    #[test]
    fn what_comes_together_for_one_who_has_no_connection_is_noted_one_by_one() {
        let address = ([127, 0, 0, 1], 1).into();
        let poll = mio::Poll::new().expect("a poll");
        let mut net = Net::new(poll, (address, address), Settings::default(), None);
        let insider = Peer::insider(1);
        let payload = Payload::new(b"x");
        let mut assignments = (1..=3).map(|number| (AssignmentId(number), payload));
        net.assign_some(insider, "a", &mut assignments);
        net.result_some(insider, &mut (1..=2).map(|id| (id, payload)));
        let mut noted = Vec::new();
        while let Some(note) = net.take_note() {
            noted.push(matches!(note, Noted::Assigned(..)));
        }
        assert_eq!(noted, [true, true, true, false, false]);
    }

    /// A net with one connection, and the listener that keeps its other end waiting.
    fn net_with_one() -> (Net, Peer, std::net::TcpListener) {
        let address = ([127, 0, 0, 1], 1).into();
        let poll = mio::Poll::new().expect("a poll");
        let mut net = Net::new(poll, (address, address), Settings::default(), None);
        let door = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = std::net::TcpStream::connect(door.local_addr().expect("bound")).expect("a connection");
        stream.set_nonblocking(true).expect("a socket can be");
        let stream = mio::net::TcpStream::from_std(stream);
        let connection = Connection::new(stream, Listener::Gearman, &net.context, net.now);
        let peer = net.add(connection).expect("a peer");
        (net, peer, door)
    }

    #[test]
    fn what_is_held_back_is_written_after_a_turn_or_when_nothing_else_happens() {
        let (mut net, peer, _door) = net_with_one();
        let is_due = |net: &mut Net| {
            let connection = net.connections.get_mut(peer).expect("it is open");
            connection.touched = false;
            !std::mem::take(&mut net.touched).is_empty()
        };
        let hold = |net: &mut Net| {
            net.connections.get_mut(peer).expect("it is open").held_back = true;
            net.held_back.add(peer);
        };
        hold(&mut net);
        net.hurry(false);
        assert!(!is_due(&mut net), "the rest may come");
        net.hurry(false);
        assert!(is_due(&mut net), "it has not");
        hold(&mut net);
        net.hurry(true);
        assert!(is_due(&mut net), "nothing comes");
        hold(&mut net);
        net.connections.get_mut(peer).expect("it is open").held_back = false;
        net.hurry(true);
        assert!(!is_due(&mut net), "it went with the rest");
        assert!(net.held_back.is_empty());
    }

    #[test]
    fn that_a_task_was_taken_goes_with_what_follows_or_after_some_turns_or_when_nothing_else_happens() {
        let (mut net, peer, _door) = net_with_one();
        let is_due = |net: &mut Net| !std::mem::take(&mut net.touched).is_empty();
        let flushed = |net: &mut Net| {
            let connection = net.connections.get_mut(peer).expect("it is open");
            connection.touched = false;
            connection.output.advance(usize::MAX);
        };

        net.created_some(peer, &mut [1, 2].into_iter());
        net.hurry(false);
        assert!(!is_due(&mut net), "more may follow");
        net.hurry(true);
        assert!(is_due(&mut net), "nothing follows");
        flushed(&mut net);

        net.push(Effect::Created { peer, id: 3 });
        let turns = (1..100).find(|_| {
            net.hurry(false);
            is_due(&mut net)
        });
        assert_eq!(turns, Some(17), "it waits for some turns and no longer");
        flushed(&mut net);

        net.push(Effect::Created { peer, id: 4 });
        net.result(peer, 4, Payload::new(b"x"));
        assert!(is_due(&mut net), "both are written");
        flushed(&mut net);
        net.hurry(true);
        assert!(!is_due(&mut net), "nothing is left to be written");
    }

    #[test]
    fn what_may_wait_is_written_into_a_buffer_that_is_there_already_each_time() {
        let (mut net, peer, _door) = net_with_one();
        net.spare.push(bytes::BytesMut::with_capacity(10_000));
        for _ in 0..3 {
            // It stands among those that wait from the first time on, though what waited then was written.
            net.append_patiently(peer, |connection| connection.output.buffer().extend_from_slice(b"some"));
            assert!(net.spare.is_empty(), "the buffer is lent");
            let connection = net.connections.get_mut(peer).expect("it is there");
            connection.output.advance(4);
            net.spare.extend(connection.output.take_buffer());
        }
        assert!(net.spare[0].capacity() >= 9_000);
    }
}
