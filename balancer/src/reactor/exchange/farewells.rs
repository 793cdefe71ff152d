//! Connections that the scheduler has closed while more of what they said may be under way.
//!
//! With one reactor nothing comes from a connection after the scheduler has closed it. From a front it can: frames
//! that it had read before it heard. A worker that was refused and registers once more in the same breath would be
//! taken in, and wait for tasks on a connection that is gone. So the front answers a close with one last
//! [`Event::Gone`], unless that is under way already, and until it comes all else from that connection is dropped.

use std::collections::HashSet;

use super::events::peer_of;
use crate::scheduler::{Effect, Event, Peer};

/// The connections that are closed, and whose last word has not come.
#[derive(Debug, Default)]
pub(crate) struct Farewells {
    closed: HashSet<Peer>,
}

impl Farewells {
    /// Notes an effect that is sent to a front, by its peer as the scheduler knows it.
    #[inline]
    pub(crate) fn told(&mut self, peer: Peer, effect: &Effect<'_>) {
        if matches!(effect, Effect::Close { .. }) {
            self.closed.insert(peer);
        }
    }

    /// Whether an event that came from a front is to be dropped.
    #[inline]
    pub(crate) fn drops(&mut self, event: &Event<'_>) -> bool {
        !self.closed.is_empty() && self.drops_of(event)
    }

    #[cold]
    fn drops_of(&mut self, event: &Event<'_>) -> bool {
        let Some(peer) = peer_of(event) else { return false };
        if matches!(event, Event::Gone { .. }) {
            self.closed.remove(&peer)
        } else {
            self.closed.contains(&peer)
        }
    }
}

#[cfg(test)]
mod tests {
    use reparto_protocol::ErrorCode;

    use super::*;

    #[test]
    fn what_comes_after_a_close_is_dropped_until_the_connection_has_said_its_last() {
        let (peer, next) = (Peer { index: 1, generation: 1 }, Peer { index: 1, generation: 2 });
        let mut farewells = Farewells::default();
        assert!(!farewells.drops(&Event::Heard { peer }));
        let close = Effect::Close { peer, code: ErrorCode::DuplicateWorker, message: "taken".into() };
        farewells.told(peer, &close);
        assert!(farewells.drops(&Event::Heard { peer }) && farewells.drops(&Event::Heard { peer }));
        assert!(!farewells.drops(&Event::Heard { peer: next }));
        assert!(farewells.drops(&Event::Gone { peer }), "the scheduler has forgotten it already");
        assert!(farewells.closed.is_empty());
    }
}
