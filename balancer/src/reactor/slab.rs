//! The connections, by [`Peer`]: a dense index that is used again, and a generation that tells who had it.

use super::connection::Connection;
use crate::scheduler::Peer;

/// A row's first generation. Not 0, which the scheduler's rows have before anybody came.
const FIRST_GENERATION: u32 = 1;

#[derive(Debug)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// The connections there are.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Connections {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Who the next one would be.
    pub(super) fn next_peer(&self) -> Peer {
        match self.free.last() {
            Some(&index) => Peer { index, generation: self.slots[index as usize].generation },
            // The number of connections is bounded far below what 32 bits count.
            None => Peer { index: self.slots.len() as u32, generation: FIRST_GENERATION },
        }
    }

    /// Adds one, as [`next_peer`](Self::next_peer) said.
    pub(super) fn insert(&mut self, connection: Connection) -> Peer {
        let peer = self.next_peer();
        match self.free.pop() {
            Some(index) => self.slots[index as usize].connection = Some(connection),
            None => self.slots.push(Slot { generation: FIRST_GENERATION, connection: Some(connection) }),
        }
        peer
    }

    /// Takes one out. Its generation is over.
    pub(super) fn remove(&mut self, peer: Peer) -> Option<Connection> {
        let slot =
            self.slots.get_mut(peer.index as usize).filter(|slot| slot.generation == peer.generation)?;
        let connection = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(peer.index);
        Some(connection)
    }

    /// The connection, if it is still there.
    #[inline]
    pub(super) fn get_mut(&mut self, peer: Peer) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(peer.index as usize)?;
        if slot.generation == peer.generation { slot.connection.as_mut() } else { None }
    }

    /// Who has an index now.
    pub(super) fn at(&mut self, index: usize) -> Option<(Peer, &mut Connection)> {
        let slot = self.slots.get_mut(index)?;
        let peer = Peer { index: u32::try_from(index).ok()?, generation: slot.generation };
        slot.connection.as_mut().map(|connection| (peer, connection))
    }

    /// All of them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Peer, &mut Connection)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let peer = Peer { index: index as u32, generation: slot.generation };
            slot.connection.as_mut().map(|connection| (peer, connection))
        })
    }
}

#[cfg(test)]
mod tests {
    use mio::net::TcpStream;

    use super::*;
    use crate::dialect::Listener;
    use crate::scheduler::Time;

    #[test]
    fn an_index_is_used_again_with_a_new_generation() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let context = super::super::connection::tests::context();
        let connection = || {
            let stream = TcpStream::connect(address).expect("connects");
            Connection::new(stream, Listener::Clients, &context, Time(0))
        };
        let mut connections = Connections::default();
        let expected = connections.next_peer();
        let first = connections.insert(connection());
        assert_eq!(first, expected);
        let second = connections.insert(connection());
        assert!(connections.remove(first).is_some());
        assert!(connections.remove(first).is_none() && connections.get_mut(first).is_none());
        let third = connections.insert(connection());
        assert_eq!((third.index, third.generation), (first.index, first.generation + 1));
        assert!(connections.get_mut(second).is_some() && connections.get_mut(third).is_some());
        assert_eq!((connections.len(), connections.iter_mut().count()), (2, 2));
    }
}
